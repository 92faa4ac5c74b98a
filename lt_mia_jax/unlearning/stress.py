"""What comes back when a model is rounded, or trained a little on what it forgot."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.unlearning import metrics, objectives
from lt_mia_jax.unlearning.batch import TextBatch
from lt_mia_jax.unlearning.evaluate import BATCH, Subject, teacher_forced

STEPS = (0, 1, 2, 5, 10)
"""After how many updates a relearning curve has a point."""


def quantised(subject: Subject, bits: int, *, group_size: int | None = None) -> Subject:
    """The subject with the matrices of its layers rounded to nearest.

    Source: Catastrophic Failure of LLM Unlearning via Quantization, arXiv 2410.16454.
    """
    rounded = metrics.quantise(subject.params, bits, group_size=group_size)
    return subject._replace(params=rounded)


class Relearned(NamedTuple):
    """A relearning curve."""

    steps: tuple[int, ...]
    probability: Float[np.ndarray, " S"]
    """Mean probability of the answers that were not taught, after each."""


def relearn(
    subject: Subject,
    taught: Sequence[Question],
    asked: Sequence[Question],
    *,
    steps: Sequence[int] = STEPS,
    learning_rate: float = 1e-4,
) -> Relearned:
    """Train on some forgotten questions, and ask for others.

    Adam on one batch of at most 64 texts, the same at every step; an intervention
    stays in place. The same recipe on the retrained model is what the curve is to be
    compared with.

    Args:
      subject: the model; left as it is.
      taught: forgotten questions to train on.
      asked: other forgotten questions, which are measured.
      steps: after how many updates, rising.
      learning_rate: of Adam.

    Raises:
      InputError: nothing to teach or to ask, or steps that do not rise from 0.

    Source: Eight Methods to Evaluate Robust Unlearning, arXiv 2402.16835 (relearning);
    the recipe is ours.
    """
    if not taught or not asked:
        raise InputError(
            f"relearning teaches {len(taught)} questions and asks {len(asked)}; "
            "expected at least one each"
        )
    if list(steps) != sorted(set(steps)) or min(steps, default=-1) < 0:
        raise InputError(f"relearning steps {list(steps)}; expected rising, from 0")
    lesson = subject.encode(taught[:BATCH])
    host: Any = (
        lesson.input_ids,
        lesson.attention_mask,
        lesson.label_mask,
        np.ones(len(lesson.input_ids), np.float32),
    )
    batch = TextBatch(*host)
    edit = subject.edit(lesson.label_mask.argmax(axis=1))
    encoded = subject.encode(asked)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), subject.params)
    state = optax.adam(learning_rate).init(params)
    rate = np.float32(learning_rate)
    found, done = [], 0
    for wanted in steps:
        while done < wanted:
            params, state = _step(subject.model, params, state, batch, edit, rate)
            done += 1
        stats = teacher_forced(
            subject._replace(params=params), encoded, encoded.label_mask
        )
        found.append(float(metrics.probability(stats).mean()))
    return Relearned(tuple(steps), np.array(found))


@partial(jax.jit, static_argnums=0)
def _step(
    model: LanguageModel,
    params: Params,
    state: Any,
    batch: TextBatch,
    intervention: Any,
    learning_rate: Array,
) -> tuple[Any, Any]:
    apply_fn = partial(model.apply, intervention=intervention)
    gradient, _ = jax.grad(objectives.nll, has_aux=True)(
        params, batch, apply_fn=apply_fn
    )
    updates, state = optax.adam(learning_rate).update(gradient, state, params)
    return optax.apply_updates(params, updates), state
