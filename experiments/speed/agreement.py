"""How far two implementations of the features are apart, where ties are no difference.

Two correct programs round logits differently. Where two tokens are all but tied, that
decides which one comes first in a list, and with it whole columns; and it moves ranks
by one. So ranks are compared as the logits that stand at them, and slots of a list
whose logit is that close to a neighbor's are left out and counted.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from lt_mia_jax.features.layout import FeatureLayout

NEAR = 2e-5
"""Logits closer than this may come in either order."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The largest differences over all valid steps."""

    logits: float
    """Of the pairs of logits."""
    losses: float
    """Of the losses and the statistics of a text, in nats."""
    ranks: float
    """Of the logits at the two ranks."""
    left_out: int
    """Slots whose order is open."""
    slots: int
    """Slots in all."""

    @property
    def largest(self) -> float:
        """Of any column."""
        return max(self.logits, self.losses, self.ranks)


def compare(
    ours: np.ndarray,
    theirs: np.ndarray,
    valid: np.ndarray,
    target_logits: np.ndarray,
    reference_logits: np.ndarray,
) -> Agreement:
    """Compare features `"B T C"`, given the logits `"B T V"` of one side.

    Args:
      ours: features of one side.
      theirs: features of the other side.
      valid: steps to compare, bool `"B T"`.
      target_logits: sorts the lists of the target and turns its ranks into logits.
      reference_logits: the same for the reference.
    """
    layout = FeatureLayout((ours.shape[-1] - 14) // 7)
    ascending = {
        "target": np.sort(target_logits[valid], axis=-1),
        "reference": np.sort(reference_logits[valid], axis=-1),
    }
    sides = [x[valid].astype(np.float64) for x in (ours, theirs)]
    n = layout.k + 1
    ends = {name: x[:, : -n - 1 : -1] for name, x in ascending.items()}
    head = {name: _near_a_neighbor(end) for name, end in ends.items()}
    tail = _near_a_neighbor(ascending["target"][:, :n])
    largest: dict[str, Any] = dict.fromkeys(("logits", "losses", "ranks"), 0.0)
    for column, name in enumerate(layout.names):
        pair: Any = [side[:, column] for side in sides]
        kind = _kind(name)
        if kind == "ranks":
            owner = "target" if "target_rank" in name else "reference"
            pair = [_logit_at(rank, ascending[owner]) for rank in pair]
        difference = np.abs(pair[0] - pair[1])
        slot = re.match(r"(head|tail)\[(\d+)\]\.(\w+)", name)
        if slot:
            # The reverse rank is about the reference's list, all else the target's.
            order = "reference" if slot[3].startswith("reverse") else "target"
            open_order = head[order] if slot[1] == "head" else tail
            difference = difference[~open_order[:, int(slot[2])]]
        # A NaN must not pass for agreement.
        found = difference.max(initial=0.0)
        largest[kind] = max(largest[kind], np.inf if np.isnan(found) else float(found))
    everywhere = (*head.values(), tail)
    left_out = sum(int(x.sum()) for x in everywhere)
    return Agreement(
        **largest, left_out=left_out, slots=sum(x.size for x in everywhere)
    )


def _kind(name: str) -> str:
    if name.startswith(("loss.", "text.")):
        return "losses"
    return "ranks" if name.endswith("_rank") else "logits"


def _near_a_neighbor(ordered: np.ndarray) -> np.ndarray:
    """Of k + 1 sorted logits a step, which of the first k are close to another one."""
    close = np.abs(np.diff(ordered, axis=-1)) < NEAR
    before = np.pad(close[:, :-1], ((0, 0), (1, 0)))
    return close | before


def _logit_at(column: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """The logits at the ranks that a column holds as `log1p(rank) / log(V + 1)`."""
    vocabulary = ascending.shape[-1]
    rank = np.rint(np.expm1(np.nan_to_num(column) * np.log(vocabulary + 1)))
    place = np.clip(vocabulary - rank, 0, vocabulary - 1).astype(int)
    logit = np.take_along_axis(ascending, place[:, None], axis=-1)[:, 0]
    return np.where(np.isnan(column), np.nan, logit)
