"""Unlearning from rewards: answers are sampled, and those that reveal nothing win."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Int
from lt_mia_jax.data.batches import bucket_of, length_buckets
from lt_mia_jax.data.formats.streams import decoded, open_text
from lt_mia_jax.errors import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    InputError,
    between,
)
from lt_mia_jax.executor import fetch
from lt_mia_jax.policy.objective import group_advantages
from lt_mia_jax.policy.rewards import MOST, concepts_of, forbidding, silence
from lt_mia_jax.policy.rollouts import Decoding, Rollouts
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.methods.method import Method, Recipe, term_of
from lt_mia_jax.unlearning.methods.setting import Prepared, Setting, reference_nll
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.unlearning.recipe import ForgetTexts

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Purge(Method):
    """Learn by GRPO to answer without naming what is to be forgotten (PURGE).

    In every step the model answers the prompts of the forget texts `group` times, at
    temperature 1. An answer without a forbidden concept has reward 1, any other 0. The
    true answers are never read. The reward is what it says: the model may avoid the
    words and know the fact, so look at the membership and likelihood of the card too.

    Kept: the verifiable reward, the advantages within a group, the clipped objective
    with its divergence from the model before. Not kept: asking the model for its
    concepts (they are the values, names and numbers of the forget texts, or a file).
    The published group size and weight are not known here; these are those of GRPO.

    Source: PURGE, arXiv 2601.20568; GRPO, arXiv 2402.03300.
    """

    retain_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    """Factor of the retain term (alpha); the published method has none."""
    group: Annotated[int, between(2, 1024)] = 8
    """Answers to each prompt in a step (G)."""
    new_tokens: Annotated[int, COUNT] = 32
    """Maximum tokens of an answer."""
    epsilon: Annotated[float, FRACTION] = 0.2
    """Clipping range of the ratio."""
    beta: Annotated[float, NOT_NEGATIVE] = 0.04
    """Weight of the divergence from the model before, in nats."""
    temperature: Annotated[float, POSITIVE] = 1.0
    """Of the sampled answers. If all answers of a group earn the same, they teach
    nothing: a higher temperature finds others."""
    concepts: str | None = None
    """A text file with one forbidden concept a line; by default they are made from the
    forget texts."""
    recipe = Recipe(batch_size=8)
    forget = term_of(objectives.grpo, "epsilon", "beta")

    def words(self, texts: ForgetTexts) -> Sequence[str]:
        """The forbidden concepts."""
        if self.concepts is None:
            return concepts_of(texts.rows)
        with open_text(Path(self.concepts)) as file:
            text = decoded(file.read(), self.concepts)
        return [line.strip() for line in text.splitlines() if line.strip()]

    def prepare(self, setting: Setting) -> Prepared:
        """Read the concepts, and say how a batch is sampled."""
        if jax.process_count() > 1:
            raise InputError("purge samples answers in one process; start only one")
        texts = setting.texts
        if texts is None or texts.tokenizer is None:
            raise InputError("Purge reads sampled answers, so it needs a tokenizer")
        words = self.words(texts)
        forbidden = forbidding(words)
        log.info(
            "%d forbidden concepts, such as %s (at most %d are made from the texts)",
            len(words),
            ", ".join(words[:3]),
            MOST,
        )
        end = texts.tokenizer.eos_token_id
        decoding = Decoding(
            max_new_tokens=self.new_tokens,
            temperature=self.temperature,
            end_tokens=() if end is None else (end,),
        )

        def reward(found: Rollouts) -> np.ndarray:
            answers = [
                texts.tokenizer.decode(row, skip_special_tokens=True)
                for row in found.answers()
            ]
            return silence(answers, forbidden)

        reference = None
        if self.beta:
            reference = partial(reference_nll, setting.apply_fn, setting.trained)

        def revise(trained: Any, batch: TextBatch, step: int) -> TextBatch:
            assert setting.roll_out is not None
            lengths = prompt_lengths(batch)
            buckets = length_buckets(batch.input_ids.shape[1])
            width = bucket_of(int(lengths.max()), buckets)
            found = setting.roll_out(
                trained,
                batch.input_ids[:, :width],
                lengths,
                key=jax.random.fold_in(setting.key, step),
                group=self.group,
                decoding=decoding,
            )
            rewards = reward(found).reshape(-1, self.group)
            return sampled_batch(found, rewards, batch.weight, reference)

        return Prepared(revise=revise)


def prompt_lengths(batch: TextBatch) -> Int[np.ndarray, "B"]:
    """Tokens before the first target; of plain text, the first half."""
    labels = np.asarray(batch.label_mask) != 0
    real = np.asarray(batch.attention_mask).sum(axis=1, dtype=np.int64)
    first = np.where(labels.any(axis=1), labels.argmax(axis=1), real)
    half = np.maximum(real // 2, 1)
    return np.where(first <= 1, half, first).astype(np.int32)


def sampled_batch(
    found: Rollouts,
    rewards: Any,
    weight: Any,
    reference: Any | None = None,
) -> TextBatch:
    """Sampled answers as the texts of an update, on the host."""
    group = rewards.shape[1]
    mask = np.asarray(found.mask)
    targets = np.pad(mask[:, :-1], ((0, 0), (1, 0)))
    place = np.arange(mask.shape[1])[None, :]
    real = targets | (place < np.asarray(found.lengths)[:, None])
    host: Any = (
        np.asarray(found.input_ids),
        real.astype(np.uint8),
        targets.astype(np.uint8),
        np.repeat(weight, group),
    )
    gains: Any = np.asarray(group_advantages(jnp.asarray(rewards))).reshape(-1)
    batch = TextBatch(*host, advantages=gains, rewards=rewards.reshape(-1))
    if reference is None:
        return batch
    return batch._replace(reference_nll=fetch(reference(batch)))
