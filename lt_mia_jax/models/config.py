"""What a model is, as data: two models with equal configs are one function.

A config says what a block does, never who published it. Numbers that change only
how the function is evaluated (dtypes, remat) are in `execution.py`.
"""

import enum
from dataclasses import dataclass
from typing import Literal

from lt_mia_jax.errors import InputError

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
"""`gelu` is the exact (erf) form, `gelu_tanh` its tanh approximation."""


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Normalisation over the width."""

    kind: Literal["layer", "rms"]
    """`layer`: mean and variance, with scale and bias; `rms`: scale only."""
    eps: float = 1e-5
    """Added to the variance (or mean square) under the root."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A trained vector per absolute position, added to the token embedding."""

    size: int
    """Rows of the table: the longest sequence that the model can read."""


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions are divided by `factor` before rotation."""

    factor: float
    """How many times longer the context became."""


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Slow frequencies are divided by `factor`, fast ones kept, blended between."""

    factor: float
    """Divisor of the slow frequencies."""
    low_freq_factor: float
    """Wavelengths above `original_context / low_freq_factor` are slow."""
    high_freq_factor: float
    """Wavelengths below `original_context / high_freq_factor` are fast."""
    original_context: int
    """Context, in tokens, before the extension."""


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions in the half-split layout: (i, i + n/2) form a pair."""

    theta: float = 10000.0
    """Base of the geometric series of wavelengths."""
    fraction: float = 1.0
    """Share of each head's dimensions that is rotated, from the first on."""
    scaling: LinearScaling | Llama3Scaling | None = None
    """How the frequencies were changed for a longer context."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Causal softmax attention with grouped keys and values, scaled by K^-1/2."""

    heads: int
    """Query heads."""
    kv_heads: int
    """Key/value heads; divides `heads`."""
    head_dim: int
    """Size of one head."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections."""
    out_bias: bool = False
    """Bias on the output projection."""
    position: Rotary | None = None
    """Rotation of queries and keys; None when positions enter elsewhere."""

    def __post_init__(self):
        """Check the divisibility rules."""
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise InputError(
                f"kv_heads = {self.kv_heads} must divide heads = {self.heads}"
            )
        if self.position is not None and self.rotary_dim % 2:
            raise InputError(
                f"rotary dimensions = int({self.head_dim} * {self.position.fraction}) "
                f"= {self.rotary_dim} must be even"
            )

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of each head."""
        return int(self.head_dim * self.position.fraction) if self.position else 0


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Two-layer perceptron; `gated` multiplies activation(gate) into the middle."""

    width: int
    """Size of the middle layer."""
    activation: Activation = "gelu_tanh"
    """Applied to the middle layer, or to the gate."""
    gated: bool = False
    """activation(x gate) * (x up) instead of activation(x up)."""
    bias: bool = True
    """Biases on all its projections."""


Mixer = Attention
"""What moves information between tokens; a union as soon as there are more."""

FeedForward = Mlp
"""What acts on each token alone."""


class Residual(enum.Enum):
    """How a block's two halves are added to the stream."""

    SEQUENTIAL = "sequential"
    """x + mixer(norm(x)), and then the same with the feed-forward."""
    PARALLEL = "parallel"
    """x + mixer(norm1(x)) + feed_forward(norm2(x))."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One layer."""

    mixer: Mixer
    """The token mixer."""
    feed_forward: FeedForward
    """The position-wise network."""
    norm: Norm
    """Applied before each half (pre-norm)."""
    residual: Residual = Residual.SEQUENTIAL
    """How the halves are added."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """From token ids to the first layer's input."""

    positions: Learned | None = None
    """Added position vectors, if any."""


@dataclass(frozen=True, kw_only=True)
class Tied:
    """The head reuses the token embedding."""


@dataclass(frozen=True, kw_only=True)
class Untied:
    """The head has its own matrix."""


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Rates used in training only; they do not change the evaluated function."""

    embedding: float = 0.0
    """On the summed embeddings."""
    attention: float = 0.0
    """On the attention weights."""
    residual: float = 0.0
    """On what each half of a block adds to the stream."""

    def __post_init__(self):
        """Check the ranges."""
        for name in ("embedding", "attention", "residual"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(
                    f"dropout.{name} = {getattr(self, name)}, expected a rate in [0, 1)"
                )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A causal language model."""

    vocab_size: int
    """Rows of the embedding and columns of the logits."""
    width: int
    """Size of the residual stream."""
    layers: int
    """Number of blocks."""
    pattern: tuple[BlockConfig, ...]
    """Block of each layer, repeated until `layers` are filled."""
    embedding: Embedding
    """Input side."""
    final_norm: Norm
    """Applied after the last block."""
    head: Tied | Untied
    """Output side."""
    context: int
    """Longest sequence, in tokens, that the model was made for."""
    dropout: Dropout = Dropout()
    """Training-time dropout rates."""

    def __post_init__(self):
        """Check sizes and that the parts fit together."""
        sizes = ("vocab_size", "width", "layers", "context")
        wrong = [name for name in sizes if getattr(self, name) < 1]
        if wrong or not self.pattern:
            raise InputError(f"{wrong or ['pattern']} must be at least 1 in a model")
        positions = self.embedding.positions
        if positions is not None and positions.size != self.context:
            raise InputError(
                f"context = {self.context} but the position table has "
                f"{positions.size} rows; they must be equal"
            )

    @property
    def periods(self) -> int:
        """Whole repetitions of `pattern`; these are scanned."""
        return self.layers // len(self.pattern)

    @property
    def tail(self) -> tuple[BlockConfig, ...]:
        """Blocks after the last whole period; these are unrolled."""
        return self.pattern[: self.layers % len(self.pattern)]
