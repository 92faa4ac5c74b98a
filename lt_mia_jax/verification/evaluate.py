"""Measuring a model: what it still knows, what it kept, and what still leaks.

`examine` measures one set of questions item by item, `membership` scores forgotten
texts against texts that no model has seen, `retrain_distances` compares two models.
Other measurements stand beside: `stress` (rounding, relearning), `layers`
(representations, traces), `muse`. `card.report_card` turns all of it into numbers.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Params
from lt_mia_jax.attacks import scores
from lt_mia_jax.attacks.learned.attack import Attack, score_features
from lt_mia_jax.data.answers import EncodedAnswers
from lt_mia_jax.data.questions import Question
from lt_mia_jax.data.texts import zlib_length
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.lt_mia import assemble
from lt_mia_jax.features.program import ExtractConfig
from lt_mia_jax.features.scorer import StatisticsExtractor
from lt_mia_jax.features.statistics import TokenStatistics, token_statistics
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.verification.evaluated import (
    EvaluatedModel,
    continuations,
    generate,
    in_batches,
    teacher_forced,
)
from lt_mia_jax.verification.items import Items
from lt_mia_jax.verification.metrics import generation, memorization, tofu
from lt_mia_jax.verification.metrics.checks import PerItem
from lt_mia_jax.verification.metrics.memorization import without_last
from lt_mia_jax.verification.metrics.paths import retrain_distance

PUBLISHED = ("loss", "zlib", "min_k", "min_k_plus_plus", "ratio")
"""Published scores on a card, each of which is bootstrapped."""
WITHOUT_END = ("min_k", "min_k_plus_plus")
"""Those that leave out the end token of an answer, as in OpenUnlearning."""
LEAST_VARIANCE = 1e-6
"""Floor of the variance in Min-K%++ on cards, as in OpenUnlearning."""
LONGEST = 200
"""Least room for a generated answer, in tokens, as in TOFU."""


def examine(evaluated: EvaluatedModel, rows: Sequence[Question]) -> Items:
    """Measure what a model says to each question.

    Of plain text the second half of the tokens is what is to be generated.

    Raises:
      InputError: no rows, or rows that cannot be encoded.
    """
    if not rows:
        raise InputError("a set of questions to be examined is empty")
    encoded = evaluated.encode(rows)
    answer = teacher_forced(evaluated, encoded, encoded.label_mask)
    value = teacher_forced(evaluated, encoded, encoded.value_mask)
    ended = _ended(evaluated, encoded)
    generated, expected = _answers(evaluated, rows, encoded)
    probability = memorization.probability(answer)
    ratio = normalized = np.full(len(rows), np.nan)
    count = min(len(row.wrong_answers) for row in rows)
    if count:
        right = _nll(evaluated, rows, [r.paraphrased_answer or r.answer for r in rows])
        each = zip(*(row.wrong_answers[:count] for row in rows), strict=True)
        wrong = np.stack([_nll(evaluated, rows, told) for told in each], axis=1)
        ratio = tofu.truth_ratio(right, wrong)
        normalized = tofu.normalized_probability(probability, np.exp(-wrong))
    return Items(
        probability=probability,
        rouge=_rouge(generated, expected),
        exact_memorization=memorization.exact_memorization(answer, drop_final=ended),
        extraction_strength=memorization.extraction_strength(answer, drop_final=ended),
        slot_accuracy=memorization.slot_accuracy(value),
        slot_log_rank=memorization.slot_log_rank(value),
        truth_ratio=ratio,
        normalized_probability=normalized,
        generated=generated,
    )


def membership(
    evaluated: EvaluatedModel,
    reference: EvaluatedModel | None,
    rows: Sequence[Question],
    *,
    attack: Attack | None = None,
    end_token: bool = False,
) -> dict[str, Float[np.ndarray, " N"]]:
    """Membership scores of texts, higher for members, by attack.

    Only answers are scored: a question was a prompt in training, so that nothing of it
    was learned, and its tokens would drown those that were. Of plain text every token
    but the first counts. What was cut off counts nowhere: the size that `zlib` divides
    by is that of the scored tokens' text.

    Args:
      evaluated: the model under audit, edited by its intervention if it has one.
      reference: the model from before the texts were learned; None leaves `ratio` out.
      rows: questions with answers, or plain texts.
      attack: a learned attack, `lt_mia`; needs a reference.
      end_token: `WITHOUT_END` score the end token of an answer too; the others always
        do.

    Raises:
      InputError: an attack without a reference, or models that do not fit each other.

    Source: the rules of OpenUnlearning, arXiv 2506.12618 (code at commit d3d7cf9).
    """
    if attack is not None and reference is None:
        raise InputError(
            "the learned attack compares with a reference; give the model from before "
            "the texts were learned (--reference)"
        )
    encoded = evaluated.encode(rows)
    k = 0 if attack is None else attack.k
    if evaluated.intervention is None:
        scorer = StatisticsExtractor(
            evaluated.model,
            evaluated.params,
            None if reference is None else reference.model,
            None if reference is None else reference.params,
            ExtractConfig(k=k),
        )
        stats = scorer.statistics(encoded)
    else:
        stats = _edited_statistics(evaluated, reference, encoded, k)
    answers = np.zeros(stats.valid.shape, bool)
    answers[:, :-1] = encoded.label_mask[:, 1:] != 0
    stats = stats._replace(valid=answers)
    sizes = np.array([zlib_length(text) for text in _targets(evaluated, encoded)])
    found = scores.all_scores(
        stats, zlib_bytes=sizes, fraction=scores.CARD_FRACTION, only=PUBLISHED
    )
    if not end_token:
        answers = without_last(answers, _ended(evaluated, encoded))
    found |= scores.all_scores(
        stats._replace(
            valid=answers, target_var=np.maximum(stats.target_var, LEAST_VARIANCE)
        ),
        fraction=scores.CARD_FRACTION,
        only=WITHOUT_END,
    )
    if attack is not None:
        found[scores.LEARNED] = score_features(attack, *assemble(stats))
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def measure_memo(
    evaluated: EvaluatedModel,
    rows: Sequence[Question],
    *,
    step: int = 5,
    max_new_tokens: int = 200,
) -> PerItem:
    """MEMO of each answer: many greedy continuations of each, so it is slow.

    Of an answer that was cut only what is left is asked for. Prefixes are `step`
    characters apart.
    """
    template, encoded = evaluated.template, evaluated.encode(rows)
    prompts = [
        ""
        if row.question is None
        else template.prompt.replace("{question}", row.question) + template.separator
        for row in rows
    ]
    return generation.memo(
        prompts,
        _kept(evaluated, rows, encoded),
        lambda texts: generate(evaluated, texts, max_new_tokens),
        step=step,
        separator="",
    )


def retrain_distances(
    evaluated: EvaluatedModel, retrained: EvaluatedModel, rows: Sequence[Question]
) -> PerItem:
    """Mean over each answer's tokens of the squared distance of two distributions.

    They are the two models' probabilities of the next token, so values lie between 0
    and 2. Both models have the same tokenizer; at least one row is needed.

    Source: On the Impossibility of Retrain Equivalence in Machine Unlearning, arXiv
    2510.16629 (distance of predictions); on next-token distributions it is ours.
    """
    encoded = evaluated.encode(rows)
    prompts = encoded.label_mask.argmax(axis=1)

    def reduce(rows: np.ndarray, intervention: Any) -> Array:
        return _distances(
            (evaluated.model, retrained.model),
            (evaluated.params, retrained.params),
            encoded.input_ids[rows],
            encoded.label_mask[rows],
            (intervention, retrained.edit(prompts[rows])),
        )

    return np.asarray(in_batches(evaluated, encoded, reduce), np.float64)


def _ended(
    evaluated: EvaluatedModel, encoded: EncodedAnswers
) -> Bool[np.ndarray, " N"]:
    """Whether the last token of each text is the end token of the template.

    Cut answers have none, and templates without one none at all.
    """
    return ~encoded.truncated & evaluated.template.end


def _targets(evaluated: EvaluatedModel, encoded: EncodedAnswers) -> list[str]:
    """The text of the scored tokens."""
    return [
        evaluated.tokenizer.decode(ids[labels != 0], skip_special_tokens=True)
        for ids, labels in zip(encoded.input_ids, encoded.label_mask, strict=True)
    ]


def _kept(
    evaluated: EvaluatedModel, rows: Sequence[Question], encoded: EncodedAnswers
) -> list[str]:
    """The answers, without what was cut off."""
    return [
        target if cut else row.answer
        for row, target, cut in zip(
            rows, _targets(evaluated, encoded), encoded.truncated, strict=True
        )
    ]


def _edited_statistics(
    evaluated: EvaluatedModel,
    reference: EvaluatedModel | None,
    encoded: EncodedAnswers,
    k: int,
) -> TokenStatistics:
    """As `StatisticsExtractor`, which knows neither interventions nor prompts."""
    pair = [evaluated] if reference is None else [evaluated, reference]
    models = tuple(each.model for each in pair)
    params = tuple(each.params for each in pair)

    def reduce(rows: np.ndarray, intervention: Any) -> TokenStatistics:
        ids, mask = encoded.input_ids[rows], encoded.attention_mask[rows]
        edits = (intervention, None)[: len(pair)]
        return _statistics(models, k, params, ids, mask, edits)

    return in_batches(evaluated, encoded, reduce)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _statistics(
    models: tuple[LanguageModel, ...],
    k: int,
    params: tuple[Params, ...],
    ids: Array,
    mask: Array,
    interventions: tuple[Any, ...],
) -> TokenStatistics:
    target, *reference = _logits(models, params, ids, interventions)
    return token_statistics(target, *(reference or [None]), ids, mask, k=k)


@functools.partial(jax.jit, static_argnums=0)
def _distances(
    models: tuple[LanguageModel, ...],
    params: tuple[Params, ...],
    ids: Array,
    mask: Array,
    interventions: tuple[Any, ...],
) -> Float[Array, " B"]:
    ours, theirs = (
        jax.nn.softmax(logits.astype(jnp.float32))
        for logits in _logits(models, params, ids, interventions)
    )
    targets = jnp.roll(mask, -1, axis=1).at[:, -1].set(0) != 0
    total = jnp.where(targets, retrain_distance(ours, theirs), 0.0).sum(axis=1)
    return total / jnp.maximum(targets.sum(axis=1), 1)


def _logits(
    models: tuple[LanguageModel, ...],
    params: tuple[Params, ...],
    ids: Array,
    interventions: tuple[Any, ...],
) -> list[Array]:
    return [
        model.apply(tree, ids, intervention=edit)
        for model, tree, edit in zip(models, params, interventions, strict=True)
    ]


def _nll(
    evaluated: EvaluatedModel, rows: Sequence[Question], answers: Sequence[str]
) -> Float[np.ndarray, " N"]:
    """Mean -log p of other answers to the questions."""
    asked = [
        row._replace(answer=answer, value=None)
        for row, answer in zip(rows, answers, strict=True)
    ]
    encoded = evaluated.encode(asked)
    return memorization.mean_nll(teacher_forced(evaluated, encoded, encoded.label_mask))


def _rouge(generated: Sequence[str], expected: Sequence[str]) -> PerItem:
    """ROUGE-L recall; NaN where nothing that ROUGE counts is expected."""
    found = np.full(len(expected), np.nan)
    rows = [i for i, text in enumerate(expected) if generation.has_words(text)]
    if rows:
        found[rows] = generation.rouge_l_recall(
            [generated[i] for i in rows], [expected[i] for i in rows]
        )
    return found


def _answers(
    evaluated: EvaluatedModel, rows: Sequence[Question], encoded: EncodedAnswers
) -> tuple[tuple[str, ...], list[str]]:
    """Greedy answers, and the right ones."""
    lengths = encoded.attention_mask.sum(axis=1, dtype=np.int64)
    plain = np.array([row.question is None for row in rows])
    half = np.maximum(1, lengths // 2)
    first = np.where(plain, half, encoded.label_mask.argmax(axis=1))
    expected = [
        answer
        if row.question is not None
        else evaluated.tokenizer.decode(ids[start:end], skip_special_tokens=True)
        for row, answer, ids, start, end in zip(
            rows,
            _kept(evaluated, rows, encoded),
            encoded.input_ids,
            first,
            lengths,
            strict=True,
        )
    ]
    width = int(first.max())
    place = np.arange(width)[None, :]
    prompts = np.where(place < first[:, None], encoded.input_ids[:, :width], 0)
    found = continuations(
        evaluated,
        prompts.astype(np.int32),
        first.astype(np.int32),
        lengths - first,
        0 if plain.all() else LONGEST,
    )
    return tuple(found), expected
