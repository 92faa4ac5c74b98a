"""Interventions: edit activations at inference, leave all weights unchanged.

Each is a frozen dataclass that is called with the residual stream; it is the argument
`intervention` of `LanguageModel.apply` and `models.generation.greedy`. The dataclasses
are pytrees: they pass through `jit`, `vmap` and `grad` as arguments. Their arrays are
fitted in `interventions.directions`.

They act at every layer (unless `models.placement` says where) and on every token. Gates
see the prompt alone, so that an answer has the same scores under teacher forcing as in
generation. Arithmetic is float32; the result has the dtype of the stream.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lt_mia_jax.arrays import Array, Float, Int, Params
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.placement import before, check_rows
from lt_mia_jax.trees import flatten, pytree, unflatten

Scalar = Float[Array | np.ndarray, ""] | float

_product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


@pytree
class Steering:
    """A constant is added to the stream: `h + strength * vector` at every token.

    Example:
      >>> from lt_mia_jax.unlearning.interventions.directions import mean_difference
      >>> towards, away = np.ones((3, 2)), np.zeros((3, 2))
      >>> edit = Steering(mean_difference(towards, away), strength=2.0)
      >>> edit(jnp.zeros((1, 1, 2)), jnp.int32(1))
      Array([[[2., 2.]]], dtype=float32)

    Source: Activation Addition, arXiv 2308.10248.
    """

    vector: Float[Array | np.ndarray, "D"]
    """What is added, such as a `directions.mean_difference`."""
    strength: Scalar = 1.0
    """Factor on it."""

    def __call__(
        self, stream: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> Float[Array, "B T D"]:
        """The edited stream."""
        moved = stream.astype(jnp.float32) + self.strength * self.vector[None, None, :]
        return moved.astype(stream.dtype)


def rotate(
    stream: Float[Array, "B T D"],
    vectors: Float[Array | np.ndarray, "B D"],
    strength: Scalar,
) -> Float[Array, "B T D"]:
    """Move each token against its text's vector, keeping its norm.

    `(h - strength v) |h| / |h - strength v|`; a token equal to `strength v` is kept.

    Source: GUARD-IT, arXiv 2605.12765, the norm-preserving redirection.
    """
    h = stream.astype(jnp.float32)
    moved = h - strength * vectors[:, None, :]
    length = _lengths(moved)
    turned = moved * (_lengths(h) / jnp.where(length > 0, length, 1.0))
    return jnp.where(length > 0, turned, h).astype(stream.dtype)


def _lengths(x: Float[Array, "B T D"]) -> Float[Array, "B T 1"]:
    """Euclidean lengths; their derivative at zero is zero."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


@pytree
class Rotation:
    """Rotate the stream away from forgotten topics if the prompt is near them.

    Source: GUARD-IT, arXiv 2605.12765.
    """

    vectors: Float[Array | np.ndarray, "K D"]
    """One for each cluster of forgotten texts; see `directions.cluster_vectors`."""
    weights: Float[Array, "B K"]
    """Each text's weights, from `gates.gate_weights`. With a row of zeros (closed gate)
    the stream of the text is unchanged, bit for bit."""
    strength: Scalar = 1.0
    """Size of the rotation, in multiples of the vectors; the paper tries [0, 1]."""

    def __call__(
        self, stream: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> Float[Array, "B T D"]:
        """The edited stream."""
        check_rows("weights", self.weights, stream)
        vectors = _product(self.weights, self.vectors)
        turned = rotate(stream, vectors, self.strength)
        opened = (self.weights != 0).any(axis=1)
        return jnp.where(opened[:, None, None], turned, stream)


@pytree
class InputAware:
    """Add a direction in proportion to a linear score of the prompt's last token.

    `h + strength (u . h_last) r` at every token of the prompt, with `h_last` the stream
    at its last token. Tokens after the prompt are not edited.

    Example:
      >>> from lt_mia_jax.unlearning.interventions import directions
      >>> retain, forget = np.array([[1.0, 0.0]] * 4), np.array([[1.0, 1.0]] * 4)
      >>> basis = directions.null_basis(retain, share=0.5)
      >>> factor = directions.erasure_factor(forget, basis, ridge=1e-6)
      >>> edit = InputAware(factor, np.array([0.0, -1.0]), lengths=np.array([1]))
      >>> edit(jnp.array([[[1.0, 1.0]]]), jnp.int32(1)).round(3)
      Array([[[1., 0.]]], dtype=float32)

    Source: MLLMEraser, arXiv 2510.04217, whose matrix of rank one is `u r^T`.
    """

    factor: Float[Array | np.ndarray, "D"]
    """u, close to orthogonal to retained activations; see `directions.erasure_factor`.
    """
    direction: Float[Array | np.ndarray, "D"]
    """r, from recall to erasure."""
    lengths: Int[Array | np.ndarray, "B"] | None = None
    """Tokens of each prompt; see `placement.prompted`."""
    strength: Scalar = 1.0
    """Factor on the edit."""

    def for_prompts(self, lengths: Int[Array | np.ndarray, "B"]) -> "InputAware":
        """The same for texts with prompts of these lengths."""
        return replace(self, lengths=lengths)

    def __call__(
        self, stream: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> Float[Array, "B T D"]:
        """The edited stream."""
        check_rows("lengths", self.lengths, stream)
        lengths = jnp.asarray(self.lengths)
        h = stream.astype(jnp.float32)
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        last = jnp.take_along_axis(h, last, axis=1)[:, 0]
        wanted = self.strength * _product(last, self.factor)
        moved = h + (wanted[:, None] * self.direction[None, :])[:, None, :]
        return jnp.where(before(stream, lengths), moved.astype(stream.dtype), stream)


@pytree
class Projection:
    """Project a subspace out of the stream, `h - (h Q^T) Q`.

    To train it, make `rows` from free ones by `orthonormal_rows` inside of the loss.

    Source: MRP, arXiv 2508.15449.
    """

    rows: Float[Array | np.ndarray, "K D"]
    """Q, orthonormal (rows of zeros do nothing); see `directions.forget_rows`."""

    def __call__(
        self, stream: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> Float[Array, "B T D"]:
        """The edited stream."""
        return _without(stream, jnp.asarray(self.rows))


def _without(
    x: Float[Array, "*B N D"], rows: Float[Array, "*L K D"]
) -> Float[Array, "*B N D"]:
    """Rows of `x` without their components along orthonormal `rows`, in float32."""
    wide = x.astype(jnp.float32)
    inside = _product(_product(wide, rows.swapaxes(-1, -2)), rows)
    return (wide - inside).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def orthonormal_rows(
    matrix: Float[Array | np.ndarray, "K D"], tolerance: float = 1e-5
) -> Float[Array, "R D"]:
    """An orthonormal basis of the rows' span, padded with zero rows to R = min(K, D).

    The derivative (first order only) omits rotations of the basis within its span, on
    which no projection depends; it is finite for equal singular values.

    Directions whose singular value is at most that fraction of the largest are not part
    of the span.
    """
    return _basis(matrix, tolerance)[0]


@orthonormal_rows.defjvp
def _orthonormal_rows_jvp(
    tolerance: float, primals: tuple[Any], tangents: tuple[Any]
) -> tuple[Array, Array]:
    # W = U S Q gives dQ (I - Q^T Q) = S^-1 U^T dW (I - Q^T Q).
    rows, left = _basis(primals[0], tolerance)
    moved = _product(left.T, tangents[0])
    return rows, _without(moved, rows)


def _basis(
    matrix: Float[Array | np.ndarray, "K D"], tolerance: float
) -> tuple[Float[Array, "R D"], Float[Array, "K R"]]:
    """Q and U S^-1, with zeros beyond the rank."""
    u, s, q = jnp.linalg.svd(jnp.asarray(matrix, jnp.float32), full_matrices=False)
    kept = s > tolerance * s[0]
    left = jnp.where(kept[None, :], u / jnp.where(kept, s, 1.0)[None, :], 0.0)
    return jnp.where(kept[:, None], q, 0.0), left


def fold_projection(
    params: Params, path: str, rows: Float[Array | np.ndarray, "*layers K D"]
) -> Params:
    """`params` in which one linear map no longer writes to a subspace.

    `W (I - Q^T Q)`, and its bias likewise. That is a projection of the map's output,
    not `Projection`: the stream that bypasses the map keeps its part in the subspace.

    `path` is that of the kernel, such as "periods/slot_0/mixer/output/kernel". The rows
    are Q, orthonormal: one for all layers that are stacked in the kernel, or a stack of
    them (zeros leave a layer as it is).

    Raises:
      InputError: there is no such kernel, or the sizes differ.

    Example:
      >>> params, rows = {"up": {"kernel": jnp.ones((1, 2))}}, np.array([[1.0, 0.0]])
      >>> fold_projection(params, "up/kernel", rows)["up"]["kernel"]
      Array([[0., 1.]], dtype=float32)

    Source: MRP, arXiv 2508.15449, moved from activations to weights.
    """
    flat = flatten(params)
    if path not in flat or not path.endswith("kernel"):
        kernels = [name for name in flat if name.endswith("kernel")]
        raise InputError(f"{path} is no kernel of this model; it has {kernels}")
    kernel, rows = flat[path], jnp.asarray(rows, jnp.float32)
    stacked = kernel.shape[:-2]
    if rows.shape[-1] != kernel.shape[-1] or rows.shape[:-2] not in ((), stacked):
        raise InputError(
            f"{path} is {list(kernel.shape)}, rows are {list(rows.shape)}; expected "
            f"[K, {kernel.shape[-1]}], with {list(stacked)} in front or nothing"
        )
    rows = jnp.broadcast_to(rows, (*stacked, *rows.shape[-2:]))
    flat[path] = _without(jnp.asarray(kernel), rows)
    bias = path.removesuffix("kernel") + "bias"
    if bias in flat:
        flat[bias] = _without(jnp.asarray(flat[bias])[..., None, :], rows)[..., 0, :]
    return unflatten(flat)
