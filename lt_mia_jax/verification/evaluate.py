"""Measuring a model: what it still knows, what it kept, and what still leaks.

`examine` measures one set of questions item by item; `membership` scores forgotten
texts against texts that no model has seen; `card.report_card` turns the items of one
model, and those of the retrained one, into numbers with intervals. Other measurements
stand beside: `stress` (rounding, relearning), `layers` (representations), `muse`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Integer

from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.attacks import scores
from lt_mia_jax.attacks.learned.attack import Attack, score_features
from lt_mia_jax.data.answers import AnswerTemplate, EncodedAnswers, encode_answers
from lt_mia_jax.data.jsonl import well_formed
from lt_mia_jax.data.questions import Question
from lt_mia_jax.data.texts import zlib_length
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.lt_mia import assemble
from lt_mia_jax.features.program import ExtractConfig
from lt_mia_jax.features.scorer import StatisticsExtractor
from lt_mia_jax.features.statistics import TokenStatistics, token_statistics
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.generation import greedy
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.models.placement import prompted
from lt_mia_jax.verification import metrics
from lt_mia_jax.verification.card import UTILITY, Items, Measured, report_card
from lt_mia_jax.verification.metrics.checks import PerItem

__all__ = [
    "UTILITY",
    "EvaluatedModel",
    "Items",
    "Measured",
    "examine",
    "generate",
    "measure_memo",
    "membership",
    "report_card",
    "teacher_forced",
]

BATCH = 64
LONGEST = 200
"""Tokens of a generated answer, as TOFU has it, whatever the right ones need."""
STEP = 8
"""Widths of batches are multiples of it: few programs to compile, little padding."""


class EvaluatedModel(NamedTuple):
    """A model to be examined."""

    model: LanguageModel
    params: Params
    tokenizer: Any
    template: AnswerTemplate
    length: int
    """Tokens a text is cut to."""
    intervention: Intervention | None = None
    """What the model comes with, as `storage.load_intervention` gives it; it is told
    here where prompts end."""

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
        longest = int(found.attention_mask.sum(axis=1, dtype=np.int64).max(initial=1))
        most = min(self.length, self.model.config.context)
        return found.narrowed(max(longest, min(-(-longest // STEP) * STEP, most)))


def examine(subject: EvaluatedModel, rows: Sequence[Question]) -> Items:
    """Measure what a model says to each question.

    Of plain text the second half of the tokens is what is to be generated.

    Raises:
      InputError: no rows, or rows that cannot be encoded.
    """
    if not rows:
        raise InputError("a set of questions to be examined is empty")
    encoded = subject.encode(rows)
    answer = teacher_forced(subject, encoded, encoded.label_mask)
    value = teacher_forced(subject, encoded, encoded.value_mask)
    # Cut answers have no end token, and templates without one none at all.
    last = encoded.attention_mask.sum(axis=1, dtype=np.int64) - 1
    final = encoded.input_ids[np.arange(len(rows)), last]
    ended = (final == subject.tokenizer.eos_token_id) & subject.template.end
    generated, expected = _answers(subject, rows, encoded)
    ratio = normalized = np.full(len(rows), np.nan)
    wrong = min(len(row.wrong_answers) for row in rows)
    if wrong:
        right = _nll(
            subject, [_instead(r, r.paraphrased_answer or r.answer) for r in rows]
        )
        false = np.stack(
            [
                _nll(subject, [_instead(r, r.wrong_answers[k]) for r in rows])
                for k in range(wrong)
            ],
            axis=1,
        )
        ratio = metrics.truth_ratio(right, false)
        normalized = metrics.normalized_probability(
            metrics.probability(answer), np.exp(-false)
        )
    return Items(
        probability=metrics.probability(answer),
        rouge=_rouge(generated, expected),
        exact_memorisation=metrics.exact_memorisation(answer, drop_final=ended),
        extraction_strength=metrics.extraction_strength(answer, drop_final=ended),
        slot_accuracy=metrics.slot_accuracy(value),
        slot_log_rank=metrics.slot_log_rank(value),
        truth_ratio=ratio,
        normalized_probability=normalized,
        generated=generated,
    )


def membership(
    subject: EvaluatedModel,
    reference: EvaluatedModel | None,
    rows: Sequence[Question],
    *,
    attack: Attack | None = None,
) -> dict[str, Float[np.ndarray, " N"]]:
    """Membership scores of texts, higher for members, by attack.

    Only answers are scored: a question was a prompt in training, so that nothing of it
    was learned, and its tokens would drown those that were. Of plain text every token
    counts.

    Args:
      subject: the model under audit, edited by its intervention if it has one.
      reference: the model that neither side was trained into; None leaves `ratio` out.
      rows: questions with answers, or plain texts.
      attack: a learned attack, `lt_mia`; needs a reference.

    Raises:
      InputError: an attack without a reference, or models that do not fit each other.
    """
    if attack is not None and reference is None:
        raise InputError(
            "the learned attack compares with a reference; give the model from before "
            "the texts were learned (--reference)"
        )
    encoded = subject.encode(rows)
    k = 0 if attack is None else attack.k
    if subject.intervention is None:
        scorer = StatisticsExtractor(
            subject.model,
            subject.params,
            None if reference is None else reference.model,
            None if reference is None else reference.params,
            ExtractConfig(k=k),
        )
        stats = scorer.statistics(encoded)
    else:
        stats = _edited_statistics(subject, reference, encoded, k)
    answers = np.zeros(stats.valid.shape, bool)
    answers[:, :-1] = encoded.label_mask[:, 1:] != 0
    stats = stats._replace(valid=answers)
    sizes = np.array([zlib_length(row.answer) for row in rows])
    found = scores.all_scores(
        stats,
        zlib_bytes=sizes,
        fraction=scores.CARD_FRACTION,
        only=("loss", "min_k", "min_k_plus_plus", "ratio", "zlib"),
    )
    if attack is not None:
        found[scores.LEARNED] = score_features(attack, *assemble(stats))
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def measure_memo(
    subject: EvaluatedModel,
    rows: Sequence[Question],
    *,
    step: int = 5,
    max_new_tokens: int = 200,
) -> PerItem:
    """MEMO of each answer: many greedy continuations of each, so it is slow.

    Args:
      subject: the model.
      rows: questions with answers.
      step: characters between prefixes.
      max_new_tokens: of each continuation.
    """
    template = subject.template
    prompts = [
        ""
        if row.question is None
        else template.prompt.replace("{question}", row.question) + template.separator
        for row in rows
    ]
    return metrics.memo(
        prompts,
        [row.answer for row in rows],
        lambda texts: generate(subject, texts, max_new_tokens),
        step=step,
        separator="",
    )


def generate(
    subject: EvaluatedModel, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Greedy continuations of texts.

    A prompt that leaves no room in the model's context is cut on the left.

    Raises:
      InputError: a prompt without a token.
    """
    room = subject.model.config.context
    count = max(1, min(max_new_tokens, room // 2))
    begin = [subject.tokenizer.bos_token_id] if subject.template.begin else []
    encoded = subject.tokenizer(
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
    return _greedy(subject, padded, lengths, np.full(len(ids), count))


def teacher_forced(
    subject: EvaluatedModel, encoded: EncodedAnswers, mask: np.ndarray
) -> metrics.AnswerStatistics:
    """Statistics of the marked tokens of texts."""

    def reduce(rows: np.ndarray, intervention: Any) -> metrics.AnswerStatistics:
        return _reduce(
            subject.model,
            subject.params,
            encoded.input_ids[rows],
            mask[rows],
            intervention,
        )

    return _in_batches(subject, encoded, reduce)


def _in_batches(
    subject: EvaluatedModel,
    encoded: EncodedAnswers,
    reduce: Callable[[np.ndarray, Any], Any],
) -> Any:
    """`reduce(rows, intervention)` of all texts, in batches of one shape."""
    count, prompts = len(encoded.input_ids), encoded.label_mask.argmax(axis=1)
    parts = []
    for start in range(0, count, BATCH):
        rows = np.arange(start, start + BATCH)
        kept = np.minimum(rows, count - 1)
        found = reduce(kept, subject.edit(prompts[kept]))
        real = int((rows < count).sum())
        parts.append(jax.tree.map(lambda x, n=real: np.asarray(x)[:n], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _edited_statistics(
    subject: EvaluatedModel,
    reference: EvaluatedModel | None,
    encoded: EncodedAnswers,
    k: int,
) -> TokenStatistics:
    """As `StatisticsExtractor`, which knows neither interventions nor prompts."""

    def reduce(rows: np.ndarray, intervention: Any) -> TokenStatistics:
        return _reduce_pair(
            subject.model,
            None if reference is None else reference.model,
            k,
            subject.params,
            None if reference is None else reference.params,
            encoded.input_ids[rows],
            encoded.attention_mask[rows],
            intervention,
        )

    return _in_batches(subject, encoded, reduce)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _reduce_pair(
    model: LanguageModel,
    other: LanguageModel | None,
    k: int,
    params: Params,
    other_params: Params | None,
    ids: Array,
    mask: Array,
    intervention: Any,
) -> TokenStatistics:
    logits = model.apply(params, ids, intervention=intervention)
    reference = None
    if other is not None and other_params is not None:
        reference = other.apply(other_params, ids)
    return token_statistics(logits, reference, ids, mask, k=k)


def _instead(row: Question, answer: str) -> Question:
    return row._replace(answer=answer, value=None)


def _nll(subject: EvaluatedModel, rows: Sequence[Question]) -> Float[np.ndarray, " N"]:
    encoded = subject.encode(rows)
    return metrics.mean_nll(teacher_forced(subject, encoded, encoded.label_mask))


@functools.partial(jax.jit, static_argnums=0)
def _reduce(
    model: LanguageModel, params: Params, ids: Array, mask: Array, intervention: Any
) -> metrics.AnswerStatistics:
    logits = model.apply(params, ids, intervention=intervention)
    return metrics.answer_statistics(logits, ids, mask)


def _rouge(generated: Sequence[str], expected: Sequence[str]) -> PerItem:
    """ROUGE-L recall; NaN where nothing that ROUGE counts is expected."""
    found = np.full(len(expected), np.nan)
    rows = [i for i, text in enumerate(expected) if metrics.has_words(text)]
    if rows:
        found[rows] = metrics.rouge_l_recall(
            [generated[i] for i in rows], [expected[i] for i in rows]
        )
    return found


def _answers(
    subject: EvaluatedModel, rows: Sequence[Question], encoded: EncodedAnswers
) -> tuple[tuple[str, ...], list[str]]:
    """Greedy answers, and the right ones."""
    lengths = encoded.attention_mask.sum(axis=1, dtype=np.int64)
    plain = np.array([row.question is None for row in rows])
    half = np.maximum(1, lengths // 2)
    first = np.where(plain, half, encoded.label_mask.argmax(axis=1))
    expected = [
        row.answer
        if row.question is not None
        else subject.tokenizer.decode(ids[start:end], skip_special_tokens=True)
        for row, ids, start, end in zip(
            rows, encoded.input_ids, first, lengths, strict=True
        )
    ]
    width = int(first.max())
    place = np.arange(width)[None, :]
    prompts = np.where(place < first[:, None], encoded.input_ids[:, :width], 0)
    found = _greedy(
        subject,
        prompts.astype(np.int32),
        first.astype(np.int32),
        lengths - first,
        0 if plain.all() else LONGEST,
    )
    return tuple(found), expected


def _greedy(
    subject: EvaluatedModel,
    prompts: np.ndarray,
    lengths: np.ndarray,
    wanted: np.ndarray,
    least: int = 0,
) -> list[str]:
    """Continuations of at least `wanted` tokens each, where the context has room.

    More than that, `least`, is generated as far as the context has room.

    One program serves all rows, unless the longest prompt and the longest answer do
    not fit the context together; then rows of like prompts share one.
    """
    room = subject.model.config.context
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
            subject.model,
            subject.params,
            prompts[kept, :width],
            lengths[kept],
            max_new_tokens=max(1, min(count, room - width + 1)),
            end_token=subject.tokenizer.eos_token_id,
            intervention=subject.edit(lengths[kept]),
        )
        tokens, produced = np.asarray(found.tokens), np.asarray(found.lengths)
        for row, ids, n in zip(kept, tokens, produced, strict=True):
            decoded = subject.tokenizer.decode(ids[:n], skip_special_tokens=True)
            texts[row] = decoded.strip()
    return texts
