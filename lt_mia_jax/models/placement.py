"""Interventions at chosen layers, in sequence, or on chosen tokens."""

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
    """Interventions in sequence; see `compose`."""

    parts: tuple[Intervention, ...]

    def __call__(self, stream: Array, layer: Array) -> Array:
        """The edited stream."""
        for part in self.parts:
            stream = part(stream, layer).astype(stream.dtype)
        return stream


def compose(*interventions: Intervention) -> Intervention:
    """All interventions in the given order; without any, the identity."""
    return Composed(interventions)


@pytree
class AtLayers:
    """An intervention at some layers; see `at_layers`."""

    inner: Intervention
    layers: Int[Array | np.ndarray, "N"]

    def __call__(self, stream: Array, layer: Array) -> Array:
        """The edited stream."""
        chosen = (jnp.asarray(self.layers) == layer).any()
        return jnp.where(chosen, self.inner(stream, layer).astype(stream.dtype), stream)


def at_layers(intervention: Intervention, layers: Sequence[int]) -> Intervention:
    """The intervention at these layers only.

    Layer 0 is the embedding, n the output of the n-th layer. Numbers beyond the last
    layer have no effect.

    Raises:
      InputError: no layers, or a negative one.
    """
    return AtLayers(intervention, _layer_numbers(layers))


@pytree
class ByLayer:
    """Interventions of one kind, stacked over layers; see `by_layer`."""

    stacked: Any
    layers: Int[Array | np.ndarray, "N"]

    def __call__(self, stream: Array, layer: Array) -> Array:
        """The edited stream."""
        hit = jnp.asarray(self.layers) == layer
        row = jnp.argmax(hit)
        own: Callable[..., Array] = jax.tree.map(lambda leaf: leaf[row], self.stacked)
        return jnp.where(hit.any(), own(stream, layer).astype(stream.dtype), stream)


def by_layer(interventions: Mapping[int, Intervention]) -> Intervention:
    """One intervention per layer (numbered as in `at_layers`), all of the same kind.

    They must be pytrees without plain functions, of one structure and shape.

    Raises:
      InputError: no layers, or a negative one.
      ValueError: they differ in kind or shape.
    """
    layers = _layer_numbers(list(interventions))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *interventions.values())
    return ByLayer(stacked, layers)


def on_prompt(
    intervention: Intervention, lengths: Int[Array | np.ndarray, "B"]
) -> Intervention:
    """The intervention on the first `lengths` tokens of each text only."""
    return OnPrompt(intervention, lengths)


def prompted(intervention: Any, lengths: Int[Array | np.ndarray, "B"]) -> Any:
    """The intervention with the prompt lengths of a batch set; None stays None.

    Only `InputAware`, `OnPrompt` and `gates.GatedRotation` depend on them, and need
    them for every batch; all others stay as they are.
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
    """An intervention on the first tokens; see `on_prompt`."""

    inner: Intervention
    lengths: Int[Array | np.ndarray, "B"] | None = None

    def for_prompts(self, lengths: Int[Array | np.ndarray, "B"]) -> "OnPrompt":
        """The same intervention for prompts of these lengths."""
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
    """Refuse values of another batch, which broadcasting could silently accept.

    Raises:
      ValueError: no values, or a number of rows that differs from that of the texts.
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
