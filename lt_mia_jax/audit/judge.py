"""`audit`: texts and two models in, p-values and a verdict out."""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from lt_mia_jax.attacks import calibration, controls
from lt_mia_jax.attacks.learned.attack import Attack
from lt_mia_jax.attacks.scores.table import LEARNED, describe
from lt_mia_jax.audit.inputs import check_texts
from lt_mia_jax.audit.records import Judged
from lt_mia_jax.audit.results import (
    TRAINING_FREE,
    AuditResult,
    calibrate,
    primary_score,
    summarize_combination,
)
from lt_mia_jax.audit.scoring import (
    ModelPair,
    ScoredTexts,
    choose_attack,
    score_combination,
    score_texts,
    vocabularies,
    vocabulary_note,
)
from lt_mia_jax.audit.served import (
    StatisticsPair,
    check_served,
    score_served,
    served_notes,
)
from lt_mia_jax.audit.verdict import ez_notes, verdict
from lt_mia_jax.audit.windows import Combine
from lt_mia_jax.data.texts import Text, contents, fingerprint, text_id
from lt_mia_jax.data.tokenize import Bos, Score, beginning, describe_beginning
from lt_mia_jax.errors import (
    BATCH,
    INSIDE_UNIT,
    LENGTH,
    NOT_NEGATIVE,
    SEED,
    InputError,
    check_ranges,
)
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.models.length import check_length

log = logging.getLogger(__name__)

CHATS = {
    "response": "Of conversations the response alone was scored (--score response); "
    "the models saw the context before it.",
    "all": "Of conversations all tokens were scored, the context too (--score all).",
}


def audit(
    pair: ModelPair | StatisticsPair,
    texts: Sequence[str | Text],
    nonmembers: Sequence[str | Text] | None = None,
    attack: Attack | str | Path | None = "shipped",
    *,
    length: int = 128,
    side: Literal["right", "left"] = "right",
    bos: Bos = "auto",
    score: Score = "response",
    overlap: int | None = None,
    combine: Combine = "mean",
    batch_size: int = 16,
    alpha: float = calibration.ALPHA,
    bootstraps: int = 1000,
    seed: int = 0,
    name: str = "texts",
    corpus: str = "texts",
) -> AuditResult:
    """Was each text in the fine-tuning data of the target model?

    Every text is scored by the learned attack and by every published score, from one
    forward pass of each model. Known non-members turn scores into p-values and into a
    verdict on the whole set, unless a classifier without any model tells them from the
    texts; labels give AUCs with controls. Without either, texts are only ranked.

    Args:
      pair: reference (or none) and target, from `load_pair`, or their statistics in
        files, from `load_statistics`.
      texts: strings, or `Text` records with ids and labels (all of them or none).
      nonmembers: texts known not to be in the fine-tuning data, drawn like `texts`; at
        least 20 distinct ones. Those that nearly are among `texts` are left out.
      attack: the learned attack: `shipped` with the package, a folder made by `lt-mia
        train`, an `Attack`, or None for the published scores alone. Without a
        reference `shipped` is None.
      length: tokens a text is cut to, the final end-of-text token included.
      side: which end of a long text is cut off; `left` for code.
      bos: whether texts begin with a beginning-of-text token, which is not scored;
        `auto` follows the tokenizer.
      score: of conversations, the response alone or all tokens.
      overlap: None cuts long texts; a number scores them whole, in windows of `length`
        tokens that take so many from the window before as context.
      combine: how scores of windows become one; see `audit.windows.combined`.
      batch_size: texts in one forward pass.
      alpha: level of the verdict on the whole set.
      bootstraps: resamples behind each 95 % interval.
      seed: of every resampling and split.
      name: of the texts in tables.
      corpus: where they come from; opens error messages about them.

    Returns:
      Scores, p- and q-values by text, in the order of `texts` but for repeats, which
      are left out; summaries and verdict.

    Raises:
      InputError: no text, some but not all labeled, contradictory labels, fewer than
        20 usable non-members, a number out of its range, an attack that cannot be
        loaded, or statistics that do not suffice (`served.check_served`).

    Example:
      >>> import jax
      >>> from lt_mia_jax import LanguageModel, audit, load_pair, save_pretrained
      >>> from lt_mia_jax.data import train_bpe
      >>> from lt_mia_jax.executor import make_executor
      >>> from lt_mia_jax.models import gpt2_like
      >>> tokenizer = train_bpe(["to be or not to be"], vocab_size=257)
      >>> config = gpt2_like(257, width=16, layers=1, heads=2, context=32)
      >>> for seed, name in enumerate(["before", "after"]):
      ...     params = LanguageModel(config).init(jax.random.key(seed))
      ...     save_pretrained(name, config, params, tokenizer)
      >>> pair = load_pair("before", "after", make_executor())
      >>> texts = ["To be, or not to be", "that is the question"]
      >>> result = audit(pair, texts, attack=None, length=32)
      >>> result.primary, len(result.ids), result.p_values
      ('ez', 2, None)
    """
    check_ranges(
        "audit",
        length=(length, LENGTH),
        batch_size=(batch_size, BATCH),
        alpha=(alpha, INSIDE_UNIT),
        bootstraps=(bootstraps, NOT_NEGATIVE),
        seed=(seed, SEED),
    )
    if pair.reference is None and isinstance(attack, Attack):
        raise InputError("a learned attack needs a reference; pass attack=None")
    if not isinstance(attack, Attack):
        given = "none" if attack is None else attack
        attack = choose_attack(given, reference=pair.reference is not None)
    if combine != "mean" and overlap is None:
        raise InputError(
            f"--combine {combine}: says how scores of windows become one, but texts "
            "are cut; give --overlap too"
        )
    inputs = check_texts(_as_texts(texts), _as_texts(nonmembers or ()), corpus)
    suspects, known, notes = inputs.texts, inputs.nonmembers, inputs.notes

    options: dict[str, Any] = {"attack": attack, "length": length}
    options |= {"name": name, "corpus": corpus}
    if isinstance(pair, StatisticsPair):
        if overlap is not None:
            raise InputError(
                "--overlap: files of statistics hold one window a text; leave it out, "
                "or raise --length of `lt-mia collect`"
            )
        check_served(pair, suspects, known, attack=attack, length=length)
        measure = functools.partial(score_served, pair=pair, **options)
    else:
        before = None if pair.reference is None else pair.reference.config
        check_length(length, target=pair.target.config, reference=before)
        notes += _seen(pair, suspects, bos, score)
        notes += _windows(length, overlap, combine)
        options |= {"side": side, "bos": bos, "score": score, "batch_size": batch_size}
        options |= {"overlap": overlap, "combine": combine}
        measure = functools.partial(score_texts, pair=pair, **options)
    scored = measure(suspects, labels=inputs.labels)
    primary = primary_score(scored.scores)
    if primary != LEARNED:
        notes.append(_without_attack(primary))
    if isinstance(pair, StatisticsPair):
        notes += served_notes(pair, scored)
    summary = summarize_combination(scored, seed=seed, bootstraps=bootstraps)
    fingerprints = {
        "texts": fingerprint(list(scored.ids)),
        "texts and contents": contents(suspects),
        **pair.sha256,
    }
    judged = Judged()
    if known:
        against = measure(known, label="scoring non-members")
        fingerprints["nonmembers"] = fingerprint(list(against.ids))
        fingerprints["nonmembers and contents"] = contents(known)
        judged = judge(
            scored,
            against,
            primary=primary,
            independent=inputs.independent,
            alpha=alpha,
            seed=seed,
        )
    flagged = summary.counts.flagged
    if flagged:
        notes.append(f"{flagged} of {len(suspects)} texts carry a flag (scores.jsonl).")
    return AuditResult(
        primary=primary,
        groups=(scored,),
        combinations=(summary,),
        comparison=judged.comparison,
        p_values=judged.p_values,
        q_values=judged.q_values,
        dataset=judged.dataset,
        calibration=judged.calibration,
        verdict=verdict([summary], primary, judged),
        notes=(*notes, *judged.notes, *ez_notes([scored])),
        fingerprints=fingerprints,
    )


def judge(
    scored: ScoredTexts,
    against: ScoredTexts,
    *,
    primary: str,
    independent: Bool[np.ndarray, " N"],
    alpha: float = calibration.ALPHA,
    seed: int = 0,
) -> Judged:
    """Conformal p-values of the texts and a verdict on the set, where they are valid.

    First the two sets are compared without any model. If they differ as texts, their
    scores may differ for that reason, and nothing is concluded.

    Args:
      scored: N texts under audit.
      against: known non-members, drawn like them.
      primary: score of the p-values.
      independent: texts that are no near copies of earlier ones; the others enter
        neither the comparison nor the verdict on the set.
      alpha: level of that verdict.
      seed: of samples, splits and folds.
    """
    rows = np.flatnonzero(independent)
    words = scored.words or [""] * len(scored.ids)
    comparison = controls.compare_sets(
        [words[int(row)] for row in rows], against.words or [], seed=seed
    )
    own, usable = scored.scores[primary], against.scores[primary]
    found = Judged(comparison, calibration.lower_p_value(own[rows], usable))
    if comparison.decision == "different":
        return found
    p_values = calibration.conformal_p_values(own, usable)
    found = found._replace(
        p_values=p_values,
        q_values=calibration.q_values(p_values),
        calibration=calibrate(primary, p_values, usable, seed=seed),
    )
    distinct = {name: values[rows] for name, values in scored.scores.items()}
    scorable = int(np.sum(~np.isnan(distinct["loss"])))
    if scorable < calibration.FEWEST:
        return found._replace(
            notes=(
                f"{scorable} distinct texts could be scored; a verdict on the whole "
                f"set needs at least {calibration.FEWEST}, so only p-values of single "
                "texts are given.",
            )
        )
    return found._replace(
        dataset=calibration.dataset_inference(
            distinct, against.scores, alpha=alpha, seed=seed
        )
    )


def evaluate_stores(
    attack: Attack,
    stores: Sequence[FeatureStore],
    *,
    split: Literal["unseen", "test"] = "unseen",
    bootstraps: int = 1000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> AuditResult:
    """Judge a learned attack, beside every published score, on feature stores.

    Each store is one combination. It is judged on the texts that the attack was neither
    trained nor selected on (`split` test: those of them that are marked so). `notes`
    are added to those of the result.

    Raises:
      InputError: the attack saw every text of a store.
    """
    scored = [score_combination(attack, store, split) for store in stores]
    summaries = [
        summarize_combination(group, seed=seed, bootstraps=bootstraps)
        for group in scored
    ]
    first = next((group for group in scored if group.unseen), scored[0])
    labels, logits = np.asarray(first.labels), first.scores[LEARNED]
    outside = logits[labels == 0]
    calibrated = None
    if not np.isnan(outside).all():
        p_values = calibration.conformal_p_values(logits[labels == 1], outside)
        calibrated = calibrate(LEARNED, p_values, outside, seed=seed)
    return AuditResult(
        primary=LEARNED,
        groups=tuple(scored),
        combinations=tuple(summaries),
        calibration=calibrated,
        verdict=verdict(summaries, LEARNED),
        notes=(
            "Evaluated on texts that the attack was neither trained nor selected on.",
            "The text-only baseline sees the bag of token ids that the models scored.",
            *_vocabulary_notes(stores),
            *ez_notes(scored),
            *notes,
        ),
        fingerprints={store.name: store.fingerprint for store in stores},
    )


def _vocabulary_notes(stores: Sequence[FeatureStore]) -> list[str]:
    """What is to know of stores whose models have different numbers of ids."""
    notes = {
        store.name: vocabulary_note(store.meta.get("vocabularies", {}))
        for store in stores
    }
    return [f"{name}: {note}" for name, note in notes.items() if note is not None]


def _seen(pair: ModelPair, texts: Sequence[Text], bos: Bos, score: Score) -> list[str]:
    """What the models see beside what is scored, in sentences."""
    begins = describe_beginning(pair.target.tokenizer, bos, texts[0].content)
    log.info("%s", begins)
    notes = []
    if bos != "auto" or beginning(pair.target.tokenizer, bos):
        notes.append(begins)
    if texts[0].chat is not None:
        notes.append(CHATS[score])
    sizes = vocabularies(pair.reference, pair.target)
    if (note := vocabulary_note(sizes)) is not None:
        notes.append(note)
    return notes


def _windows(length: int, overlap: int | None, combine: Combine) -> list[str]:
    """How long texts were scored, if not cut, in a sentence."""
    if overlap is None:
        return []
    return [
        f"Long texts were scored whole, in windows of {length} tokens of which "
        f"{overlap} are context from the window before; a text's score is the "
        f"{combine} over its windows."
    ]


def _without_attack(primary: str) -> str:
    """What an audit without the learned attack rests on, and what that costs."""
    if primary == TRAINING_FREE:
        return (
            "No learned attack was used: the verdict rests on EZ-MIA, the strongest "
            "training-free score in our tests."
        )
    measured = ""
    if primary == "min_k_plus_plus":
        measured = (
            ", the strongest of them in our tests: on the 36 combinations of "
            "docs/results.md it finds 8 % of the members at 1 % false positives (AUC "
            ".834), where the learned attack finds 42 % (.939)"
        )
    return (
        "No reference was given, so only scores of the target alone were computed, "
        f"which find far fewer members. The verdict rests on {describe(primary).label}"
        f"{measured}. Give the model before fine-tuning as the reference if you can."
    )


def _as_texts(texts: Sequence[str | Text]) -> list[Text]:
    return [
        text if isinstance(text, Text) else Text(text_id(text), text) for text in texts
    ]
