"""Meta-RTL: which of four sources help a target with few texts."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import (
    FIRST,
    Name,
    Task,
    Texts,
    accuracy,
    adam,
    answer_loss,
    answers,
    fit,
    tiny,
)
from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.policy.meta import (
    MetaConfig,
    SourcePolicy,
    adapt_sources,
    meta_step,
    new_meta_state,
    weighted_reptile,
)

MODEL = tiny(layers=2)
TARGET = Task("reverse", 0, 4)
TEXTS = 16
"""Of the target, all that there are."""
ITERATIONS, INNER, ROWS = 120, 5, 16
FINAL = 5
"""Updates on the target at the end."""


class Mixed(NamedTuple):
    """The target's questions with its answers on some texts, and others elsewhere.

    Tags do not tell them apart: what one source teaches contradicts the next.
    """

    right: float
    """Share of texts with right answers."""
    other: Name
    """The task whose answers the rest has."""

    def texts(self, rng: np.random.Generator, rows: int) -> Texts:
        """A batch."""
        ids, answer = TARGET.texts(rng, rows)
        ids, k = np.asarray(ids), TARGET.length
        wrong = FIRST + answers(self.other, ids[:, 1 : k + 1] - FIRST)
        rest = rng.random((rows, 1)) >= self.right
        changed = np.where(rest, wrong, ids[:, k + 2 : -1])
        return Texts(
            np.concatenate([ids[:, : k + 2], changed, ids[:, -1:]], axis=1), answer
        )


SOURCES = {
    "aligned": Mixed(1.0, "copy"),
    "partly": Mixed(0.5, "copy"),
    "harmful 1": Mixed(0.0, "copy"),
    "harmful 2": Mixed(0.0, "sort"),
}


def loss(params: Params, texts: Texts) -> Array:
    """Mean cross-entropy of the answers, nats."""
    return answer_loss(MODEL, params, texts)


CONFIG = MetaConfig(
    loss=loss,
    inner=adam(1e-3),
    policy=SourcePolicy(len(SOURCES)),
    optimizer=adam(1e-2),
)


def drawn(rng: np.random.Generator) -> Texts:
    """Batches of each source, with leading axes "K steps"."""
    each = [[s.texts(rng, ROWS) for _ in range(INNER)] for s in SOURCES.values()]
    stacked: Any = [jax.tree.map(lambda *x: np.stack(x), *row) for row in each]
    return jax.tree.map(lambda *x: np.stack(x), *stacked)


step = jax.jit(functools.partial(meta_step, CONFIG))


@jax.jit
def uniform_step(params: Params, sources: Texts) -> Params:
    """An iteration of Reptile with equal weights."""
    copies = adapt_sources(CONFIG.loss, CONFIG.inner, params, sources)
    weights = jnp.full(len(SOURCES), 1 / len(SOURCES))
    return weighted_reptile(params, copies, weights, CONFIG.beta)


def learned(params: Any, texts: Texts) -> float:
    """Accuracy on the target after training on its few texts, in percent."""
    final, _, _ = fit(MODEL, params, [texts] * FINAL, adam(1e-3))
    return 100 * accuracy(MODEL, final, TARGET)


def run(seed: int) -> Outcome:
    """Meta-training with and without the policy, then training on the target."""
    start = jax.jit(MODEL.init)(jax.random.key(seed))
    target = TARGET.texts(np.random.default_rng((seed, 31)), TEXTS)
    rng = np.random.default_rng((seed, 32))
    state = new_meta_state(CONFIG, jax.random.key(seed + 1))
    weighted = uniform = start
    history = []
    for _ in range(ITERATIONS):
        sources = drawn(rng)
        weighted, state, aux = step(weighted, state, sources, target)
        uniform = uniform_step(uniform, sources)
        history.append(aux.weights)
    weights: Float[np.ndarray, "E K"] = np.asarray(history)
    final = dict(zip(SOURCES, weights[-1].tolist(), strict=True))
    measures = {
        "target, Meta-RTL": learned(weighted, target),
        "target, uniform Reptile": learned(uniform, target),
        "target alone": learned(start, target),
        **{f"weight, {name}": weight for name, weight in final.items()},
    }
    first = max(final, key=lambda name: final[name]) == "aligned"
    better = measures["target, Meta-RTL"] > measures["target, uniform Reptile"]
    return Outcome(measures, first and better)


DEMONSTRATION = Demonstration(
    system="Meta-RTL",
    claim="Of one aligned, one partly aligned and two harmful sources the aligned one "
    "has the largest weight at the end, and accuracy on the target is above that of "
    "Reptile with equal weights.",
    run=run,
)
