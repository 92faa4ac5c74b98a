"""What comes back: rounding the weights, and training a little on.

An unlearned model whose weights moved less than half a rounding step is, once rounded,
the model from before unlearning.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Int, Params
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.finetune.lora import LAYER_KERNELS
from lt_mia_jax.trees import flatten, select, unflatten
from lt_mia_jax.verification.metrics.checks import Values, number, per_item, same_items

Weight = Float[Array | np.ndarray, "..."]


FP4_BLOCK = 64
"""Weights that share a scale in `fp4`."""
_FP4 = (0.0, 0.0625 / 12, 2 / 12, 3 / 12, 4 / 12, 6 / 12, 8 / 12, 1.0)
"""Sizes of bitsandbytes's 4-bit floats, beside a sign."""


def quantize(
    params: Params,
    bits: int,
    *,
    group_size: int | None = None,
    fp4: bool = False,
    patterns: Sequence[str] = (),
) -> Params:
    """`params` with its matrices rounded to nearest on a symmetric grid of `bits` bits.

    `s = max|w| / (2^(bits-1) - 1)` over the inputs of each output channel, or over each
    `group_size` of them; `w_q = s * clip(round(w / s))`, ties to even. Computed in
    float32, returned in the dtype of the leaf; rounding float32 leaves again changes no
    bit. Other leaves are the same arrays.

    8 bits by channel are the weights of LLM.int8() (bitsandbytes); its activations, of
    which it rounds all but outliers, are not rounded here.

    Args:
      params: kernels are (..., inputs, outputs). Merge adapters first.
      bits: 2 to 16.
      group_size: inputs that share a scale, such as 128; a last group may be shorter.
        None is the whole channel.
      fp4: the 4-bit floats of bitsandbytes: `s = max|w|` over each 64 weights in the
        order of outputs by inputs, and `w / s` rounded to the nearest of `_FP4`.
      patterns: globs of the leaves to round; each must match. Empty takes the matrices
        of the layers: embeddings, norms and the head stay.

    Raises:
      InputError: bits or group size out of range, a pattern that matches nothing, or a
        match that is not a matrix.

    Source: Catastrophic Failure of LLM Unlearning via Quantization, arXiv 2410.16454,
    whose experiments load models by bitsandbytes in FP4 and LLM.int8(), arXiv
    2208.07339.
    """
    flat = flatten(params)
    for name in _matrices(flat, bits, group_size, fp4, patterns):
        flat[name] = _rounded(flat[name], _levels(bits), group_size, fp4, _inputs(name))
    return unflatten(flat)


def changed_codes(
    before: Params,
    after: Params,
    bits: int,
    *,
    group_size: int | None = None,
    fp4: bool = False,
    patterns: Sequence[str] = (),
) -> float:
    """Fraction of weights whose rounded code differs between two trees.

    Each tree has scales of its own; the settings are those of `quantize`. Near 0,
    rounding undoes whatever was learned between them.

    Raises:
      InputError: the trees differ in paths or shapes, hold NaN or infinity, or as
        `quantize`.

    Source: the explanation given in arXiv 2410.16454, as a number.
    """
    first, second = flatten(before), flatten(after)
    shapes = [{(name, x.shape) for name, x in tree.items()} for tree in (first, second)]
    if wrong := sorted({name for name, _ in shapes[0] ^ shapes[1]}):
        raise InputError(
            f"the two trees differ in presence or shape of {capped(wrong)}; expected "
            "one architecture"
        )
    changed = total = 0
    for name in _matrices(first, bits, group_size, fp4, patterns):
        counts, finite = _count_changed(
            first[name], second[name], _levels(bits), group_size, fp4, _inputs(name)
        )
        if not bool(finite):
            raise InputError(f"{name} is not finite; the model has diverged")
        changed += int(np.asarray(counts).sum(dtype=np.int64))
        total += first[name].size
    return changed / total


def recovered_fraction(value: float, *, original: float, retrained: float) -> float:
    """`(M - M_retrained) / (M_original - M_retrained)`: what is left of the knowledge.

    0 as after retraining, 1 as before unlearning; not clipped. M is a metric of the
    unlearned, original and retrained model; round all of them, and compare the value
    with the one in full precision.

    Raises:
      InputError: original and retrained are equal.

    Source: arXiv 2410.16454 (retained knowledge, with the retrained model as zero).
    """
    value = number("value", value)
    span = number("original", original) - number("retrained", retrained)
    if span == 0:
        raise InputError(
            f"original and retrained models both have {original}; the metric does not "
            "see the forget set, so nothing can be recovered in it"
        )
    return (value - retrained) / span


def relearning_area(
    steps: Sequence[int] | np.ndarray, unlearned: Values, retrained: Values
) -> float:
    """Mean gap of two relearning curves over log(1 + steps), in units of their metric.

    The trapezoidal area between them over the span of the axis, which gives each decade
    of steps its weight. Positive: the unlearned model knows, or relearns, more than a
    model that never knew.

    Args:
      steps: training steps after which the metric was taken, rising, from 0.
      unlearned: the metric after each, on forget items not trained on.
      retrained: of the retrained model under the same recipe.

    Raises:
      InputError: fewer than two points, or steps that do not rise.
    """
    at = per_item("steps", np.asarray(steps, np.float64), low=0.0)
    ours = per_item("metric of the unlearned model", unlearned)
    theirs = per_item("metric of the retrained model", retrained)
    same_items(steps=at, unlearned=ours, retrained=theirs)
    if len(at) < 2 or (np.diff(at) <= 0).any():
        raise InputError(
            f"steps are {at.tolist()}; expected at least two, each larger than the last"
        )
    x = np.log1p(at)
    return float(np.trapezoid(ours - theirs, x) / (x[-1] - x[0]))


def relearning_robustness(unlearned: Values, retrained: Values) -> float:
    """Gain of the retrained model over that of the unlearned one, clipped to [0, 1].

    The metric rises with knowledge of the forget set; each model has its values from
    the first to the last step of the same relearning. 1 where the unlearned model
    relearns no faster than one that never knew, and where it gains nothing at all.

    Source: OpenUnlearning, arXiv 2506.12618 (robustness of a metric to relearning).
    """
    ours = per_item("metric of the unlearned model", unlearned)
    theirs = per_item("metric of the retrained model", retrained)
    gained = float(ours[-1] - ours[0])
    if gained <= 0:
        return 1.0
    return float(np.clip((theirs[-1] - theirs[0]) / gained, 0, 1))


def _levels(bits: int) -> Float[Array, ""]:
    return jnp.float32(2 ** (bits - 1) - 1)


def _divide(x: Float[Array, "..."], by: Float[Array, "..."]) -> Float[Array, "..."]:
    """Correctly rounded `x / by`.

    XLA turns division by a broadcast into a product with the reciprocal, which is
    rounded twice and would move weights that lie half-way between two codes.
    """
    return x / jax.lax.optimization_barrier(jnp.broadcast_to(by, x.shape))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _rounded(
    weight: Weight,
    levels: Float[Array, ""],
    group_size: int | None,
    fp4: bool,
    inputs: int,
) -> Float[Array, "..."]:
    codes, scales = _codes(weight, levels, group_size, fp4, inputs)
    return (codes * scales).astype(weight.dtype)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _count_changed(
    before: Weight,
    after: Weight,
    levels: Float[Array, ""],
    group_size: int | None,
    fp4: bool,
    inputs: int,
) -> tuple[Int[Array, "..."], Bool[Array, ""]]:
    """Number of different codes in each matrix, and whether all scales are finite."""
    a, s = _codes(before, levels, group_size, fp4, inputs)
    b, t = _codes(after, levels, group_size, fp4, inputs)
    # One count a matrix: that of a whole stack may not fit 32 bits.
    return (a != b).sum(axis=(-2, -1)), jnp.isfinite(s).all() & jnp.isfinite(t).all()


def _codes(
    weight: Weight,
    levels: Float[Array, ""],
    group_size: int | None,
    fp4: bool,
    inputs: int,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Codes (whole numbers, or `_FP4`) and, of the same shape, the scale of each."""
    moved = jnp.moveaxis(jnp.asarray(weight).astype(jnp.float32), inputs, -1)
    # Blocks of bitsandbytes run on from one output to the next.
    w = moved.reshape(*moved.shape[:-2], -1) if fp4 else moved
    size = FP4_BLOCK if fp4 else group_size or w.shape[-1]
    missing = -w.shape[-1] % size
    padded = jnp.pad(w, [(0, 0)] * (w.ndim - 1) + [(0, missing)])
    grouped = padded.reshape(*w.shape[:-1], -1, size)
    top = jnp.abs(grouped).max(axis=-1, keepdims=True)
    scale = top if fp4 else _divide(top, levels)
    # A group of zeros has scale 0 and codes 0.
    steps = _divide(grouped, jnp.where(scale > 0, scale, 1.0))
    if fp4:
        sizes = jnp.array(_FP4, jnp.float32)
        nearest = jnp.searchsorted((sizes[1:] + sizes[:-1]) / 2, jnp.abs(steps))
        codes = jnp.sign(steps) * sizes[nearest]
    else:
        codes = jnp.clip(jnp.round(steps), -levels, levels)

    def back(x: Array) -> Array:
        flat = x.reshape(padded.shape)[..., : w.shape[-1]]
        return jnp.moveaxis(flat.reshape(moved.shape), -1, inputs)

    return back(codes), back(jnp.broadcast_to(scale, grouped.shape))


def _inputs(name: str) -> int:
    """The axis of the inputs; the embedding table is read by rows, one a token."""
    return -1 if name.startswith("embedding/") else -2


def _matrices(
    flat: Params,
    bits: int,
    group_size: int | None,
    fp4: bool,
    patterns: Sequence[str],
) -> list[str]:
    if not 2 <= bits <= 16:
        raise InputError(f"bits is {bits}; expected 2 to 16")
    if fp4 and (bits, group_size) != (4, None):
        raise InputError(
            f"fp4 with bits {bits} and group_size {group_size}; expected 4 bits and no "
            f"group size: its blocks are of {FP4_BLOCK} weights"
        )
    if group_size is not None and group_size < 1:
        raise InputError(f"group_size is {group_size}; expected at least 1, or None")
    if patterns:
        names = select(flat, patterns)
    else:
        names = [n for n in flat if any(fnmatchcase(n, p) for p in LAYER_KERNELS)]
    flat_wrong = [name for name in names if flat[name].ndim < 2]
    if flat_wrong or not names:
        raise InputError(
            f"patterns {list(patterns or LAYER_KERNELS)} match {len(names)} leaves, "
            f"of which {capped(flat_wrong)} are no matrices; name at least one "
            f"matrix of {capped(flat)}, and matrices only"
        )
    return names
