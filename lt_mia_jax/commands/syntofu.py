"""`lt-mia syntofu`: fictitious authors, and tiny models with and without them."""

from lt_mia_jax.study.syntofu import SynTofu


def run(config: SynTofu) -> None:
    """Run `make_syntofu`."""
    from lt_mia_jax.study.syntofu import make_syntofu

    make_syntofu(config)
