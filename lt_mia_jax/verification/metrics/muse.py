"""Verbatim memorization, knowledge memorization and privacy leakage, as in MUSE."""

from collections.abc import Sequence

import numpy as np

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics.checks import (
    PerItem,
    Values,
    number,
    per_item,
    texts,
)
from lt_mia_jax.verification.metrics.generation import rouge_l_f1

KNOWLEDGE_STOPS = ("\n\n", "\nQuestion", "Question:")
"""Where an answer after few-shot examples ends."""


def verbatim_memorization(
    continuations: Sequence[str], references: Sequence[str], *, stem: bool = False
) -> PerItem:
    """VerbMem of each text: ROUGE-L F1 of the greedy continuation of its beginning.

    MUSE generates up to 128 tokens, and does not stem; OpenUnlearning does.

    Source: MUSE, arXiv 2407.06460.
    """
    return rouge_l_f1(continuations, references, stem=stem)


def knowledge_memorization(
    answers: Sequence[str], references: Sequence[str], *, stem: bool = False
) -> PerItem:
    """KnowMem of each question: ROUGE-L F1 of the answer up to the first stop.

    Answers are greedy, up to 32 tokens, after few-shot examples. `stem` as above.

    Source: MUSE, arXiv 2407.06460. Its code loads models in 8 bits for this; here the
    caller decides.
    """
    said = [cut_at_stop(answer) for answer in texts("answers", answers)]
    return rouge_l_f1(said, references, stem=stem)


def cut_at_stop(text: str) -> str:
    """`text` before the first of `KNOWLEDGE_STOPS`."""
    ends = [text.find(stop) for stop in KNOWLEDGE_STOPS]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def priv_leak(auc_unlearned: float, auc_retrained: float) -> float:
    """PrivLeak in percent of the retrained model's `1 - AUC`.

    -100: the forget texts are still told apart perfectly; 0: as after retraining;
    positive: they look less familiar than texts never seen (over-unlearned).

    Both AUCs are of forget texts (members) against holdout texts; the authors' AUC is
    one minus this one.

    Raises:
      InputError: a retrained AUC of 1.

    Source: MUSE, arXiv 2407.06460; orientation of OpenUnlearning, arXiv 2506.12618.
    """
    ours = 1 - number("auc_unlearned", auc_unlearned, low=0.0, high=1.0)
    theirs = 1 - number("auc_retrained", auc_retrained, low=0.0, high=1.0)
    if theirs == 0:
        raise InputError(
            "the retrained model tells forget from holdout texts perfectly (AUC 1), so "
            "the two sets differ by more than training; draw them from one source"
        )
    return 100 * (ours - theirs) / theirs


def member_auc(forget: Values, holdout: Values) -> float:
    """AUC of forget texts (members) against holdout texts, by membership scores."""
    members = per_item("forget scores", forget)
    others = np.sort(per_item("holdout scores", holdout))
    # Counts of holdout texts below, and not above, each forget text: ties are halves.
    below = np.searchsorted(others, members, side="left").sum()
    reached = np.searchsorted(others, members, side="right").sum()
    return float(below + reached) / (2 * len(members) * len(others))
