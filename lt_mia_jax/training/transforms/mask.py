"""Train some parameters only; the others keep every bit."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.training.threshold import top_share_mask
from lt_mia_jax.training.transforms.contract import (
    HOLD,
    Step,
    Tree,
    at_params,
    require_choice,
    transformation,
)
from lt_mia_jax.trees import (
    layer_count,
    layer_numbers,
    map_named,
    named_leaves,
    per_layer,
    select,
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
    combinations and projections inside `inner`, the whole optimizer. The mask mirrors
    the parameters and is copied into the state; axes may be 1, as those of `layer_mask`
    and `row_mask`.

    Example:
      >>> tx = saliency_masked(optax.sgd(1.0), jnp.array([True, False]))
      >>> gradient = jnp.array([2.0, 3.0])
      >>> tx.update(gradient, tx.init(jnp.zeros(2)))[0]
      Array([-2., -0.], dtype=float32)

    Source: SalUn, arXiv 2310.12508, equation 3; masking twice is ours.
    """
    _require_booleans("saliency_masked", mask)
    return _masked(inner, at_start=lambda params: at_params(mask, params))


class MaskUpdatesState(NamedTuple):
    """State of `mask_updates`."""

    mask: Tree
    """Boolean, of each parameter's shape or with axes of size 1: True moves."""


@transformation()
def mask_updates(mask: Tree) -> optax.GradientTransformationExtraArgs:
    """Cancel the update of every parameter outside the mask.

    Place it last in a chain: weight decay and momentum behind it would move the frozen
    parameters. Those in front of it still see all gradients, unlike the optimizer
    inside `saliency_masked`. The mask mirrors the parameters and is copied into the
    state; axes may be 1.

    Raises:
      ValueError: a leaf of the mask is not boolean.

    Example:
      >>> tx = optax.chain(optax.sgd(1.0), mask_updates(jnp.array([True, False])))
      >>> tx.update(jnp.array([2.0, 3.0]), tx.init(jnp.zeros(2)))[0]
      Array([-2., -0.], dtype=float32)

    Source: Composable Sparse Fine-Tuning, arXiv 2110.07560, section 3.
    """
    _require_booleans("mask_updates", mask)

    def init(params: Tree) -> MaskUpdatesState:
        return MaskUpdatesState(at_params(mask, params))

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        return _cut(state.mask, updates, HOLD), state

    return optax.GradientTransformationExtraArgs(init, update)


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
        return _masked(inner, at_start=lambda params: make(at_params(fisher, params)))
    # The magnitude has the order of the square, and does not underflow.
    return _masked(inner, of_step=lambda updates: make(jax.tree.map(jnp.abs, updates)))


@transformation()
def freeze(
    inner: optax.GradientTransformation,
    trainable: Callable[[str], bool] | Sequence[str],
) -> optax.GradientTransformationExtraArgs:
    """Apply `inner` to some leaves; the others are frozen and have no moments.

    Extra arguments that mirror the gradients are restricted to the same leaves. Arrays
    of a transformation inside (masks, anchors) may mirror all parameters. Layers are
    stacked on a leading axis: to select single layers use `layer_mask`.

    `inner` is the whole optimizer; `trainable` are globs over "/"-joined paths, or a
    predicate. `init` raises an `InputError` when a glob matches nothing or no leaf is
    trainable.

    Example:
      >>> params = {"body": jnp.zeros(1), "head": jnp.zeros(1)}
      >>> tx, gradient = freeze(optax.sgd(1.0), ["head"]), jax.tree.map(jnp.cos, params)
      >>> tx.update(gradient, tx.init(params), params)[0]["body"]
      Array([-0.], dtype=float32)
    """

    def labels(tree: Tree) -> Tree:
        # Leaves that an outer freeze has cut off stay cut off.
        names = list(named_leaves(tree))
        if callable(trainable):
            chosen = set(filter(trainable, names))
        else:
            chosen = set(select(names, trainable))
        if not chosen:
            raise InputError(
                f"no parameter is trainable; parameters are {capped(names)}"
            )
        return map_named(lambda name, _: "train" if name in chosen else "hold", tree)

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
    numbers = layer_numbers(params)
    chosen, wanted = set(select(named_leaves(params), paths)), set(layers)
    outside = sorted(chosen - set(numbers))
    if outside:
        raise InputError(f"{outside} belong to no layer; name leaves of layers only")
    count = layer_count(params)
    absent = sorted(wanted - set(range(count)))
    if absent:
        raise InputError(f"layers {absent} do not exist; the model has {count}")
    hit = np.isin(np.arange(count), list(wanted)).astype(np.float32)
    hit = per_layer(params, hit, lambda path: 0.0)
    return map_named(lambda name, x: (x > 0) & (name in chosen), hit)


def _masked(
    inner: optax.GradientTransformation,
    at_start: Callable[[Tree], Tree] = lambda params: None,
    of_step: Callable[[Tree], Tree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wrap `inner` with a mask from the parameters, or with one of each step."""
    inner = optax.with_extra_args_support(inner)

    def init(params: Tree) -> MaskState:
        return MaskState(at_start(params), inner.init(params))

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        mask = state.mask if of_step is None else of_step(updates)

        if extra.get("retain_grads") is not None:
            extra["retain_grads"] = _cut(mask, extra["retain_grads"], 0.0)
        masked = _cut(mask, updates, 0.0)
        step, new = inner.update(masked, state.inner, params, **extra)
        return _cut(mask, step, HOLD), MaskState(state.mask, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _cut(mask: Tree, tree: Tree, fill: float) -> Tree:
    """The tree with `fill` where the mask is False."""

    def leaf(m: Array, x: Array) -> Array:
        # Retain gradients may be several, on a leading axis.
        m = m.reshape((1,) * (x.ndim - m.ndim) + m.shape)
        return jnp.where(m, x, jnp.asarray(fill, x.dtype))

    return jax.tree.map(leaf, mask, tree)


def _require_booleans(who: str, mask: Tree) -> None:
    leaves = named_leaves(mask).items()
    not_boolean = [name for name, leaf in leaves if np.result_type(leaf) != np.bool_]
    if not_boolean:
        raise ValueError(f"{who}: not booleans: {not_boolean}")
