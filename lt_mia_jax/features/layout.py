"""The order of the feature columns, in one place.

A step of a text becomes `7 k + 14` numbers. Two thirds of them are redundant: of each
pair of raw logits `(a - m, b - m)` with `m = max(a, b)` one entry is zero, so the pair
is one signed number `a - b`; the last ten columns follow from the losses of the true
token. The packed form keeps `5 k + 3` columns (103 for k = 20) and is exact.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from lt_mia_jax.errors import InputError

LOSS_NAMES = ("target_loss", "reference_loss", "loss_difference")
GLOBAL_NAMES = (
    "target_loss_mean",
    "target_loss_std",
    "reference_loss_mean",
    "reference_loss_std",
    "loss_difference_mean",
    "loss_difference_std",
    "loss_difference_sum",
)
_TRUTH = ("target_logit", "reference_logit", "target_rank", "reference_rank")
_HEAD = ("target_logit", "reference_logit", "reference_rank", "reverse_target_rank")
_TAIL = ("target_logit", "reference_logit", "reference_rank")


@dataclasses.dataclass(frozen=True)
class FeatureLayout:
    """Names and positions of the columns for lists of `k` tokens.

    Slot `j` of the top k (`head`) holds the target's j-th largest logit and the
    reference's logit of the same token (as a pair), that token's rank in the reference,
    and the rank in the target of the *reference's* j-th token. The bottom k (`tail`)
    are the target's smallest logits, smallest first. Ranks are
    `log1p(rank) / log(V + 1)`.

    Example:
      >>> from lt_mia_jax import FeatureLayout
      >>> layout = FeatureLayout(k=20)
      >>> layout.width, layout.packed_width
      (154, 103)
      >>> layout.names[layout.loss][0]
      'loss.target_loss'

    Source: per-token features of "Learning the Signature of Memorization in
    Autoregressive Language Models", arXiv 2604.03199, in the order of its authors'
    implementation.
    """

    k: int = 20
    """Length of both lists, top k and bottom k; at least 1."""

    def __post_init__(self) -> None:
        """Refuse an empty list."""
        if self.k < 1:
            raise InputError(f"k is {self.k}; the feature layout needs k >= 1")

    @property
    def width(self) -> int:
        """Columns of a full feature vector: 7 k + 14."""
        return 7 * self.k + 14

    @property
    def packed_width(self) -> int:
        """Columns of the packed form: 5 k + 3."""
        return 5 * self.k + 3

    @property
    def truth(self) -> slice:
        """Columns about the true next token."""
        return slice(0, 4)

    @property
    def head(self) -> slice:
        """Columns about the most likely tokens, four per slot."""
        return slice(4, 4 + 4 * self.k)

    @property
    def tail(self) -> slice:
        """Columns about the least likely tokens, three per slot."""
        return slice(4 + 4 * self.k, 4 + 7 * self.k)

    @property
    def loss(self) -> slice:
        """Cross-entropies of the true token (nats): target, reference, difference."""
        return slice(4 + 7 * self.k, 7 + 7 * self.k)

    @property
    def text(self) -> slice:
        """Seven statistics of the losses of the whole text, repeated on each step."""
        return slice(7 + 7 * self.k, 14 + 7 * self.k)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """One unique name a column, `block[slot].quantity`."""
        head = (f"head[{j}].{name}" for j in range(self.k) for name in _HEAD)
        tail = (f"tail[{j}].{name}" for j in range(self.k) for name in _TAIL)
        truth = (f"truth.{name}" for name in _TRUTH)
        loss = (f"loss.{name}" for name in LOSS_NAMES)
        return (*truth, *head, *tail, *loss, *(f"text.{n}" for n in GLOBAL_NAMES))

    def pack(self, features: Any) -> Any:
        """The first 7 k + 4 columns `"... C"` as 5 k + 3 numbers, without loss.

        NumPy or JAX arrays keep their dtype; `a - b` takes the place of each pair.
        """
        _, sign = self._codec
        kept = np.flatnonzero(sign >= 0)
        following = np.minimum(kept + 1, len(sign) - 1)
        weight = sign[kept].astype(features.dtype)
        weight = weight.reshape((1,) * (features.ndim - 1) + (-1,))
        return features[..., kept] - weight * features[..., following]

    def unpack(self, packed: Any) -> Any:
        """The inverse of `pack`: array `"... 7k+4"`.

        A pair is `(min(0, a - b), min(0, b - a))`, which equals `(a - m, b - m)` bit
        for bit, since floating-point subtraction is antisymmetric.
        """
        xp = np if isinstance(packed, np.ndarray) else jnp
        source, sign = self._codec
        sign = sign.astype(packed.dtype).reshape((1,) * (packed.ndim - 1) + (-1,))
        values = packed[..., source]
        # `+ 0` turns the -0 of an equal pair into 0.
        return xp.where(sign == 0, values, xp.minimum(0, sign * values) + 0)

    @functools.cached_property
    def _codec(self) -> tuple[np.ndarray, np.ndarray]:
        """For each unpacked column its packed source and +1, -1 (pair) or 0 (plain)."""
        names = self.names[: self.loss.start]
        first = np.array([name.endswith(".target_logit") for name in names])
        second = np.roll(first, 1)  # of a pair, right behind the first
        source = np.cumsum(~second) - 1
        return source.astype(np.int32), first.astype(np.int8) - second.astype(np.int8)


def layout_of(packed_width: int) -> FeatureLayout:
    """The layout whose packed form has that many columns."""
    layout = FeatureLayout(k=max(1, (packed_width - 3) // 5))
    if layout.packed_width != packed_width:
        raise InputError(
            f"found {packed_width} packed columns, expected 5 k + 3 for some k >= 1"
        )
    return layout
