"""What a method computes once, before the first update."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import fetch
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.trees import flatten
from lt_mia_jax.unlearning import objectives, transforms
from lt_mia_jax.unlearning.importance import attribution, tracing
from lt_mia_jax.unlearning.interventions.gates import prompt_mask
from lt_mia_jax.unlearning.methods import (
    Guard,
    Lwf,
    Method,
    Rmu,
    SalUn,
    Sha256,
    Sure,
)
from lt_mia_jax.unlearning.objectives import representation
from lt_mia_jax.unlearning.objectives.batch import ApplyFn, TextBatch

FEED_FORWARD = ("*/feed_forward/*",)
"""Weights that SHA256 trains."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The model before unlearning, and the texts."""

    model: ModelConfig
    apply_fn: ApplyFn
    forward_fn: ApplyFn
    """The same, differentiable in forward mode."""
    trained: Any
    """The tree to be trained, at its start."""
    forget: Callable[[], Iterable[TextBatch]]
    """Batches of all forget texts in order, rows of weight 0 filling up the last."""
    retain: Callable[[], Iterable[TextBatch]]
    """Batches of the retain texts, or of a sample of them."""
    forget_texts: int
    """Number of forget texts."""
    key: Key[Array, ""]


class Prepared(NamedTuple):
    """What preparation found."""

    data: dict[str, Any]
    """Arrays that objectives get by name."""
    arrays: dict[str, Any]
    """Arrays that the transformation starts with, such as a mask."""
    row_weight: Float[np.ndarray, " N"] | None
    """Weight of each forget text; None is 1."""


def prepare(method: Method, setting: Setting) -> Prepared:
    """Everything that a method needs beside its batches.

    The reference, where one is needed, is the trained tree at its start: the weights,
    or adapters that add nothing.

    Raises:
      InputError: the model lacks what the method trains.
    """
    data, arrays, row_weight = {}, {}, None
    wanted = {
        name
        for term in (method.forget(), method.retain())
        if term
        for name in term.data
    }
    if "reference_params" in wanted:
        data["reference_params"] = setting.trained
    match method:
        case Rmu():
            data["control"] = representation.control_vector(
                setting.key, setting.model.width, method.direction
            )
        case SalUn():
            scores = attribution.saliency(
                _gradient(setting), setting.trained, setting.forget()
            )
            arrays["mask"] = attribution.top_share_mask(scores, method.share)
        case Sure():
            scores = attribution.saliency(
                _gradient(setting), setting.trained, setting.forget()
            )
            arrays["mask"] = attribution.row_mask(scores, method.percentile)
        case Sha256():
            arrays["mask"] = _layers(method, setting)
        case Guard():
            direction = _mean_gradient(setting)
            score = partial(_attributed, setting.forward_fn, direction)
            scores = _per_text(setting, score)
            weights = attribution.guard_weights(scores, method.temperature)
            row_weight = np.asarray(weights, np.float32)
        case Lwf():
            row_weight = _disturbing(method, setting)
        case _:
            pass
    return Prepared(data, arrays, row_weight)


def per_example_loss(
    apply_fn: ApplyFn, params: Any, batch: TextBatch
) -> Float[Array, "B"]:
    """Summed loss of each text, in nats; of weight-0 texts zero."""
    _, info = objectives.nll(params, batch, apply_fn=apply_fn, reduction="sequence_sum")
    return info.per_example


@jax.jit
def _summed_gradient(apply_fn: ApplyFn, params: Any, batch: TextBatch) -> Any:
    return jax.grad(lambda p: per_example_loss(apply_fn, p, batch).sum())(params)


def _gradient(setting: Setting) -> Callable[[Any, TextBatch], Any]:
    return partial(_summed_gradient, setting.apply_fn)


def _mean_gradient(setting: Setting) -> Any:
    """Of the loss of the retain texts, each token counting the same."""
    gradient, whole, tokens = _gradient(setting), None, 0.0
    for batch in setting.retain():
        new = gradient(setting.trained, batch)
        whole = new if whole is None else jax.tree.map(jax.numpy.add, whole, new)
        real = fetch(batch.weight) > 0
        tokens += float(fetch(batch.label_mask)[real, 1:].sum())
    if whole is None:
        raise InputError("no retain texts; give --retain")
    return jax.tree.map(lambda x: x / max(tokens, 1.0), whole)


@jax.jit
def _attributed(
    apply_fn: ApplyFn, direction: Any, params: Any, batch: TextBatch
) -> Array:
    return attribution.attribution_scores(
        partial(per_example_loss, apply_fn), params, batch, direction
    )


def _per_text(setting: Setting, score: Callable[[Any, TextBatch], Array]) -> Array:
    found = [fetch(score(setting.trained, batch)) for batch in setting.forget()]
    return jax.numpy.asarray(np.concatenate(found)[: setting.forget_texts])


@jax.jit
def _confidence(
    apply_fn: ApplyFn,
    key: Key[Array, ""],
    fisher: Any,
    params: Any,
    batch: TextBatch,
) -> Array:
    # The task's optimum is the model itself.
    loss = partial(per_example_loss, apply_fn)
    return attribution.forgetting_confidence(
        loss, params, batch, optimum=params, fisher=fisher, rate=1.0, key=key
    )


def _disturbing(method: Lwf, setting: Setting) -> Float[np.ndarray, " N"]:
    """1 for the share of forget texts with the highest confidence, else 0."""
    loss = partial(per_example_loss, setting.forward_fn)
    fisher = attribution.diagonal_fisher(
        loss, setting.trained, setting.retain(), row_weight=lambda b: b.weight
    )
    confidence = partial(_confidence, setting.forward_fn, setting.key, fisher)
    scores = _per_text(setting, confidence)
    taken = max(1, round(method.share * len(scores)))
    weight = np.zeros(len(scores), np.float32)
    weight[np.argsort(-np.asarray(scores), kind="stable")[:taken]] = 1.0
    return weight


def _layers(method: Sha256, setting: Setting) -> Any:
    names = flatten(setting.trained)
    if not any("/feed_forward/" in name for name in names):
        raise InputError(
            "sha256 trains feed-forward weights, and this model has none; use another "
            "method"
        )
    count = max(1, setting.model.layers // 3)
    match method.layers:
        case "first":
            layers = range(count)
        case "trace":
            layers = [n - 1 for n in tracing.causal_layers(_trace(setting), count)]
        case layers:
            pass
    return transforms.layer_mask(
        setting.trained, FEED_FORWARD, [int(layer) for layer in layers]
    )


def _trace(setting: Setting) -> tracing.Trace:
    """What each layer's clean stream brings back of the forgotten answers.

    The noise falls on the whole prompt: which tokens name the subject is not known.
    """
    batch = next(iter(setting.forget()))
    prompt = prompt_mask(batch.attention_mask, batch.label_mask)
    trace = jax.jit(tracing.causal_trace, static_argnames="layers")(
        setting.trained,
        batch.input_ids,
        prompt,
        batch.label_mask,
        apply_fn=setting.apply_fn,
        layers=setting.model.layers,
        key=setting.key,
    )
    real = fetch(batch.weight) > 0
    return jax.tree.map(lambda x: jax.numpy.asarray(x[..., real]), fetch(trace))
