"""Slow definitions, a toy model and random texts for the fine-tuning tests."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.trees import flatten, unflatten


def loss_oracle(logits, input_ids, attention_mask, row_weight=None):
    """Sum and number of -log p over tokens 1, 2, ... of each text, in float64."""
    total, count = 0.0, 0.0
    for row in range(len(input_ids)):
        weight = 1.0 if row_weight is None else float(row_weight[row])
        for t in range(1, input_ids.shape[1]):
            if attention_mask[row, t]:
                z = np.asarray(logits[row, t - 1], np.float64)
                p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
                total -= weight * np.log(p[input_ids[row, t]])
                count += weight
    return total, count


def random_texts(n, *, seed=0, vocab=32, length=12, shortest=1):
    """Texts in which each token mostly decides the next."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((n, length), np.int32)
    ids[:, 0] = rng.integers(vocab, size=n)
    for t in range(1, length):
        jump = rng.random(n) < 0.2
        ids[:, t] = np.where(
            jump, rng.integers(vocab, size=n), (5 * ids[:, t - 1] + 3) % vocab
        )
    lengths = rng.integers(shortest, length + 1, size=n)
    mask = (np.arange(length)[None] < lengths[:, None]).astype(np.uint8)
    ids = np.where(mask, ids, 0).astype(np.int32)
    return Encoded(ids, mask, np.zeros(n, bool), mask.sum(1) < 2)


@dataclass(frozen=True)
class Toy:
    """Two stacked layers that read the current and the previous token."""

    vocab: int = 32
    width: int = 16
    dropout: float = 0.1

    def init(self, key):
        scale, width = self.width**-0.5, self.width
        keys = iter(jax.random.split(key, 3))

        def normal(scale, *shape):
            return scale * jax.random.normal(next(keys), shape)

        return {
            "embedding": {"tokens": normal(1.0, self.vocab, width)},
            "layers": {
                "mixer": {
                    "kernel": normal(scale, 2, width, width),
                    "bias": jnp.zeros((2, width)),
                }
            },
            "head": {"kernel": normal(scale, width, self.vocab)},
        }

    def apply(
        self,
        params,
        input_ids,
        *,
        dropout_key=None,
        adapters=None,
        adapter_dropout=0.0,
    ):
        flat = flatten(params)
        for name, (a, b) in (adapters or {}).items():
            if dropout_key is not None and adapter_dropout:
                keep = jax.random.bernoulli(dropout_key, 1 - adapter_dropout, a.shape)
                a = jnp.where(keep, a / (1 - adapter_dropout), 0.0)
            flat[name] = flat[name] + a @ b
        params = unflatten(flat)
        x = params["embedding"]["tokens"][input_ids]
        mixer = params["layers"]["mixer"]
        for layer in range(2):
            before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
            y = jnp.tanh((x + before) @ mixer["kernel"][layer])
            y = y + mixer["bias"][layer][None, None]
            if dropout_key is not None and self.dropout:
                key = jax.random.fold_in(dropout_key, layer)
                keep = jax.random.bernoulli(key, 1 - self.dropout, y.shape)
                y = jnp.where(keep, y / (1 - self.dropout), 0.0)
            x = x + y
        return x @ params["head"]["kernel"]
