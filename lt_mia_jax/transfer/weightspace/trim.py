"""Smaller models from parts of larger ones: fewer tokens, fewer layers (BiStil).

Source: "Distilling Efficient Language-Specific Models for Cross-Lingual Transfer"
(BiStil). Kept: the threshold rule for tokens and the copy of every k-th layer. Not
kept: the projection to a smaller width. Where kinds of layers are mixed, whole
repeating units are kept instead of layers.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from lt_mia_jax.arrays import Array, Float, Int, Params
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.transfer.weightspace.roles import vocabulary_axis
from lt_mia_jax.trees import map_named

Model = tuple[ModelConfig, Params]


def trim_vocab(
    probs: Float[np.ndarray, "N V"], thr: float, keep_ids: Sequence[int] = ()
) -> Int[np.ndarray, " W"]:
    """Ids of the tokens to keep: at least as probable as `thr` in one of the languages.

    `probs` are fractions of each language's tokens. `keep_ids`, such as special tokens,
    are kept whatever their probability. The result is ascending and unique.

    Example:
      >>> probs = np.array([[0.0, 0.6, 0.4, 0.0], [0.0, 0.0, 0.5, 0.5]])
      >>> trim_vocab(probs, thr=0.45, keep_ids=[0]).tolist()
      [0, 1, 2, 3]
    """
    likely = np.asarray(probs).max(axis=0) >= thr
    return np.union1d(np.flatnonzero(likely), np.asarray(keep_ids, int))


def keep_tokens(
    config: ModelConfig, params: Params, ids: Int[np.ndarray, " W"]
) -> Model:
    """The model for these tokens alone; token `ids[i]` gets the id i (`renumbered`).

    Its logits are those that the whole model gives to these tokens. Ids that are not
    ascending and unique, or outside the vocabulary, raise an `InputError`.
    """
    ids = np.asarray(ids)
    inside = ids.size and 0 <= ids[0] and ids[-1] < config.vocab_size
    if not inside or (np.diff(ids) <= 0).any():
        raise InputError(
            f"{ids.size} token ids to keep; expected ascending ones below "
            f"{config.vocab_size}, each once"
        )

    def kept(name: str, leaf: Array) -> Array:
        axis = vocabulary_axis(name)
        return leaf if axis is None else leaf.take(ids, axis=axis)

    return replace(config, vocab_size=len(ids)), map_named(kept, params)


def renumbered(
    tokens: Int[np.ndarray, "*B"], ids: Int[np.ndarray, " W"], unknown: int = -1
) -> Int[np.ndarray, "*B"]:
    """Token ids in the vocabulary of `keep_tokens`; `unknown` for tokens dropped."""
    ids = np.asarray(ids)
    places = np.searchsorted(ids, tokens).clip(max=len(ids) - 1)
    return np.where(ids[places] == tokens, places, unknown).astype(np.int32)


def shrink_depth(config: ModelConfig, params: Params, k: int) -> Model:
    """The model with every k-th repeating unit, k - 1, 2k - 1, ..., copied.

    A unit is one layer, unless `config.pattern` has several kinds. Layers after the
    last complete unit are all kept.
    """
    if not 1 <= k <= config.periods:
        raise InputError(
            f"k = {k}: every k-th of {config.periods} units is kept; expected 1 to that"
        )
    periods = jax.tree.map(lambda leaf: leaf[k - 1 :: k], params["periods"])
    layers = config.periods // k * len(config.pattern) + len(config.tail)
    return replace(config, layers=layers), {**params, "periods": periods}


def matched_layers(
    teacher: ModelConfig, student: ModelConfig, k: int
) -> list[tuple[int, int]]:
    """Streams to compare after `shrink_depth`: pairs (of the teacher, of the student).

    Numbers count layers passed, as `LanguageModel.apply(capture=...)` does: stream i of
    the student belongs to stream i * k of the teacher. Layers after the last unit are
    matched from the end.
    """
    width = len(student.pattern)
    pairs = [(i * width * k, i * width) for i in range(student.periods + 1)]
    ends = range(len(student.tail) - 1, -1, -1)
    return pairs + [(teacher.layers - i, student.layers - i) for i in ends]
