"""Low-rank adapters as a parameter tree beside the model's own.

Adapters are a dict from the path of a kernel to a pair `(A, B)`. A kernel is
`(..., in, out)`; leading axes are layers stacked for the scan, and each layer gets an
adapter of its own: `A` is `(..., in, rank)`, `B` is `(..., rank, out)`. They act
beside the kernel (`x W + scale x A B`), so that training needs no gradient of `W`;
`merge` adds them for good.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Int, Key, Params
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.finetune.config import LoraConfig
from lt_mia_jax.trees import flatten, select, unflatten

Adapters = dict[str, tuple[Array, Array]]

LAYER_KERNELS = ("periods/*kernel", "tail_*kernel")
"""Every matrix of every layer, whatever its mixer; a model may lack one of the two."""


def init(key: Key[Array, ""], params: Params, config: LoraConfig) -> Adapters:
    """Float32 adapters that change nothing yet: `A` is random, `B` is zero.

    `A` is uniform in +-1/sqrt(in).

    Raises:
      InputError: a glob matches nothing, or a match is not a matrix.

    Source: LoRA, arXiv 2106.09685, section 4.1.
    """
    flat = flatten(params)
    if config.targets:
        names = select(flat, config.targets)
    else:
        names = [
            name for name in flat if any(fnmatchcase(name, g) for g in LAYER_KERNELS)
        ]
    if not names:
        raise InputError(
            f"no layer has a kernel to adapt; parameters are {capped(flat)}"
        )
    vectors = [name for name in names if flat[name].ndim < 2]
    if vectors:
        raise InputError(
            f"lora targets {list(config.targets)} match {capped(vectors)}, which are "
            "not matrices; name kernels only, such as '*/mixer/*/kernel'"
        )

    def pair(name: str) -> tuple[Array, Array]:
        *stacked, inputs, outputs = flat[name].shape
        # The name and not the position decides the key: adding a target leaves the
        # other adapters as they are.
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        bound = inputs**-0.5
        a = jax.random.uniform(
            own, (*stacked, inputs, config.rank), minval=-bound, maxval=bound
        )
        return a, jnp.zeros((*stacked, config.rank, outputs))

    return {name: pair(name) for name in names}


def merge(params: Params, adapters: Adapters, scale: float) -> Params:
    """`params` with `scale * A @ B` added to each adapted kernel, in its dtype."""
    flat = flatten(params)
    for name, (a, b) in adapters.items():
        # Full precision: the product is small beside the forward pass, and it ends up
        # in the weights.
        delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        kernel = flat[name].astype(jnp.float32) + scale * delta
        flat[name] = kernel.astype(flat[name].dtype)
    return unflatten(flat)


def scaled(adapters: Adapters, scale: float) -> Adapters:
    """The pairs `(A, scale * B)`, as `LanguageModel.apply` takes them."""
    return {name: (a, scale * b) for name, (a, b) in adapters.items()}


@dataclass(frozen=True)
class Adapted:
    """A model with adapters beside frozen parameters, which it shares with its base.

    Its parameters are `{"base": ..., "adapters": ...}`. Given the very same arrays as
    base, target and reference take the memory of one model.
    """

    model: Any
    """The base: a `LanguageModel`."""
    scale: float
    """Factor on the product of the adapters."""

    def apply(
        self, params: Mapping[str, Any], input_ids: Int[Any, "B T"], **options: Any
    ) -> Any:
        """As the base's `apply`, with the adapters acting."""
        adapters = scaled(params["adapters"], self.scale)
        return self.model.apply(params["base"], input_ids, adapters=adapters, **options)
