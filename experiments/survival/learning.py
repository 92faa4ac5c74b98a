"""Learning texts with any loss and any optimizer: what the operations train with."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.survival.config import RATE
from experiments.survival.toy import Loss, fit
from lt_mia_jax.arrays import Array, Float, Int, Params
from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.finetune.loss import next_token_loss

BATCH = 16
DECAY = 0.01


class Batch(NamedTuple):
    """Texts of one update."""

    ids: Int[Array | np.ndarray, "B T"]
    mask: Int[Array | np.ndarray, "B T"]


def token_loss(model: Any, params: Params, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy of the real tokens, nats."""
    ids, mask = jnp.asarray(batch.ids), jnp.asarray(batch.mask)
    return next_token_loss(model.apply(params, ids), ids, mask)[0]


@functools.lru_cache(maxsize=8)
def adamw(rate: float = RATE) -> optax.GradientTransformation:
    """The recipe of the experts."""
    return optax.adamw(rate, weight_decay=DECAY)


def only(
    trained: str, optimizer: optax.GradientTransformation
) -> optax.GradientTransformation:
    """An optimizer on one part of a dict of trees; the others stay."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        own = None if params is None else params[trained]
        step, state = optimizer.update(updates[trained], state, own)
        others = jax.tree.map(jnp.zeros_like, updates)
        return {**others, trained: step}, state

    return optax.GradientTransformation(
        lambda params: optimizer.init(params[trained]), update
    )


def learn(
    model: Any,
    params: Any,
    texts: Encoded,
    *,
    epochs: int,
    seed: int,
    optimizer: optax.GradientTransformation | None = None,
    loss: Loss = token_loss,
) -> tuple[Any, Any]:
    """Pass over texts in batches of 16, in a new order each time.

    Args:
      model: passed to `loss`.
      params: whatever tree `loss` takes.
      texts: what is learned; those left over in a pass wait for the next one.
      epochs: passes.
      seed: of the order.
      optimizer: AdamW as experts have it, if None.
      loss: a module-level function of (model, params, `Batch`).

    Returns:
      The tree after the last update, and the state of the optimizer.
    """
    rng = np.random.default_rng((seed, 2))
    optimizer = adamw() if optimizer is None else optimizer
    state = None
    rows = len(texts.input_ids)
    for _ in range(epochs):
        order = rng.permutation(rows)[: rows // BATCH * BATCH].reshape(-1, BATCH)
        batches = [
            Batch(texts.input_ids[part], texts.attention_mask[part].astype(np.int32))
            for part in order
        ]
        params, state, _ = fit(model, params, batches, optimizer, state, loss=loss)
    return params, state


def joined(one: Encoded, other: Encoded) -> Encoded:
    """Texts of both, in this order."""
    arrays: Any = (
        None if a is None or b is None else np.concatenate([a, b])
        for a, b in zip(one, other, strict=True)
    )
    return Encoded(*arrays)
