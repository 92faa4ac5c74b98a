"""SkillPacks: a fine-tune stored as a small file beside its base (GraftLLM).

Source: "Knowledge Grafting of Large Language Models" (GraftLLM). Kept: each module has
its own compression (pruned tables, low-rank layers), the bits of a matrix fall along
its singular directions, and packs are loaded, routed and unloaded. Not kept:
quantization is grouped round-to-nearest instead of GPTQ, so no calibration texts are
read, and the router is not trained.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save as to_safetensors

from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.checkpoints.safetensors import TensorReader
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_atomic
from lt_mia_jax.transfer.weightspace.quantization import (
    BITS,
    Quantized,
    dequantize,
    quantize,
)
from lt_mia_jax.transfer.weightspace.quantization import nbytes as nbytes
from lt_mia_jax.transfer.weightspace.roles import is_matrix, role, shifted
from lt_mia_jax.trees import check_alike, flatten, map_named, pytree, unflatten

_LAYOUT = "layout"  # the tensor that describes the others, as bytes of JSON


@dataclass(frozen=True, kw_only=True)
class SkillPackSpec:
    """How each kind of parameter is compressed.

    The defaults are the released sizes as fractions of a width of 4,096, but for
    `alpha`, `beta` and `rest_bits`, which are ours.
    """

    alpha: float = 0.1
    """Fraction of the entries of embedding and head that are kept, the largest."""
    rank: float = 1000 / 4096
    """Fraction of the singular directions of mixer matrices that are kept."""
    beta: float = 0.9
    """Fraction of the squared singular values of feed-forward matrices that is kept."""
    max_rank: float = 1400 / 4096
    """At most this fraction of their singular directions."""
    bits: tuple[tuple[int, float], ...] = ((8, 0.02), (4, 0.18), (2, 0.8))
    """Bits of each slice of the kept directions, the largest first, and its size as a
    fraction of them. Slices are rounded up, so that none of the first is lost."""
    rest_bits: int = 8
    """Bits of kept table entries, of norms, biases and constants of recurrences."""
    group: int = 128
    """Values that share a scale."""

    def __post_init__(self):
        sizes = [share for _, share in self.bits]
        shares = (self.alpha, self.rank, self.beta, self.max_rank, *sizes)
        good = {self.rest_bits, *(b for b, _ in self.bits)} <= set(BITS)
        good &= all(0 < share <= 1 for share in shares) and self.group >= 1
        if not good or abs(sum(sizes) - 1) > 1e-6:
            wanted = f"slices with the sum 1, bits from {BITS} and a positive group"
            raise InputError(f"{self}: expected fractions in (0, 1], {wanted}")


@pytree
class Part:
    """The compressed difference of one parameter."""

    factors: tuple[Quantized, ...]
    """The values, flat; or a left "... K in" and a right factor "... K out" of each
    slice, whose products are summed."""
    mask: Array | np.ndarray | None
    """Which entries the values are, as packed bits of the flat array; None: all."""
    shape: tuple[int, ...] = field(metadata={"static": True})


@pytree
class SkillPack:
    """A compressed fine-tune, by path of the parameter; a pytree."""

    parts: dict[str, Part]


def pack(base: Params, ft: Params, spec: SkillPackSpec | None = None) -> SkillPack:
    """Compress the difference between a fine-tune and its base.

    Embedding and head keep their largest entries. Matrices of layers keep their largest
    singular directions, one decomposition for each layer. A slice of left directions is
    quantized first; the right factor is fitted, given the quantized left one, to what
    the slices before left over, and then quantized. Stacked feed-forward matrices share
    the largest rank that one of them needs. Runs on the host, one leaf at a time. Trees
    that differ raise a ValueError.

    Example:
      >>> base = {"tail_0": {"mixer": {"output": {"kernel": jnp.zeros((8, 8))}}}}
      >>> skill = {"tail_0": {"mixer": {"output": {"kernel": jnp.ones((8, 8))}}}}
      >>> found = pack(base, skill)
      >>> grafted = apply(base, [found])["tail_0"]["mixer"]["output"]["kernel"]
      >>> nbytes(found), round(float(grafted[0, 0]), 5)
      (44, 1.0)
    """
    spec = spec or SkillPackSpec()
    check_alike("pack", base, ft)
    parts, new = {}, flatten(ft)
    for name, before in flatten(base).items():
        old, tuned = (np.asarray(x).astype(np.float32) for x in (before, new[name]))
        parts[name] = _part(name, tuned - old, spec)
    return SkillPack(parts)


def unpack(skill: SkillPack) -> Params:
    """The differences that a pack stores, in float32."""
    return unflatten({name: _decode(part) for name, part in skill.parts.items()})


def apply(
    base: Params,
    packs: Sequence[SkillPack],
    weights: Float[Array | np.ndarray, " N"] | Sequence[float] | None = None,
) -> Params:
    """The base with packs added: `base + sum_i weights_i * unpack(packs_i)`.

    The base is unchanged, so unloading a pack is to apply the others again. There is
    one weight a pack, as from `task_weights` or `nearest_centroid`; they may be traced,
    and are 1 unless given. A parameter to which nothing is added keeps every bit. Packs
    of another model, or another number of weights, raise a ValueError.
    """
    factors = jnp.ones(len(packs)) if weights is None else jnp.asarray(weights)
    if factors.shape != (len(packs),):
        raise ValueError(f"{len(packs)} packs, weights of {factors.shape}")
    check_alike("apply", base, *(jax.eval_shape(unpack, skill) for skill in packs))

    def grafted(name: str, leaf: Any) -> Any:
        stored = [_decode(skill.parts[name]) for skill in packs]
        moves = [factors[index] * move for index, move in enumerate(stored)]
        return shifted(jnp.asarray(leaf), reduce(jnp.add, moves)) if packs else leaf

    return map_named(grafted, base)


def task_weights(task: int | Array, packs: int) -> Float[Array, " N"]:
    """Weights for `apply` that load the pack of one task; negative: none."""
    return (jnp.arange(packs) == task).astype(jnp.float32)


def nearest_centroid(
    features: Float[Array | np.ndarray, "B D"],
    centroids: Float[Array | np.ndarray, "N D"],
) -> Float[Array, " N"]:
    """Weights for `apply` that load the pack whose centroid is nearest to a batch.

    The mean of `features` over the batch, such as mean hidden states, is compared with
    `centroids`, the mean feature of the fine-tuning texts of each pack.
    """
    mean = jnp.asarray(features, jnp.float32).mean(axis=0, keepdims=True)
    distances = jnp.square(jnp.asarray(centroids, jnp.float32) - mean).sum(axis=-1)
    return task_weights(jnp.argmin(distances), len(centroids))


def save(path: Path | str, skill: SkillPack) -> None:
    """Write a pack to one safetensors file; an InputError if it cannot be written."""
    layout = {}
    for name, part in skill.parts.items():
        factors = [(factor.bits, factor.length) for factor in part.factors]
        layout[name] = part.shape, factors, part.mask is not None
    text = json.dumps(layout, separators=(",", ":")).encode()
    arrays = {_LAYOUT: np.frombuffer(text, np.uint8)}
    for index, leaf in enumerate(jax.tree.leaves(skill)):
        arrays[str(index)] = np.asarray(leaf, order="C")
    write_atomic(path, to_safetensors(arrays))


def load(path: Path | str) -> SkillPack:
    """Read what `save` wrote; an InputError if the file is no pack or broken."""
    path = Path(path)
    with TensorReader(path.parent, single=path.name) as reader:
        if _LAYOUT not in reader.names:
            raise InputError(f"{path}: no skill pack; expected a file of `pack.save`")
        layout = json.loads(reader.read(_LAYOUT).tobytes())
        leaves = map(reader.read, map(str, itertools.count()))

        def part(shape: Any, factors: Any, masked: bool) -> Part:
            read = tuple(
                Quantized(next(leaves), next(leaves), next(leaves), bits, length)
                for bits, length in factors
            )
            return Part(read, next(leaves) if masked else None, tuple(shape))

        # In the order of `jax.tree.leaves`.
        return SkillPack({name: part(*layout[name]) for name in sorted(layout)})


def _part(name: str, delta: Float[np.ndarray, "..."], spec: SkillPackSpec) -> Part:
    kind = role(name)
    if kind in ("embedding", "head") and delta.ndim > 1 and spec.alpha < 1:
        return _pruned(delta, spec)
    if is_matrix(name):
        return _low_rank(delta, kind == "feed_forward", spec)
    values = quantize(delta.reshape(-1), spec.rest_bits, spec.group)
    return Part(factors=(values,), mask=None, shape=delta.shape)


def _pruned(delta: Float[np.ndarray, "..."], spec: SkillPackSpec) -> Part:
    flat = delta.reshape(-1)
    kept = max(1, round(spec.alpha * flat.size))
    # Stable: of equal magnitudes the first are kept, so the count is exact.
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-np.abs(flat), kind="stable")[:kept]] = True
    values = quantize(flat[mask], spec.rest_bits, spec.group)
    return Part(factors=(values,), mask=np.packbits(mask), shape=delta.shape)


def _low_rank(
    delta: Float[np.ndarray, "..."], energy: bool, spec: SkillPackSpec
) -> Part:
    left, sizes, _ = np.linalg.svd(delta, full_matrices=False)
    full = sizes.shape[-1]
    rank = spec.rank * full
    if energy:
        rank = min(_energy_rank(sizes, spec.beta), spec.max_rank * full)
    rank = max(1, round(rank))
    left, rest = left.swapaxes(-1, -2)[..., :rank, :], delta
    factors: list[Quantized] = []
    for bits, (start, stop) in _slices(rank, spec):
        inputs = quantize(left[..., start:stop, :], bits, spec.group)
        known = dequantize(inputs)
        fitted = np.linalg.pinv(known).swapaxes(-1, -2) @ rest
        outputs = quantize(fitted, bits, spec.group)
        rest = rest - known.swapaxes(-1, -2) @ dequantize(outputs)
        factors += [inputs, outputs]
    return Part(factors=tuple(factors), mask=None, shape=delta.shape)


def _slices(rank: int, spec: SkillPackSpec) -> list[tuple[int, tuple[int, int]]]:
    """Bits and range of each slice that is not empty."""
    shares = np.cumsum([share for _, share in spec.bits])
    ends = np.ceil(np.round(shares * rank, 6)).astype(int)
    ends[-1] = rank
    ranges = itertools.pairwise([0, *ends.tolist()])
    found = zip((bits for bits, _ in spec.bits), ranges, strict=True)
    return [(bits, (start, stop)) for bits, (start, stop) in found if stop > start]


def _energy_rank(sizes: Float[np.ndarray, "... K"], beta: float) -> int:
    """The most directions that one of the matrices needs for a share of its energy."""
    if beta == 1:
        return sizes.shape[-1]
    squares = np.square(sizes.astype(np.float64))
    enough = np.cumsum(squares, axis=-1) >= beta * squares.sum(axis=-1, keepdims=True)
    return int(enough.argmax(axis=-1).max()) + 1


def _decode(part: Part) -> Float[Array, "..."]:
    """The difference that a part stores, in float32."""
    if len(part.factors) > 1:
        total = jnp.zeros(part.shape, jnp.float32)
        for inputs, outputs in zip(part.factors[::2], part.factors[1::2], strict=True):
            left, right = dequantize(inputs).swapaxes(-1, -2), dequantize(outputs)
            total = total + jnp.matmul(left, right, precision="highest")
        return total
    values = jnp.asarray(dequantize(next(iter(part.factors))))
    if part.mask is None:
        return values.reshape(part.shape)
    size = int(np.prod(part.shape))
    mask = jnp.unpackbits(jnp.asarray(part.mask), count=size).astype(bool)
    places = jnp.maximum(jnp.cumsum(mask, dtype=jnp.int32) - 1, 0)
    return jnp.where(mask, values[places], 0.0).reshape(part.shape)
