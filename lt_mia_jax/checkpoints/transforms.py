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
class SplitPerHead:
    """Stored (heads x parts x size, in): the parts of one head lie together.

    Kept as one kernel (in, heads x size) a part; a bias is the same without `in`.
    """

    heads: int
    parts: int = 3

    def forward(self, stored: np.ndarray) -> tuple[np.ndarray, ...]:
        """One kernel (or bias) a part."""
        split = stored.reshape(self.heads, self.parts, -1, *stored.shape[1:])
        return tuple(
            split[:, part].reshape(-1, *stored.shape[1:]).T
            for part in range(self.parts)
        )

    def inverse(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The parts interleaved by head."""
        rows = [leaf.T for leaf in leaves]
        split = [row.reshape(self.heads, -1, *row.shape[1:]) for row in rows]
        return np.stack(split, axis=1).reshape(-1, *rows[0].shape[1:])

    def stored_shape(self, leaves: Sequence[Shape]) -> Shape:
        """Shape of the stored tensor for leaves of these shapes."""
        return (sum(leaf[-1] for leaf in leaves), *leaves[0][:-1])


Operation = Copy | Linear | SplitChunks | SplitPerHead
