"""UNLOCK: move a skill to a model of another size as a direction of its activations.

Directions and alignments are fitted on the host in float64, from the residual streams
at the last token of N prompts. The edit itself is the argument `intervention` of
`LanguageModel.apply` and `models.generation.greedy`, and works on every mixer: it
changes one token of the prompt, and later tokens read it through attention or through
the recurrent state.

Source: UNLOCK ("Steering Vector Transfer"). Kept: both kinds of direction, the low-rank
linear map between models, and the norm-preserving edit at the last token of the prompt.
Not kept: its models, data and choice of settings by validation.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int, Params
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.language_model import Intervention, LanguageModel
from lt_mia_jax.models.placement import check_rows
from lt_mia_jax.training.transforms.contract import require_choice
from lt_mia_jax.trees import pytree

Scalar = Float[Array | np.ndarray, ""] | float
Streams = Float[Array | np.ndarray, "N L D"]
Others = Float[Array | np.ndarray, "M K E"]


@partial(jax.jit, static_argnums=0)
def prompt_streams(
    model: LanguageModel,
    params: Params,
    ids: Int[Array | np.ndarray, "N T"],
    lengths: Int[Array | np.ndarray, "N"],
) -> Float[Array, "N L D"]:
    """The residual stream after every layer, at the last token of each prompt.

    `lengths` are the tokens of each prompt, at least one; padding is on the right.
    """
    layers = range(1, model.config.layers + 1)
    _, taps = model.apply(params, ids, capture=layers)
    last = (jnp.asarray(lengths) - 1)[:, None, None]
    found = [jnp.take_along_axis(taps[n], last, axis=1) for n in layers]
    return jnp.concatenate(found, axis=1)


def skill_direction(
    on: Streams, off: Others, *, how: Literal["mean", "pca"] = "mean"
) -> Float[np.ndarray, "L D"]:
    """From streams of a model without a skill to those of a model with it, by layer.

    Row n of both are the same prompt. "mean" is the mean difference. "pca" is the first
    principal direction of the differences, of length one; its sign, which an SVD leaves
    open, is the one that agrees with the mean difference.

    Raises:
      InputError: the streams differ in shape, are empty or not finite.

    Example:
      >>> on, off = np.ones((3, 2, 4)), np.zeros((3, 2, 4))
      >>> skill_direction(on, off).shape
      (2, 4)
    """
    require_choice("skill_direction", "how", how, ("mean", "pca"))
    there, here = _finite("on", on), _finite("off", off)
    if there.shape != here.shape:
        raise InputError(
            f"on is {list(there.shape)}, off is {list(here.shape)}; expected streams "
            "of the same prompts, after the same layers"
        )
    differences = there - here
    mean = differences.mean(axis=0)
    if how == "mean":
        return mean.astype(np.float32)
    centered = (differences - mean).swapaxes(0, 1)
    first = np.linalg.svd(centered, full_matrices=False)[2][:, 0]
    sign = np.where((first * mean).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    return (sign * first).astype(np.float32)


def align(
    source: Float[Array | np.ndarray, "N D"],
    target: Float[Array | np.ndarray, "M E"],
    rank: int,
    *,
    centered: bool = False,
) -> Float[np.ndarray, "D E"]:
    """The matrix W of rank at most `rank` for which `source W` is near `target`.

    `Vs^T pinv(X Vs^T) (Y Vt^T) Vt`, where the rows of Vs and Vt are the first right
    singular vectors of the activations X of the source and Y of the target. They are
    not centered, as in the paper: the first direction is then close to the mean
    activation, so that rank 1 moves little else. With `centered`, means are subtracted
    first.

    Raises:
      InputError: X and Y differ in rows, or the rank is not in 1 to the number of rows
        and of columns.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(8, 3))
      >>> y = x @ np.ones((3, 5))
      >>> bool(np.abs(x @ align(x, y, rank=3) - y).max() < 1e-5)
      True
    """
    x, y = _finite("source", source), _finite("target", target)
    if len(x) != len(y):
        raise InputError(
            f"source has {len(x)} rows, target has {len(y)}; expected the activations "
            "of the same prompts"
        )
    most = min(*x.shape, *y.shape)
    if not 1 <= rank <= most:
        raise InputError(
            f"rank = {rank} for {len(x)} prompts and widths {x.shape[1]} and "
            f"{y.shape[1]}; expected 1 to {most}, more prompts allow more"
        )
    if centered:
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    of_source = np.linalg.svd(x, full_matrices=False)[2][:rank]
    of_target = np.linalg.svd(y, full_matrices=False)[2][:rank]
    inner = np.linalg.pinv(x @ of_source.T) @ (y @ of_target.T)
    return (of_source.T @ inner @ of_target).astype(np.float32)


def layer_map(source: int, target: int) -> list[int]:
    """The source layer of each target layer, counted from 0.

    `floor((source - 1) * l / (target - 1))`; a single target layer gets the last one.

    Example:
      >>> layer_map(4, 7)
      [0, 0, 1, 1, 2, 2, 3]
    """
    if source < 1 or target < 1:
        raise ValueError(f"{source} and {target} layers, expected at least one")
    if target == 1:
        return [source - 1]
    return [(source - 1) * layer // (target - 1) for layer in range(target)]


def transfer_direction(
    direction: Float[np.ndarray, "layers width"],
    source: Streams,
    target: Others,
    rank: int,
    *,
    centered: bool = False,
) -> Float[np.ndarray, "K E"]:
    """A direction of the source in the layers and the width of the target.

    `source` and `target` are `prompt_streams` of the same prompts in models without the
    skill. Layers correspond by `layer_map`, widths by `align`.
    """
    x, y = np.asarray(source), np.asarray(target)
    if direction.shape != x.shape[1:]:
        raise InputError(
            f"the direction is {list(direction.shape)}, the streams of the source are "
            f"{list(x.shape)}; expected its layers and its width"
        )
    rows = [
        direction[own] @ align(x[:, own], y[:, layer], rank, centered=centered)
        for layer, own in enumerate(layer_map(x.shape[1], y.shape[1]))
    ]
    return np.stack(rows)


def steer(
    stream: Float[Array, "B T D"],
    direction: Float[Array | np.ndarray, "D"],
    alpha: Scalar,
    position: Int[Array | np.ndarray, "B"],
) -> Float[Array, "B T D"]:
    """Turn one token of each text towards a direction, keeping its norm.

    `|h| unit(h / |h| + alpha v / |v|)` at that token, in float32. Nothing changes, bit
    for bit, if alpha, h or v is zero, and at all other tokens.

    Example:
      >>> h, v = jnp.array([[[3.0, 0.0]]]), jnp.array([0.0, 2.0])
      >>> steer(h, v, 1.0, jnp.array([0])).round(3)
      Array([[[2.121, 2.121]]], dtype=float32)
    """
    h, v = stream.astype(jnp.float32), jnp.asarray(direction, jnp.float32)
    length, size = _length(h), _length(v)
    moved = h / _or_one(length) + (alpha * v / _or_one(size))[None, None]
    turned = moved * (length / _or_one(_length(moved)))
    here = jnp.arange(stream.shape[1])[None, :] == jnp.asarray(position)[:, None]
    acts = here[..., None] & (length > 0) & ((jnp.asarray(alpha) != 0) & (size[0] > 0))
    return jnp.where(acts, turned.astype(stream.dtype), stream)


@pytree
class PromptEnd:
    """An intervention: `steer` after every layer, at the last token of each prompt."""

    directions: Float[Array | np.ndarray, "L D"]
    """One for each layer, such as `skill_direction` or `transfer_direction` gives."""
    alpha: Scalar
    """Size of the edit relative to the stream; 0 changes nothing."""
    lengths: Int[Array | np.ndarray, "B"] | None = None
    """Tokens of each prompt; see `models.placement.prompted`."""

    def for_prompts(self, lengths: Int[Array | np.ndarray, "B"]) -> Intervention:
        """The same for texts with prompts of these lengths."""
        return replace(self, lengths=lengths)

    def __call__(
        self, stream: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> Float[Array, "B T D"]:
        """The edited stream."""
        check_rows("lengths", self.lengths, stream)
        own = jnp.asarray(self.directions)[jnp.maximum(layer - 1, 0)]
        turned = steer(stream, own, self.alpha, jnp.asarray(self.lengths) - 1)
        return jnp.where(layer > 0, turned, stream)


def _length(x: Float[Array, "*batch D"]) -> Float[Array, "*batch 1"]:
    """Euclidean lengths over the last axis; their derivative at zero is zero."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(_or_one(square)), 0.0)


def _or_one(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Ones in place of zeros, to divide by."""
    return jnp.where(x > 0, x, 1.0)


def _finite(name: str, values: Array | np.ndarray) -> np.ndarray:
    rows = np.asarray(values).astype(np.float64)
    if not rows.size:
        raise InputError(f"{name} is empty; expected at least one row")
    if not np.isfinite(rows).all():
        raise InputError(f"{name} has values that are not finite; check the model")
    return rows
