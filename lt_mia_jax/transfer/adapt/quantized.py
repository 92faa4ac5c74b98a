"""A frozen base in 4 bits with trained adapters, handed from one phase to the next.

Source: "A LoRA-Based Approach to Fine-Tuning LLMs for Educational Guidance in
Resource-Constrained Settings", arXiv 2504.15610. Kept: `W + (alpha / rank) A B` on a
quantized `W`; the adapters alone pass from phase to phase, and the optimizer starts
anew. Not kept: the 7B model, its data and its 4-bit format. Version 4, "Fine-Tuning a
7B Advisor on Free-Tier GPUs", retracts claims of earlier versions and reports that a
judge preferred the base: read accuracy beside the loss.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int, Params
from lt_mia_jax.finetune import lora
from lt_mia_jax.transfer.weightspace.quantization import Quantized, dequantize, quantize
from lt_mia_jax.trees import map_named


def int4_group_quantize(
    matrix: Float[Array | np.ndarray, "*layers I O"], group: int = 64
) -> Quantized:
    """4-bit codes of the transpose; `group` inputs to one output share a scale."""
    return quantize(np.swapaxes(np.asarray(matrix), -1, -2), bits=4, group=group)


def quantize_base(params: Params, group: int = 64) -> dict[str, Any]:
    """The parameters with a `Quantized` for each kernel of a layer."""

    def quantized(name: str, leaf: Any) -> Any:
        if name.endswith("kernel") and name.startswith(("periods/", "tail_")):
            return jax.tree.map(jnp.asarray, int4_group_quantize(leaf, group))
        return leaf

    return map_named(quantized, params)


def dequantize_base(base: Mapping[str, Any]) -> Params:
    """Parameters for `LanguageModel.apply`: float32 kernels; other leaves pass."""
    return jax.tree.map(
        lambda x: dequantize(x).swapaxes(-1, -2) if isinstance(x, Quantized) else x,
        base,
        is_leaf=lambda x: isinstance(x, Quantized),
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
