"""Invertible operations between a checkpoint tensor and our parameter leaves.

Each takes one stored tensor to one or more leaves (`forward`) and back (`inverse`),
bit for bit, so that one table serves loading and saving.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Copy:
    """Stored as we keep it."""

    def forward(self, stored: np.ndarray) -> tuple[np.ndarray, ...]:
        """The leaf."""
        return (stored,)

    def inverse(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The stored tensor."""
        return leaves[0]

    def stored_shape(self, leaves: Sequence[Shape]) -> Shape:
        """Shape of the stored tensor for leaves of these shapes."""
        return leaves[0]


@dataclass(frozen=True)
class Linear:
    """Stored (out, in), kept (in, out)."""

    def forward(self, stored: np.ndarray) -> tuple[np.ndarray, ...]:
        """The transposed kernel."""
        return (stored.T,)

    def inverse(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The stored weight."""
        return leaves[0].T

    def stored_shape(self, leaves: Sequence[Shape]) -> Shape:
        """Shape of the stored tensor for leaves of these shapes."""
        return leaves[0][::-1]


@dataclass(frozen=True)
class SplitChunks:
    """Stored as equal blocks along the last axis, [a | b | ...]."""

    chunks: int

    def forward(self, stored: np.ndarray) -> tuple[np.ndarray, ...]:
        """The blocks."""
        return tuple(np.split(stored, self.chunks, axis=-1))

    def inverse(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The blocks side by side."""
        return np.concatenate(leaves, axis=-1)

    def stored_shape(self, leaves: Sequence[Shape]) -> Shape:
        """Shape of the stored tensor for leaves of these shapes."""
        return (*leaves[0][:-1], sum(leaf[-1] for leaf in leaves))


@dataclass(frozen=True)
class SplitGrouped:
    """Query, key and value rows, group by group: `share` queries, a key, a value.

    Stored (groups x (share + 2) x size, in), kept as three kernels (in, heads x size);
    a bias is the same without `in`. One query a group is the layout of GPT-NeoX; one
    group of all heads is [queries | keys | values].
    """

    groups: int
    share: int = 1

    def forward(self, stored: np.ndarray) -> tuple[np.ndarray, ...]:
        """Queries, keys, values."""
        rest = stored.shape[1:]
        split = stored.reshape(self.groups, self.share + 2, -1, *rest)
        parts = split[:, : self.share], split[:, self.share], split[:, self.share + 1]
        return tuple(part.reshape(-1, *rest).T for part in parts)

    def inverse(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The three interleaved by group."""
        rows = [leaf.T for leaf in leaves]
        rest, size = rows[0].shape[1:], rows[1].shape[0] // self.groups
        split = [row.reshape(self.groups, -1, size, *rest) for row in rows]
        return np.concatenate(split, axis=1).reshape(-1, *rest)

    def stored_shape(self, leaves: Sequence[Shape]) -> Shape:
        """Shape of the stored tensor for leaves of these shapes."""
        return (sum(leaf[-1] for leaf in leaves), *leaves[0][:-1])


@dataclass(frozen=True)
class Depthwise:
    """Depthwise convolution: stored (channels, 1, taps), kept (taps, channels)."""

    def forward(self, stored: np.ndarray) -> tuple[np.ndarray, ...]:
        """The taps."""
        return (stored[:, 0].T,)

    def inverse(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The stored weight."""
        return leaves[0].T[:, None]

    def stored_shape(self, leaves: Sequence[Shape]) -> Shape:
        """Shape of the stored tensor for leaves of these shapes."""
        return (leaves[0][1], 1, leaves[0][0])


@dataclass(frozen=True)
class Flat:
    """Stored with leading axes of one, kept as a vector."""

    ones: int = 2

    def forward(self, stored: np.ndarray) -> tuple[np.ndarray, ...]:
        """The vector."""
        return (stored.reshape(-1),)

    def inverse(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The stored tensor."""
        return leaves[0].reshape(*(1,) * self.ones, -1)

    def stored_shape(self, leaves: Sequence[Shape]) -> Shape:
        """Shape of the stored tensor for leaves of these shapes."""
        return (*(1,) * self.ones, *leaves[0])


Operation = Copy | Linear | SplitChunks | SplitGrouped | Depthwise | Flat
