"""Low-rank adapters as a parameter tree beside the model's own.

Adapters are a dict from the path of a kernel to a pair `(A, B)`. A kernel is
`(..., in, out)`; leading axes are layers stacked for the scan, and each layer gets an
adapter of its own: `A` is `(..., in, rank)`, `B` is `(..., rank, out)`.
"""

import zlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Key, Params
from lt_mia_jax.errors import InputError
from lt_mia_jax.trees import flatten, select, unflatten

Adapters = dict[str, tuple[Array, Array]]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which kernels get adapters, and of what size. Everything else is frozen."""

    rank: int = 16
    """Inner size of the adapters."""
    alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    dropout: float = 0.05
    """Rate at which inputs of the adapters are dropped in training; see `drop`."""
    targets: tuple[str, ...] = ("*/mixer/*/kernel", "*/feed_forward/*/kernel")
    """Globs over parameter paths; each must match. The default takes all layers."""

    def __post_init__(self):
        wrong = []
        if self.rank < 1:
            wrong.append(f"rank = {self.rank} (expected at least 1)")
        if not 0 <= self.dropout < 1:
            wrong.append(f"dropout = {self.dropout} (expected in [0, 1))")
        if not self.targets:
            wrong.append("no targets (expected globs such as '*/mixer/*/kernel')")
        if wrong:
            raise InputError(f"lora: {'; '.join(wrong)}")

    @property
    def scale(self) -> float:
        """Factor on the product of the adapters."""
        return self.alpha / self.rank


def init(key: Key[Array, ""], params: Params, config: LoraConfig) -> Adapters:
    """Float32 adapters that change nothing yet: `A` is random, `B` is zero.

    `A` is uniform in +-1/sqrt(in).

    Raises:
      InputError: a glob matches nothing, or a match is not a matrix.

    Source: LoRA, arXiv 2106.09685, section 4.1.
    """
    flat = flatten(params)
    names = select(flat, config.targets)
    flat_wrong = [name for name in names if flat[name].ndim < 2]
    if flat_wrong:
        raise InputError(
            f"lora targets {list(config.targets)} match {flat_wrong}, which are not "
            "matrices; name kernels only, such as '*/mixer/*/kernel'"
        )

    def pair(name: str) -> tuple[Array, Array]:
        *stacked, inputs, outputs = flat[name].shape
        # The name and not the position decides the key: adding a target leaves the
        # other adapters as they are.
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        bound = inputs**-0.5
        a = jax.random.uniform(
            own, (*stacked, inputs, config.rank), minval=-bound, maxval=bound
        )
        return a, jnp.zeros((*stacked, config.rank, outputs))

    return {name: pair(name) for name in names}


def merge(params: Params, adapters: Adapters, scale: float) -> Params:
    """`params` with `scale * A @ B` added to each adapted kernel, in its dtype."""
    flat = flatten(params)
    for name, (a, b) in adapters.items():
        # Full precision: the product is small beside the forward pass, and it ends up
        # in the weights.
        delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        kernel = flat[name].astype(jnp.float32) + scale * delta
        flat[name] = kernel.astype(flat[name].dtype)
    return unflatten(flat)


def drop(adapters: Adapters, rate: float, key: Key[Array, ""]) -> Adapters:
    """Adapters that ignore a random share of their input features.

    Rows of `A` are zeroed with probability `rate` and the rest divided by
    `1 - rate`, which is dropout on the adapter's input, `x W + scale (m * x) A B`,
    with one mask `m` a step for all tokens.

    Deviation: the reference draws a mask for every token, which no change of weights
    can express; the mean is the same and the noise is shared by the tokens.
    """
    if rate == 0:
        return adapters

    def thin(name: str, a: Float[Array, "... I R"]) -> Array:
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        kept = jax.random.bernoulli(own, 1 - rate, (*a.shape[:-1], 1))
        return jnp.where(kept, a / (1 - rate), 0.0)

    return {name: (thin(name, a), b) for name, (a, b) in adapters.items()}
