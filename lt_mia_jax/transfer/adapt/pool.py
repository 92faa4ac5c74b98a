"""L2M: a frozen model with a pool of adapters, picked by the text itself.

Each slot has a key and a low-rank adapter. A text uses the slot whose key is nearest to
the mean of its frozen token embeddings; learning moves that slot alone, so earlier
tasks keep theirs. One more slot is reserved for the base: it has a key and no adapter.

Source: L2M ("Learning to Modulate pre-trained Models in RL"), arXiv 2306.14884. Kept:
keys, selection by cosine and by usage, the pull of the keys, low-rank modulators. Not
kept: decision transformers and control tasks. The reserved slot is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key, Params
from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.config import LoraConfig
from lt_mia_jax.models.language_model import LanguageModel
from lt_mia_jax.transfer.adapt.features import unit


class Pool(NamedTuple):
    """What is trained beside the frozen base."""

    keys: Float[Array, "S E"]
    """One for each slot."""
    adapters: lora.Adapters
    """Pairs (A, B) as in `finetune.lora`, with the slots as a further leading axis."""


def pool_init(
    key: Key[Array, ""], params: Params, config: LoraConfig, *, slots: int = 30
) -> Pool:
    """Keys uniform in [-1, 1), and adapters that change nothing yet.

    The paper has 30 slots of rank 8 with alpha 16 on query, value and feed-forward.
    Targets of `config` that fit no kernel raise an `InputError`.
    """
    for_keys, for_slots = jax.random.split(key)
    width = params["embedding"]["tokens"].shape[-1]
    keys = jax.random.uniform(for_keys, (slots, width), minval=-1.0)
    each = jax.random.split(for_slots, slots)
    return Pool(keys, jax.vmap(lambda own: lora.init(own, params, config))(each))


def text_query(
    params: Params,
    ids: Int[Array | np.ndarray, "B T"],
    mask: Bool[Array | np.ndarray, "B T"],
) -> Float[Array, "B E"]:
    """The mean of the token embeddings where `mask` is set, such as on the prompt."""
    rows = params["embedding"]["tokens"][jnp.asarray(ids)].astype(jnp.float32)
    return jnp.mean(rows, axis=1, where=jnp.asarray(mask, bool)[..., None])


def select(
    keys: Float[Array, "S E"],
    query: Float[Array, "B E"],
    usage: Float[Array, "S"] | None = None,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The slot of each text, and the cosine of its key with the query.

    The largest cosine wins, among equals the lowest slot. `usage` is for training after
    the first task: how often earlier tasks used each slot. The largest
    `(cosine + 1) / 2 / (usage + 1e-6)` wins then, so that unused slots come first.

    Example:
      >>> keys, query = jnp.eye(2), jnp.array([[1.0, 0.5]])
      >>> select(keys, query)[0], select(keys, query, jnp.array([3.0, 0.0]))[0]
      (Array([0], dtype=int32), Array([1], dtype=int32))
    """
    cosines = jnp.matmul(unit(query), unit(keys).T, precision="highest")
    score = cosines if usage is None else (cosines + 1) / 2 / (usage + 1e-6)[None, :]
    index = jnp.argmax(score, axis=-1)
    return index, jnp.take_along_axis(cosines, index[:, None], axis=-1)[:, 0]


def pool_lora(pool: Pool, index: Int[Array, "B"]) -> lora.Adapters:
    """The adapter of each text, on a leading axis; zeros for an index beyond the pool.

    It is a product with one-hot rows, whose gradient reaches the picked slots only.
    """
    hot = jax.nn.one_hot(index, len(pool.keys))
    gather = partial(jnp.tensordot, hot, axes=1, precision="highest")
    return jax.tree.map(gather, pool.adapters)


def pull_loss(
    keys: Float[Array, "S E"], query: Float[Array, "B E"], index: Int[Array, "B"]
) -> Float[Array, ""]:
    """Minus the mean cosine of each query with the key of its slot."""
    hot = jax.nn.one_hot(index, len(keys))
    own = jnp.matmul(hot, keys, precision="highest")
    return -jnp.sum(unit(own) * unit(query), axis=-1).mean()


def update_usage(usage: Float[Array, "S"], index: Int[Array, "B"]) -> Float[Array, "S"]:
    """Usage with one more for each text; the reserved slot is not counted.

    Count a task when it ends, or its own slots are the ones to avoid while it trains.
    """
    return usage + jax.nn.one_hot(index, len(usage)).sum(axis=0)


@dataclass(frozen=True)
class Routed:
    """A frozen base in which each text has an adapter of its own."""

    model: LanguageModel
    scale: float = 2.0
    """Factor on the product of the adapters: alpha / rank."""

    def apply(
        self,
        params: Mapping[str, Any],
        input_ids: Int[Any, "B T"],
        index: Int[Array, "B"],
    ) -> Float[Array, "B T V"]:
        """Logits of each text under the adapter of its slot; beyond, those of the base.

        The parameters are `{"base": ..., "pool": Pool}`.
        """

        def one(ids: Array, adapters: Any) -> Array:
            return self.model.apply(params["base"], ids[None], adapters=adapters)[0]

        adapters = lora.scaled(pool_lora(params["pool"], index), self.scale)
        return jax.vmap(one)(jnp.asarray(input_ids), adapters)


def route(
    pool: Pool, query: Float[Array, "B E"], reserved: Float[Array, "E"]
) -> Int[Array, "B"]:
    """The slot of each text at test time, by plain cosine; S is the reserved one.

    `reserved` is the key of the base, such as the mean query of pretraining texts.
    """
    return select(jnp.concatenate([pool.keys, reserved[None]]), query)[0]
