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
    continuations: Sequence[str], references: Sequence[str]
) -> PerItem:
    """VerbMem of each text: ROUGE-L F1 of the continuation of its beginning.

    Args:
      continuations: greedy, up to 128 tokens, given the first tokens of each text.
      references: how the texts go on.

    Source: MUSE, arXiv 2407.06460.
    """
    return rouge_l_f1(continuations, references)


def knowledge_memorization(
    answers: Sequence[str],
    references: Sequence[str],
    *,
    stops: Sequence[str] = KNOWLEDGE_STOPS,
) -> PerItem:
    """KnowMem of each question: ROUGE-L F1 of the answer up to the first stop.

    Args:
      answers: greedy, up to 32 tokens, after few-shot examples.
      references: the true answers.
      stops: texts at which an answer ends.

    Source: MUSE, arXiv 2407.06460. Its code loads models in 8 bits for
    this; here the caller decides.
    """
    return rouge_l_f1(
        [cut_at_stop(a, stops) for a in texts("answers", answers)], references
    )


def cut_at_stop(text: str, stops: Sequence[str] = KNOWLEDGE_STOPS) -> str:
    """`text` before the first occurrence of any of `stops`."""
    ends = [text.find(stop) for stop in stops]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def priv_leak(auc_unlearned: float, auc_retrained: float) -> float:
    """PrivLeak in percent of the retrained model's `1 - AUC`.

    -100: the forget texts are still told apart perfectly; 0: as after retraining;
    positive: they look less familiar than texts never seen (over-unlearned).

    Args:
      auc_unlearned: of forget texts (members) against holdout texts, a score that is
        higher for members. The authors' AUC is one minus this one.
      auc_retrained: the same under the retrained model.

    Raises:
      InputError: a retrained AUC of 1.

    Source: MUSE, arXiv 2407.06460; orientation of OpenUnlearning, arXiv
    2506.12618.
    """
    ours = 1 - number("auc_unlearned", auc_unlearned, low=0.0, high=1.0)
    theirs = 1 - number("auc_retrained", auc_retrained, low=0.0, high=1.0)
    if theirs == 0:
        raise InputError(
            "the retrained model tells forget from holdout texts perfectly (AUC 1), so "
            "the two sets differ by more than training; draw them from one source"
        )
    return 100 * (ours - theirs) / theirs


def member_auc(forget: Values, holdout: Values, model: str = "audited") -> float:
    """AUC of forget texts (members) against holdout texts under one model.

    Args:
      forget: membership scores, higher for members.
      holdout: of texts that no model has seen.
      model: its name in messages.
    """
    members = per_item(f"forget scores of the {model} model", forget)
    others = np.sort(per_item(f"holdout scores of the {model} model", holdout))
    # Counts of holdout texts below, and not above, each forget text: ties are halves.
    below = np.searchsorted(others, members, side="left").sum()
    reached = np.searchsorted(others, members, side="right").sum()
    return float(below + reached) / (2 * len(members) * len(others))
