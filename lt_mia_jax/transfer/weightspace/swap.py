"""Put the first and last layers of one model around the middle of another."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.transfer.weightspace.roles import Tree
from lt_mia_jax.trees import check_alike, layer_count, per_layer, slot_count

Origin = Literal["lang", "task", "mean"]
_SHARE: dict[str, float] = {"lang": 1.0, "task": 0.0, "mean": 0.5}


def unit_of(params: Tree) -> np.ndarray:
    """The repeating unit of each layer, from 0: a layer, or a period of mixed kinds.

    Layers left over at the end (`tail_...`) are one unit.
    """
    return np.arange(layer_count(params)) // slot_count(params)


def default_sizes(params: Tree) -> dict[Literal["bottom", "top"], int]:
    """Sizes for `layer_swap`: 5 and 2 of 32 units, scaled to the model's, at least 1.

    Scaling to other depths is ours.
    """
    units = int(unit_of(params)[-1]) + 1
    return {"bottom": max(1, round(5 * units / 32)), "top": max(1, round(units / 16))}


def swap_weights(
    params: Tree,
    *,
    bottom: int,
    top: int,
    trans_bottom: int = 1,
    trans_top: int = 1,
    c: float = 0.5,
) -> Float[np.ndarray, "L"]:
    """The share of the language model in each layer; arguments as `layer_swap`."""
    units = unit_of(params)
    count = int(units[-1]) + 1
    if min(bottom, top, trans_bottom, trans_top) < 0 or bottom + top > count:
        found = f"bottom = {bottom} and top = {top} units of {count}"
        raise ValueError(f"layer_swap: {found}, mixed {trans_bottom} and {trans_top}")
    if not 0 <= c <= 1:
        raise ValueError(f"layer_swap: c = {c}, expected in [0, 1]")
    share = np.zeros(count, np.float32)
    if bottom:
        share[bottom : bottom + trans_bottom] = c
    if top:
        share[max(0, count - top - trans_top) : count - top] = c
    share[:bottom] = share[count - top :] = 1.0
    return share[units]


def layer_swap(
    task: Tree,
    lang: Tree,
    *,
    bottom: int,
    top: int,
    trans_bottom: int = 1,
    trans_top: int = 1,
    c: float = 0.5,
    embed: Origin | None = None,
    head: Origin | None = None,
) -> Tree:
    """The task model with its first and last layers from the language model.

    Args:
      task: fine-tuned on the task, in another language.
      lang: fine-tuned on the language; of the same base, else a ValueError.
      bottom: repeating units (see `unit_of`) from `lang` at the input.
      top: the same at the output; together at most all.
      trans_bottom: units above the bottom ones that are mixed,
      trans_top: and below the top ones,
      c: with this share of `lang`.
      embed: where the embedding and its norm are from: "lang", "task" or their "mean".
        None takes "lang" if `bottom` is not 0.
      head: the same for the final norm and the head; None looks at `top`. A tied head
        goes with the embedding.

    Returns:
      A tree like `task`. Leaves of a layer that is from one model keep its bits: with
      no bottom and top the result is `task`, with all units `lang`.

    Example:
      >>> ends = ({"periods": {"slot_0": {"k": jnp.full(5, x)}}} for x in (0.0, 1.0))
      >>> layer_swap(*ends, bottom=1, top=1)["periods"]["slot_0"]["k"]
      Array([1. , 0.5, 0. , 0.5, 1. ], dtype=float32)

    Source: "Layer Swapping for Zero-Shot Cross-Lingual Transfer in Large Language
    Models". Kept: whole layers from the language model at both ends, mixed ones
    between. The share in mixed layers, and where embedding, final norm and head come
    from, are our reading; each is an argument.
    """
    edges = {"trans_bottom": trans_bottom, "trans_top": trans_top}
    weights = swap_weights(task, bottom=bottom, top=top, c=c, **edges)
    given = outside(bottom=bottom, top=top)
    embed, head = embed or given["embed"], head or given["head"]
    return blend_layers(task, lang, weights, embed=embed, head=head)


def outside(*, bottom: int, top: int) -> dict[Literal["embed", "head"], Origin]:
    """Where `layer_swap` takes the parameters outside layers from, by default."""
    return {"embed": "lang" if bottom else "task", "head": "lang" if top else "task"}


def blend_layers(
    task: Tree,
    lang: Tree,
    weights: Float[Array, "L"] | Float[np.ndarray, "L"],
    *,
    embed: Origin = "task",
    head: Origin = "task",
) -> Tree:
    """`w lang + (1 - w) task` with one weight a layer; exact where it is 0 or 1.

    Trees that differ, or another number of weights than layers, raise a ValueError.
    """
    check_alike("layer_swap", task, lang)
    return jax.tree.map(blend, task, lang, shares(task, weights, embed, head))


def shares(params: Tree, weights: Any, embed: Origin, head: Origin) -> Tree:
    """The share of the language model in each leaf; arguments as `blend_layers`."""

    def outside(path: str) -> float:
        return _SHARE[embed if path.startswith("embedding") else head]

    return per_layer(params, weights, outside)


@jax.jit
def blend(task: Array, lang: Array, share: Float[Array, "..."]) -> Array:
    """One leaf of `blend_layers`; `share` is of `lang` and broadcasts."""
    mixed = share * lang.astype(jnp.float32) + (1 - share) * task.astype(jnp.float32)
    lang = lang.astype(task.dtype)
    mixed = jnp.where(share == 1, lang, mixed.astype(task.dtype))
    return jnp.where(share == 0, task, mixed)
