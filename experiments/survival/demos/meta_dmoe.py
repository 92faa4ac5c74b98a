"""Meta-DMoE: one step on unlabeled texts of a new domain."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import VOCABULARY, train
from lt_mia_jax.arrays import Array, Float, Int
from lt_mia_jax.transfer.adapt.experts import Aggregator, Episode, adapt, outer_loss

SEEN, UNSEEN = (0, 8, 16, 24, 32), (4, 28)
"""Domains: what is added to every value of a text."""
LENGTH, VALUES, SUPPORT, WIDTH = 4, 32, 24, 32
AGGREGATOR, HEAD = Aggregator(heads=4), nn.Dense(2)


class Labeled(NamedTuple):
    """Texts of one domain."""

    ids: Int[Any, "B T"]
    labels: Int[Any, "B"]
    """Whether the first value is above the middle of its domain."""


class Domain(NamedTuple):
    """Values of which a single text does not tell the domain."""

    shift: int

    def texts(self, rng: np.random.Generator, rows: int) -> Labeled:
        """A batch."""
        raw = rng.integers(VALUES, size=(rows, LENGTH))
        return Labeled(
            (raw + self.shift).astype(np.int32),
            (raw[:, 0] >= VALUES // 2).astype(np.int32),
        )


class Encoder(nn.Module):
    """Features of short texts."""

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Features of each text."""
        x = nn.Embed(VOCABULARY, 16)(ids).reshape(len(ids), -1)
        return nn.Dense(WIDTH)(nn.relu(nn.Dense(64)(x)))


def features(params: Any, ids: Int[Array, "B T"]) -> Float[Array, "B D"]:
    """Features of each text."""
    return jnp.asarray(Encoder().apply({"params": params}, ids))


def logits(params: Any, ids: Int[Array, "B T"]) -> Float[Array, "B C"]:
    """Of an encoder with its head."""
    found = features(params["student"], ids)
    return jnp.asarray(HEAD.apply({"params": params["head"]}, found))


def supervised(_: Any, params: Any, batch: Labeled) -> Array:
    """Cross-entropy, nats."""
    found = logits(params, batch.ids)
    return optax.softmax_cross_entropy_with_integer_labels(found, batch.labels).mean()


class Episodes(NamedTuple):
    """Support and query of one seen domain, without its expert."""

    experts: Any

    def texts(self, rng: np.random.Generator, rows: int) -> Episode:
        """One episode."""
        own = rng.integers(len(SEEN))
        support = Domain(SEEN[own]).texts(rng, SUPPORT).ids
        query = Domain(SEEN[own]).texts(rng, rows)
        found: Any = np.asarray(expert_features(self.experts, support))
        return Episode(support, found, jnp.arange(len(SEEN)) != own, *query)


@jax.jit
def expert_features(experts: Any, ids: Array) -> Float[Array, "E B D"]:
    """Features of all experts, whose parameters are stacked."""
    return jax.vmap(features, in_axes=(0, None))(experts["student"], ids)


def meta_loss(rate: float, params: Any, episode: Episode) -> Array:
    """The outer loss."""
    return outer_loss(
        params, episode, features=features, aggregator=AGGREGATOR, head=HEAD, rate=rate
    )


@functools.partial(jax.jit, static_argnums=0)
def adapted(rate: float, params: Any, experts: Any, support: Array) -> Any:
    """The student after one step on unlabeled texts, with all experts."""
    merged = AGGREGATOR.apply(
        {"params": params["aggregator"]}, expert_features(experts, support)
    )
    student = adapt(
        params["student"], support, jnp.asarray(merged), features=features, rate=rate
    )
    return {**params, "student": student}


RATE = 1.0
"""Of the inner step; the outer loss fits everything else to it."""


def run(seed: int) -> Outcome:
    """Five experts, meta-training on their domains, 50 support sets a new domain."""
    ids = np.zeros((1, LENGTH), np.int32)
    keys = jax.random.split(jax.random.key(seed), 8)

    def fresh(key: Array) -> Any:
        first, second = jax.random.split(key)
        return {
            "student": Encoder().init(first, ids)["params"],
            "head": HEAD.init(second, jnp.zeros((1, WIDTH)))["params"],
        }

    def taught(key: Array, domains: list[Domain]) -> Any:
        return train(0, fresh(key), domains, steps=500, seed=seed, loss=supervised)[0]  # type: ignore[reportArgumentType]

    each = [taught(keys[n], [Domain(shift)]) for n, shift in enumerate(SEEN)]
    experts = jax.tree.map(lambda *x: jnp.stack(x), *each)
    start = taught(keys[5], [Domain(shift) for shift in SEEN])
    start["aggregator"] = AGGREGATOR.init(keys[6], jnp.zeros((len(SEEN), 1, WIDTH)))[
        "params"
    ]
    episodes: Any = [Episodes(experts)]
    params, _ = train(
        RATE, start, episodes, steps=3000, seed=seed, rows=64, loss=meta_loss
    )
    rng, right = np.random.default_rng((seed, 9)), []
    for _ in range(50):
        for shift in UNSEEN:
            support = Domain(shift).texts(rng, SUPPORT).ids
            test = Domain(shift).texts(rng, 200)
            moved = adapted(RATE, params, experts, jnp.asarray(support))
            of_all = jax.vmap(logits, in_axes=(0, None))(experts, test.ids)
            found = (
                logits(start, test.ids),
                logits(params, test.ids),
                logits(moved, test.ids),
                jax.nn.softmax(of_all).mean(axis=0),
            )
            right.append([np.mean(z.argmax(axis=-1) == test.labels) for z in found])
    names = ("plain student", "before the step", "after the step", "expert average")
    means: list[float] = (100 * np.mean(right, axis=0)).tolist()
    measures: dict[str, float] = dict(zip(names, means, strict=True))
    others = (value for name, value in measures.items() if name != "after the step")
    return Outcome(measures, measures["after the step"] > max(others))


DEMONSTRATION = Demonstration(
    system="Meta-DMoE",
    claim="one step on 24 unlabeled texts of an unseen domain raises accuracy above "
    "the student before it, a student trained on all domains, and the average expert",
    run=run,
)
