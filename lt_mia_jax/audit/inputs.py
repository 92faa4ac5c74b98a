"""What an audit takes and refuses, before any model is needed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from lt_mia_jax.attacks import calibration
from lt_mia_jax.data.duplicates import copies, normalized
from lt_mia_jax.data.texts import Text, check_one_kind
from lt_mia_jax.errors import InputError


class Inputs(NamedTuple):
    """Texts that can carry the question, each of them once."""

    texts: list[Text]
    """N texts under audit that do not repeat each other."""
    nonmembers: list[Text]
    """Known non-members that are no near copies of each other or of the texts."""
    independent: Bool[np.ndarray, " N"]
    """Texts that are no near copies of earlier ones."""
    labels: Int[np.ndarray, " N"] | None
    """1 member, 0 non-member; None when unknown."""
    notes: list[str]
    """What was left out, in sentences."""


def check_texts(
    texts: Sequence[Text],
    nonmembers: Sequence[Text],
    corpus: str = "texts",
    known: str = "non-members",
) -> Inputs:
    """Leave out repeats and near copies; refuse what says nothing or two things.

    Texts repeat each other when their words are the same, whatever the white space,
    punctuation and case. Near copies share most of their n-grams of words
    (`data.duplicates.copies`): a non-member that nearly is among the texts would hide
    it, and copies of one non-member count as one. `corpus` opens messages about the
    texts, `known` those about the non-members.

    Raises:
      InputError: no text, some but not all labeled, one text with both labels, a known
        non-member that is labeled a member, conversations beside plain texts, or fewer
        than 20 usable non-members.
    """
    if not texts:
        raise InputError(f"{corpus}: no texts")
    check_one_kind(texts, nonmembers)
    _refuse_contradictions(texts, nonmembers, corpus, known)
    notes: list[str] = []
    distinct = {normalized(text.text): text for text in reversed(texts)}
    kept = [text for text in texts if distinct[normalized(text.text)] is text]
    if len(kept) < len(texts):
        notes.append(
            "Texts left out because they repeat another one, up to case, white space "
            f"and punctuation: {len(texts) - len(kept)}."
        )
    first = copies([text.text for text in (*kept, *nonmembers)])
    own = np.arange(len(first))
    independent = (first == own)[: len(kept)]
    if not independent.all():
        notes.append(
            "Near copies of other texts, which the verdict on the whole set leaves "
            f"out: {int((~independent).sum())}."
        )
    usable = _usable(nonmembers, first[len(kept) :], len(kept), notes)
    if nonmembers and len(usable) < calibration.FEWEST:
        raise InputError(
            f"{known}: {len(usable)} usable non-members, distinct from each other and "
            f"from the texts; at least {calibration.FEWEST} are needed for p-values; "
            "add texts drawn like the audited ones that the target never saw"
        )
    labels = _labels(kept, corpus, notes)
    return Inputs(kept, usable, independent, labels, notes)


def _usable(
    nonmembers: Sequence[Text], first: np.ndarray, texts: int, notes: list[str]
) -> list[Text]:
    """Non-members without copies; `first` holds rows of texts and non-members."""
    overlap = first < texts
    repeated = ~overlap & (first != texts + np.arange(len(nonmembers)))
    if overlap.any():
        notes.append(
            "Non-members left out because they, or near copies of them, are among the "
            f"texts: {int(overlap.sum())}."
        )
    if repeated.any():
        notes.append(
            "Non-members left out because they are near copies of other non-members: "
            f"{int(repeated.sum())}."
        )
    left = np.flatnonzero(~overlap & ~repeated)
    return [nonmembers[int(row)] for row in left]


def _refuse_contradictions(
    texts: Sequence[Text], nonmembers: Sequence[Text], corpus: str, known: str
) -> None:
    labeled: dict[str, Text] = {}
    for text in texts:
        if text.label is None:
            continue
        other = labeled.setdefault(normalized(text.text), text)
        if other.label != text.label:
            raise InputError(
                f"{corpus}: {place(other)} and {place(text)} are the same text, with "
                f"the labels {other.label} and {text.label}; keep one of them"
            )
    wrong = next((text for text in nonmembers if text.label == 1), None)
    if wrong is not None:
        raise InputError(
            f"{known}: {place(wrong)} has label 1 (member); known non-members have "
            "label 0 or none"
        )


def _labels(
    texts: Sequence[Text], corpus: str, notes: list[str]
) -> Int[np.ndarray, " N"] | None:
    labels = [text.label for text in texts if text.label is not None]
    if not labels:
        return None
    if len(labels) < len(texts):
        line = next(text.line for text in texts if text.label is None)
        where = f" (line {line} has none)" if line else ""
        raise InputError(
            f"{corpus}: {len(labels)} of {len(texts)} texts have a label{where}; label "
            "all of them or none"
        )
    if len(set(labels)) == 1:
        notes.append(f"All labels are {labels[0]}: no AUC can be computed.")
    return np.array(labels, dtype=np.int64)


def place(text: Text) -> str:
    """Where a text stands, for a message."""
    return f"line {text.line}" if text.line else f"text {text.id}"
