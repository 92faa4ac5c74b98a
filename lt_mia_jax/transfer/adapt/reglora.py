"""RegLoRA: new adapters leave alone what earlier ones changed most.

After each task the largest entries of every product `A B` are marked; later adapters
pay for the size of their own products there. Adapters are those of `finetune.lora`:
`{path: (A, B)}` with `A (..., in, rank)` and `B (..., rank, out)`; each layer of a
stack has a set of its own. `finetune.lora.merge` ends a task.

Source: "SEFE: Superficial and Essential Forgetting Eliminator for Multimodal Continual
Instruction Tuning". Kept: the regularizer, with boolean sets (the released code joins
lists of indices, so that entries of several tasks weigh more) and a mean over the
matrices that there are. Not kept: models and data. `styles` is its other half.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Bool, Float
from lt_mia_jax.errors import NOT_NEGATIVE, UNIT, InputError, capped, check_ranges
from lt_mia_jax.training.threshold import largest
from lt_mia_jax.training.transforms.contract import Step, Tree, numbers, transformation
from lt_mia_jax.training.transforms.products import add

Adapters = Mapping[str, tuple[Array, Array]]
Masks = dict[str, Bool[Array, "*layers I O"]]
"""What is protected of each product: booleans by path of the kernel."""


def reglora_mask(lora: Adapters, frac: float = 0.02) -> Masks:
    """True on the `frac` largest magnitudes of each product `A B`.

    Counts are exact, `round(frac * in * out)` in each matrix; ties at the threshold are
    all marked, zeros never. `frac` is in [0, 1].

    Example:
      >>> pair = (jnp.array([[1.0], [2.0]]), jnp.array([[3.0, -5.0]]))
      >>> reglora_mask({"kernel": pair}, frac=0.25)["kernel"]
      Array([[False, False],
             [False,  True]], dtype=bool)
    """
    check_ranges("reglora_mask", frac=(frac, UNIT))

    def top(size: Float[Array, "*layers I O"]) -> Bool[Array, "*layers I O"]:
        if size.ndim > 2:
            return jax.vmap(top)(size)
        return largest(size, round(frac * size.size)) & (size > 0)

    return {name: top(jnp.abs(_product(*pair))) for name, pair in lora.items()}


def union(first: Mapping[str, Array], second: Mapping[str, Array]) -> Masks:
    """What either protects; an entry counts once, however many tasks marked it."""
    both = {n: first[n] | second[n] for n in first if n in second}
    return {**first, **second, **both}


def reglora_penalty(lora: Adapters, mask: Mapping[str, Array]) -> Float[Array, ""]:
    """Mean over matrices of the mean magnitude of `A B` inside their sets.

    A matrix with an empty set, or without one, counts as 0.
    """
    total = jnp.zeros((), jnp.float32)
    for name, chosen in mask.items():
        inside = jnp.where(chosen, jnp.abs(_product(*lora[name])), 0.0)
        total = total + jnp.sum(jnp.sum(inside, axis=(-2, -1)) / _sizes(chosen))
    return total / _matrices(lora)


class RegLoraState(NamedTuple):
    """State of `add_reglora`: `monitored` has the penalty, without its factor."""

    mask: Masks
    monitored: dict[str, Array]


@transformation("params")
def add_reglora(
    mask: Mapping[str, Array], lam: float = 2500.0
) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of `lam * reglora_penalty` to that of the adapters.

    In closed form, with `G = sign(A B)` inside the set, divided by its size: `G B^T`
    for `A`, `A^T G` for `B`. The parameters are adapters; those without a mask are left
    alone. Place it in front of the optimizer. A mask that fits no adapter raises an
    `InputError` in `init`.

    Example:
      >>> params = {"kernel": (jnp.array([[2.0]]), jnp.array([[-3.0]]))}
      >>> tx = add_reglora({"kernel": jnp.array([[True]])}, lam=1.0)
      >>> zero = jax.tree.map(jnp.zeros_like, params)
      >>> tx.update(zero, tx.init(params), params)[0]["kernel"]
      (Array([[3.]], dtype=float32), Array([[-2.]], dtype=float32))

    Source: SEFE, RegLoRA (factor 2500).
    """
    check_ranges("add_reglora", lam=(lam, NOT_NEGATIVE))

    def init(params: Tree) -> RegLoraState:
        for name, chosen in mask.items():
            a, b = params.get(name, (jnp.zeros((0, 0)),) * 2)
            if chosen.shape != (*a.shape[:-1], b.shape[-1]):
                raise InputError(
                    f"add_reglora: the mask {list(chosen.shape)} of {name} fits no "
                    f"adapter; adapters are {capped(params)}. Make masks with "
                    "reglora_mask from adapters of the same model and targets"
                )
        # A copy, because the training step donates the optimizer state.
        copies = {name: jnp.array(m, copy=True) for name, m in mask.items()}
        return RegLoraState(copies, numbers("reglora", penalty=0))

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> Step:
        penalty = numbers("reglora", penalty=reglora_penalty(params, state.mask))
        result, masks = dict(updates), state.mask if lam else {}  # 0 would change -0.0
        for name, chosen in masks.items():
            a, b = params[name]
            share = jnp.where(chosen, jnp.sign(_product(a, b)), 0.0)
            share = share / _sizes(chosen)[..., None, None]
            across, down = jnp.swapaxes(b, -2, -1), jnp.swapaxes(a, -2, -1)
            slopes = _product(share, across), _product(down, share)
            result[name] = add(updates[name], lam / _matrices(params), slopes)
        return result, RegLoraState(state.mask, penalty)

    return optax.GradientTransformationExtraArgs(init, update)


def _product(x: Array, y: Array) -> Array:
    wide = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.matmul(*wide, precision="highest")


def _sizes(chosen: Array) -> Float[Array, "*layers"]:
    """Entries of each set; 1 for an empty one, whose sum is 0."""
    count = jnp.sum(chosen, axis=(-2, -1), dtype=jnp.int32)
    return jnp.maximum(count, 1).astype(jnp.float32)


def _matrices(lora: Adapters) -> int:
    """Matrices that have adapters: layers of a stack count one by one."""
    return sum(int(np.prod(a.shape[:-2])) for a, _ in lora.values())
