"""What comes back when a model is rounded, or trained a little on what it forgot."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.verification import metrics
from lt_mia_jax.verification.card import Measured, estimate, knowledge_left, report_card
from lt_mia_jax.verification.evaluate import (
    BATCH,
    EvaluatedModel,
    examine,
    teacher_forced,
)

STEPS = (0, 1, 2, 5, 10)
"""After how many updates a relearning curve has a point."""


def quantized(
    subject: EvaluatedModel, bits: int, *, group_size: int | None = None
) -> EvaluatedModel:
    """The subject with the matrices of its layers rounded to nearest.

    Source: Catastrophic Failure of LLM Unlearning via Quantization, arXiv 2410.16454.
    """
    rounded = metrics.quantise(subject.params, bits, group_size=group_size)
    return subject._replace(params=rounded)


class Relearned(NamedTuple):
    """A relearning curve."""

    steps: tuple[int, ...]
    items: Float[np.ndarray, "S N"]
    """Probability of each answer that was not taught, after each."""

    @property
    def probability(self) -> Float[np.ndarray, " S"]:
        """Its mean over the answers."""
        return self.items.mean(axis=1)


def rounding_card(
    subjects: Mapping[str, EvaluatedModel],
    rows: Sequence[Question],
    bits: int,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """What stands on a card of forgotten questions under rounded weights.

    All models are rounded alike, so that what rounding itself destroys is not taken for
    forgetting: 1 is what the rounded model before unlearning knows.

    Args:
      subjects: `before`, `after`, and `retrained` if there is one.
      rows: the forgotten questions.
      bits: of the rounded weights.
      seed: of the bootstrap.
    """
    items = {
        name: examine(quantized(subject, bits), rows)
        for name, subject in subjects.items()
    }
    recovered = None
    if "retrained" in items:
        order = ("before", "after", "retrained")
        recovered = knowledge_left(*(items[n].probability for n in order), seed=seed)
    return {
        "bits": bits,
        "changed_codes": metrics.changed_codes(
            subjects["before"].params, subjects["after"].params, bits
        ),
        "models": {
            name: report_card(Measured({"forget": found}))
            for name, found in items.items()
        },
        "recovered": recovered,
    }


def relearning_card(
    subjects: Mapping[str, EvaluatedModel], rows: Sequence[Question], *, seed: int = 0
) -> dict[str, Any] | None:
    """What stands on a card of relearning: some questions are taught, others asked.

    Args:
      subjects: `after`, and `retrained` if there is one; `before` is left out.
      rows: the forgotten questions; every other one may be taught.
      seed: of the bootstrap over the questions that are asked.

    Returns:
      None for fewer than two questions.
    """
    if len(rows) < 2:
        return None
    taught, asked = rows[::2], rows[1::2]
    if len(taught) > BATCH:  # all parts of the forget set, not its beginning
        chosen = np.linspace(0, len(taught) - 1, BATCH).round().astype(int)
        taught = [taught[i] for i in chosen]
    curves = {
        name: relearn(subject, taught, asked)
        for name, subject in subjects.items()
        if name != "before"
    }
    after, truth = curves["after"], curves.get("retrained")
    found: dict[str, Any] = {
        "steps": list(after.steps),
        "taught": len(taught),
        "asked": len(asked),
        "models": {name: x.probability.tolist() for name, x in curves.items()},
        "area": None,
        "robustness": None,
    }
    if truth is None:
        return found

    def area(group: tuple[np.ndarray, np.ndarray]) -> float:
        ours, theirs = (x.mean(axis=0) for x in group)
        return metrics.relearning_area(after.steps, ours, theirs)

    def robustness(group: tuple[np.ndarray, np.ndarray]) -> float:
        ours, theirs = (x.mean(axis=0) for x in group)
        return metrics.relearning_robustness(
            unlearned_before=float(ours[0]),
            unlearned_after=float(ours[-1]),
            retrained_before=float(theirs[0]),
            retrained_after=float(theirs[-1]),
        )

    both = (after.items.T, truth.items.T)
    found["area"] = estimate(area, both, seed=seed)
    found["robustness"] = estimate(robustness, both, seed=seed)
    return found


def relearn(
    subject: EvaluatedModel,
    taught: Sequence[Question],
    asked: Sequence[Question],
    *,
    steps: Sequence[int] = STEPS,
    learning_rate: float = 1e-4,
) -> Relearned:
    """Train on some forgotten questions, and ask for others.

    Adam on one batch, the first 64 texts at most, the same at every step; an
    intervention stays in place. The same recipe on the retrained model is what the
    curve is to be compared with.

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
        found.append(metrics.probability(stats))
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
