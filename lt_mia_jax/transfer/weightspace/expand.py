"""Layers as a linear function of depth: one pair of blocks makes a model of any depth.

Source: "Transformer as Linear Expansion of Learngene" (TLEG). Kept: the gene, its
expansion, and training it tied. Not kept: distillation from a larger teacher is left to
the loss of the caller; matrices start as the model's own do, so that recurrences start
in their valid range (the paper draws them from a truncated normal, as we do for the
slope).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int, Key, Params
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.execution import INIT_STD
from lt_mia_jax.transfer.weightspace.roles import is_matrix
from lt_mia_jax.trees import map_named, named_leaves, pytree, split_layers


@pytree
class Gene:
    """What is stored of all layers: two blocks for each slot of the repeating unit."""

    start: dict[str, Any]
    """theta_B by slot ("slot_0", ...): the parameters at depth 0."""
    slope: dict[str, Any]
    """theta_A by slot: what is added from depth 0 to depth 1."""
    shared: dict[str, Any]
    """Parameters outside layers, which every depth has alike."""


def depths(n_layers: int) -> Float[np.ndarray, " L"]:
    """Depth of each layer: `l / L` as released, so the last layer is not at depth 1."""
    return np.arange(n_layers, dtype=np.float32) / np.float32(n_layers)


def expand(gene: Gene, n_layers: int) -> Params:
    """Parameters of a model with `n_layers`: layer l is `theta_B + depth_l * theta_A`.

    The kind of a layer is that of its slot. The result is for the model's config with
    `layers = n_layers`, at least 1; gradients flow to the gene.

    Example:
      >>> block = {"slot_0": {"k": jnp.ones(1)}}
      >>> expand(Gene(block, block, {}), 4)["periods"]["slot_0"]["k"][:, 0].tolist()
      [1.0, 1.25, 1.5, 1.75]
    """
    if n_layers < 1:
        raise ValueError(f"n_layers = {n_layers}, expected at least 1")
    slots, depth = len(gene.start), depths(n_layers)
    whole = n_layers // slots * slots

    def at(slot: int, place: Float[np.ndarray, "..."]) -> Any:
        """The block of a slot at one depth, or stacked for several."""

        def leaf(start: Array, slope: Array) -> Array:
            factor = place.reshape(*place.shape, *(1,) * jnp.ndim(start))
            wide = (1,) * place.ndim + jnp.shape(start)
            first, added = (x.astype(jnp.float32).reshape(wide) for x in (start, slope))
            return (first + factor * added).astype(start.dtype)

        name = f"slot_{slot}"
        return jax.tree.map(leaf, gene.start[name], gene.slope[name])

    params = dict(gene.shared)
    if whole:
        periods = {f"slot_{s}": at(s, depth[s:whole:slots]) for s in range(slots)}
        params["periods"] = periods
    for index in range(n_layers - whole):
        params[f"tail_{index}"] = at(index, np.asarray(depth[whole + index]))
    return params


def fit_gene(params: Params) -> tuple[Gene, dict[str, Any]]:
    """The gene nearest to the layers of a model, and how much of them it explains.

    Least squares for each entry over the layers of a slot; a slot with one layer gets
    slope 0. The second result is R^2 of each parameter, in a tree like `gene.start`; 1
    where layers are equal. It tests the premise, that layers are linear in depth.
    """
    shared, layers = split_layers(params)
    slots, depth = len(params.get("periods", {})) or len(layers), len(layers)
    place = depths(depth)
    product = partial(jnp.tensordot, axes=1, precision="highest")

    def fit(slot: int, *leaves: Array) -> tuple[Array, Array, Array]:
        x = place[slot::slots] * (len(leaves) > 1)
        design = np.stack([np.ones_like(x), x], axis=1)
        y = jnp.stack([jnp.asarray(leaf, jnp.float32) for leaf in leaves])
        found = product(np.linalg.pinv(design), y)
        missed = jnp.square(y - product(design, found)).sum()
        spread = jnp.square(y - y.mean(axis=0, keepdims=True)).sum()
        start, slope = found.astype(leaves[0].dtype)
        return start, slope, 1.0 - missed / jnp.where(spread > 0, spread, 1.0)

    found = {
        f"slot_{slot}": jax.tree.map(partial(fit, slot), *layers[slot::slots])
        for slot in range(slots)
    }
    blocks = jax.tree.structure({f"slot_{slot}": layers[slot] for slot in range(slots)})
    parts = jax.tree.structure((0, 0, 0))
    start, slope, r2 = jax.tree.transpose(blocks, parts, found)
    return Gene(start, slope, shared), r2


def init_gene(key: Key[Array, ""], model: LanguageModel) -> Gene:
    """A gene to train: the first layers of a new model, and a random slope.

    The slope of matrices is a truncated normal of standard deviation 0.02; that of
    norms, biases and constants of recurrences is 0.
    """
    first, second = jax.random.split(key)
    shared, layers = split_layers(model.init(first))
    slots = len(model.config.pattern)
    start = {f"slot_{s}": layer for s, layer in enumerate(layers[:slots])}

    places = {name: index for index, name in enumerate(named_leaves(start))}

    def slope(name: str, leaf: Array) -> Array:
        if not is_matrix(name):
            return jnp.zeros_like(leaf)
        own = jax.random.fold_in(second, places[name])
        drawn = jax.random.truncated_normal(own, -2.0, 2.0, leaf.shape)
        return (INIT_STD * drawn).astype(leaf.dtype)

    return Gene(start, map_named(slope, start), shared)


@dataclass(frozen=True)
class GeneModel:
    """A model whose parameters are a `Gene`, expanded in every call (`tied_apply`)."""

    model: LanguageModel
    """The expanded model; its config decides the depth."""

    def apply(
        self, params: Gene, input_ids: Int[Any, "B T"], **options: Any
    ) -> Float[Array, "B T V"]:
        """As the model's `apply`, with the layers of a gene."""
        expanded = expand(params, self.model.config.layers)
        return self.model.apply(expanded, input_ids, **options)
