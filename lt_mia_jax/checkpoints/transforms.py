"""Invertible operations between stored tensors and parameter leaves.

Both directions are exact, so that one table serves loading and saving.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Operation(NamedTuple):
    """Conversion of one stored tensor to one or more leaves and back."""

    forward: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    """Leaves of the stored tensor."""
    inverse: Callable[[Sequence[np.ndarray]], np.ndarray]
    """Stored tensor of the leaves."""
    stored_shape: Callable[[Sequence[Shape]], Shape]
    """Shape of the stored tensor for leaves of these shapes."""


COPY = Operation(
    lambda stored: (stored,), lambda leaves: leaves[0], lambda leaves: leaves[0]
)
"""Stored as we keep it."""

LINEAR = Operation(
    lambda stored: (stored.T,),
    lambda leaves: leaves[0].T,
    lambda leaves: leaves[0][::-1],
)
"""Stored (out, in), kept (in, out)."""

DEPTHWISE = Operation(
    lambda stored: (stored[:, 0].T,),
    lambda leaves: leaves[0].T[:, None],
    lambda leaves: (leaves[0][1], 1, leaves[0][0]),
)
"""Depthwise convolution: stored (channels, 1, taps), kept (taps, channels)."""

FLAT = Operation(
    lambda stored: (stored.reshape(-1),),
    lambda leaves: leaves[0].reshape(1, 1, -1),
    lambda leaves: (1, 1, *leaves[0]),
)
"""Stored with two leading axes of length one, kept as a vector."""


def split_chunks(chunks: int) -> Operation:
    """Stored as equal blocks along the last axis, [a | b | ...]."""
    return Operation(
        lambda stored: tuple(np.split(stored, chunks, axis=-1)),
        lambda leaves: np.concatenate(leaves, axis=-1),
        lambda leaves: (*leaves[0][:-1], sum(leaf[-1] for leaf in leaves)),
    )


def split_grouped(groups: int, share: int = 1) -> Operation:
    """Query, key and value rows, group by group: `share` queries, a key, a value.

    Stored (groups x (share + 2) x size, in), kept as three kernels (in, heads x size);
    a bias is the same without `in`. One query per group is the layout of GPT-NeoX; one
    group of all heads is [queries | keys | values].
    """

    def forward(stored: np.ndarray) -> tuple[np.ndarray, ...]:
        rest = stored.shape[1:]
        split = stored.reshape(groups, share + 2, -1, *rest)
        parts = split[:, :share], split[:, share], split[:, share + 1]
        return tuple(part.reshape(-1, *rest).T for part in parts)

    def inverse(leaves: Sequence[np.ndarray]) -> np.ndarray:
        rows = [leaf.T for leaf in leaves]
        rest, size = rows[0].shape[1:], rows[1].shape[0] // groups
        split = [row.reshape(groups, -1, size, *rest) for row in rows]
        return np.concatenate(split, axis=1).reshape(-1, *rest)

    def stored_shape(leaves: Sequence[Shape]) -> Shape:
        return (sum(leaf[-1] for leaf in leaves), *leaves[0][:-1])

    return Operation(forward, inverse, stored_shape)
