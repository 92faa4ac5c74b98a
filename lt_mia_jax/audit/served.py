"""Scores of texts from files of statistics: the models themselves are elsewhere."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lt_mia_jax.attacks import scores as formulas
from lt_mia_jax.attacks.learned.attack import Attack, score_features
from lt_mia_jax.attacks.scores.table import LEARNED, SCORES
from lt_mia_jax.audit.records import NO_REFERENCE
from lt_mia_jax.audit.scoring import BLOCK, ModelPair, ScoredTexts, load_pair
from lt_mia_jax.data.chat.rendering import check_responses
from lt_mia_jax.data.jsonl import short, well_formed
from lt_mia_jax.data.texts import Text, zlib_length
from lt_mia_jax.data.tokenize import flag_texts, scored_mask
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.executor import Executor
from lt_mia_jax.features.lt_mia import assemble
from lt_mia_jax.features.statistics_file import (
    StatisticsFile,
    TextRow,
    encoded_rows,
    read_statistics,
    stack,
)
from lt_mia_jax.files import content_sha256
from lt_mia_jax.training.progress import Progress


class StatisticsPair(NamedTuple):
    """Statistics of reference and target in files, found to fit each other.

    `audit` takes it in the place of a `ModelPair`.

    Example:
      >>> from lt_mia_jax.audit import StatisticsPair
      >>> StatisticsPair._fields[:2]
      ('reference', 'target')
    """

    reference: StatisticsFile | None
    """Without it only the target's own scores can be computed."""
    target: StatisticsFile
    vocab_size: int | None = None
    """Number of logits that both models have; None when unknown."""

    @property
    def reference_name(self) -> str:
        """What tables call it."""
        return NO_REFERENCE if self.reference is None else self.reference.model

    @property
    def target_name(self) -> str:
        """What tables call it."""
        return self.target.model

    @property
    def sha256(self) -> Mapping[str, str]:
        """Of the files, by name."""
        both = {"target": self.target, "reference": self.reference}
        return {
            f"statistics of the {side}: {file.path.name}": content_sha256(file.path)
            or ""
            for side, file in both.items()
            if file is not None
        }


def load_statistics(
    reference: Path | str | None, target: Path | str, *, vocab_size: int | None = None
) -> StatisticsPair:
    """Read the statistics of both models and check that they can be compared.

    Args:
      reference: file of the model before fine-tuning; None where it is not at hand.
      target: file of the model after it, with the same texts.
      vocab_size: number of logits, where the files do not say it. Only the learned
        attack needs it.

    Raises:
      InputError: a file cannot be read (`read_statistics`), texts or tokens differ
        between the files, both have the same numbers, or `vocab_size` is another one
        than the files say.

    Example:
      >>> from lt_mia_jax.audit import audit, load_statistics
      >>> from lt_mia_jax.data.jsonl import write_jsonl
      >>> from lt_mia_jax.data.texts import Text
      >>> row = {"token_ids": [1, 2], "ranks": [9]}
      >>> for name, log_prob in (("before", -3.0), ("after", -2.5)):
      ...     rows = [{"id": id, **row, "log_probs": [log_prob]} for id in "ab"]
      ...     write_jsonl(f"{name}.jsonl", rows)
      >>> pair = load_statistics("before.jsonl", "after.jsonl")
      >>> texts = [Text("a", "To be or not"), Text("b", "That is the question")]
      >>> audit(pair, texts, attack=None).scores["reference"].tolist()
      [0.5, 0.5]
    """
    after = read_statistics(target)
    before = None if reference is None else read_statistics(reference)
    files = [file for file in (after, before) if file is not None]
    known = [file.vocab_size for file in files if file.vocab_size is not None]
    # A model with more rows in its embedding has the ids of the other one too.
    shared = min(known, default=vocab_size)
    if vocab_size not in (None, shared):
        raise InputError(
            f"--vocab-size {vocab_size}, but {files[0].path} says {shared}; leave "
            "--vocab-size out"
        )
    if before is not None:
        _check_alike(after, before)
    return StatisticsPair(before, after, shared)


def choose_pair(
    *,
    reference: str | None,
    target: str | None,
    reference_statistics: Path | None,
    target_statistics: Path | None,
    vocab_size: int | None,
    executor: Callable[[], Executor],
) -> ModelPair | StatisticsPair:
    """What an audit compares, by its flags: two models, or their statistics.

    `executor` is called when there are models to place.

    Raises:
      InputError: no target or two of them, or models beside statistics.
    """
    if target_statistics is None:
        if target is None:
            raise InputError(
                "no model to audit; give --target (a model) or --target-statistics (a "
                "file of lt-mia collect)"
            )
        if reference_statistics is not None or vocab_size is not None:
            raise InputError(
                "--reference-statistics and --vocab-size belong to "
                "--target-statistics, found --target; collect the statistics of the "
                "target too (lt-mia collect), or leave them out"
            )
        return load_pair(reference, target, executor())
    for flag, value in (("--target", target), ("--reference", reference)):
        if value is not None:
            raise InputError(
                f"{flag} with --target-statistics: found a model beside statistics, "
                f"expected one kind; give {flag}-statistics (lt-mia collect) instead"
            )
    return load_statistics(
        reference_statistics, target_statistics, vocab_size=vocab_size
    )


def _check_alike(target: StatisticsFile, reference: StatisticsFile) -> None:
    for one, other in ((target, reference), (reference, target)):
        lacking = [name for name in other.rows if name not in one.rows]
        if lacking:
            raise InputError(
                f"{one.path}: no row for {_listed(lacking, len(other.rows))} of "
                f"{other.path}; collect the same texts from both models"
            )
    rows = [(row, reference.rows[name]) for name, row in target.rows.items()]
    for row, other in rows:
        if not np.array_equal(row.token_ids, other.token_ids):
            raise InputError(
                f"the token ids of text {short(row.id)} differ between {target.path} "
                f"and {reference.path}; tokenize alike and cut at one length"
            )
        if not np.array_equal(_scored(row), _scored(other)):
            raise InputError(
                f"the scored tokens of text {short(row.id)} differ between "
                f"{target.path} and {reference.path}; collect with one --score"
            )
    same = all(np.array_equal(row.log_probs, other.log_probs) for row, other in rows)
    if same and any(len(row.log_probs) for row, _ in rows):
        raise InputError(
            f"{target.path} and {reference.path} hold the same log-probabilities: no "
            "text can look trained on; collect the reference from the model before "
            "fine-tuning"
        )


def _scored(row: TextRow) -> np.ndarray:
    whole = np.ones(len(row.token_ids), bool)
    return whole if row.scored is None else np.asarray(row.scored, bool)


def _listed(names: Sequence[str], of: int) -> str:
    return f"{len(names)} of the {of} texts ({capped(map(short, names), ', ')})"


def check_served(
    pair: StatisticsPair,
    texts: Sequence[Text],
    nonmembers: Sequence[Text] = (),
    *,
    attack: Attack | None = None,
    length: int = 128,
) -> None:
    """Refuse what files of statistics cannot answer.

    Raises:
      InputError: texts without a row, or with that of another text; rows longer than
        `length`; or an attack that reads more than the files hold.
    """
    every = {**{t.id: t for t in nonmembers}, **{t.id: t for t in texts}}
    shared = [text.id for text in nonmembers if every[text.id] is not text]
    if shared:
        raise InputError(
            f"the id {short(shared[0])} stands for one of the texts and for one of the "
            "non-members; statistics are found by id: give each text its own, or none"
        )
    lacking = [name for name in every if name not in pair.target.rows]
    if lacking:
        raise InputError(
            f"{pair.target.path}: no row for {_listed(lacking, len(every))}; collect "
            "their statistics too, or leave them out"
        )
    for name, text in every.items():
        row = pair.target.rows[name]
        if len(row.token_ids) > length:
            raise InputError(
                f"{pair.target.path}: text {short(name)} has {len(row.token_ids)} "
                f"tokens, --length is {length}; give the length of the collection"
            )
        # Of conversations it is the response, of what was cut the rest.
        plain = text.chat is None and not row.truncated
        if plain and row.text not in (None, well_formed(text.text)):
            raise InputError(
                f"{pair.target.path}: the text of row {short(name)} is not the audited "
                "text with this id; collect again"
            )
    if attack is not None:
        _check_attack(attack, pair)


def _check_attack(attack: Attack, pair: StatisticsPair) -> None:
    config = attack.config
    more = [
        {"head": "the most likely tokens", "tail": "the least likely tokens"}[block]
        for block in config.blocks
        if block in ("head", "tail")
    ]
    if "truth" in config.blocks and not config.log_probabilities:
        more.append("raw logits")
    if more:
        raise InputError(
            f"this attack reads {', '.join(more)}, which files of statistics do not "
            "have; use the shipped one, --attack none, or one trained with "
            "--classifier.blocks truth loss text --classifier.log-probabilities"
        )
    if "truth" in config.blocks and pair.vocab_size is None:
        raise InputError(
            f"{pair.target.path}: the learned attack scales ranks by the size of the "
            "vocabulary, which no row says; give --vocab-size (vocab_size in the "
            "model's config.json), or --attack none"
        )


def score_served(
    texts: Sequence[Text],
    pair: StatisticsPair,
    *,
    attack: Attack | None,
    length: int = 128,
    name: str = "texts",
    corpus: str = "texts",
    labels: Int[np.ndarray, " N"] | None = None,
    label: str = "scoring texts",
) -> ScoredTexts:
    """`score_texts` from files: every score that they allow.

    Args:
      texts: N texts that `check_served` has let pass.
      pair: the files.
      attack: a learned attack, or None.
      length: of `audit`, at least the tokens of each row.
      name: of the texts in tables.
      corpus: where they come from.
      labels: for tables of AUCs.
      label: stands beside the progress bar.
    """
    parts: list[ScoredTexts] = []
    with Progress(label, len(texts), "text") as bar:
        for start in range(0, len(texts), BLOCK):
            ids = [text.id for text in texts[start : start + BLOCK]]
            parts.append(_score_rows(ids, pair, attack, length, name, corpus))
            bar.update(len(ids))
    found = dataclasses.replace(_joined(parts), labels=labels)
    check_responses(found.flags, length)
    return found


def _score_rows(
    ids: Sequence[str],
    pair: StatisticsPair,
    attack: Attack | None,
    length: int,
    name: str,
    corpus: str,
) -> ScoredTexts:
    rows = [pair.target.rows[each] for each in ids]
    before = pair.reference
    statistics = stack(
        rows,
        None if before is None else [before.rows[each] for each in ids],
        length=length,
        k=0 if attack is None else attack.k,
        vocab_size=pair.vocab_size,
    )
    scores: dict[str, Any] = {}
    if attack is not None:
        scores[LEARNED] = score_features(attack, *assemble(statistics))
    words, sizes = [_token_words(row) for row in rows], None
    if pair.target.has_texts:
        words = [row.text or "" for row in rows]
        sizes = np.array([zlib_length(text) for text in words])
    scores |= formulas.all_scores(statistics, zlib_bytes=sizes)
    encoded = encoded_rows(rows, length)
    return ScoredTexts(
        name=name,
        target=pair.target_name,
        reference=pair.reference_name,
        corpus=corpus,
        ids=ids,
        n_tokens=scored_mask(encoded).sum(axis=1).astype(np.int64),
        scores=scores,
        flags=flag_texts(encoded),
        words=words,
        ez_edge=formulas.count_ez_edge_cases(statistics),
    )


def _token_words(row: TextRow) -> str:
    kept = np.asarray(row.token_ids)[_scored(row)]
    return " ".join(f"t{token}" for token in kept.tolist())


def _joined(parts: Sequence[ScoredTexts]) -> ScoredTexts:
    return dataclasses.replace(
        parts[0],
        ids=[each for part in parts for each in part.ids],
        n_tokens=np.concatenate([part.n_tokens for part in parts]),
        scores={
            name: np.concatenate([part.scores[name] for part in parts])
            for name in parts[0].scores
        },
        flags=[each for part in parts for each in part.flags],
        words=[each for part in parts for each in part.words or ()],
        ez_edge=sum(part.ez_edge for part in parts),
    )


def served_notes(pair: StatisticsPair, scored: ScoredTexts) -> list[str]:
    """What an audit from files lacks beside one from models, in sentences."""
    possible = [
        row
        for row in SCORES
        if pair.reference is not None or "reference" not in row.needs
    ]
    missing = [row.label for row in possible if row.name not in scored.scores]
    notes = [
        "Scores come from files with log-probabilities and ranks of the texts' own "
        f"tokens. What needs more is left out: {', '.join(missing)}."
    ]
    sizes = [file.vocab_size for file in (pair.target, pair.reference) if file]
    if None not in sizes and len(set(sizes)) > 1:
        notes.append(
            f"The target has {sizes[0]} token ids and the reference {sizes[1]}: ranks "
            "in the files are over all of a model's own, not over those that both have."
        )
    rows = [pair.target.rows[name] for name in scored.ids]
    if any(row.scored is not None and not all(row.scored) for row in rows):
        notes.append(
            "Rows mark the tokens that are scored (`scored`); the others are context, "
            "which the models saw."
        )
    if not pair.target.has_texts:
        notes.append(
            "Rows without `text`: the text-only controls see token ids, and nothing "
            "was compared with the audited texts but ids."
        )
    return notes
