"""Where in a model the forget set still looks as it did: activations by layer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.verification.evaluated import EvaluatedModel
from lt_mia_jax.verification.metrics.similarity import linear_cka
from lt_mia_jax.verification.metrics.traces import FOLDS, Trace, trace_accuracy

BATCH = 16
TOKENS = 2048
"""Tokens that a comparison reads at most: a few hundred megabytes in large models."""


class Streams(NamedTuple):
    """Residual streams of the tokens from which answers are predicted."""

    layers: dict[int, Float[np.ndarray, "N D"]]
    """By number of layers passed, 0 to all."""
    text: Float[np.ndarray, " N"]
    """Number of the text that each row stands in."""


def streams(
    evaluated: EvaluatedModel,
    rows: Sequence[Question],
    *,
    tokens: int = TOKENS,
    last_only: bool = False,
) -> Streams:
    """Residual streams at every layer, on the tokens that predict the answers.

    The model is edited by its intervention if it has one. Stops after so many `tokens`.

    Raises:
      InputError: no rows.
    """
    if not rows:
        raise InputError("no texts to compare representations on")
    encoded = evaluated.encode(rows)
    predicts = np.zeros(encoded.label_mask.shape, bool)
    predicts[:, :-1] = encoded.label_mask[:, 1:] != 0
    count = evaluated.model.config.layers
    depths = tuple(range(count if last_only else 0, count + 1))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    left = tokens
    for start in range(0, len(rows), BATCH):
        kept = np.minimum(np.arange(start, start + BATCH), len(rows) - 1)
        edit = evaluated.edit(encoded.label_mask[kept].argmax(axis=1))
        ids = encoded.input_ids[kept]
        found = _capture(evaluated.model, depths, evaluated.params, ids, edit)
        real = min(BATCH, len(rows) - start)
        text, place = np.nonzero(predicts[kept[:real]])
        text, place = text[:left], place[:left]
        parts.append((np.asarray(found)[:, text, place], text + start))
        left -= len(text)
        if left <= 0:
            break
    every = np.concatenate([x for x, _ in parts], axis=1)
    return Streams(
        dict(zip(depths, every, strict=True)),
        np.concatenate([x for _, x in parts]).astype(np.float64),
    )


def similarity(streams: Streams, retrained: Streams) -> list[float]:
    """Linear CKA to the retrained model, from the embedding to the last layer.

    Biased upwards where there are few tokens for the width; compare models on the
    same texts only.

    Source: Kornblith et al., arXiv 1905.00414.
    """
    return [
        linear_cka(streams.layers[layer], retrained.layers[layer])
        for layer in sorted(retrained.layers)
    ]


def trace(before: Sequence[Streams], after: Sequence[Streams]) -> Trace | None:
    """Whether a classifier tells the model after from the one before unlearning.

    It sees the last layer at the last token of each text. Both sides have the same sets
    of texts: forgotten ones and others, if possible. None for fewer texts than folds.
    """
    pair = [np.concatenate([_ends(each) for each in side]) for side in (before, after)]
    return None if len(pair[0]) < FOLDS else trace_accuracy(*pair)


def pca_projection(
    models: Mapping[str, Streams],
) -> dict[str, Float[np.ndarray, "N 2"]]:
    """Texts of several models in the plane: mean of the last layer, two components.

    The models share the plane, so a text that moved under unlearning shows as two
    points apart. Principal components keep the largest differences and nothing else.
    """
    pooled = {name: _pooled(found) for name, found in models.items()}
    every = np.concatenate(list(pooled.values()))
    center = every.mean(axis=0)
    _, _, axes = np.linalg.svd(every - center, full_matrices=False)
    plane = np.zeros((2, every.shape[1]))
    plane[: min(2, len(axes))] = axes[:2]
    # The sign of a component is arbitrary; the largest entry is made positive.
    peak = np.abs(plane).argmax(axis=1)
    plane *= np.where(plane[[0, 1], peak] < 0, -1.0, 1.0)[:, None]
    return {name: (x - center) @ plane.T for name, x in pooled.items()}


def _ends(found: Streams) -> Float[np.ndarray, "N D"]:
    last = np.flatnonzero(np.diff(found.text, append=-1))
    return found.layers[max(found.layers)][last]


def _pooled(found: Streams) -> Float[np.ndarray, "N D"]:
    last = found.layers[max(found.layers)].astype(np.float64)
    return np.stack(
        [last[found.text == text].mean(0) for text in np.unique(found.text)]
    )


@partial(jax.jit, static_argnums=(0, 1))
def _capture(
    model: LanguageModel,
    depths: tuple[int, ...],
    params: Params,
    ids: Array,
    intervention: Any,
) -> Float[Array, "L B T D"]:
    _, found = model.apply(params, ids, intervention=intervention, capture=depths)
    return jnp.stack([found[depth] for depth in depths]).astype(jnp.float32)
