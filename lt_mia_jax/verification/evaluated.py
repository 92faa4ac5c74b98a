"""A model under evaluation: encoding, teacher forcing and generation in batches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Integer

from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.checkpoints.tokenizer import fit_vocabulary
from lt_mia_jax.data.answers import AnswerTemplate, EncodedAnswers, encode_answers
from lt_mia_jax.data.jsonl import well_formed
from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.generation import greedy
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.models.placement import prompted
from lt_mia_jax.verification.metrics.memorization import (
    AnswerStatistics,
    answer_statistics,
)

BATCH = 64
STEP = 8
"""Widths of batches are multiples of it: few programs to compile, little padding."""


class EvaluatedModel(NamedTuple):
    """A model with what is needed to ask it questions."""

    model: LanguageModel
    params: Params
    tokenizer: Any
    template: AnswerTemplate
    length: int
    """Tokens a text is cut to."""
    intervention: Intervention | None = None
    """The edit of activations that belongs to the model; `edit` tells it where prompts
    end."""

    def edit(self, prompts: Integer[np.ndarray, " B"]) -> Any:
        """The intervention on texts with prompts of so many tokens, as a pytree."""
        told = prompted(self.intervention, prompts)
        bare = jax.tree.leaves(told) == [told]
        # A plain function becomes a pytree without leaves.
        return jax.tree_util.Partial(told) if bare else told

    def encode(self, rows: Sequence[Question]) -> EncodedAnswers:
        """Token ids and masks of questions with their answers.

        As wide as the longest, in steps of `STEP` tokens: padding costs what text
        costs, and a table of positions may end before `length`.
        """
        found = encode_answers(
            rows, self.tokenizer, max_length=self.length, template=self.template
        )
        sizes = {"model": self.model.config.vocab_size}
        names = [row.name for row in rows]
        found = fit_vocabulary(found, self.tokenizer, names, sizes)
        longest = int(found.attention_mask.sum(axis=1, dtype=np.int64).max(initial=1))
        most = min(self.length, self.model.config.context)
        return found.narrowed(max(longest, min(-(-longest // STEP) * STEP, most)))


def in_batches(
    evaluated: EvaluatedModel,
    encoded: EncodedAnswers,
    reduce: Callable[[np.ndarray, Any], Any],
    size: int = BATCH,
) -> Any:
    """Concatenated `reduce(rows, intervention)` of batches of one shape.

    `reduce` turns row numbers into arrays with one row a text; the last batch repeats
    the last text, whose copies are dropped.
    """
    count, prompts = len(encoded.input_ids), encoded.label_mask.argmax(axis=1)
    parts = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        kept = np.minimum(rows, count - 1)
        found = reduce(kept, evaluated.edit(prompts[kept]))
        real = int((rows < count).sum())
        parts.append(jax.tree.map(lambda x, n=real: np.asarray(x)[:n], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def teacher_forced(
    evaluated: EvaluatedModel, encoded: EncodedAnswers, mask: np.ndarray
) -> AnswerStatistics:
    """Statistics of the marked tokens of texts."""

    def reduce(rows: np.ndarray, intervention: Any) -> AnswerStatistics:
        return _reduce(
            evaluated.model,
            evaluated.params,
            encoded.input_ids[rows],
            mask[rows],
            intervention,
        )

    return in_batches(evaluated, encoded, reduce)


def generate(
    evaluated: EvaluatedModel, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Greedy continuations of texts.

    A prompt that leaves no room in the model's context is cut on the left.

    Raises:
      InputError: a prompt without a token.
    """
    room = evaluated.model.config.context
    count = max(1, min(max_new_tokens, room // 2))
    begin = [evaluated.tokenizer.bos_token_id] if evaluated.template.begin else []
    encoded = evaluated.tokenizer(
        [well_formed(prompt) for prompt in prompts],
        add_special_tokens=False,
        verbose=False,
    )["input_ids"]
    kept = room - count + 1 - len(begin)
    ids = [[*begin, *each[-kept:]] for each in encoded]
    empty = [i for i, each in enumerate(ids) if not each]
    if empty:
        raise InputError(
            f"{len(empty)} of {len(ids)} prompts have no token, first number {empty[0]}"
        )
    lengths = np.array([len(each) for each in ids], np.int32)
    padded = np.zeros((len(ids), int(lengths.max())), np.int32)
    for row, each in zip(padded, ids, strict=True):
        row[: len(each)] = each
    return continuations(evaluated, padded, lengths, np.full(len(ids), count))


def continuations(
    evaluated: EvaluatedModel,
    prompts: np.ndarray,
    lengths: np.ndarray,
    wanted: np.ndarray,
    least: int = 0,
) -> list[str]:
    """Greedy continuations of at least `wanted` and `least` tokens, room permitting.

    One program serves all rows, unless the longest prompt and the longest answer do
    not fit the context together; then rows of similar prompts share one.
    """
    room = evaluated.model.config.context
    order = np.arange(len(prompts))
    together = prompts.shape[1] + int(wanted.max()) - 1 <= room
    if not together:
        order = np.argsort(lengths, kind="stable")
    texts = [""] * len(prompts)
    for start in range(0, len(prompts), BATCH):
        kept = order[np.minimum(np.arange(start, start + BATCH), len(prompts) - 1)]
        width = prompts.shape[1] if together else int(lengths[kept].max())
        count = max(least, int((wanted if together else wanted[kept]).max()))
        found = greedy(
            evaluated.model,
            evaluated.params,
            prompts[kept, :width],
            lengths[kept],
            max_new_tokens=max(1, min(count, room - width + 1)),
            end_token=evaluated.tokenizer.eos_token_id,
            intervention=evaluated.edit(lengths[kept]),
        )
        tokens, produced = np.asarray(found.tokens), np.asarray(found.lengths)
        for row, ids, n in zip(kept, tokens, produced, strict=True):
            decoded = evaluated.tokenizer.decode(ids[:n], skip_special_tokens=True)
            texts[row] = decoded.strip()
    return texts


@functools.partial(jax.jit, static_argnums=0)
def _reduce(
    model: LanguageModel, params: Params, ids: Array, mask: Array, intervention: Any
) -> AnswerStatistics:
    logits = model.apply(params, ids, intervention=intervention)
    return answer_statistics(logits, ids, mask)
