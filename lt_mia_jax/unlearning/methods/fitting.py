"""What methods without trained weights start from: activations of the frozen model."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import fetch
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.models.placement import ByLayer
from lt_mia_jax.unlearning.interventions import directions
from lt_mia_jax.unlearning.interventions.gated import GatedRotation
from lt_mia_jax.unlearning.interventions.gates import (
    cosine_similarity,
    masked_mean,
    prompt_mask,
)
from lt_mia_jax.unlearning.methods import GuardIt, Method, Mrp
from lt_mia_jax.unlearning.methods.prepare import Setting
from lt_mia_jax.unlearning.objectives.batch import ApplyFn, TextBatch


def start(method: Method, setting: Setting, earlier: Intervention | None = None) -> Any:
    """The tree that `method.intervention()` makes an intervention of.

    Args:
      method: one that has such a thing, fitted to the model.
      setting: the texts, and the model as it is: `trained` are its weights.
      earlier: an intervention that the model comes with.

    Raises:
      InputError: the texts do not give what the method is made of.
    """
    match method:
        case Mrp():
            assert earlier is None or isinstance(earlier, ByLayer)
            return start_rows(method, setting, earlier)
        case GuardIt():
            return method.placed(fit_gate(method, setting))
        case _:
            raise TypeError(f"{type(method).__name__} makes no intervention")


def start_rows(
    method: Mrp, setting: Setting, earlier: ByLayer | None = None
) -> dict[str, Any]:
    """Rows at each layer: what is large in the texts to forget alone.

    On a model that comes with a projection they are those of its stream after it.

    Returns:
      `rows`, `"N k D"`, and with a projection `earlier`, `"N E D"`; see
      `methods.intervened.Projections`.

    Raises:
      InputError: at a layer the texts to forget have fewer directions of their own.
    """
    forget, retain = (
        _token_rows(setting, texts(), method.layers, earlier)
        for texts in (setting.forget, setting.retain)
    )
    found = []
    for layer in method.layers:
        try:
            rows = directions.forget_rows(
                forget[layer],
                retain[layer],
                count=method.rows,
                retain_rank=method.retain_rank,
            )
        except InputError as error:
            raise InputError(f"mrp, layer {layer}: {error}") from error
        found.append(rows)
    trained: dict[str, Any] = {"rows": np.stack(found)}
    if earlier is not None:
        trained["earlier"] = np.asarray(earlier.stacked.rows, np.float32)
    return trained


def fit_gate(method: GuardIt, setting: Setting) -> GatedRotation:
    """Topics, their vectors, and the threshold of the gate.

    Raises:
      InputError: there are no texts to keep, or no threshold opens the gate more often
        for prompts to forget than for those to keep.
    """
    forget, retain = (
        _text_means(setting, texts(), method.layer)
        for texts in (setting.forget, setting.retain)
    )
    topics = directions.cluster(
        forget.prompts, counts=range(2, method.most_topics + 1), seed=0
    )
    vectors = directions.cluster_vectors(forget.whole, topics.labels, retain.whole)
    threshold = method.threshold
    if threshold is None:
        near, far = (
            np.asarray(cosine_similarity(means.prompts, topics.centroids))
            for means in (forget, retain)
        )
        threshold = directions.threshold_for_recall(near, far, method.penalty)
        opened = [float((x.max(axis=1) > threshold).mean()) for x in (near, far)]
        if opened[0] <= method.penalty * opened[1]:
            raise InputError(
                "guard_it: no threshold tells the prompts to forget from those to keep "
                f"at layer {method.layer}; give questions rather than plain texts, "
                "another --method.layer, or a --method.threshold"
            )
    return GatedRotation(
        vectors,
        topics.centroids,
        threshold,
        method.strength,
        weighting=method.weighting,
    )


class _Means(NamedTuple):
    prompts: Float[np.ndarray, "N D"]
    """Mean stream over each prompt."""
    whole: Float[np.ndarray, "N D"]
    """Over prompt and answer."""


def _text_means(
    setting: Setting, batches: Iterable[TextBatch], layer: int | None
) -> _Means:
    assert layer is not None
    parts = []
    for batch in batches:
        found = fetch(_means(setting.apply_fn, setting.trained, batch, layer))
        real = fetch(batch.weight) > 0
        parts.append([x[real] for x in found])
    if not parts:
        raise InputError("guard_it: there is no text to keep; give --retain")
    return _Means(*(np.concatenate(x) for x in zip(*parts, strict=True)))


@partial(jax.jit, static_argnames="layer")
def _means(
    apply_fn: ApplyFn, params: Any, batch: TextBatch, layer: int
) -> tuple[Array, Array]:
    _, streams = apply_fn(params, batch.input_ids, capture=(layer,))
    stream, whole = streams[layer], batch.attention_mask
    prompt = prompt_mask(whole, batch.label_mask)
    return masked_mean(stream, prompt), masked_mean(stream, whole)


def _token_rows(
    setting: Setting,
    batches: Iterable[TextBatch],
    layers: tuple[int, ...],
    earlier: ByLayer | None,
) -> dict[int, Float[np.ndarray, "N D"]]:
    parts = []
    for batch in batches:
        found = _streams(setting.apply_fn, setting.trained, batch, earlier, layers)
        mask = fetch(batch.attention_mask) * (fetch(batch.weight) > 0)[:, None]
        parts.append([directions.token_rows(x, mask) for x in fetch(found)])
    if not parts:
        raise InputError("mrp: there is no text to keep; give --retain")
    joined = (np.concatenate(x) for x in zip(*parts, strict=True))
    return dict(zip(layers, joined, strict=True))


@partial(jax.jit, static_argnames="layers")
def _streams(
    apply_fn: ApplyFn,
    params: Any,
    batch: TextBatch,
    earlier: ByLayer | None,
    layers: tuple[int, ...],
) -> tuple[Array, ...]:
    _, streams = apply_fn(params, batch.input_ids, intervention=earlier, capture=layers)
    return tuple(streams[layer].astype(jnp.float32) for layer in layers)
