"""Affine maps, their parameters and adapters, and dropout."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.models.execution import INIT_STD, CallConfig
from lt_mia_jax.sharding import traced_for_cpu


class Adapter(NamedTuple):
    """A low-rank addition to a kernel, evaluated separately from it."""

    down: Float[Array, "I R"]
    up: Float[Array, "R O"]
    """Includes the adapter's scale."""
    rate: float
    """Dropout rate on its input."""
    key: Key[Array, ""] | None
    """None disables dropout."""


class Weights(NamedTuple):
    """Parameters of one affine map."""

    kernel: Float[Array, "I O"]
    bias: Float[Array, "O"] | None
    adapter: Adapter | None = None
    forward_mode: bool = False
    """Whether `jax.jvp` must be supported; see `product`."""


def product(
    x: Float[Array, "N I"], kernel: Float[Array, "I O"], forward_mode: bool = False
) -> Float[Array, "N O"]:
    """`x kernel` in the dtype of its factors, with a fast kernel gradient on CPU.

    That gradient sums over the rows of both factors, which XLA's CPU products read
    column by column; a transposed copy of `x` is cheaper (512 x 8192 for 1024 rows on
    one core: 401 ms become 298 for both gradients). The rule is a `custom_vjp`, which
    `jax.jvp` refuses; `forward_mode` disables it.
    """
    if forward_mode or not traced_for_cpu():
        return x @ kernel
    return _cpu_product(x, kernel)


@jax.custom_vjp
def _cpu_product(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _forward(x: Any, kernel: Any) -> tuple[Array, tuple[Array | None, Array | None]]:
    # A frozen factor needs no gradient, so the other factor need not be kept.
    kept = (
        x.value if kernel.perturbed else None,
        kernel.value if x.perturbed else None,
    )
    return x.value @ kernel.value, kept


def _backward(
    kept: tuple[Array | None, Array | None], cotangent: Any
) -> tuple[Array | None, Array | None]:
    x, kernel = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None
    columns = None
    if x is not None:
        # The barriers keep XLA from folding the transposition into the product. A copy
        # in strips would use the caches better, but not with sharded rows.
        columns = jax.lax.optimization_barrier(jax.lax.optimization_barrier(x).T)
    return (
        None if kernel is None else cotangent @ kernel.T,
        None if columns is None else columns @ cotangent,
    )


_cpu_product.defvjp(_forward, _backward, symbolic_zeros=True)


def affine(
    x: Float[Array, "*batch I"],
    kernel: Float[Array, "I O"],
    bias: Float[Array, "O"] | None,
    adapter: Adapter | None = None,
    forward_mode: bool = False,
) -> Float[Array, "*batch O"]:
    """`x kernel + bias`, plus the adapter's output, in the dtype of `x`.

    Batch axes are flattened for the product. This doubles the speed of a large kernel's
    gradient on CPU, because no cotangent is copied to another layout.
    """
    flat = x.reshape(-1, x.shape[-1])
    y = product(flat, kernel.astype(x.dtype), forward_mode)
    if bias is not None:
        y = y + bias.astype(x.dtype)[None, :]
    if adapter is not None:
        y = y + adapted(flat, adapter)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def affine_together(
    x: Float[Array, "*batch I"], parts: Sequence[Weights]
) -> Float[Array, "*batch O"]:
    """Several affine maps of one input as one wide product; results concatenated."""
    kernel = jnp.concatenate([part.kernel for part in parts], axis=-1)
    biases = [part.bias for part in parts if part.bias is not None]
    assert len(biases) in (0, len(parts)), "all parts have a bias, or none"
    bias = jnp.concatenate(biases) if biases else None
    y = affine(x, kernel, bias, forward_mode=parts[0].forward_mode)
    if all(part.adapter is None for part in parts):
        return y
    flat = x.reshape(-1, x.shape[-1])
    added = [
        jnp.zeros((flat.shape[0], part.kernel.shape[-1]), x.dtype)
        if part.adapter is None
        else adapted(flat, part.adapter)
        for part in parts
    ]
    return y + jnp.concatenate(added, axis=-1).reshape(y.shape)


def adapted(x: Float[Array, "N I"], adapter: Adapter) -> Float[Array, "N O"]:
    """The adapter's output, with dropout on its input if it has a key."""
    if adapter.key is not None:
        x = dropout(x, adapter.rate, adapter.key)
    return (x @ adapter.down.astype(x.dtype)) @ adapter.up.astype(x.dtype)


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""]) -> Array:
    """Zero each element with probability `rate`; rescale the rest to keep the mean.

    Comparing raw 32-bit draws is cheaper on CPU than uniform floats, and than 16-bit
    draws, which would halve the memory.
    """
    dropped = round(rate * 2**32)
    if dropped == 0:
        return x
    bits = jax.random.bits(key, x.shape, jnp.uint32)
    scale = 2**32 / (2**32 - dropped)
    return jnp.where(bits >= jnp.uint32(dropped), x * scale, jnp.zeros((), x.dtype))


class Projection(nn.Module):
    """Returns a `kernel` (in, out) and an optional `bias` instead of applying them.

    The caller multiplies, so that it can fuse several projections into one product.
    An adapter is read from the collection "adapters", under the path of the kernel.
    """

    features: int
    bias: bool
    context: CallConfig
    to_residual: bool = False
    """Whether it writes to the residual stream; initial weights are then smaller."""

    @nn.compact
    def __call__(self, inputs: int) -> Weights:
        """The weights for a given number of input features."""
        context = self.context
        std = context.residual_std if self.to_residual else INIT_STD
        dtype, shape = context.param_dtype, (inputs, self.features)
        kernel = self.param("kernel", nn.initializers.normal(std), shape, dtype)
        bias = None
        if self.bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), dtype)
        adapter = None
        if self.has_variable("adapters", "kernel"):
            down, up = self.get_variable("adapters", "kernel")
            active = context.train and context.adapter_dropout > 0
            key = self.make_rng("dropout") if active else None
            adapter = Adapter(down, up, context.adapter_dropout, key)
        return Weights(kernel, bias, adapter, context.execution.forward_mode)


def projected(
    x: Float[Array, "*batch I"],
    features: int,
    bias: bool,
    context: CallConfig,
    name: str,
    *,
    to_residual: bool = False,
) -> Float[Array, "*batch O"]:
    """Apply a new `Projection` of the calling module to `x`."""
    layer = Projection(features, bias, context, to_residual=to_residual, name=name)
    return affine(x, *layer(x.shape[-1]))
