"""config.json of Hugging Face to `ModelConfig` and back.

`families` defines each `model_type`. The raw file is read, because field names change
between versions of transformers.
"""

from collections.abc import Mapping
from typing import Any

from lt_mia_jax.checkpoints.families import FAMILIES
from lt_mia_jax.checkpoints.families.absent import why_unsupported
from lt_mia_jax.checkpoints.hf_fields import Fields
from lt_mia_jax.checkpoints.hf_rows import Settings
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.assembly import settings_of
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.mixers.attention import is_causal


def read_config(data: Any, where: str) -> ModelConfig:
    """The model that a parsed config.json describes; `where` starts messages.

    Raises:
      InputError: an unknown `model_type`, or field values that are wrong or not
        implemented; all of them are listed.
    """
    kind = data.get("model_type") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in FAMILIES:
        found = data.get("architectures") if isinstance(data, Mapping) else None
        raise InputError(
            f"{where}: model_type is {kind!r}: {why_unsupported(kind, found)}; "
            f"supported are {sorted(FAMILIES)}"
        )
    family, fields = FAMILIES[kind], Fields(data)
    settings: Settings = {}
    for row in family.rows:
        row.read(fields, settings)
    constants = {
        name: value(settings) if callable(value) else value
        for name, value in family.constants.items()
    }
    try:
        config = family.assemble(**{**constants, **settings})
    except InputError as error:
        fields.problems.append(str(error))
        config = None
    fields.finish(where)
    assert config is not None
    return config


def write_config(
    config: ModelConfig, *, prefer: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The `model_type` that expresses a model, and the content of its config.json.

    Of several that can, `prefer` is used.

    Raises:
      InputError: no supported family can express it.
    """
    if not is_causal(config):
        raise InputError(
            "a model with attention to later tokens has no model_type, so it cannot be "
            "written for transformers; save its parameters with training.checkpoint"
        )
    settings = settings_of(config)
    for kind in sorted(FAMILIES, key=lambda name: name != prefer):
        family = FAMILIES[kind]
        data = {"model_type": kind, "architectures": [family.architecture]}
        try:
            for row in family.rows:
                data |= row.write(settings)
            if read_config(data, "config.json") == config:
                return kind, data
        except (KeyError, InputError):
            # The model lacks a setting of the family, or has one that the family lacks.
            continue
    raise InputError(
        f"no supported model_type of {sorted(FAMILIES)} can express this model; "
        "choose settings of one family, as the presets do"
    )
