"""`lt-mia doctor`: what this machine has, and whether it computes right numbers."""

import dataclasses
import logging
import sys

from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show devices, memory, versions and caches, and check that results are right.

    The check scores eight texts with a tiny model and the attack of the package, and
    compares the scores with stored ones; about ten seconds. Exit code 2 if they differ.
    Show its output when you report a fault.
    """

    self_test: bool = True
    """Run the check."""
    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def run(config: Doctor) -> None:
    """Print the facts, then the result of the check."""
    import jax

    from lt_mia_jax.audit.machine import facts
    from lt_mia_jax.audit.self_test import ALLOWED, self_test

    executor = config.devices.make()
    for name, value in facts(executor):
        sys.stdout.write(f"{name:<14} {value}\n")
    if not config.self_test or jax.process_count() > 1:
        return  # texts are scored in one process
    found = self_test(executor)
    worst = max(found.deviations, key=lambda name: found.deviations[name])
    result = (
        f"largest deviation {found.deviations[worst]:.2g} ({worst}), allowed "
        f"{ALLOWED:g}; {found.seconds:.1f} s"
    )
    if not found.passed:
        raise InputError(
            f"the self-test failed: {result}; scores of this machine are wrong. Check "
            "the versions above, unset JAX_* and XLA_FLAGS, or try JAX_PLATFORMS=cpu"
        )
    sys.stdout.write(f"{'self-test':<14} passed: {result}\n")
