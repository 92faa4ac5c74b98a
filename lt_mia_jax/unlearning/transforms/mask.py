"""Train some parameters only; the others keep every bit."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Bool
from lt_mia_jax.errors import InputError
from lt_mia_jax.trees import select
from lt_mia_jax.unlearning.importance.attribution import top_share_mask
from lt_mia_jax.unlearning.transforms.contract import (
    HOLD,
    Tree,
    at_params,
    path_of,
    require_choice,
    transformation,
)


class MaskState(NamedTuple):
    """State of `saliency_masked` and of `fisher_masked`."""

    mask: Tree
    """Boolean, of each parameter's shape or with axes of size 1: True moves. None when
    each step makes its own."""
    inner: Any
    """State of the wrapped optimizer."""


@transformation()
def saliency_masked(
    inner: optax.GradientTransformation, mask: Tree
) -> optax.GradientTransformationExtraArgs:
    """`mask * inner(mask * gradient)`: parameters outside the mask do not move.

    Both the gradient and the step are masked, because weight decay and momentum would
    move parameters whose gradient alone is masked. `retain_grads` are masked too, for
    combinations and projections inside `inner`.

    Args:
      inner: the whole optimizer.
      mask: booleans that mirror the parameters; axes may be 1, as `layer_mask` and
        `row_mask` return. Copied into the state.

    Example:
      >>> tx = saliency_masked(optax.sgd(1.0), jnp.array([True, False]))
      >>> gradient = jnp.array([2.0, 3.0])
      >>> tx.update(gradient, tx.init(jnp.zeros(2)))[0]
      Array([-2., -0.], dtype=float32)

    Source: SalUn, arXiv 2310.12508, equation 3; masking twice is ours.
    """
    not_boolean = [
        path_of(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
        if np.result_type(leaf) != np.bool_
    ]
    if not_boolean:
        raise ValueError(f"saliency_masked: not booleans: {not_boolean}")
    return _masked(inner, lambda params: at_params(mask, params))


@transformation()
def fisher_masked(
    inner: optax.GradientTransformation,
    *,
    quantile: float,
    fisher: Tree | None = None,
    move: Literal["largest", "smallest"] = "largest",
) -> optax.GradientTransformationExtraArgs:
    """Move only parameters on one side of a quantile of the Fisher information.

    Without `fisher`, the squared gradient of each step is used, and the mask changes
    with every step (31 counts over the tree). With `fisher` the mask is made once.

    Args:
      inner: the whole optimizer.
      quantile: fraction of the parameters that are frozen, in [0, 1). Ties at the
        threshold count as large.
      fisher: diagonal Fisher information; mirrors the parameters.
      move: "largest" trains what matters to the data of the gradient; "smallest", with
        the Fisher information of retain texts, freezes what matters to these.

    Raises:
      ValueError: `quantile` is outside [0, 1).

    Example:
      >>> tx = fisher_masked(optax.sgd(1.0), quantile=0.5)
      >>> gradient = jnp.array([2.0, -3.0])
      >>> tx.update(gradient, tx.init(jnp.zeros(2)))[0]
      Array([-0.,  3.], dtype=float32)

    Source: Parameter-Selective Mean Teacher (quantile masks of squared gradients).
    """
    require_choice("fisher_masked", "move", move, ("largest", "smallest"))
    if not 0 <= quantile < 1:
        raise ValueError(f"fisher_masked: quantile = {quantile}, expected in [0, 1)")

    def make(scores: Tree) -> Tree:
        if move == "largest":
            return top_share_mask(scores, 1.0 - quantile)
        return jax.tree.map(jnp.logical_not, top_share_mask(scores, quantile))

    if fisher is not None:
        return _masked(inner, lambda params: make(at_params(fisher, params)))
    inner = optax.with_extra_args_support(inner)

    def init(params: Tree) -> MaskState:
        return MaskState(None, inner.init(params))

    def update(
        updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, MaskState]:
        # The magnitude has the order of the square, and does not underflow.
        mask = make(jax.tree.map(jnp.abs, updates))
        step, new = _update(inner, mask, updates, state.inner, params, extra)
        return step, MaskState(None, new)

    return optax.GradientTransformationExtraArgs(init, update)


@transformation()
def freeze(
    inner: optax.GradientTransformation,
    trainable: Callable[[str], bool] | Sequence[str],
) -> optax.GradientTransformationExtraArgs:
    """Apply `inner` to some leaves; the others are frozen and have no moments.

    Extra arguments that mirror the gradients are restricted to the same leaves. Arrays
    of a transformation inside (masks, anchors) may mirror all parameters. Layers are
    stacked on a leading axis: to select single layers use `layer_mask`.

    Args:
      inner: the whole optimizer.
      trainable: globs over "/"-joined paths, each of which must match, or a predicate.

    Returns:
      A transformation whose `init` raises an `InputError` when a glob matches nothing
      or no leaf is trainable.

    Example:
      >>> params = {"body": jnp.zeros(1), "head": jnp.zeros(1)}
      >>> tx, gradient = freeze(optax.sgd(1.0), ["head"]), jax.tree.map(jnp.cos, params)
      >>> tx.update(gradient, tx.init(params), params)[0]["body"]
      Array([-0.], dtype=float32)
    """

    def labels(tree: Tree) -> Tree:
        # Leaves that an outer freeze has cut off stay cut off.
        paths, structure = jax.tree_util.tree_flatten_with_path(tree)
        names = [path_of(path) for path, _ in paths]
        chosen = set(
            filter(trainable, names)
            if callable(trainable)
            else select(names, trainable)
        )
        if not chosen:
            raise InputError(f"no parameter is trainable; parameters are {names}")
        return jax.tree.unflatten(
            structure, ["train" if name in chosen else "hold" for name in names]
        )

    hold = optax.stateless(
        lambda updates, _: jax.tree.map(lambda g: jnp.full_like(g, HOLD), updates)
    )
    return optax.partition(
        {"train": inner, "hold": hold}, labels, mask_compatible_extra_args=True
    )


def layer_mask(params: Tree, paths: Sequence[str], layers: Iterable[int]) -> Tree:
    """A mask for `saliency_masked` that selects parts of some layers.

    Args:
      params: a model's parameters (or their shapes), as `LanguageModel` lays them out:
        `periods/slot_s/...` with periods on the leading axis, then `tail_t/...`.
      paths: globs over "/"-joined paths; each must match, and leaves of layers only.
      layers: numbers of the layers, from 0.

    Returns:
      Booleans that mirror `params`, with all axes but that of the layers 1.

    Raises:
      InputError: a glob matches nothing or something outside layers; a layer that the
        model does not have.

    Source: SHA256 at SemEval-2025 Task 4, arXiv 2504.12996 (MLPs of layers 0 to 5).
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = {path_of(path): leaf for path, leaf in flat}
    numbers = _layer_numbers({name: leaf.shape for name, leaf in leaves.items()})
    chosen, wanted = set(select(leaves, paths)), set(layers)
    outside = sorted(chosen - set(numbers))
    if outside:
        raise InputError(f"{outside} belong to no layer; name leaves of layers only")
    count = max((max(n) for n in numbers.values() if n), default=-1) + 1
    absent = sorted(wanted - set(range(count)))
    if absent:
        raise InputError(f"layers {absent} do not exist; the model has {count}")

    def mask(name: str, leaf: Any) -> Bool[Array, "..."]:
        if name not in chosen:
            return jnp.zeros((1,) * leaf.ndim, bool)
        hit = np.isin(numbers[name], list(wanted))
        stacked = name.startswith("periods/")
        shape = (len(hit), *(1,) * (leaf.ndim - 1)) if stacked else (1,) * leaf.ndim
        return jnp.asarray(hit.reshape(shape))

    return jax.tree.unflatten(structure, [mask(n, x) for n, x in leaves.items()])


def _layer_numbers(shapes: dict[str, tuple[int, ...]]) -> dict[str, list[int]]:
    """The layers that each leaf of a layer holds, along its leading axis."""
    slots, periods = set(), 0
    for name, shape in shapes.items():
        if name.startswith("periods/slot_"):
            slots.add(int(name.split("/")[1].removeprefix("slot_")))
            periods = shape[0]
    width = len(slots)
    found = {}
    for name in shapes:
        first, *rest = name.split("/")
        if first == "periods":
            slot = int(rest[0].removeprefix("slot_"))
            found[name] = [period * width + slot for period in range(periods)]
        elif first.startswith("tail_"):
            found[name] = [periods * width + int(first.removeprefix("tail_"))]
    return found


def _masked(
    inner: optax.GradientTransformation, make: Callable[[Tree], Tree]
) -> optax.GradientTransformationExtraArgs:
    """Wrap `inner` with the mask that `make` gives for the parameters."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Tree) -> MaskState:
        return MaskState(make(params), inner.init(params))

    def update(
        updates: Tree, state: Any, params: Tree = None, **extra: Any
    ) -> tuple[Tree, MaskState]:
        step, new = _update(inner, state.mask, updates, state.inner, params, extra)
        return step, MaskState(state.mask, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _update(
    inner: optax.GradientTransformationExtraArgs,
    mask: Tree,
    updates: Tree,
    state: Any,
    params: Tree,
    extra: dict[str, Any],
) -> tuple[Tree, Any]:
    def cut(tree: Tree, fill: float) -> Tree:
        def leaf(m: Array, x: Array) -> Array:
            # Retain gradients may be several, on a leading axis.
            m = m.reshape((1,) * (x.ndim - m.ndim) + m.shape)
            return jnp.where(m, x, jnp.asarray(fill, x.dtype))

        return jax.tree.map(leaf, mask, tree)

    if extra.get("retain_grads") is not None:
        extra = {**extra, "retain_grads": cut(extra["retain_grads"], 0.0)}
    step, new = inner.update(cut(updates, 0.0), state, params, **extra)
    return cut(step, HOLD), new
