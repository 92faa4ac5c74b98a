"""The definition of a `model_type`, and fields that several of them share.

Defaults are those of transformers for fields that are missing in a config.json.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lt_mia_jax.checkpoints.hf_rows import (
    Default,
    Row,
    Settings,
    activation,
    count,
    epsilon,
    flag,
    number,
    size,
)
from lt_mia_jax.checkpoints.rules import Table
from lt_mia_jax.models import assembly
from lt_mia_jax.models.config import ModelConfig

BIASES = ("qkv_bias", "out_bias")
ALL_BIASES = (*BIASES, "feed_forward_bias")
RMS_GATED = {"norm": "rms", "gated": True}
LAYER_BIASES = {"norm": "layer", **dict.fromkeys(ALL_BIASES, True)}

ATTENTION_DROPOUT = number("attention_dropout", "dropout_attention", 0.0)
ATTENTION_BIAS = flag("attention_bias", BIASES, False)
RMS_EPS = epsilon("rms_norm_eps", "eps", 1e-6)
TIED = flag("tie_word_embeddings", "tied", True)
UNTIED = flag("tie_word_embeddings", "tied", False)
"""Untied unless the file says otherwise."""


@dataclass(frozen=True)
class Family:
    """A `model_type`: its fields, its tensors, and how the model is assembled."""

    architecture: str
    """Class in transformers."""
    rows: tuple[Row, ...]
    """Fields and settings; a row may use the settings of earlier ones."""
    tensors: Table | Callable[[ModelConfig], Table]
    """Names of the stored tensors, or a function of the model."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Settings of every model of the family, or functions of the other settings."""
    assemble: Callable[..., ModelConfig] = assembly.transformer
    """Makes the model from all settings."""

    def table(self, config: ModelConfig) -> Table:
        """Names of the stored tensors of a model."""
        return self.tensors if isinstance(self.tensors, Table) else self.tensors(config)


def width(settings: Settings) -> int:
    """The default of inner widths."""
    return settings["width"]


def four_widths(settings: Settings) -> int:
    """The default of feed-forward widths."""
    return 4 * settings["width"]


def as_heads(settings: Settings) -> int:
    """The default number of key/value heads."""
    return settings["heads"]


def sizes(vocab: int, width: int, layers: int, heads: int) -> tuple[Row, ...]:
    """The four sizes under the names of most families."""
    return (
        size("vocab_size", "vocab_size", vocab),
        size("hidden_size", "width", width),
        count("num_hidden_layers", "layers", layers),
        count("num_attention_heads", "heads", heads),
    )


def modern(
    context: int, feed_forward: int, act: str, groups: Default = as_heads
) -> tuple[Row, ...]:
    """Fields that Llama and its descendants share."""
    return (
        size("max_position_embeddings", "context", context),
        size("intermediate_size", "feed_forward", feed_forward),
        count("num_key_value_heads", "kv_heads", groups),
        activation("hidden_act", act),
        ATTENTION_DROPOUT,
    )


def layer_eps(name: str = "layer_norm_eps") -> Row:
    """The epsilon of layer norms."""
    return epsilon(name, "eps", 1e-5)
