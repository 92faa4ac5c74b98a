"""`audit`: texts and two models in, p-values and a verdict out."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from lt_mia_jax.attacks import calibration
from lt_mia_jax.attacks.estimate import DatasetVerdict
from lt_mia_jax.attacks.learned.attack import Attack
from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.audit.results import (
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
)
from lt_mia_jax.audit.verdict import ez_notes, verdict
from lt_mia_jax.data.texts import Text, fingerprint, text_id
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.store import FeatureStore


def audit(
    pair: ModelPair,
    texts: Sequence[str | Text],
    nonmembers: Sequence[str | Text] | None = None,
    attack: Attack | str | Path | None = "shipped",
    *,
    length: int = 128,
    side: Literal["right", "left"] = "right",
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
    verdict on the whole set; labels give AUCs with controls. Without either, texts are
    only ranked.

    Args:
      pair: reference and target, from `load_pair`.
      texts: strings, or `Text` records with ids and labels (all of them or none).
      nonmembers: texts known not to be in the fine-tuning data, drawn like `texts`; at
        least 20. Those that are also among `texts` are left out.
      attack: the learned attack: `shipped` with the package, a folder made by `lt-mia
        train`, an `Attack`, or None for the published scores alone.
      length: tokens a text is cut to, the final end-of-text token included.
      side: which end of a long text is cut off; `left` for code.
      batch_size: texts in one forward pass.
      alpha: level of the verdict on the whole set.
      bootstraps: resamples behind each 95 % interval.
      seed: of every resampling and split.
      name: of the texts in tables.
      corpus: where they come from; opens error messages about them.

    Returns:
      Scores, p- and q-values by text in the order of `texts`; summaries and verdict.

    Raises:
      InputError: no text, some but not all labeled, fewer than 20 usable non-members,
        or an attack that cannot be loaded.

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
    if not isinstance(attack, Attack):
        attack = None if attack is None else choose_attack(attack)
    suspects = _as_texts(texts)
    known, labels, notes = check_texts(suspects, _as_texts(nonmembers or ()), corpus)

    score = functools.partial(
        score_texts,
        pair=pair,
        attack=attack,
        length=length,
        side=side,
        batch_size=batch_size,
        name=name,
        corpus=corpus,
    )
    scored = score(suspects, labels=labels)
    primary = primary_score(scored.scores)
    if attack is None:
        notes.append(
            "No learned attack was used: the verdict rests on EZ-MIA, the strongest "
            "training-free score in our tests."
        )
    summary = summarize_combination(scored, seed=seed, bootstraps=bootstraps)
    fingerprints = {"texts": fingerprint(list(scored.ids))}
    p_values = q_values = dataset = calibrated = None
    if known:
        against = score(known, label="scoring non-members")
        fingerprints["nonmembers"] = fingerprint(list(against.ids))
        usable = against.scores[primary]
        p_values = calibration.conformal_p_values(scored.scores[primary], usable)
        q_values = calibration.q_values(p_values)
        calibrated = calibrate(primary, p_values, usable, seed=seed)
        dataset = _dataset(scored, against, alpha, seed, notes)
    flagged = summary.counts.flagged
    if flagged:
        notes.append(f"{flagged} of {len(texts)} texts carry a flag (scores.jsonl).")
    return AuditResult(
        primary=primary,
        groups=(scored,),
        combinations=(summary,),
        p_values=p_values,
        q_values=q_values,
        dataset=dataset,
        calibration=calibrated,
        verdict=verdict(
            [summary], primary, p_values=p_values, q_values=q_values, dataset=dataset
        ),
        notes=(*notes, *ez_notes([scored])),
        fingerprints=fingerprints,
    )


def check_texts(
    texts: Sequence[Text],
    nonmembers: Sequence[Text],
    corpus: str = "texts",
    known: str = "non-members",
) -> tuple[list[Text], Int[np.ndarray, " N"] | None, list[str]]:
    """What `audit` takes and refuses, before any model is needed.

    `corpus` opens messages about the texts, `known` those about the non-members.

    Returns:
      Non-members that are not among the texts, which would bias p-values; labels of
      the texts (1 member, 0 non-member) or None; notes.

    Raises:
      InputError: no text, some but not all labeled, or fewer than 20 usable
        non-members.
    """
    if not texts:
        raise InputError(f"{corpus}: no texts")
    notes = []
    suspects = {text.text for text in texts}
    kept = [text for text in nonmembers if text.text not in suspects]
    if len(kept) < len(nonmembers):
        dropped = len(nonmembers) - len(kept)
        notes.append(f"{dropped} non-members also stand among the texts; left out.")
    if nonmembers and len(kept) < calibration.FEWEST:
        raise InputError(
            f"{known}: {len(kept)} usable non-members, at least {calibration.FEWEST} "
            "are needed for p-values; add texts drawn like the audited ones that the "
            "target never saw"
        )
    labels = [text.label for text in texts if text.label is not None]
    if not labels:
        return kept, None, notes
    if len(labels) < len(texts):
        line = next(text.line for text in texts if text.label is None)
        where = f" (line {line} has none)" if line else ""
        raise InputError(
            f"{corpus}: {len(labels)} of {len(texts)} texts have a label{where}; label "
            "all of them or none"
        )
    if len(set(labels)) == 1:
        notes.append(f"All labels are {labels[0]}: no AUC can be computed.")
    return kept, np.array(labels, dtype=np.int64), notes


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
            *ez_notes(scored),
            *notes,
        ),
        fingerprints={store.name: store.fingerprint for store in stores},
    )


def _as_texts(texts: Sequence[str | Text]) -> list[Text]:
    return [
        text if isinstance(text, Text) else Text(text_id(text), text) for text in texts
    ]


def _dataset(
    scored: ScoredTexts, against: ScoredTexts, alpha: float, seed: int, notes: list[str]
) -> DatasetVerdict | None:
    scorable = int(np.sum(~np.isnan(scored.scores["loss"])))
    if scorable < calibration.FEWEST:
        notes.append(
            f"{scorable} texts could be scored; a verdict on the whole set needs at "
            f"least {calibration.FEWEST}, so only p-values of single texts are given."
        )
        return None
    return calibration.dataset_inference(
        scored.scores, against.scores, alpha=alpha, seed=seed
    )
