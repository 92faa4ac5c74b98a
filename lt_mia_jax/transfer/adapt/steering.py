"""UNLOCK: move a skill to a model of another size as a direction of its activations.

Directions and alignments are fitted on the host in float64, from the residual streams
at the last token of N prompts. The edit is the argument `intervention` of
`LanguageModel.apply` and `models.generation.greedy`. It changes one token of the
prompt, which later tokens read through attention or through the recurrent state.

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

from lt_mia_jax.arrays import Array, Float, Int, Params, finite_rows
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.language_model import Intervention, LanguageModel
from lt_mia_jax.models.placement import check_rows
from lt_mia_jax.training.transforms.contract import require_choice
from lt_mia_jax.transfer.adapt.features import unit
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

    `lengths` are the tokens of each prompt; padding is on the right.
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
    open, is the one that agrees with the mean difference. Streams that differ in shape,
    are empty or not finite raise an `InputError`.

    Example:
      >>> on, off = np.ones((3, 2, 4)), np.zeros((3, 2, 4))
      >>> skill_direction(on, off).shape
      (2, 4)
    """
    require_choice("skill_direction", "how", how, ("mean", "pca"))
    there, here = finite_rows("on", on), finite_rows("off", off)
    if there.shape != here.shape:
        found = f"on is {list(there.shape)}, off is {list(here.shape)}"
        raise InputError(f"{found}; expected the same prompts and layers")
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
    singular vectors of the activations X of the source and Y of the target. As in the
    paper they are not centered: the first direction is close to the mean activation, so
    rank 1 moves little else. `centered` subtracts the means first. The rank is at most
    the number of rows and of columns; else an `InputError`.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(8, 3))
      >>> y = x @ np.ones((3, 5))
      >>> bool(np.abs(x @ align(x, y, rank=3) - y).max() < 1e-5)
      True
    """
    x, y = finite_rows("source", source), finite_rows("target", target)
    if len(x) != len(y):
        found = f"source has {len(x)} rows, target has {len(y)}"
        raise InputError(f"{found}; expected activations of the same prompts")
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
    """The source layer of each target layer l: `floor((source - 1) l / (target - 1))`.

    A single target layer gets the last one.
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
) -> Float[np.ndarray, "K E"]:
    """A direction of the source in the layers and the width of the target.

    `source` and `target` are `prompt_streams` of the same prompts in models without the
    skill. Layers correspond by `layer_map`, widths by `align`.
    """
    x, y = np.asarray(source), np.asarray(target)
    if direction.shape != x.shape[1:]:
        found = f"the direction is {list(direction.shape)}, the source {list(x.shape)}"
        raise InputError(f"{found}; expected its layers and its width")
    layers = enumerate(layer_map(x.shape[1], y.shape[1]))
    return np.stack([direction[a] @ align(x[:, a], y[:, b], rank) for b, a in layers])


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
    length = (h * unit(h)).sum(axis=-1, keepdims=True)
    added = alpha * unit(v)
    turned = length * unit(unit(h) + added[None, None])
    here = jnp.arange(stream.shape[1])[None, :] == jnp.asarray(position)[:, None]
    acts = here[..., None] & (length > 0) & (added != 0).any()
    return jnp.where(acts, turned.astype(stream.dtype), stream)


@pytree
class PromptEnd:
    """An intervention: `steer` after every layer, at the last token of each prompt."""

    directions: Float[Array | np.ndarray, "L D"]
    alpha: Scalar
    """Size of the edit relative to the stream; 0 changes nothing."""
    lengths: Int[Array | np.ndarray, "B"] | None = None
    """Tokens of each prompt; see `models.placement.prompted`."""

    def for_prompts(self, lengths: Int[Array | np.ndarray, "B"]) -> Intervention:
        """The same for prompts of these lengths."""
        return replace(self, lengths=lengths)

    def __call__(
        self, stream: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> Float[Array, "B T D"]:
        """The edited stream."""
        check_rows("lengths", self.lengths, stream)
        own = jnp.asarray(self.directions)[jnp.maximum(layer - 1, 0)]
        turned = steer(stream, own, self.alpha, jnp.asarray(self.lengths) - 1)
        return jnp.where(layer > 0, turned, stream)
