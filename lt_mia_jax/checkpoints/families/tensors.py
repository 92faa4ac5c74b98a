"""Helpers for tables of tensor names, which `rules.py` defines."""

from collections.abc import Mapping, Sequence
from typing import Any

from lt_mia_jax.checkpoints.rules import Rule, Table
from lt_mia_jax.checkpoints.transforms import COPY, LINEAR, Operation, split_grouped
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import Attention, ModelConfig

QKV = ("mixer/query", "mixer/key", "mixer/value")
NORMS = ("input_layernorm", "post_attention_layernorm")
INV_FREQ = ("*.rotary_emb.inv_freq",)
"""A stored buffer of rotary frequencies."""

Names = Mapping[str, str | tuple[str, Operation]]
"""Stored name by module; or, by leaf, the stored name and operation of one tensor.

Modules that end with "norm" are norms, the others projections; each has a weight and
perhaps a bias.
"""


def rules(
    names: Names,
    *,
    kernel: Operation = LINEAR,
    fused: Operation | None = None,
    mixer: type | None = None,
) -> tuple[Rule, ...]:
    """The rules of a table of names, for layers with this class of mixer (None: all).

    Weights of projections are stored as `kernel` says; the fused matrix and bias of
    queries, keys and values, module "mixer/qkv", as `fused` says.
    """
    found: list[Rule] = []
    for module, name in names.items():
        if not isinstance(name, str):
            found.append(Rule(name[0], (module,), name[1], mixer))
            continue
        homes = QKV if module == "mixer/qkv" else (module,)
        if module.endswith("norm"):
            pairs = (("weight", "scale", COPY), ("bias", "bias", COPY))
        elif fused is not None and homes is QKV:
            pairs = (("weight", "kernel", fused), ("bias", "bias", fused))
        else:
            pairs = (("weight", "kernel", kernel), ("bias", "bias", COPY))
        found += [
            Rule(f"{name}.{theirs}", tuple(f"{h}/{ours}" for h in homes), how, mixer)
            for theirs, ours, how in pairs
        ]
    return tuple(found)


def attention(projection: str, output: str) -> dict[str, str]:
    """Names of separate projections; `{}` is replaced by q, k and v."""
    names = {module: projection.format(module[6]) for module in QKV}
    return {**names, "mixer/output": output}


def table(
    names: tuple[str, str, str, str],
    layer: Names | Sequence[Rule],
    *,
    kernel: Operation = LINEAR,
    fused: Operation | None = None,
    heads: tuple[str, ...] = ("lm_head.weight",),
    ignored: tuple[str, ...] = (),
    extra: Names | None = None,
) -> Table:
    """A table of all tensors: `rules` of a layer's names, of its environment and heads.

    `names` are the prefix of all names but heads; then, without it, token embedding,
    final norm, and the prefix of a layer. `extra` are names outside of the layers.
    """
    prefix, embedding, final_norm, block = names
    if isinstance(layer, Mapping):
        layer = rules(layer, kernel=kernel, fused=fused)
    tokens: Names = {"embedding/tokens": (f"{embedding}.weight", COPY)}
    whole = rules({**tokens, "final_norm": final_norm, **(extra or {})})
    return Table(
        prefix=prefix,
        token_embedding=f"{prefix}{embedding}.weight",
        heads=heads,
        ignored=ignored,
        rules=(
            *(rule._replace(name=prefix + rule.name) for rule in whole),
            *rules({"head": heads[0].removesuffix(".weight")}),
            *(rule._replace(name=f"{prefix}{block}{rule.name}") for rule in layer),
        ),
    )


def grouped(
    config: ModelConfig,
    names: tuple[str, str, str, str],
    norms: tuple[str, str] = NORMS,
    attention: str = "self_attention",
    **more: Any,
) -> Table:
    """A table with queries, keys and values fused by groups of heads.

    Raises:
      InputError: the model has another mixer than attention.
    """
    mixer = config.pattern[0].mixer
    if not isinstance(mixer, Attention):
        raise InputError(f"expected an attention model, found {type(mixer).__name__}")
    return table(
        names,
        {
            "mixer_norm": norms[0],
            "mixer/qkv": f"{attention}.query_key_value",
            "mixer/output": f"{attention}.dense",
            "feed_forward_norm": norms[1],
            "feed_forward/up": "mlp.dense_h_to_4h",
            "feed_forward/down": "mlp.dense_4h_to_h",
        },
        fused=split_grouped(mixer.kv_heads, mixer.heads // mixer.kv_heads),
        **more,
    )
