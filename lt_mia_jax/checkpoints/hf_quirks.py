"""Rows of single families, whose fields say several things at once; see `hf_rows`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lt_mia_jax.checkpoints.hf_fields import Fields
from lt_mia_jax.checkpoints.hf_rows import Rope, Settings
from lt_mia_jax.models.config import Alibi, Rotary


@dataclass(frozen=True)
class GptjRope:
    """Interleaved rotation of the first `rotary_dim` dimensions."""

    def read(self, fields: Fields, settings: Settings) -> None:
        """Read the number of dimensions."""
        size = settings["head_dim"]
        share = fields.size("rotary_dim", 64) / size
        settings["position"] = Rotary(fraction=share, interleaved=True)

    def write(self, settings: Settings) -> dict[str, Any]:
        """The number of dimensions."""
        rotary = settings["position"]
        if not isinstance(rotary, Rotary):
            return {}
        return {"rotary_dim": round(rotary.fraction * settings["head_dim"])}


@dataclass(frozen=True)
class Window:
    """A sliding window on all attention layers."""

    name: str
    default: int | None

    def read(self, fields: Fields, settings: Settings) -> None:
        """A size or null."""
        settings["windows"] = (fields.optional_size(self.name, self.default),)

    def write(self, settings: Settings) -> dict[str, Any]:
        """The size or null."""
        return {self.name: settings["windows"][0]}


@dataclass(frozen=True)
class LayerWindows:
    """Which layers have a sliding window: a flag, a size and a first layer."""

    def read(self, fields: Fields, settings: Settings) -> None:
        """Read `layer_types`, or else `max_window_layers`."""
        size = fields.optional_size("sliding_window", 4096)
        used = fields.flag("use_sliding_window", False)
        first = fields.number("max_window_layers", 28.0)
        layers = settings["layers"]
        names = fields.raw("layer_types", None)
        if names is None:
            sliding = [used and i >= first for i in range(layers)]
        else:
            known = {"full_attention": False, "sliding_attention": True}
            if len(names) != layers or not set(names) <= set(known):
                fields.problems.append(
                    f"layer_types = {names!r}, expected {layers} of {sorted(known)}"
                )
                names = ["full_attention"] * layers
            sliding = [known[name] and used for name in names]
        settings["windows"] = shortest_period([size if s else None for s in sliding])

    def write(self, settings: Settings) -> dict[str, Any]:
        """All four fields, so that every version understands."""
        windows, layers = settings["windows"], settings["layers"]
        every = [windows[i % len(windows)] for i in range(layers)]
        sizes = sorted({w for w in every if w is not None})
        names = ["full_attention" if w is None else "sliding_attention" for w in every]
        first = next((i for i, w in enumerate(every) if w is not None), layers)
        return {
            "use_sliding_window": bool(sizes),
            "sliding_window": sizes[0] if sizes else None,
            "max_window_layers": first,
            "layer_types": names,
        }


@dataclass(frozen=True)
class FalconLayout:
    """Falcon's three generations, told apart by flags."""

    def read(self, fields: Fields, settings: Settings) -> None:
        """Heads, residual, and position from the flags."""
        new = fields.flag("new_decoder_architecture", False)
        multi_query = fields.flag("multi_query", True)
        parallel = fields.flag("parallel_attn", True)
        heads = settings["heads"]
        groups = fields.size("num_kv_heads", heads)
        norms = fields.raw("num_ln_in_parallel_attn", 2 if new else 1)
        if new and not parallel:
            fields.problems.append(
                "parallel_attn = False with new_decoder_architecture is not implemented"
            )
        if norms not in (1, 2) or (norms == 2 and not new):
            fields.problems.append(f"num_ln_in_parallel_attn = {norms!r}")
        settings["kv_heads"] = groups if new else 1 if multi_query else heads
        if parallel:
            settings["residual"] = "parallel" if norms == 2 else "parallel_shared_norm"
        else:
            settings["residual"] = "sequential"
        if fields.flag("alibi", False):
            settings["position"] = Alibi(before_scaling=True, bfloat16=True)
        else:
            Rope().read(fields, settings)

    def write(self, settings: Settings) -> dict[str, Any]:
        """Flags of the oldest generation that fits."""
        residual, groups = settings["residual"], settings["kv_heads"]
        new = residual == "parallel"
        new |= residual == "parallel_shared_norm" and groups != 1
        return {
            "new_decoder_architecture": new,
            "multi_query": groups == 1,
            "parallel_attn": residual != "sequential",
            "num_kv_heads": groups,
            "num_ln_in_parallel_attn": 2 if residual == "parallel" else 1,
            "alibi": isinstance(settings["position"], Alibi),
            **Rope().write(settings),
        }


@dataclass(frozen=True)
class MptAttention:
    """The nested `attn_config` of MPT."""

    def read(self, fields: Fields, settings: Settings) -> None:
        """Scale, clipping and dropout from the nested object."""
        nested = fields.nested("attn_config")
        for name, only in (
            ("attn_type", "multihead_attention"),
            ("prefix_lm", False),
            ("qk_ln", False),
            ("alibi", True),
            ("attn_uses_sequence_id", False),
            # transformers ignores it and computes with 8.
            ("alibi_bias_max", 8),
        ):
            nested.require(name, only, only)
        settings["scale"] = nested.optional("softmax_scale", None)
        clip = nested.optional("clip_qkv", None)
        settings["clip_qkv"] = clip or None
        settings["position"] = Alibi()
        rate = nested.number("attn_pdrop", 0.0)
        settings["dropout_attention"] = settings["dropout_residual"] = rate

    def write(self, settings: Settings) -> dict[str, Any]:
        """The nested object."""
        position, rate = settings["position"], settings["dropout_attention"]
        if not isinstance(position, Alibi):
            return {}
        return {
            "attn_config": {
                "alibi": True,
                "alibi_bias_max": 8,
                "attn_type": "multihead_attention",
                "clip_qkv": settings["clip_qkv"],
                "softmax_scale": settings["scale"],
                # Declared an integer in transformers, which refuses 0.0.
                "attn_pdrop": int(rate) if rate == int(rate) else rate,
            }
        }


@dataclass(frozen=True)
class MambaSizes:
    """Inner width as a multiple of the width, and the rank of the steps."""

    def read(self, fields: Fields, settings: Settings) -> None:
        """Read `expand` and `time_step_rank`, which may be "auto"."""
        width = settings["width"]
        settings["inner"] = fields.size("expand", 2) * width
        stored = fields.raw("intermediate_size", settings["inner"])
        if stored != settings["inner"]:
            fields.problems.append(
                f"intermediate_size = {stored!r}, expected expand x hidden_size = "
                f"{settings['inner']}"
            )
        if fields.raw("time_step_rank", "auto") == "auto":
            settings["step_rank"] = -(-width // 16)
        else:
            settings["step_rank"] = fields.size("time_step_rank", 1)

    def write(self, settings: Settings) -> dict[str, Any]:
        """Both fields; nothing when the inner width is no multiple."""
        expand, rest = divmod(settings["inner"], settings["width"])
        if rest:
            return {}
        return {"expand": expand, "time_step_rank": settings["step_rank"]}


@dataclass(frozen=True)
class BlockTypes:
    """The kinds of mixer, repeated over the layers."""

    names: tuple[str, ...] = ("block_types", "_block_types")
    default: tuple[str, ...] = ("recurrent", "recurrent", "attention")

    def read(self, fields: Fields, settings: Settings) -> None:
        """A list of "recurrent" and "attention"."""
        kinds = fields.raw(fields.first(*self.names), list(self.default))
        if not kinds or not set(kinds) <= set(self.default):
            fields.problems.append(
                f"block_types = {kinds!r}, implemented are {sorted(set(self.default))}"
            )
            kinds = self.default
        settings["kinds"] = shortest_period(kinds)

    def write(self, settings: Settings) -> dict[str, Any]:
        """The list."""
        return {self.names[0]: list(settings["kinds"])}


@dataclass(frozen=True)
class HalvedWidth:
    """A feed-forward width that is stored doubled."""

    name: str
    default: Callable[[Settings], int]

    def read(self, fields: Fields, settings: Settings) -> None:
        """Halve it."""
        doubled = fields.size(self.name, self.default(settings))
        if doubled % 2:
            fields.problems.append(f"{self.name} = {doubled}, expected an even number")
        settings["feed_forward"] = max(doubled // 2, 1)

    def write(self, settings: Settings) -> dict[str, Any]:
        """Double it."""
        return {self.name: 2 * settings["feed_forward"]}


def shortest_period(values: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest tuple whose repetition begins with `values`."""
    for size in range(1, len(values) + 1):
        if all(v == values[i % size] for i, v in enumerate(values)):
            return tuple(values[:size])
    return tuple(values)
