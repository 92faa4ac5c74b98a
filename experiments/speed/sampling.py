"""Tokens a second: a model that remembers, beside one that reads all for each token.

python -m experiments.speed.sampling --families gpt2 mamba

Both draw the most likely tokens, the same ones, after prompts of half that length, in a
run after one that compiles.
"""

import dataclasses
import logging
import time
from collections.abc import Callable

import jax
import numpy as np
import tyro

from lt_mia_jax.models import LanguageModel, gpt2_like, mamba_like
from lt_mia_jax.models.generation import greedy
from lt_mia_jax.models.presets import griffin_like, rwkv_like

FAMILIES = ("gpt2", "mamba", "rwkv", "griffin")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Time greedy decoding with and without a state."""

    families: tuple[str, ...] = FAMILIES
    """Of gpt2, mamba, rwkv, griffin."""
    width: int = 256
    layers: int = 6
    vocab_size: int = 8000
    new_tokens: int = 128
    rows: int = 8
    """Texts in a batch."""


def unchanged(stream: jax.Array, layer: jax.Array) -> jax.Array:
    """An intervention that does nothing: under one, nothing is remembered."""
    return stream


def timed(run: Callable[[], jax.Array]) -> tuple[float, np.ndarray]:
    """Seconds of a run after one that compiles, and what it gave."""
    found = np.asarray(run())
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began, found


def main() -> None:
    """Print a row a family."""
    c = tyro.cli(Sampling)
    context = 2 * c.new_tokens
    makers = {
        "gpt2": lambda: gpt2_like(c.vocab_size, c.width, c.layers, 4, context),
        "mamba": lambda: mamba_like(c.vocab_size, c.width, c.layers),
        "rwkv": lambda: rwkv_like(c.vocab_size, c.width, c.layers),
        "griffin": lambda: griffin_like(c.vocab_size, c.width, c.layers, 4),
    }
    rng = np.random.default_rng(0)
    prompts = rng.integers(c.vocab_size, size=(c.rows, c.new_tokens // 2))
    lengths = np.full(c.rows, prompts.shape[1])
    logging.info("| family | remembers | reads all | ratio | same tokens |")
    logging.info("|---|---|---|---|---|")
    for name in c.families:
        model = LanguageModel(makers[name]())
        params = model.init(jax.random.key(0))

        def run(intervention=None, model=model, params=params) -> jax.Array:
            return greedy(
                model,
                params,
                prompts.astype(np.int32),
                lengths,
                max_new_tokens=c.new_tokens,
                end_token=None,
                intervention=intervention,
            ).tokens

        (quick, one), (slow, two) = timed(run), timed(lambda f=run: f(unchanged))
        tokens = c.rows * c.new_tokens
        logging.info(
            f"| {name} | {tokens / quick:,.0f} tokens/s "
            f"| {tokens / slow:,.0f} tokens/s | {slow / quick:.1f} "
            f"| {np.mean(one == two):.1%} |"
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
