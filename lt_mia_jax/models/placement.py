"""Where interventions act: at which layers, one after the other, on which tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.trees import pytree


@pytree
class Composed:
    """One after the other; see `compose`."""

    parts: tuple[Intervention, ...]

    def __call__(self, stream: Array, layer: Array) -> Array:
        """The edited stream."""
        for part in self.parts:
            stream = part(stream, layer).astype(stream.dtype)
        return stream


def compose(*interventions: Intervention) -> Intervention:
    """All of them, the first one first; none is the identity."""
    return Composed(interventions)


@pytree
class AtLayers:
    """At some layers only; see `at_layers`."""

    inner: Intervention
    layers: Int[Array | np.ndarray, "N"]

    def __call__(self, stream: Array, layer: Array) -> Array:
        """The edited stream."""
        chosen = (jnp.asarray(self.layers) == layer).any()
        return jnp.where(chosen, self.inner(stream, layer).astype(stream.dtype), stream)


def at_layers(intervention: Intervention, layers: Sequence[int]) -> Intervention:
    """The intervention at these layers only.

    Args:
      intervention: any.
      layers: how many layers the stream has passed: 0 is the embedding, n follows the
        n-th layer. A number beyond the last layer is never met.

    Raises:
      InputError: no layer at all, or a negative one.
    """
    return AtLayers(intervention, _layer_numbers(layers))


@pytree
class ByLayer:
    """One kind with numbers of each layer's own, stacked; see `by_layer`."""

    stacked: Any
    layers: Int[Array | np.ndarray, "N"]

    def __call__(self, stream: Array, layer: Array) -> Array:
        """The edited stream."""
        hit = jnp.asarray(self.layers) == layer
        row = jnp.argmax(hit)
        own: Callable[..., Array] = jax.tree.map(lambda leaf: leaf[row], self.stacked)
        return jnp.where(hit.any(), own(stream, layer).astype(stream.dtype), stream)


def by_layer(interventions: Mapping[int, Intervention]) -> Intervention:
    """A layer's own numbers in one kind of intervention.

    Args:
      interventions: by layer, as in `at_layers`; of one kind and one shape, without
        plain functions.

    Raises:
      InputError: no layer at all, or a negative one.
      ValueError: they differ in kind or shape.
    """
    layers = _layer_numbers(list(interventions))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *interventions.values())
    return ByLayer(stacked, layers)


def on_prompt(
    intervention: Intervention, lengths: Int[Array | np.ndarray, "B"]
) -> Intervention:
    """The intervention on the prompt only: what follows `lengths` tokens is kept."""
    return OnPrompt(intervention, lengths)


def prompted(intervention: Any, lengths: Int[Array | np.ndarray, "B"]) -> Any:
    """The intervention told where the prompts of a batch end; None stays None.

    What depends on the prompt (`InputAware`, `OnPrompt`, `gates.GatedRotation`) has to
    be told for every batch; all others stay as they are.

    Args:
      intervention: any.
      lengths: tokens of each prompt.
    """

    def waits(node: Any) -> bool:
        return hasattr(node, "for_prompts")

    return jax.tree.map(
        lambda node: node.for_prompts(lengths) if waits(node) else node,
        intervention,
        is_leaf=waits,
    )


@pytree
class OnPrompt:
    """On the first tokens only; see `on_prompt`."""

    inner: Intervention
    lengths: Int[Array | np.ndarray, "B"] | None = None

    def for_prompts(self, lengths: Int[Array | np.ndarray, "B"]) -> "OnPrompt":
        """The same for texts with prompts of these lengths."""
        return OnPrompt(prompted(self.inner, lengths), lengths)

    def __call__(self, stream: Array, layer: Array) -> Array:
        """The edited stream."""
        check_rows("lengths", self.lengths, stream)
        edited = self.inner(stream, layer).astype(stream.dtype)
        return jnp.where(before(stream, jnp.asarray(self.lengths)), edited, stream)


def before(stream: Float[Array, "B T D"], lengths: Int[Array, "B"]) -> Any:
    """Whether each token is one of the first `lengths`, `"B T 1"`."""
    return jnp.arange(stream.shape[1])[None, :, None] < lengths[:, None, None]


def check_rows(name: str, given: Any, stream: Array) -> None:
    """Refuse numbers of another batch: one row would silently be taken for all texts.

    Raises:
      ValueError: none at all, or not as many rows as texts.
    """
    if given is None:
        raise ValueError(f"{name} of this batch are missing; see `prompted`")
    if given.shape[0] != stream.shape[0]:
        raise ValueError(
            f"{name} has {given.shape[0]} rows for a batch of {stream.shape[0]} texts"
        )


def _layer_numbers(layers: Sequence[int]) -> np.ndarray:
    if not layers or min(layers) < 0:
        raise InputError(
            f"layers = {list(layers)}; expected at least one number, from 0 (the "
            "embedding) on"
        )
    return np.asarray(list(layers), np.int32)
