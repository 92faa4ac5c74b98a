"""REFINE: a bad source must not hurt."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import VOCABULARY, Task, tiny, train
from lt_mia_jax.arrays import Array, Int
from lt_mia_jax.transfer.adapt.features import TextFeatures
from lt_mia_jax.transfer.adapt.residual import Refine, freeze_mask

CLASSES, STRINGS = 4, Task("copy", length=4)
SOURCE = TextFeatures(tiny(layers=2))
TRAINING, TEST = 400, 2000
"""Labeled texts of the target task, and of its test."""


class Labeled(NamedTuple):
    """Questions of four symbols, in one of four classes."""

    ids: Int[Any, "B T"]
    """tag, symbols, separator."""
    labels: Int[Any, "B"]
    """Two bits: whether the second symbol of each half is the larger one."""


def questions(rng: np.random.Generator, rows: int) -> Labeled:
    """Random questions with their classes."""
    ids = STRINGS.texts(rng, rows).ids[:, :6]
    labels = (ids[:, 1] < ids[:, 2]) + 2 * (ids[:, 3] < ids[:, 4])
    return Labeled(ids, labels.astype(np.int32))


class Fresh(NamedTuple):
    """Endless questions, whose labels may be those of other questions."""

    shuffled: bool = False

    def texts(self, rng: np.random.Generator, rows: int) -> Labeled:
        """A batch."""
        found = questions(rng, rows)
        return (
            found._replace(labels=rng.permutation(found.labels))
            if (self.shuffled)
            else found
        )


class Fixed(NamedTuple):
    """The few labeled texts of the target."""

    data: Labeled

    def texts(self, rng: np.random.Generator, rows: int) -> Labeled:
        """A batch."""
        picked = rng.integers(len(self.data.ids), size=rows)
        return Labeled(self.data.ids[picked], self.data.labels[picked])


class Encoder(nn.Module):
    """A small encoder of six tokens: about 4 % of the parameters of the source."""

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Array:
        """Features "B 32"."""
        x = nn.Embed(VOCABULARY, 8)(ids).reshape(len(ids), -1)
        return nn.relu(nn.Dense(32)(nn.relu(nn.Dense(32)(x))))


def cross_entropy(model: nn.Module, params: Any, batch: Labeled) -> Array:
    """Mean over the batch, nats."""
    logits = jnp.asarray(model.apply({"params": params}, batch.ids))
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return nll.mean()


class Pretrained(nn.Module):
    """The source with a head of its own, all of it trained."""

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Array:
        """Logits."""
        params = self.param("model", SOURCE.model.init)
        return nn.Dense(CLASSES)(SOURCE(params, ids))


OPTIMIZER = optax.masked(optax.sgd(0.01, momentum=0.9), freeze_mask)
"""That of the paper."""


def fitted(refine: Refine, frozen: list[Any], data: Labeled, seed: int) -> float:
    """Test accuracy after training on the target, percent."""
    test = questions(np.random.default_rng((seed, 3)), TEST)
    params = jax.jit(refine.init)(jax.random.key(seed), data.ids[:1], frozen)["params"]
    params, _ = train(
        refine,
        params,
        [Fixed(data)],  # type: ignore[reportArgumentType]
        steps=1500,
        seed=seed,
        rows=64,
        optimizer=OPTIMIZER,
        loss=cross_entropy,  # type: ignore[reportArgumentType]
    )
    logits = jax.jit(refine.apply)({"params": params}, test.ids)
    return 100 * float(np.mean(np.argmax(logits, axis=-1) == test.labels))


def run(seed: int) -> Outcome:
    """Sources trained on true labels, on none, and on shuffled ones."""
    start = jax.jit(Pretrained().init)(
        jax.random.key(seed), questions(np.random.default_rng(0), 1).ids
    )["params"]
    sources = {"random": start["model"]}
    for name, shuffled in (("good", False), ("adversarial", True)):
        trained, _ = train(
            Pretrained(),
            start,
            [Fresh(shuffled)],  # type: ignore[reportArgumentType]
            steps=500,
            seed=seed,
            rate=2e-3,
            loss=cross_entropy,  # type: ignore[reportArgumentType]
        )
        sources[name] = trained["model"]
    data = questions(np.random.default_rng((seed, 2)), TRAINING)
    head, encoder = nn.Dense(CLASSES), Encoder()
    scratch = fitted(Refine((), encoder, head), [], data, seed)
    measures, passed = {"scratch": scratch}, True
    for name, params in sources.items():
        probe = fitted(Refine((SOURCE,), None, head), [params], data, seed)
        both = fitted(Refine((SOURCE,), encoder, head), [params], data, seed)
        measures |= {f"probe, {name}": probe, f"refine, {name}": both}
        passed &= both >= max(scratch, probe) - 1
    return Outcome(measures, passed, measures["probe, adversarial"] <= scratch - 5)


DEMONSTRATION = Demonstration(
    system="REFINE",
    claim="with a good, a random and an adversarial source, REFINE is at most 1 point "
    "below the better of training from scratch and a probe",
    run=run,
    precondition="the probe of the adversarial source is 5 points below training from "
    "scratch",
)
