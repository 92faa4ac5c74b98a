"""Checked access to the raw fields of a Hugging Face config.json."""

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from lt_mia_jax.errors import UNIT, InputError, Range, capped
from lt_mia_jax.models.config import Activation, LinearScaling, Llama3Scaling, Rotary

logger = logging.getLogger(__name__)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Names in transformers; the three tanh forms differ only in rounding."""

ACTIVATION_NAMES: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
}
"""The name that is written for each activation."""

NEUTRAL = frozenset(
    """
    _attn_implementation_autoset _commit_hash _name_or_path architectures dtype
    initializer_range model_type name_or_path torch_dtype transformers_version
    bos_token_id eos_token_id max_length pad_token_id prefix task_specific_params
    tokenizer_class unk_token_id use_cache
    embedding_fraction final_w_init_variance_scale init_device init_std
    learned_pos_emb norm_type rescale_every rescale_prenorm_residual
    residual_in_fp32 slow_but_exact time_step_floor time_step_init_scheme
    time_step_max time_step_min time_step_scale use_associative_scan use_mambapy
    w_init_variance_scale
    chunk_size_feed_forward classifier_dropout gradient_checkpointing id2label
    is_decoder is_encoder_decoder keys_to_ignore_at_inference label2id n_ctx
    num_labels output_attentions output_hidden_states output_past pretraining_tp
    problem_type return_dict summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj
    """.split()
)
"""Fields that do not change the logits of a causal language model: bookkeeping; tokens
and generation; initial values and choices of kernels; other heads and outputs."""

ROPE_SCALINGS = {"linear": LinearScaling, "llama3": Llama3Scaling}
"""Implemented values of `rope_type` beside "default"."""

ROPE_NAMES = {"original_context": "original_max_position_embeddings"}
"""Names of fields of a scaling in `rope_parameters`, where they differ from ours."""

ROPE_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}

LARGEST_SIZE = 2**24
MOST = 2**10
"""Of layers, heads and taps, which are built one by one. Both are beyond those of every
published model: a larger number is a mistake, and building from it would not end."""

EPSILON = Range("from 0 to 0.1", lambda x: 0 <= x <= 0.1)
FACTOR = Range("more than 0, at most 1e6", lambda x: 0 < x <= 1e6)
NUMBER = Range("from -1e6 to 1e6", lambda x: -1e6 <= x <= 1e6)
THETA = Range("from 1 to 1e12", lambda x: 1 <= x <= 1e12)


class Fields:
    """A reader of fields with their defaults, which collects all problems."""

    def __init__(self, data: Mapping[str, Any]):
        self._data = data
        self._read: set[str] = set()
        self.problems: list[str] = []

    def raw(self, name: str, default: Any = None) -> Any:
        """The unchecked value; null counts as absent."""
        self._read.add(name)
        value = self._data.get(name)
        return default if value is None else value

    def first(self, *names: str) -> str:
        """The first name of a field that is present."""
        return next((n for n in names if self._data.get(n) is not None), names[0])

    def _checked(
        self, name: str, value: Any, good: bool, allowed: str, default: Any
    ) -> Any:
        """The value if it is good, else the default and a problem."""
        if not good:
            shown = repr(value)
            shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
            self.problems.append(f"{name} = {shown}, {allowed}")
        return value if good else default

    def nested(self, name: str) -> "Fields":
        """The fields of a nested object; its problems are collected here."""
        value = self.raw(name, {})
        good = isinstance(value, Mapping)
        inner = Fields(self._checked(name, value, good, "expected an object", {}))
        inner.problems = self.problems
        return inner

    def mapping(self, name: str) -> dict[str, Any]:
        """A copy of a nested object as it is; absent is empty."""
        return dict(self.nested(name)._data)

    def optional(self, name: str, default: float | None) -> float | None:
        """A factor, or null for none; absent is the default."""
        if name not in self._data:
            return default
        value = self.raw(name)
        return None if value is None else self._number(name, value, 1.0, FACTOR)

    def optional_size(self, name: str, default: int | None) -> int | None:
        """A positive integer, or null for none; absent is the default."""
        if name not in self._data:
            return default
        return None if self.raw(name) is None else self.size(name, 1)

    def size(self, name: str, default: int, most: int = LARGEST_SIZE) -> int:
        """A positive integer."""
        value = self.raw(name, default)
        good = type(value) is int and 0 < value <= most
        allowed = f"expected a positive integer, at most {most}"
        return self._checked(name, value, good, allowed, default)

    def count(self, name: str, default: int) -> int:
        """A number of layers, heads or taps."""
        return self.size(name, default, MOST)

    def number(self, name: str, default: float) -> float:
        """A number of moderate size."""
        return self._number(name, self.raw(name, default), default, NUMBER)

    def epsilon(self, name: str, default: float) -> float:
        """What a norm adds to a mean square."""
        return self._number(name, self.raw(name, default), default, EPSILON)

    def factor(self, name: str, default: float) -> float:
        """A positive number of moderate size."""
        return self._number(name, self.raw(name, default), default, FACTOR)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.raw(name, default)
        good = isinstance(value, bool)
        return self._checked(name, value, good, "expected true or false", default)

    def require(self, name: str, only: Any, default: Any) -> None:
        """Refuse every value but `only`, because others are not implemented."""
        value = self.raw(name, default)
        self._checked(name, value, value == only, f"only {only!r} is implemented", only)

    def activation(self, name: str, default: str) -> Activation:
        """An activation by its name in transformers."""
        value = self.raw(name, default)
        good = isinstance(value, str) and value in ACTIVATIONS
        allowed = f"implemented are {sorted(ACTIVATIONS)}"
        return ACTIVATIONS[self._checked(name, value, good, allowed, default)]

    def rotary(
        self, theta_name: str, fraction_name: str | None, fraction: float
    ) -> Rotary:
        """Settings from `rope_parameters` or older fields; see `hf_rows.rope`."""
        # In transformers rope_scaling has priority over rope_parameters.
        rope = self.raw("rope_scaling", None) or self.raw("rope_parameters", {})
        self._read.add("rope_parameters")
        if not isinstance(rope, Mapping):
            self.problems.append(f"rope parameters {rope!r}, expected an object")
            rope = {}
        # Both versions of a field may be present, such as after an update.
        newer = self.raw("rope_parameters", {})
        newer = newer if isinstance(newer, Mapping) else {}
        theta = self._number(
            "rope_theta",
            rope.get(
                "rope_theta", newer.get("rope_theta", self.raw(theta_name, 10000.0))
            ),
            10000.0,
            THETA,
        )
        share, name = float(fraction), "partial_rotary_factor"
        if fraction_name is not None:
            share = self._number(
                fraction_name, self.raw(fraction_name, share), share, UNIT
            )
        share = self._number(name, rope.get(name, share), share, UNIT)
        if fraction_name is None and share != 1.0:
            self.problems.append(
                f"partial_rotary_factor = {share}, only 1.0 is implemented"
            )
        return Rotary(theta=theta, fraction=share, scaling=self._scaling(rope))

    def _scaling(self, rope: Mapping[str, Any]) -> LinearScaling | Llama3Scaling | None:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", *ROPE_SCALINGS):
            self.problems.append(
                f"rope_type = {kind!r}, implemented are "
                f"{sorted(['default', *ROPE_SCALINGS])}"
            )
            return None
        if kind == "default":
            made, names = None, {}
        else:
            made = ROPE_SCALINGS[kind]
            names = {ROPE_NAMES.get(f.name, f.name): f.name for f in fields(made)}
        unknown = sorted(set(rope) - ROPE_COMMON - set(names))
        missing = [name for name in names if rope.get(name) is None]
        if unknown or missing:
            self.problems.append(
                f"rope parameters of type {kind!r}: missing {missing}, "
                f"not understood {unknown}"
            )
            return None
        most = Range(f"from 1 to {LARGEST_SIZE}", lambda x: 1 <= x <= LARGEST_SIZE)
        values: dict[str, Any] = {
            our: self._number(
                name, rope[name], 1.0, most if our == "original_context" else FACTOR
            )
            for name, our in names.items()
        }
        if "original_context" in values:
            values["original_context"] = int(values["original_context"])
            low, high = values["low_freq_factor"], values["high_freq_factor"]
            self._checked(
                "high_freq_factor", high, high > low, f"expected more than {low}", None
            )
        return made and made(**values)

    def _number(self, name: str, value: Any, default: float, allowed: Range) -> float:
        good = type(value) in (int, float) and allowed.holds(value)
        expected = f"expected a number, {allowed.expected}"
        return float(self._checked(name, value, good, expected, default))

    def finish(self, where: str) -> None:
        """Raise all problems as one `InputError`; log fields that nothing reads."""
        self.require("quantization_config", None, None)
        self.require("is_encoder_decoder", False, False)
        if self.problems:
            raise InputError(
                f"{where}: {'; '.join(self.problems)}. Use a model that the list of "
                "supported ones covers"
            )
        unused = {
            name
            for name, value in self._data.items()
            if name not in self._read | NEUTRAL and value not in (None, False)
        }
        if unused:
            logger.warning(
                "%s: fields without a reader: %s", where, capped(sorted(unused))
            )


def rope_fields(rotary: Rotary) -> dict[str, Any]:
    """The value of `rope_parameters` for a rotary position."""
    for kind, made in ROPE_SCALINGS.items():
        if isinstance(rotary.scaling, made):
            values = {ROPE_NAMES.get(n, n): v for n, v in vars(rotary.scaling).items()}
            return {"rope_type": kind, **values, "rope_theta": rotary.theta}
    return {"rope_type": "default", "rope_theta": rotary.theta}


assert set(ACTIVATION_NAMES) == set(get_args(Activation))
