"""Affine maps, their parameters and adapters, and dropout."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.models.execution import INIT_STD, Context


class Adapter(NamedTuple):
    """A low-rank addition to a kernel, evaluated beside it."""

    down: Float[Array, "I R"]
    up: Float[Array, "R O"]
    """Already multiplied by the adapter's scale."""
    rate: float
    """Dropout of its input."""
    key: Key[Array, ""] | None
    """Switches the dropout on."""


class Weights(NamedTuple):
    """The parameters of one affine map."""

    kernel: Float[Array, "I O"]
    bias: Float[Array, "O"] | None
    adapter: Adapter | None = None


@jax.custom_jvp
def product(x: Float[Array, "N I"], kernel: Float[Array, "I O"]) -> Float[Array, "N O"]:
    """`x kernel` in the dtype of its factors; its kernel's gradient is fast on CPU.

    That gradient sums over the rows of two matrices. XLA's CPU products then walk both
    down their columns; a transposed copy of `x`, made where `x` would have been kept,
    costs less (512 x 8192 for 1024 rows: 258 ms become 212 for both gradients).
    """
    return x @ kernel


def _product_jvp(
    primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    (x, kernel), (moved_x, moved_kernel) = primals, tangents
    y = x @ kernel
    moved = jnp.zeros_like(y)
    if not isinstance(moved_x, SymbolicZero):
        moved = moved_x @ kernel
    # A frozen kernel has no tangent, and then nothing needs to be kept for it.
    if not isinstance(moved_kernel, SymbolicZero):
        if jax.default_backend() == "cpu":
            # Without the barrier the transposition is folded into the product again.
            columns = jax.lax.optimization_barrier(x.T)
            moved = moved + jnp.einsum("in,io->no", columns, moved_kernel)
        else:
            moved = moved + x @ moved_kernel
    return y, moved


product.defjvp(_product_jvp, symbolic_zeros=True)


def affine(
    x: Float[Array, "*batch I"],
    kernel: Float[Array, "I O"],
    bias: Float[Array, "O"] | None,
    adapter: Adapter | None = None,
) -> Float[Array, "*batch O"]:
    """`x kernel + bias`, and the adapter's part, in the dtype of `x`.

    Batch axes are flattened for the product: on CPU the gradient of a large kernel is
    then twice as fast, because no cotangent is copied to another layout.
    """
    flat = x.reshape(-1, x.shape[-1])
    y = product(flat, kernel.astype(x.dtype))
    if bias is not None:
        y = y + bias.astype(x.dtype)[None, :]
    if adapter is not None:
        y = y + adapted(flat, adapter)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def affine_together(
    x: Float[Array, "*batch I"], parts: Sequence[Weights]
) -> Float[Array, "*batch O"]:
    """Several affine maps of one input, results side by side: one wide product."""
    kernel = jnp.concatenate([part.kernel for part in parts], axis=-1)
    biases = [part.bias for part in parts if part.bias is not None]
    assert len(biases) in (0, len(parts)), "all parts have a bias, or none"
    y = affine(x, kernel, jnp.concatenate(biases) if biases else None)
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
    """What an adapter adds, with its own dropout when that is on."""
    if adapter.key is not None:
        x = dropout(x, adapter.rate, adapter.key)
    return (x @ adapter.down.astype(x.dtype)) @ adapter.up.astype(x.dtype)


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""]) -> Array:
    """Zero each element with probability `rate` and rescale so the mean is kept.

    Compares raw 32-bit draws: on CPU that is cheaper than making uniform floats, and
    than the 16-bit draws that would halve the memory.
    """
    dropped = round(rate * 2**32)
    if dropped == 0:
        return x
    bits = jax.random.bits(key, x.shape, jnp.uint32)
    scale = 2**32 / (2**32 - dropped)
    return jnp.where(bits >= jnp.uint32(dropped), x * scale, jnp.zeros((), x.dtype))


class Projection(nn.Module):
    """Holds `kernel` (in, out) and perhaps `bias`; returns them rather than apply.

    The caller multiplies, so that it may fuse several projections into one product.
    An adapter is found in the collection "adapters", under the kernel's own path.
    """

    features: int
    bias: bool
    context: Context
    to_residual: bool = False
    """It writes to the residual stream, and starts smaller."""

    @nn.compact
    def __call__(self, inputs: int) -> Weights:
        """The weights for `inputs` input features."""
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
        return Weights(kernel, bias, adapter)
