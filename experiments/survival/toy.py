"""A toy zoo: string tasks in several languages, tiny models, one training function.

Width 64, 4 layers, at most 128 tokens in the vocabulary, texts of `2 k + 3` tokens.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Bool, Float, Int, Params
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.presets import gpt2_like

SEPARATOR, END, TAGS, SYMBOLS, FIRST = 0, 1, 2, 10, 16
"""Ids: the separator, the end, the first task tag; symbols a language, first symbol."""
VOCABULARY = 128
NAMES = ("copy", "reverse", "sort", "modadd")

Name = Literal["copy", "reverse", "sort", "modadd"]


class Texts(NamedTuple):
    """Token ids of equal length, and which of them are answers."""

    ids: Int[Array | np.ndarray, "B T"]
    """tag, k symbols, separator, k answer symbols, end."""
    answer: Bool[Array | np.ndarray, "B T"]
    """True on the answer and the end: what is learned and scored."""


class Task(NamedTuple):
    """A function of a string of symbols, spelled in one of eleven languages."""

    name: Name
    language: int = 0
    """0 as it is; others relabel the symbols with tokens of their own, by a fixed
    permutation, and write question and answer backwards."""
    length: int = 6
    """Symbols of a question, and of its answer."""
    noise: float = 0.0
    """Share of answer symbols replaced by random ones."""

    def texts(self, rng: np.random.Generator, rows: int) -> Texts:
        """Random questions with their answers."""
        x = rng.integers(SYMBOLS, size=(rows, self.length))
        y = answers(self.name, x)
        wrong = rng.random(y.shape) < self.noise
        y = np.where(wrong, rng.integers(SYMBOLS, size=y.shape), y)
        x, y = spelled(x, self.language), spelled(y, self.language)
        tag = np.full((rows, 1), TAGS + NAMES.index(self.name))
        column = np.ones_like(tag)
        ids = np.concatenate([tag, x, SEPARATOR * column, y, END * column], axis=1)
        return Texts(ids.astype(np.int32), answer_mask(rows, self.length))


def answers(name: Name, x: Int[np.ndarray, "B K"]) -> Int[np.ndarray, "B K"]:
    """The answer symbols of a task."""
    match name:
        case "copy":
            return x
        case "reverse":
            return x[:, ::-1]
        case "sort":
            return np.sort(x, axis=1)
        case "modadd":  # each symbol plus its right neighbor
            return (x + np.roll(x, -1, axis=1)) % SYMBOLS


def spelled(x: Int[np.ndarray, "B K"], language: int) -> Int[np.ndarray, "B K"]:
    """Symbols as tokens of a language."""
    if language == 0:
        return FIRST + x
    order = np.random.default_rng(zlib.crc32(b"language %d" % language))
    return FIRST + SYMBOLS * language + order.permutation(SYMBOLS)[x[:, ::-1]]


def answer_mask(rows: int, length: int) -> Bool[np.ndarray, "B T"]:
    """True on the last `length + 1` of `2 * length + 3` tokens."""
    mask = np.zeros((rows, 2 * length + 3), bool)
    mask[:, length + 2 :] = True
    return mask


def tiny(**changes: Any) -> LanguageModel:
    """The model of the demonstrations; `changes` are sizes of `gpt2_like`."""
    sizes = {"width": 64, "layers": 4, "heads": 4, "context": 64, **changes}
    return LanguageModel(gpt2_like(VOCABULARY, **sizes))


def answer_loss(model: Any, params: Params, texts: Texts) -> Float[Array, ""]:
    """Mean cross-entropy of the answer tokens, nats."""
    logits = model.apply(params, texts.ids)[:, :-1]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, texts.ids[:, 1:])
    return jnp.mean(nll, where=jnp.asarray(texts.answer)[:, 1:])


@functools.partial(jax.jit, static_argnums=0)
def _accuracy(model: Any, params: Params, texts: Texts) -> Array:
    guess = model.apply(params, texts.ids)[:, :-1].argmax(axis=-1)
    return jnp.mean(guess == texts.ids[:, 1:], where=jnp.asarray(texts.answer)[:, 1:])


def accuracy(
    model: Any, params: Params, task: Task, *, rows: int = 256, seed: int = 999
) -> float:
    """Share of answer tokens predicted right under teacher forcing."""
    texts = task.texts(np.random.default_rng(seed), rows)
    return float(_accuracy(model, params, texts))


Loss = Callable[[Any, Params, Any], Array]
"""(model, parameters, batch) to a scalar; must be a module-level function, or the step
compiles again."""


@functools.lru_cache(maxsize=32)
def adam(rate: float) -> optax.GradientTransformation:
    """Adam with the same identity for the same rate, so that steps compile once."""
    return optax.adam(rate)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    model: Any, optimizer: Any, loss: Loss, params: Any, state: Any, stack: Any
) -> tuple[Any, Any, Array]:
    def step(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(lambda p: loss(model, p, batch))(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, state), values = jax.lax.scan(step, (params, state), stack)
    return params, state, values


def train(
    model: Any,
    params: Any,
    tasks: Sequence[Task] | Task,
    *,
    steps: int,
    seed: int,
    rate: float = 1e-3,
    rows: int = 32,
    optimizer: optax.GradientTransformation | None = None,
    loss: Loss = answer_loss,
) -> tuple[Any, Float[np.ndarray, "steps"]]:
    """Train on a random mixture of tasks of one length; parameters and losses.

    Args:
      model: passed to `loss`.
      params: whatever tree `loss` takes: parameters, or adapters.
      tasks: each batch holds `rows` texts of one of them, drawn at random.
      steps: updates, 100 of which are one call of the compiled program.
      seed: decides data and order.
      rate: of Adam, unless there is an `optimizer`.
      rows: texts in a batch.
      optimizer: any optax transformation, under one and the same object for all calls
        that shall share a compiled program.
      loss: see `Loss`.
    """
    tasks = [tasks] if isinstance(tasks, Task) else list(tasks)
    rng = np.random.default_rng((seed, 1))
    optimizer = adam(rate) if optimizer is None else optimizer
    state = jax.jit(optimizer.init)(params)
    values = []
    for start in range(0, steps, 100):
        count = min(100, steps - start)
        picked = [
            tasks[rng.integers(len(tasks))].texts(rng, rows) for _ in range(count)
        ]
        params, state, found = fit(model, params, picked, optimizer, state, loss=loss)
        values.append(found)
    return params, np.concatenate(values) if values else np.zeros(0)


def fit(
    model: Any,
    params: Any,
    batches: Sequence[Any],
    optimizer: optax.GradientTransformation,
    state: Any = None,
    *,
    loss: Loss = answer_loss,
) -> tuple[Any, Any, Float[np.ndarray, "steps"]]:
    """One update on each of some batches of one shape: parameters, state and losses.

    `state` is that of the optimizer after an earlier call; None starts anew. A program
    is compiled for each number of batches.
    """
    state = jax.jit(optimizer.init)(params) if state is None else state
    stack = jax.tree.map(lambda *x: np.stack(x), *batches)
    params, state, found = _run(model, optimizer, loss, params, state, stack)
    return params, state, np.asarray(found)
