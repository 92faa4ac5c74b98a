"""A frozen base in 4 bits with trained adapters, handed from one phase to the next.

Of "A LoRA-Based Approach to Fine-Tuning LLMs for Educational Guidance in
Resource-Constrained Settings", arXiv 2504.15610, the mechanism is kept: `W + (alpha /
rank) A B` on a quantized `W`; the adapters alone pass from phase to phase, and the
optimizer starts anew. The 7B model, its data and its 4-bit format are not kept. Version
4, "Fine-Tuning a 7B Advisor on Free-Tier GPUs", retracts claims of earlier versions and
reports that a judge preferred the base: read accuracy beside the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Int, Params, UInt
from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune import lora
from lt_mia_jax.trees import flatten, pytree, unflatten

LARGEST = 7
"""Codes are -7 to 7: symmetric, and 0 stays 0."""


@pytree
class Int4:
    """A matrix in 4-bit codes; each group of rows of a column has a scale.

    Leading axes are layers. Rows are the inputs; the last group may be shorter.
    """

    codes: UInt[Array, "*layers I2 O"]
    """Two codes a byte, of rows 2i (low half) and 2i + 1; both plus 8."""
    scales: Float[Array, "*layers G O"]
    """Float32 factor of each group; 0 where all its weights are 0."""
    rows: int = field(metadata={"static": True})
    """Rows of the matrix."""
    dtype: Any = field(metadata={"static": True})
    """Of the matrix that it stands for."""

    def dequantized(self) -> Float[Array, "*layers I O"]:
        """The matrix, in its dtype."""
        halves = jnp.stack([self.codes & 15, self.codes >> 4], axis=-2)
        *front, half, two, columns = halves.shape
        groups = self.scales.shape[-2]
        grouped = (*front, groups, half * two // groups, columns)
        codes = halves.reshape(grouped).astype(jnp.float32) - 8.0
        wide = (codes * self.scales[..., None, :]).reshape(*front, -1, columns)
        return wide[..., : self.rows, :].astype(self.dtype)


def int4_group_quantize(matrix: Float[Array, "*layers I O"], group: int = 64) -> Int4:
    """4-bit codes with one scale for `group` rows of each column, rounded to nearest.

    The scale is the largest magnitude over 7: no weight moves by more than half of it.
    A `group` that is odd or below 2 raises an `InputError`.

    Example:
      >>> small = int4_group_quantize(jnp.array([[1.75], [-0.25], [0.6]]), group=4)
      >>> small.dequantized().tolist(), small.codes.nbytes
      ([[1.75], [-0.25], [0.5]], 2)
    """
    if group < 2 or group % 2:
        raise InputError(f"group = {group}, expected an even number from 2 on")
    *front, rows, columns = matrix.shape
    size = min(group, rows + rows % 2)
    padding = [(0, 0)] * len(front) + [(0, -rows % size), (0, 0)]
    wide = jnp.pad(matrix.astype(jnp.float32), padding)
    grouped = wide.reshape(*front, -1, size, columns)
    scales = jnp.max(jnp.abs(grouped), axis=-2) / LARGEST
    units = grouped / jnp.where(scales > 0, scales, 1.0)[..., None, :]
    codes = jnp.clip(jnp.round(units), -LARGEST, LARGEST) + 8
    pairs = codes.astype(jnp.uint8).reshape(*front, -1, 2, columns)
    packed = pairs[..., 0, :] | (pairs[..., 1, :] << 4)
    return Int4(packed, scales, rows, matrix.dtype)


def quantize_base(
    params: Params, group: int = 64, targets: Sequence[str] = ("periods/*", "tail_*")
) -> dict[str, Any]:
    """The parameters with an `Int4` for each kernel that a glob of `targets` matches.

    By default: every kernel of every layer. Other leaves stay as they are.
    """
    return unflatten(
        {
            name: int4_group_quantize(leaf, group)
            if name.endswith("kernel") and any(fnmatchcase(name, g) for g in targets)
            else leaf
            for name, leaf in flatten(params).items()
        }
    )


def dequantize_base(base: Mapping[str, Any]) -> Params:
    """Parameters for `LanguageModel.apply`; other leaves pass."""
    return jax.tree.map(
        lambda x: x.dequantized() if isinstance(x, Int4) else x,
        base,
        is_leaf=lambda x: isinstance(x, Int4),
    )


class QuantizedAdapted(lora.Adapted):
    """`finetune.lora.Adapted` whose base is `quantize_base` of the parameters.

    Only the adapters are trained: the loss is a function of them, with the base closed
    over. The next phase starts from the adapters that the last one leaves.

    Example:
      >>> from lt_mia_jax.models import LanguageModel, gpt2_like
      >>> model = LanguageModel(gpt2_like(16, width=8, layers=1, heads=2, context=8))
      >>> base = quantize_base(model.init(jax.random.key(0)))
      >>> both, ids = {"base": base, "adapters": {}}, jnp.array([[3, 1, 4]])
      >>> QuantizedAdapted(model, scale=2.0).apply(both, ids).shape
      (1, 3, 16)
    """

    def apply(
        self, params: Mapping[str, Any], input_ids: Int[Any, "B T"], **options: Any
    ) -> Any:
        """As the base's `apply`, on dequantized weights, with the adapters acting."""
        plain = {**params, "base": dequantize_base(params["base"])}
        return super().apply(plain, input_ids, **options)

    def merged(self, params: Mapping[str, Any]) -> Params:
        """Plain parameters of the base alone: dequantized, the adapters added."""
        base = dequantize_base(params["base"])
        return lora.merge(base, params["adapters"], self.scale)
