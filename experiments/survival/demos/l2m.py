"""L2M: four tasks in sequence beside a frozen base, routed by the text."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, Texts, accuracy, adam, tiny, train
from lt_mia_jax.arrays import Array, Int
from lt_mia_jax.finetune.config import LoraConfig
from lt_mia_jax.training.transforms.mask import freeze
from lt_mia_jax.transfer.adapt import pool as pools

LENGTH, SLOTS = 4, 8
"""Symbols of a question, slots of the pool."""
BEFORE = [Task("copy", 0, LENGTH), Task("reverse", 0, LENGTH)]
"""Tasks of the base."""
NEW = [
    Task("reverse", 1, LENGTH),
    Task("copy", 2, LENGTH),
    Task("reverse", 3, LENGTH),
    Task("copy", 4, LENGTH),
]
"""Tasks in sequence, each in a language that the base has never seen."""
MODEL = tiny(layers=2)
ROUTED = pools.Routed(MODEL)
LORA = LoraConfig(
    rank=8,
    alpha=16.0,
    targets=("*/query/kernel", "*/value/kernel", "*/feed_forward/*/kernel"),
)
STEPS, RATE = 350, 5e-3


def question_query(params: Any, ids: Int[Array, "B T"]) -> Array:
    """Query of the prompt."""
    return pools.text_query(params, ids, jnp.arange(ids.shape[1])[None] < LENGTH + 2)


def routed_loss(routed: pools.Routed, params: Any, texts: Texts) -> Array:
    """Cross-entropy of the answers, nats, and the pull on the keys."""
    pool, ids = params["pool"], jnp.asarray(texts.ids)
    query = question_query(params["base"], ids)
    index, _ = pools.select(pool.keys, query, params["usage"])
    logits = routed.apply(params, ids, index)[:, :-1]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    pull = pools.pull_loss(pool.keys, query, index)
    return jnp.mean(nll, where=jnp.asarray(texts.answer)[:, 1:]) + pull


@functools.lru_cache
def pool_optimizer() -> optax.GradientTransformation:
    """Base and usage stay."""
    return freeze(adam(RATE), ["pool/*"])


@jax.jit
def routed_accuracy(params: Any, texts: Texts) -> tuple[Array, Array]:
    """Share of right answer tokens, and the slot of each text."""
    ids = jnp.asarray(texts.ids)
    query = question_query(params["base"], ids)
    index = pools.route(params["pool"], query, params["reserved"])
    guess = ROUTED.apply(params, ids, index)[:, :-1].argmax(axis=-1)
    right = jnp.mean(guess == ids[:, 1:], where=jnp.asarray(texts.answer)[:, 1:])
    return right, index


def score(params: Any, task: Task) -> float:
    """Percent, with routing on."""
    texts = task.texts(np.random.default_rng(999), 256)
    return 100 * float(routed_accuracy(params, texts)[0])


def pretrained(seed: int) -> Any:
    """The base.

    Tokens that it never sees keep their first embeddings, which are five times as long
    as usual, so that it can tell them apart.
    """
    base = MODEL.init(jax.random.key(seed))
    base["embedding"]["tokens"] *= 5
    return train(MODEL, base, BEFORE, steps=700, seed=seed, rate=2e-3)[0]


def full_forgetting(params: Any, seed: int) -> float:
    """Mean loss of all tasks but the last when all parameters learn in sequence."""
    tasks, best = [*BEFORE, *NEW], {}
    for task in BEFORE:
        best[task] = accuracy(MODEL, params, task)
    for task in NEW:
        params, _ = train(MODEL, params, task, steps=120, seed=seed)
        best[task] = accuracy(MODEL, params, task)
    gaps = [best[task] - accuracy(MODEL, params, task) for task in tasks[:-1]]
    return 100 * float(np.mean(gaps))


def learned_task(params: Any, task: Task, seed: int) -> Any:
    """The pool after one more task."""
    settings = {"optimizer": pool_optimizer(), "loss": routed_loss}
    return train(ROUTED, params, task, steps=STEPS, seed=seed, **settings)[0]


def run(seed: int) -> Outcome:
    """The pool over the sequence; beside it full fine-tuning and one LoRA a task."""
    base = pretrained(seed)
    known = [task.texts(np.random.default_rng((seed, 7)), 128).ids for task in BEFORE]
    start = pools.pool_init(jax.random.key(seed + 1), base, LORA, slots=SLOTS)
    reserved = question_query(base, jnp.concatenate(known)).mean(axis=0)
    params: Any = {"base": base, "pool": start, "usage": jnp.zeros(SLOTS)}
    learned: dict[Task, float] = {}
    for number, task in enumerate(NEW):
        params = learned_task(params, task, seed + number)
        ids = task.texts(np.random.default_rng((seed, 8, number)), 256).ids
        query = question_query(base, jnp.asarray(ids))
        usage = params["usage"]
        index, _ = pools.select(params["pool"].keys, query, usage)
        params["usage"] = pools.update_usage(usage, index)
        learned[task] = score({**params, "reserved": reserved}, task)
    params["reserved"] = reserved
    alone = {NEW[0]: learned[NEW[0]]}  # which had the pool for itself
    for number, task in enumerate(NEW[1:], start=1):
        own = {"base": base, "pool": start, "usage": jnp.zeros(SLOTS)}
        own = learned_task(own, task, seed + number)
        alone[task] = score({**own, "reserved": reserved}, task)
    ends = {task: score(params, task) for task in NEW}
    gaps = [learned[task] - ends[task] for task in NEW[:-1]]
    gaps += [100 * accuracy(MODEL, base, t) - score(params, t) for t in BEFORE]
    worst = max(alone[task] - learned[task] for task in NEW)
    ids = jnp.concatenate(known)
    chosen = jnp.full(len(ids), SLOTS)
    same = (jax.jit(ROUTED.apply)(params, ids, chosen) == plain_logits(base, ids)).all()
    full = full_forgetting(base, seed)
    measures = {
        "forgetting, full fine-tuning": full,
        "forgetting": float(np.mean(gaps)),
        "new tasks": float(np.mean(list(learned.values()))),
        "new tasks, own adapters": float(np.mean(list(alone.values()))),
        "worst gap to own adapters": worst,
        "logits of the base bit-equal": float(same),
    }
    passed = bool(same) and measures["forgetting"] <= 1 and worst <= 2
    return Outcome(measures, passed, full >= 10)


@jax.jit
def plain_logits(params: Any, ids: Array) -> Array:
    """Logits of the base."""
    return MODEL.apply(params, ids)


DEMONSTRATION = Demonstration(
    system="L2M",
    claim="under the reserved slot the logits are those of the base bit for bit; with "
    "routing, mean forgetting is at most 1 point and each new task within 2 points of "
    "an adapter of its own",
    run=run,
    precondition="full fine-tuning forgets at least 10 points",
)
