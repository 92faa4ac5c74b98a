"""What comes back when a model is rounded, or trained a little on what it forgot."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune.loss import next_token_loss
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.verification.card import knowledge_left, report_card
from lt_mia_jax.verification.evaluate import examine
from lt_mia_jax.verification.evaluated import BATCH, EvaluatedModel, teacher_forced
from lt_mia_jax.verification.items import Measured
from lt_mia_jax.verification.metrics.intervals import estimate
from lt_mia_jax.verification.metrics.memorization import probability
from lt_mia_jax.verification.metrics.robustness import (
    changed_codes,
    quantize,
    relearning_area,
    relearning_robustness,
)
from lt_mia_jax.verification.records import Grid, Relearning, Rounding

STEPS = (0, 1, 2, 5, 10)
"""After how many updates a relearning curve has a point."""


def spread(rows: Sequence[Question], most: int) -> list[Question]:
    """At most so many rows, evenly spaced and in their order."""
    count = min(len(rows), most)
    kept = np.linspace(0, len(rows) - 1, count).round().astype(int)
    return [rows[i] for i in kept]


def check_grid(bits: int, grid: Grid) -> None:
    """Whether a grid has so many bits.

    Raises:
      InputError: it has not.
    """
    if not 2 <= bits <= 16:
        raise InputError(
            f"--quantize {bits}: expected numbers of bits from 2 to 16, such as 8 4"
        )
    if grid == "bitsandbytes" and bits not in (4, 8):
        raise InputError(
            f"--quantize {bits}: bitsandbytes rounds to 8 or 4 bits; give --grid "
            "channel for other numbers"
        )


def rounding_card(
    models: Mapping[str, EvaluatedModel],
    rows: Sequence[Question],
    bits: int,
    *,
    grid: Grid = "bitsandbytes",
    seed: int = 0,
) -> Rounding:
    """What models with rounded weights know of forgotten questions.

    All models are rounded alike, so that what rounding itself destroys is not taken for
    forgetting: 1 is what the rounded model before unlearning knows. The models are
    `before`, `after`, and `retrained` if there is one.

    Only weights are rounded: of LLM.int8() the activations stay as they are.

    Raises:
      InputError: the grid has no such number of bits.

    Source: Catastrophic Failure of LLM Unlearning via Quantization, arXiv 2410.16454.
    """
    check_grid(bits, grid)
    fp4 = grid == "bitsandbytes" and bits == 4
    items = {
        name: examine(
            model._replace(params=quantize(model.params, bits, fp4=fp4)), rows
        )
        for name, model in models.items()
    }
    recovered = None
    if "retrained" in items:
        order = ("before", "after", "retrained")
        recovered = knowledge_left(*(items[n].probability for n in order), seed=seed)
    return Rounding(
        bits=bits,
        grid=grid,
        changed_codes=changed_codes(
            models["before"].params, models["after"].params, bits, fp4=fp4
        ),
        models={
            name: report_card(Measured({"forget": found}))
            for name, found in items.items()
        },
        recovered=recovered,
    )


def relearning_card(
    models: Mapping[str, EvaluatedModel], rows: Sequence[Question], *, seed: int = 0
) -> Relearning | None:
    """How fast models relearn: some forgotten questions are taught, others asked.

    The models are `after`, and `retrained` if there is one; `before` is left out. Every
    other question may be taught. None for fewer than two questions.
    """
    if len(rows) < 2:
        return None
    taught, asked = spread(rows[::2], BATCH), rows[1::2]
    curves = {
        name: relearn(model, taught, asked)
        for name, model in models.items()
        if name != "before"
    }

    def compared(measure: Callable[..., float]) -> Estimate | None:
        """A measure of the mean curves of both models."""
        if "retrained" not in curves:
            return None
        both = (curves["after"].T, curves["retrained"].T)
        return estimate(
            lambda group: measure(*(x.mean(axis=0) for x in group)), both, seed=seed
        )

    return Relearning(
        steps=STEPS,
        taught=len(taught),
        asked=len(asked),
        models={name: tuple(x.mean(axis=1).tolist()) for name, x in curves.items()},
        area=compared(partial(relearning_area, STEPS)),
        robustness=compared(relearning_robustness),
    )


def relearn(
    evaluated: EvaluatedModel,
    taught: Sequence[Question],
    asked: Sequence[Question],
    *,
    steps: Sequence[int] = STEPS,
    learning_rate: float = 1e-4,
) -> Float[np.ndarray, "S N"]:
    """Train on some forgotten questions, and ask for others.

    Adam on one batch, the first 64 texts at most, the same at every step; an
    intervention stays in place, and the model is left as it is. The same recipe on the
    retrained model is what the curve is to be compared with.

    Returns:
      Probability of each answer that is asked for, after each number of steps.

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
    lesson = evaluated.encode(taught[:BATCH])
    batch = (lesson.input_ids, lesson.label_mask)
    edit = evaluated.edit(lesson.label_mask.argmax(axis=1))
    encoded = evaluated.encode(asked)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), evaluated.params)
    state = optax.adam(learning_rate).init(params)
    rate = np.float32(learning_rate)
    found, done = [], 0
    for wanted in steps:
        while done < wanted:
            params, state = _step(evaluated.model, params, state, batch, edit, rate)
            done += 1
        stats = teacher_forced(
            evaluated._replace(params=params), encoded, encoded.label_mask
        )
        found.append(probability(stats))
    return np.array(found)


@partial(jax.jit, static_argnums=0)
def _step(
    model: LanguageModel,
    params: Params,
    state: Any,
    batch: tuple[Array, Array],
    intervention: Any,
    learning_rate: Array,
) -> tuple[Any, Any]:
    def loss(params: Params) -> Array:
        ids, targets = batch
        logits = model.apply(params, ids, intervention=intervention)
        return next_token_loss(logits, ids, targets)[0]

    gradient = jax.grad(loss)(params)
    updates, state = optax.adam(learning_rate).update(gradient, state, params)
    return optax.apply_updates(params, updates), state
