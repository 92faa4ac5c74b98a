"""The learned attack as one value, and its scores."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from lt_mia_jax.arrays import Params
from lt_mia_jax.attacks.learned.classifier import apply
from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.learned.rows import FeatureSource
from lt_mia_jax.executor import Executor, make_executor
from lt_mia_jax.sharding import replicated

BATCH = 256
"""Rows scored at a time: 20 MB of features at the paper's sizes."""


class Attack(NamedTuple):
    """A learned attack: what it is, its weights, and where it comes from."""

    config: ClassifierConfig
    params: Params
    card: dict[str, Any]
    """Training data, recipe and validation figures, as JSON values."""

    @property
    def k(self) -> int:
        """Top and bottom tokens behind the features."""
        return self.config.k

    @property
    def text_ids(self) -> frozenset[str]:
        """Texts it was trained or selected on; it must not be judged on them."""
        return frozenset(self.card.get("text_ids", ()))


@functools.cache
def _program(executor: Executor) -> Callable[..., jax.Array]:
    # Replicated results can be read on every process of a pod.
    everywhere = replicated(executor.mesh)
    return jax.jit(apply, static_argnums=0, out_shardings=everywhere)


def score_blocks(
    config: ClassifierConfig,
    params: Params,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    executor: Executor | None = None,
) -> Float[np.ndarray, " N"]:
    """Logits in float64 of blocks of (features, mask), each of at most `BATCH` texts.

    Blocks are padded to one size, so that one program serves any number of texts, and
    split over all devices.
    """
    executor = make_executor() if executor is None else executor
    rows = executor.round_up(BATCH)
    program = _program(executor)
    parts = [np.zeros(0)]
    for features, mask in blocks:
        missing = rows - len(features)
        batch = (
            np.pad(features, ((0, missing), (0, 0), (0, 0))),
            np.pad(np.asarray(mask, dtype=bool), ((0, missing), (0, 0))),
        )
        share = executor.place_rows(tuple(executor.share(x) for x in batch))
        logits = np.asarray(program(config, params, *share))
        parts.append(logits[: len(features)].astype(np.float64))
    return np.concatenate(parts)


def score_features(
    attack: Attack,
    features: Float[np.ndarray, "B T C"],
    mask: Bool[np.ndarray, "B T"] | Integer[np.ndarray, "B T"],
) -> Float[np.ndarray, " B"]:
    """Membership logits, higher = more likely a member; NaN without a valid step."""
    starts = range(0, len(features), BATCH)
    blocks = ((features[i : i + BATCH], mask[i : i + BATCH]) for i in starts)
    return score_blocks(attack.config, attack.params, blocks)


def score_store(
    attack: Attack, store: FeatureSource, rows: Int[np.ndarray, " B"] | None = None
) -> Float[np.ndarray, " B"]:
    """Membership logits of some rows of a feature store (all by default).

    Read in blocks: memory does not grow with the store.
    """
    wanted = np.arange(store.n) if rows is None else np.asarray(rows, dtype=np.int64)
    starts = range(0, len(wanted), BATCH)
    blocks = (store.features(wanted[i : i + BATCH]) for i in starts)
    return score_blocks(attack.config, attack.params, blocks)
