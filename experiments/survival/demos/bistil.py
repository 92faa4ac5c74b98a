"""BiStil: a teacher of six languages, a student of two with half the layers."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import (
    END,
    SEPARATOR,
    VOCABULARY,
    Task,
    Texts,
    accuracy,
    tiny,
    train,
)
from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.training.transforms.mask import mask_updates
from lt_mia_jax.transfer.adapt.distillation import Weights, distil_loss, outputs
from lt_mia_jax.transfer.weightspace.sparse import compose, lt_mask, sparse_delta
from lt_mia_jax.transfer.weightspace.trim import (
    keep_tokens,
    matched_layers,
    renumbered,
    shrink_depth,
    trim_vocab,
)
from lt_mia_jax.trees import parameter_count

TEACHER = tiny()
LANGUAGES = [[Task("copy", n, 4)] for n in range(6)]
TARGET = 1
PAIR = [*LANGUAGES[0], *LANGUAGES[TARGET]]
SPECIAL = (SEPARATOR, END)
THRESHOLD = 1e-6
DENSITY = 0.08
"""Of the student's parameters, in the last phase."""
PHASES = (400, 200, 300)
"""Updates: hidden states of the two languages, then full and sparse training."""


class Trimmed(NamedTuple):
    """A task in the token ids of the student."""

    task: Task
    ids: Int[np.ndarray, " W"]

    def texts(self, rng: np.random.Generator, rows: int) -> Texts:
        """As those of the task."""
        texts = self.task.texts(rng, rows)
        return Texts(renumbered(np.asarray(texts.ids), self.ids), texts.answer)


def frequencies(language: Sequence[Task], seed: int) -> Float[np.ndarray, " V"]:
    """How often each token occurs in a language, as a fraction of its tokens."""
    rng = np.random.default_rng((seed, 3))
    ids = np.concatenate([np.ravel(task.texts(rng, 500).ids) for task in language])
    return np.bincount(ids, minlength=VOCABULARY) / len(ids)


def optimizer(mask: Any) -> optax.GradientTransformationExtraArgs:
    """Adam whose steps are masked last."""
    return optax.chain(optax.adam(1e-3), mask_updates(mask))


# Masks are part of the state: one object, and so one compiled program, for all phases.
PROGRAM = optimizer({})


@functools.partial(jax.jit, static_argnums=(0, 1))
def _updates(
    student: LanguageModel,
    pairs: tuple[tuple[int, int], ...],
    teacher: Any,
    params: Any,
    state: Any,
    stack: Any,
    ids: Array,
    soft: Any,
) -> Any:
    """Distillation steps, one for each batch of the stack."""
    above, below = zip(*pairs, strict=True)

    def loss(params: Any, whole: Array, own: Array) -> Array:
        told = outputs(TEACHER, teacher, whole, above)
        told = told._replace(logits=told.logits[..., ids])
        said = outputs(student, params, own, below)
        return distil_loss(told, said, Weights(hidden=1.0, soft=soft))

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state = carry
        moves, state = PROGRAM.update(jax.grad(loss)(params, *batch), state, params)
        return (optax.apply_updates(params, moves), state), None

    return jax.lax.scan(step, (params, state), stack)[0][0]


def distil(
    student: LanguageModel,
    teacher: Any,
    params: Any,
    ids: Int[np.ndarray, " W"],
    *,
    mask: Any,
    soft: float,
    steps: int,
    seed: int,
) -> Any:
    """Parameters of the student after so many updates on texts of both languages."""
    pairs = tuple(matched_layers(TEACHER.config, student.config, 2))
    rng = np.random.default_rng((seed, 4))
    drawn = [PAIR[rng.integers(len(PAIR))].texts(rng, 32).ids for _ in range(steps)]
    stack = np.stack(drawn), renumbered(np.stack(drawn), ids)
    state = optimizer(mask).init(params)
    return _updates(student, pairs, teacher, params, state, stack, ids, soft)


def run(seed: int) -> Outcome:
    """Train the teacher, trim and shrink it, and distil in two phases."""
    start = jax.jit(TEACHER.init)(jax.random.key(seed))
    tasks = [task for language in LANGUAGES for task in language]
    teacher, _ = train(TEACHER, start, tasks, steps=1000, seed=seed)

    probs = np.stack([frequencies(LANGUAGES[n], seed) for n in (0, TARGET)])
    ids = trim_vocab(probs, THRESHOLD, SPECIAL)
    config, small = keep_tokens(*shrink_depth(TEACHER.config, teacher, 2), ids)
    student = LanguageModel(config, TEACHER.execution)
    kept = [
        token
        for token in range(VOCABULARY)
        if token in SPECIAL or max(probs[0][token], probs[1][token]) >= THRESHOLD
    ]
    rows = np.asarray(teacher["embedding"]["tokens"])[kept]
    exact = np.array_equal(small["embedding"]["tokens"], rows)

    everything = jax.tree.map(lambda x: jnp.ones(x.shape, bool), small)
    first, full, sparse = PHASES
    general = distil(
        student, teacher, small, ids, mask=everything, soft=0.0, steps=first, seed=seed
    )
    phase = functools.partial(distil, student, teacher, general, ids, soft=1.0)
    moved = phase(mask=everything, steps=full, seed=seed + 1)
    mask = lt_mask(moved, general, round(DENSITY * parameter_count(general)))
    again = phase(mask=mask, steps=sparse, seed=seed + 2)
    final = compose(general, [sparse_delta(again, general, mask)])

    def percent(model: LanguageModel, params: Any, tasks: Sequence[Any]) -> float:
        return 100 * float(np.mean([accuracy(model, params, task) for task in tasks]))

    own: list[Any] = [Trimmed(task, ids) for task in LANGUAGES[TARGET]]
    best = percent(TEACHER, teacher, LANGUAGES[TARGET])
    reached = percent(student, final, own)
    share = parameter_count(final) / parameter_count(teacher)
    measures = {
        "target language, teacher": best,
        "target language, student": reached,
        "after the trimming": percent(student, small, own),
        "after phase 1": percent(student, general, own),
        "parameters, of the teacher's": share,
        "tokens kept": float(len(ids)),
        "rows as the rule says": float(exact),
    }
    return Outcome(measures, reached >= 0.95 * best and share <= 0.6 and exact)


DEMONSTRATION = Demonstration(
    system="BiStil",
    claim="A bilingual student with half the layers reaches 95 % of its teacher's "
    "accuracy on the target language with at most 60 % of the parameters, and exactly "
    "the embedding rows below the threshold are dropped.",
    run=run,
)
