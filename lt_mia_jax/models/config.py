"""Configs that describe a model's function; equal configs mean equal functions.

A config says what a block does, never who published it. Settings that change only how
the function is evaluated (dtypes, remat) are in `execution.py`.
"""

import enum
from dataclasses import dataclass
from typing import Literal

from lt_mia_jax.errors import InputError

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
"""`gelu` is the exact (erf) form, `gelu_tanh` its tanh approximation."""


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """Zero mean and unit variance over the last axis."""

    eps: float = 1e-5
    """Added to the variance under the root."""
    scale: bool = True
    """Whether a trained factor follows."""
    bias: bool = True
    """Whether a trained constant follows."""


@dataclass(frozen=True, kw_only=True)
class RmsNorm:
    """Unit root mean square over the last axis, times a trained factor."""

    eps: float = 1e-6
    """Added to the mean square under the root."""
    unit_offset: bool = False
    """The factor is 1 + w instead of w."""


Norm = LayerNorm | RmsNorm
"""Normalization over the width, or over one head."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A trained vector per absolute position, added to the token embedding."""

    size: int
    """Maximum sequence length."""
    offset: int = 0
    """Unused rows at the start: token t reads row t + offset."""


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions are divided by `factor` before rotation."""

    factor: float
    """Factor by which the context was extended."""


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Slow frequencies are divided by `factor`, fast kept, others blended."""

    factor: float
    """Divisor of the slow frequencies."""
    low_freq_factor: float
    """Wavelengths above `original_context / low_freq_factor` are slow."""
    high_freq_factor: float
    """Wavelengths below `original_context / high_freq_factor` are fast."""
    original_context: int
    """Context length in tokens before the extension."""


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Queries and keys are rotated by an angle proportional to their position."""

    theta: float = 10000.0
    """Base of the geometric series of wavelengths."""
    fraction: float = 1.0
    """Fraction of each head's dimensions that is rotated, starting with the first."""
    interleaved: bool = False
    """Dimensions (2i, 2i + 1) form a pair, instead of (i, i + n/2)."""
    scaling: LinearScaling | Llama3Scaling | None = None
    """Change of the frequencies for a longer context."""


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """Scores decrease linearly with distance, by a slope per head (`alibi_slopes`)."""

    before_scaling: bool = False
    """Added to the scores before, not after, they are divided by sqrt(K)."""
    bfloat16: bool = False
    """Slope times key position is rounded to bfloat16 for any compute dtype."""


@dataclass(frozen=True, kw_only=True)
class QueryKeyNorm:
    """Normalization of queries and keys before any rotation."""

    norm: Norm
    """Over the head's dimensions."""
    per_head: bool = False
    """Each head has its own parameters, instead of one set for all."""
    joint: bool = False
    """One norm over the dimensions of all heads together, instead of each head's."""

    def __post_init__(self):
        if self.per_head and self.joint:
            raise InputError("per_head and joint: a norm of queries is one of them")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Softmax attention with grouped keys and values."""

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
    position: Rotary | Alibi | None = None
    """Positions in the attention scores; None when positions enter elsewhere."""
    window: int | None = None
    """Each token sees itself and at most `window - 1` earlier ones; None: all."""
    scale: float | None = None
    """Factor on the scores; None is K^-1/2."""
    scale_by_layer: bool = False
    """Scores are also divided by the number of the layer, from 1 on."""
    score_softcap: float | None = None
    """Scores become cap * tanh(scores / cap); None: no cap."""
    clip_qkv: float | None = None
    """Queries, keys and values are clipped to +-clip_qkv; None: not at all."""
    qk_norm: QueryKeyNorm | None = None
    """Normalization of queries and keys."""
    causal: bool = True
    """No token sees later ones; if False, all see all but padding (ids below 0)."""

    def __post_init__(self):
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise InputError(
                f"kv_heads = {self.kv_heads} must divide heads = {self.heads}"
            )
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(
                f"rotary dimensions = {self.rotary_dim} of a head of {self.head_dim} "
                "must be even and not more than the head has"
            )
        if self.window is not None and (self.window < 1 or not self.causal):
            raise InputError(f"window = {self.window} must be at least 1, and causal")

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of each head."""
        # The fraction may be the quotient of the wanted number and `head_dim`.
        fraction = self.position.fraction if isinstance(self.position, Rotary) else 0.0
        return int(self.head_dim * fraction + 1e-6)


@dataclass(frozen=True, kw_only=True)
class Mamba:
    """Selective state space: a gated short convolution and a selective scan."""

    width: int
    """Channels of the scan."""
    state: int = 16
    """State size of each channel."""
    step_rank: int
    """Rank of the projection that produces the time steps."""
    conv_width: int = 4
    """Taps of the causal convolution."""
    conv_bias: bool = True
    """Bias of the convolution."""
    bias: bool = False
    """Biases on the input and output projections."""
    activation: Activation = "silu"
    """Applied after the convolution; the gate is always SiLU."""


@dataclass(frozen=True, kw_only=True)
class RwkvTimeMix:
    """Linear attention with a decay per channel, gated by a receptance (RWKV-4)."""

    width: int
    """Channels of the recurrence."""


@dataclass(frozen=True, kw_only=True)
class RgLru:
    """Real-gated linear recurrent unit behind a short convolution, with a gate."""

    width: int
    """Channels of the recurrence."""
    heads: int
    """Blocks of the block-diagonal gates; divides `width`."""
    conv_width: int = 4
    """Taps of the causal convolution."""
    activation: Activation = "gelu_tanh"
    """Applied to the multiplicative branch."""

    def __post_init__(self):
        if self.heads < 1 or self.width % self.heads:
            raise InputError(f"heads = {self.heads} must divide width = {self.width}")


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


@dataclass(frozen=True, kw_only=True)
class RwkvChannelMix:
    """Squared-ReLU perceptron over a token and its predecessor, gated (RWKV-4)."""

    width: int
    """Size of the middle layer."""


Mixer = Attention | Mamba | RwkvTimeMix | RgLru
"""Layers that move information between tokens."""
FeedForward = Mlp | RwkvChannelMix
"""Layers that transform each token, at most with its predecessor."""


class Residual(enum.Enum):
    """How a block's two halves are added to the stream."""

    SEQUENTIAL = "sequential"
    """y = x + mixer(norm1(x)), then y + feed_forward(norm2(y))."""
    PARALLEL = "parallel"
    """x + mixer(norm1(x)) + feed_forward(norm2(x))."""
    PARALLEL_SHARED_NORM = "parallel_shared_norm"
    """x + mixer(norm(x)) + feed_forward(norm(x))."""


class NormPlace(enum.Enum):
    """Where a block normalizes; a half is the mixer or the feed-forward."""

    INPUT = "input"
    """x + half(norm(x)): pre-norm."""
    OUTPUT = "output"
    """x + norm(half(x))."""
    BOTH = "both"
    """x + norm'(half(norm(x)))."""
    SUM = "sum"
    """norm(x + half(x)): post-norm."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One layer."""

    mixer: Mixer
    """The token mixer."""
    feed_forward: FeedForward | None
    """The position-wise network; None if the mixer is the whole block."""
    norm: Norm
    """The kind of every norm of the block."""
    residual: Residual = Residual.SEQUENTIAL
    """How the halves are added."""
    norm_place: NormPlace = NormPlace.INPUT
    """Where the norms are."""

    def __post_init__(self):
        sequential = self.residual is Residual.SEQUENTIAL
        if not sequential and self.norm_place is not NormPlace.INPUT:
            raise InputError(
                f"norm_place = {self.norm_place.value!r} needs a sequential block, "
                f"found residual = {self.residual.value!r}"
            )
        if self.feed_forward is None and self.residual is not Residual.SEQUENTIAL:
            raise InputError(
                f"residual = {self.residual.value!r} needs a feed_forward; a block "
                "without one is sequential"
            )


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """From token ids to the first layer's input."""

    positions: Learned | None = None
    """Position table added to the token embedding, if any."""
    scale: float | None = None
    """Factor on the token embedding, rounded to the compute dtype; None: one."""
    norm: Norm | None = None
    """Applied to the embedding, if any."""
    width: int | None = None
    """Size of a token's vector if not that of the stream: one matrix leads from it
    into the stream, another one from the stream to the head; None: the same."""


@dataclass(frozen=True, kw_only=True)
class Tied:
    """The head reuses the token embedding."""


@dataclass(frozen=True, kw_only=True)
class Untied:
    """The head has its own matrix."""

    bias: bool = False
    """Whether a trained constant is added to the logits."""


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Dropout rates, used in training only."""

    embedding: float = 0.0
    """On the summed embeddings."""
    attention: float = 0.0
    """On the attention weights."""
    residual: float = 0.0
    """On what each half of a block adds to the stream."""

    def __post_init__(self):
        for name, rate in vars(self).items():
            if not 0.0 <= rate < 1.0:
                raise InputError(f"dropout.{name} = {rate}, expected a rate in [0, 1)")


SIZES = ("vocab_size", "width", "layers", "context")
"""Fields of `ModelConfig` that are positive integers."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A causal language model.

    Example:
      >>> from lt_mia_jax.models import llama_like
      >>> config = llama_like(64, width=32, layers=3, heads=4, context=16, kv_heads=2)
      >>> config.layers, config.pattern[0].mixer.kv_heads
      (3, 2)
    """

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
    final_norm: Norm | None
    """Applied after the last block, if any."""
    head: Tied | Untied
    """Output side."""
    context: int
    """Maximum sequence length in tokens."""
    logit_softcap: float | None = None
    """Logits become cap * tanh(logits / cap); None: no cap."""
    dropout: Dropout = Dropout()
    """Training-time dropout rates."""

    def __post_init__(self):
        wrong = [n for n in (*SIZES, "token_width") if getattr(self, n) < 1]
        if wrong or not self.pattern:
            raise InputError(f"{wrong or ['pattern']} must be at least 1 in a model")
        positions = self.embedding.positions
        if positions is not None and positions.size != self.context:
            raise InputError(
                f"context = {self.context} but the position table has "
                f"{positions.size} rows; they must be equal"
            )

    @property
    def token_width(self) -> int:
        """Size of a token's vector: columns of the embedding."""
        own = self.embedding.width
        return self.width if own is None else own

    @property
    def periods(self) -> int:
        """Complete repetitions of `pattern`, which are scanned."""
        return self.layers // len(self.pattern)

    @property
    def tail(self) -> tuple[BlockConfig, ...]:
        """Blocks after the last complete period, which are unrolled."""
        return self.pattern[: self.layers % len(self.pattern)]
