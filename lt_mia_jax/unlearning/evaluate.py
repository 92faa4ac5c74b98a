"""The report card: what a model still knows, what it kept, and what still leaks.

`examine` measures one set of questions item by item; `membership` scores forgotten
texts against texts that no model has seen; `report_card` turns the items of one model,
and those of the retrained one, into numbers with intervals. Nothing is aggregated
before the end, so that a card can be made again, or compared, from what was stored.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.attacks import scores
from lt_mia_jax.attacks.metrics import auc
from lt_mia_jax.data.answers import AnswerTemplate, EncodedAnswers, encode_answers
from lt_mia_jax.data.questions import Question
from lt_mia_jax.data.texts import zlib_length
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.scorer import TextScorer
from lt_mia_jax.features.statistics import TokenStatistics, token_statistics
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.generation import greedy
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.unlearning import metrics
from lt_mia_jax.unlearning.metrics import Interval, bootstrap_interval
from lt_mia_jax.unlearning.placement import prompted

BATCH = 64
UTILITY = metrics.UTILITY_SETS


class Subject(NamedTuple):
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


class Items(NamedTuple):
    """Values of each question of a set, `[N]`; NaN where a question has none."""

    probability: Float[np.ndarray, " N"]
    """exp(-mean loss of the answer)."""
    rouge: Float[np.ndarray, " N"]
    """ROUGE-L recall of the greedy answer."""
    exact_memorisation: Float[np.ndarray, " N"]
    extraction_strength: Float[np.ndarray, " N"]
    slot_accuracy: Float[np.ndarray, " N"]
    """Whether the value alone is predicted, teacher forced."""
    slot_log_rank: Float[np.ndarray, " N"]
    truth_ratio: Float[np.ndarray, " N"]
    """Wrong answers over the paraphrased (or plain) right one."""
    normalised_probability: Float[np.ndarray, " N"]
    """Probability among right and wrong answers."""
    generated: tuple[str, ...]
    """The greedy answers."""


def examine(subject: Subject, rows: Sequence[Question]) -> Items:
    """Measure what a model says to each question.

    Raises:
      InputError: no rows, or rows that cannot be encoded.
    """
    if not rows:
        raise InputError("a set of questions to be examined is empty")
    encoded = _encode(subject, rows)
    answer = _statistics(subject, encoded, encoded.label_mask)
    value = _statistics(subject, encoded, encoded.value_mask)
    generated = _generate(subject, encoded)
    ratio = normalised = np.full(len(rows), np.nan)
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
        normalised = metrics.normalised_probability(
            metrics.probability(answer), np.exp(-false)
        )
    return Items(
        probability=metrics.probability(answer),
        rouge=metrics.rouge_l_recall(generated, [row.answer for row in rows]),
        exact_memorisation=metrics.exact_memorisation(answer),
        extraction_strength=metrics.extraction_strength(answer),
        slot_accuracy=metrics.slot_accuracy(value),
        slot_log_rank=metrics.slot_log_rank(value),
        truth_ratio=ratio,
        normalised_probability=normalised,
        generated=generated,
    )


def membership(
    subject: Subject,
    reference: Subject | None,
    rows: Sequence[Question],
) -> dict[str, Float[np.ndarray, " N"]]:
    """Membership scores of texts, higher for members, by attack.

    Args:
      subject: the model under audit.
      reference: the model that neither side was trained into; None leaves `ratio` out.
      rows: questions; question and answer together are the text.
    """
    encoded = _encode(subject, rows)
    if subject.intervention is None:
        scorer = TextScorer(
            subject.model,
            subject.params,
            None if reference is None else reference.model,
            None if reference is None else reference.params,
        )
        stats = scorer(encoded).statistics
    else:
        stats = _edited_statistics(subject, reference, encoded)
    sizes = np.array([zlib_length(row.text) for row in rows])
    found = {
        "loss": scores.loss(stats),
        "zlib": scores.zlib(stats, sizes),
        "min_k": scores.min_k(stats, fraction=0.4),
        "min_k_plus_plus": scores.min_k_plus_plus(stats),
    }
    if reference is not None:
        found["ratio"] = scores.ratio(stats)
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


class Measured(NamedTuple):
    """Everything about one model that a card is made of."""

    sets: Mapping[str, Items]
    """`forget`, and for model utility `retain`, `real_authors`, `world_facts`."""
    forget_scores: Mapping[str, Float[np.ndarray, " N"]]
    """Membership scores of forgotten texts."""
    holdout_scores: Mapping[str, Float[np.ndarray, " M"]]
    """Of texts that no model has seen."""


def report_card(
    measured: Measured, retrained: Measured, *, seed: int = 0
) -> dict[str, Any]:
    """Numbers of a model beside the retrained one, each with a 95 % interval.

    Intervals are over items; they say nothing about seeds of training. Forget quality
    and its distance come from the exact two-sample test and have none.

    Args:
      measured: the model.
      retrained: the model that never saw the forget texts.
      seed: of the bootstrap.
    """
    interval = functools.partial(bootstrap_interval, seed=seed)
    forget, truth = measured.sets["forget"], retrained.sets["forget"]
    card: dict[str, Any] = {}
    for name in (
        "probability",
        "rouge",
        "exact_memorisation",
        "extraction_strength",
        "slot_accuracy",
        "slot_log_rank",
    ):
        values = getattr(forget, name)
        if not np.isnan(values).any():
            card[f"forget_{name}"] = _interval(interval(_mean, values))
    quality = metrics.forget_quality(forget.truth_ratio, truth.truth_ratio)
    card["forget_truth_ratio"] = _interval(
        interval(_mean, metrics.forget_truth_score(forget.truth_ratio))
    )
    card["forget_quality"] = {
        "value": quality.p_value,
        "log10": quality.log10_p,
        "distance": quality.distance,
        "n": [quality.n_unlearned, quality.n_retrained],
        "note": quality.note,
    }
    if set(UTILITY) <= set(measured.sets):
        parts = metrics.utility_parts(_utility(measured.sets))
        card["utility_parts"] = parts
        groups = [
            (x.probability, x.rouge_recall, x.truth_ratio)
            for x in _utility(measured.sets).values()
        ]
        card["model_utility"] = _interval(interval(_model_utility, *groups))
    for name, values in measured.forget_scores.items():
        others = measured.holdout_scores[name]
        card[f"auc_{name}"] = _interval(interval(_auc, values, others))
        mine, theirs = (
            _auc(x.forget_scores[name], x.holdout_scores[name])
            for x in (measured, retrained)
        )
        card[f"leak_{name}"] = {"value": metrics.priv_leak(mine, theirs)}
    if "min_k" in measured.forget_scores:
        card["priv_leak"] = _interval(
            interval(
                _priv_leak,
                (measured.forget_scores["min_k"], retrained.forget_scores["min_k"]),
                (measured.holdout_scores["min_k"], retrained.holdout_scores["min_k"]),
            )
        )
    return card


def _encode(subject: Subject, rows: Sequence[Question]) -> EncodedAnswers:
    return encode_answers(
        rows, subject.tokenizer, max_length=subject.length, template=subject.template
    )


def _instead(row: Question, answer: str) -> Question:
    return row._replace(answer=answer, value=None)


def _nll(subject: Subject, rows: Sequence[Question]) -> Float[np.ndarray, " N"]:
    encoded = _encode(subject, rows)
    return metrics.mean_nll(_statistics(subject, encoded, encoded.label_mask))


def _statistics(
    subject: Subject, encoded: EncodedAnswers, mask: np.ndarray
) -> metrics.AnswerStatistics:
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
    subject: Subject,
    encoded: EncodedAnswers,
    reduce: Callable[[np.ndarray, Any], Any],
) -> Any:
    """`reduce(rows, intervention)` of all texts, the intervention told their prompts.

    Prompts are those of the texts, whatever part of the answer is looked at.
    """
    count, prompts = len(encoded.input_ids), encoded.label_mask.argmax(axis=1)
    parts = []
    for start in range(0, count, BATCH):
        rows = np.arange(start, start + BATCH)
        kept = np.minimum(rows, count - 1)
        found = reduce(kept, prompted(subject.intervention, prompts[kept]))
        real = int((rows < count).sum())
        parts.append(jax.tree.map(lambda x, n=real: np.asarray(x)[:n], found))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _edited_statistics(
    subject: Subject, reference: Subject | None, encoded: EncodedAnswers
) -> TokenStatistics:
    """What `TextScorer` gives, which knows neither interventions nor prompts."""

    def reduce(rows: np.ndarray, intervention: Any) -> TokenStatistics:
        return _reduce_pair(
            subject.model,
            None if reference is None else reference.model,
            subject.params,
            None if reference is None else reference.params,
            encoded.input_ids[rows],
            encoded.attention_mask[rows],
            intervention,
        )

    return _in_batches(subject, encoded, reduce)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reduce_pair(
    model: LanguageModel,
    other: LanguageModel | None,
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
    return token_statistics(logits, reference, ids, mask, k=0)


@functools.partial(jax.jit, static_argnums=0)
def _reduce(
    model: LanguageModel, params: Params, ids: Array, mask: Array, intervention: Any
) -> metrics.AnswerStatistics:
    logits = model.apply(params, ids, intervention=intervention)
    return metrics.answer_statistics(logits, ids, mask)


def _generate(subject: Subject, encoded: EncodedAnswers) -> tuple[str, ...]:
    first = encoded.label_mask.argmax(axis=1)
    width, longest = int(first.max()), int(encoded.label_mask.sum(axis=1).max())
    place = np.arange(width)[None, :]
    prompts = np.where(place < first[:, None], encoded.input_ids[:, :width], 0)
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        kept = np.minimum(np.arange(start, start + BATCH), len(prompts) - 1)
        found = greedy(
            subject.model,
            subject.params,
            prompts[kept].astype(np.int32),
            first[kept].astype(np.int32),
            max_new_tokens=longest,
            end_token=subject.tokenizer.eos_token_id,
            intervention=prompted(subject.intervention, first[kept]),
        )
        tokens, lengths = np.asarray(found.tokens), np.asarray(found.lengths)
        texts += [
            subject.tokenizer.decode(row[:n], skip_special_tokens=True).strip()
            for row, n in zip(tokens, lengths, strict=True)
        ]
    return tuple(texts[: len(prompts)])


def _utility(sets: Mapping[str, Items]) -> dict[str, metrics.UtilityItems]:
    return {
        name: metrics.UtilityItems(
            items.probability if name == "retain" else items.normalised_probability,
            items.rouge,
            items.truth_ratio,
        )
        for name, items in ((name, sets[name]) for name in UTILITY)
    }


def _model_utility(*groups: tuple[np.ndarray, ...]) -> float:
    sets = {
        name: metrics.UtilityItems(*group)
        for name, group in zip(UTILITY, groups, strict=True)
    }
    return metrics.model_utility(metrics.utility_parts(sets))


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _auc(members: np.ndarray, others: np.ndarray) -> float:
    labels = np.repeat([1, 0], [len(members), len(others)])
    return float(auc(labels, np.concatenate([members, others])))


def _priv_leak(
    forget: tuple[np.ndarray, np.ndarray], holdout: tuple[np.ndarray, np.ndarray]
) -> float:
    """Percent; on a draw where the retrained model separates perfectly, its limit."""
    mine, theirs = (1 - _auc(f, h) for f, h in zip(forget, holdout, strict=True))
    return 100 * (mine - theirs) / max(theirs, 1e-10)


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
