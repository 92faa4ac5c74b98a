"""A model as JSON, from which fingerprints of runs are made."""

from typing import Any

from lt_mia_jax.configs import to_dict

LATER: dict[str, tuple[str, Any]] = {
    "causal": ("Attention", True),
    "joint": ("QueryKeyNorm", False),
    "scale_by_layer": ("Attention", False),
    "score_softcap": ("Attention", None),
    "norm_place": ("BlockConfig", "input"),
    "width": ("Embedding", None),
}
"""Fields that came after the first models, with their class and neutral value."""


def describe(model: Any) -> dict[str, Any]:
    """`to_dict` of a model without later fields at their neutral value.

    A fingerprint of it does not change when a field is added, so that runs of an
    earlier version go on.

    Example:
      >>> from lt_mia_jax.models import gpt2_like
      >>> from lt_mia_jax.models.description import describe
      >>> found = describe(gpt2_like(64, width=16, layers=1, heads=2, context=8))
      >>> found["layers"], "norm_place" in found["pattern"][0]
      (1, False)
    """
    return _without_later(to_dict(model))


def _without_later(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_later(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    return {
        name: _without_later(item)
        for name, item in value.items()
        if LATER.get(name) != (kind, item)
    }
