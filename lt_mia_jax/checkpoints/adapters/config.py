"""adapter_config.json: what a PEFT adapter changes, and by how much.

Source: `LoraConfig` of PEFT 0.21 and what its layers compute,
https://huggingface.co/docs/peft/package_reference/lora.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import ADAPTER_CONFIG as CONFIG
from lt_mia_jax.files import read_json

log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
ALL_LINEAR = "all-linear"

_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base's weights as they are."""
_UNSUPPORTED = (
    *("use_qalora", "use_bdlora", "lora_bias", "layer_replication", "arrow_config"),
    *("alora_invocation_tokens", "target_parameters", "trainable_token_indices"),
    *("velora_config", "monteclora_config", "kasa_config"),
)
"""Fields that change the function, for which there is nothing here."""
_NEUTRAL = frozenset(
    """
    auto_mapping corda_config eva_config fan_in_fan_out inference_mode loftq_config
    lora_dropout lora_ga_config megatron_config megatron_core peft_type peft_version
    qalora_group_size runtime_config task_type
    """.split()
)
"""Fields of training and bookkeeping; a layer's class decides how it is transposed."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A low-rank adapter as its adapter_config.json describes it."""

    base: str | None
    """Directory or hub id of the model that it adapts."""
    revision: str | None
    """Of the base on the hub."""
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    """Other ranks, by regular expressions for the ends of names of modules."""
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool
    """Scaled by alpha / sqrt(rank) instead of alpha / rank."""
    targets: str | tuple[str, ...]
    """Ends of names, one regular expression, or `all-linear`."""
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...] | None
    """None adapts every layer."""
    layers_pattern: tuple[str, ...]
    saved: tuple[str, ...]
    """Modules that come whole, as `modules_to_save` lists them."""
    tied: bool
    """Whether a tied head is to follow an adapted embedding."""
    dora: bool
    """Weights are decomposed into magnitude and direction."""

    def targeted(self, module: str, *, inner: bool = True) -> bool:
        """Whether the adapter acts on a module, by its name in transformers.

        Embedding and output matrix are not `inner`: `all-linear` leaves them out.
        """
        if _named(self.excluded, module) or self.saves(module):
            return False
        if isinstance(self.targets, str):
            if self.targets.lower() == ALL_LINEAR:
                return inner
            return re.fullmatch(self.targets, module) is not None
        found = _named(self.targets, module)
        if not found or self.layers is None or module in self.targets:
            return found
        patterns = self.layers_pattern or (r"[^.]*",)
        index = next(
            (m[1] for p in patterns if (m := _layer(p, module)) is not None), None
        )
        return index is not None and int(index) in self.layers

    def saves(self, module: str) -> bool:
        """Whether `modules_to_save` names a module, or one that it is in."""
        return any(f".{name}." in f".{module}." for name in self.saved)

    def rank_of(self, module: str) -> int:
        """Inner size of a module's two matrices."""
        return int(_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Factor on their product."""
        rank = self.rank_of(module)
        alpha = _pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (rank**0.5 if self.rank_stabilized else rank)


def _named(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or any(module.endswith(f".{name}") for name in names)


def _layer(pattern: str, module: str) -> re.Match[str] | None:
    return re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)


def _pattern(table: Mapping[str, Any], module: str, default: Any) -> Any:
    """The first value whose regular expression describes the end of the name."""
    for key, value in table.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, or a part of one, and no whole model.

    Raises:
      InputError: it holds both.
    """
    found = [n for n in (CONFIG, WEIGHTS, PICKLED) if (directory / n).is_file()]
    whole = next(directory.glob("model*.safetensors*"), None) if found else None
    if whole is not None:
        raise InputError(
            f"{directory}: holds a model ({whole.name}) and an adapter ({found[0]}); "
            "move one of them to a folder of its own"
        )
    return bool(found)


def read_adapter_config(directory: Path) -> AdapterConfig:
    """What adapter_config.json of a directory says.

    Raises:
      InputError: no such file, a method other than LoRA, or settings that are wrong or
        not implemented.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise InputError(
            f"{directory}: has {WEIGHTS} or {PICKLED} but no {CONFIG}; save the "
            "adapter again with PEFT's save_pretrained"
        )
    data = read_json(path)
    if not isinstance(data, Mapping) or data.get("peft_type") != "LORA":
        kind = data.get("peft_type") if isinstance(data, Mapping) else None
        raise InputError(
            f"{path}: peft_type is {kind!r}, supported is 'LORA'; merge the adapter "
            "into its base with PEFT where it can be merged, and pass that model"
        )
    fields = _Fields(path, data)
    config = AdapterConfig(
        base=fields.text("base_model_name_or_path"),
        revision=fields.text("revision"),
        rank=fields.number("r", 8, whole=True),
        alpha=float(fields.number("lora_alpha", 8)),
        rank_pattern=fields.table("rank_pattern", whole=True),
        alpha_pattern=fields.table("alpha_pattern"),
        rank_stabilized=fields.flag("use_rslora"),
        targets=fields.names("target_modules"),
        excluded=fields.names("exclude_modules"),
        layers=fields.layers("layers_to_transform"),
        layers_pattern=_tuple(fields.names("layers_pattern")),
        saved=_tuple(fields.names("modules_to_save")),
        tied=fields.flag("ensure_weight_tying"),
        dora=fields.flag("use_dora"),
    )
    fields.choice("bias", ("none", "all", "lora_only"))
    fields.choice("init_lora_weights", _INITIAL)
    for name in _UNSUPPORTED:
        fields.absent(name)
    fields.finish()
    return config


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


class _Fields:
    """Checked fields of one file, which collects all problems."""

    def __init__(self, path: Path, data: Mapping[str, Any]):
        self._path, self._data = path, data
        self._read: set[str] = set()
        self._problems: list[str] = []

    def _get(self, name: str, good: Any, expected: str, default: Any) -> Any:
        self._read.add(name)
        value = self._data.get(name)
        if value is None:
            return default
        if good(value):
            return value
        self._problems.append(f"{name} = {repr(value)[:60]}, expected {expected}")
        return default

    def text(self, name: str) -> str | None:
        return self._get(name, lambda x: isinstance(x, str), "a string", None) or None

    def flag(self, name: str) -> bool:
        return self._get(name, lambda x: isinstance(x, bool), "true or false", False)

    def number(self, name: str, default: int, *, whole: bool = False) -> Any:
        expected = "a positive integer" if whole else "a positive number"
        return self._get(name, lambda x: _positive(x, whole), expected, default)

    def table(self, name: str, *, whole: bool = False) -> dict[str, Any]:
        def good(value: Any) -> bool:
            return isinstance(value, dict) and all(
                _regular(key) and _positive(x, whole) for key, x in value.items()
            )

        found = self._get(name, good, "numbers by regular expressions", {})
        return {key: x if whole else float(x) for key, x in found.items()}

    def names(self, name: str) -> str | tuple[str, ...]:
        def good(value: Any) -> bool:
            strings = isinstance(value, list) and all(isinstance(x, str) for x in value)
            return strings or (isinstance(value, str) and _regular(value))

        found = self._get(name, good, "a list of names, or a regular expression", ())
        return found if isinstance(found, str) else tuple(found)

    def layers(self, name: str) -> tuple[int, ...] | None:
        def good(value: Any) -> bool:
            many = value if isinstance(value, list) else [value]
            return all(type(x) is int for x in many)

        found = self._get(name, good, "numbers of layers", None)
        many = found if isinstance(found, list) else [found]
        return tuple(many) if found is not None and found != [] else None

    def choice(self, name: str, known: tuple[Any, ...]) -> None:
        def good(value: Any) -> bool:
            return any(type(value) is type(x) and value == x for x in known)

        self._get(name, good, f"one of {[x for x in known if x is not None]}", None)

    def absent(self, name: str) -> None:
        self._get(name, lambda value: not value, "nothing: it is not implemented", None)

    def finish(self) -> None:
        if self._problems:
            raise InputError(
                f"{self._path}: {'; '.join(self._problems)}. Merge the adapter into "
                "its base with PEFT (merge_and_unload), and pass that model"
            )
        unread = {
            name
            for name, value in self._data.items()
            if name not in self._read | _NEUTRAL and value not in (None, False, [], {})
        }
        if unread:
            log.warning("%s: fields without a reader: %s", self._path, sorted(unread))


def _positive(value: Any, whole: bool) -> bool:
    return type(value) in ((int,) if whole else (int, float)) and 0 < value <= 1e6


def _regular(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError):
        return False
    return True
