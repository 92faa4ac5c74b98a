"""Shorthand for tables of tensor names; `rules.py` says what a table means."""

from collections.abc import Mapping, Sequence

from lt_mia_jax.checkpoints.rules import Rule, Table
from lt_mia_jax.checkpoints.transforms import Copy, Linear, Operation
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import Attention, ModelConfig

QKV = ("mixer/query", "mixer/key", "mixer/value")


def copied(
    names: Mapping[str, str],
    operation: Operation = Copy(),  # noqa: B008
    *,
    mixer: type | None = None,
) -> tuple[Rule, ...]:
    """Lone tensors: leaf to stored name, as it is or by another operation."""
    return tuple(Rule(name, (leaf,), operation, mixer) for leaf, name in names.items())


def norm(name: str, module: str) -> tuple[Rule, ...]:
    """The scale and the bias of a norm."""
    return copied(
        {f"{module}/scale": f"{name}.weight", f"{module}/bias": f"{name}.bias"}
    )


def modules(
    names: Mapping[str, str],
    *,
    kernel: Operation = Linear(),  # noqa: B008
    fused: Operation | None = None,
    mixer: type | None = None,
) -> tuple[Rule, ...]:
    """Weight and bias of norms and projections: module to stored name.

    Args:
      names: modules that end with "norm" are norms, the others projections.
      kernel: how weights of projections are stored; `Linear` is (out, in).
      fused: how the one matrix (and bias) of queries, keys and values is stored, whose
        module is called "mixer/qkv".
      mixer: only layers with this class of mixer have them.
    """
    rules: list[Rule] = []
    for module, name in names.items():
        homes = QKV if module == "mixer/qkv" else (module,)
        if module.endswith("norm"):
            pairs = (("weight", "scale", Copy()), ("bias", "bias", Copy()))
        elif fused is not None and homes is QKV:
            pairs = (("weight", "kernel", fused), ("bias", "bias", fused))
        else:
            pairs = (("weight", "kernel", kernel), ("bias", "bias", Copy()))
        rules += [
            Rule(f"{name}.{theirs}", tuple(f"{h}/{ours}" for h in homes), how, mixer)
            for theirs, ours, how in pairs
        ]
    return tuple(rules)


def attention(projection: str, output: str) -> dict[str, str]:
    """Separate projections; `{}` stands for q, k and v."""
    names = {module: projection.format(module[6]) for module in QKV}
    return {**names, "mixer/output": output}


def attention_of(config: ModelConfig) -> Attention:
    """The attention of a model.

    Raises:
      InputError: it has another mixer.
    """
    mixer = config.pattern[0].mixer
    if not isinstance(mixer, Attention):
        raise InputError(f"expected an attention model, found {type(mixer).__name__}")
    return mixer


def table(
    names: tuple[str, str, str, str],
    layer: Mapping[str, str] | Sequence[Rule],
    *,
    kernel: Operation = Linear(),  # noqa: B008
    fused: Operation | None = None,
    heads: tuple[str, ...] = ("lm_head.weight",),
    ignored: tuple[str, ...] = (),
    extra: tuple[Rule, ...] = (),
) -> Table:
    """A table of all tensors.

    Args:
      names: the prefix of all names but heads; then, without it, the token embedding,
        the final norm, and what stands in front of the names of a layer.
      layer: rules of a layer, or what `modules` makes into rules.
      kernel: as in `modules`.
      fused: as in `modules`.
      heads: see `Table`.
      ignored: see `Table`.
      extra: further rules outside of the layers.
    """
    prefix, embedding, final_norm, block = names
    if isinstance(layer, Mapping):
        layer = modules(layer, kernel=kernel, fused=fused)
    whole = (
        *copied({"embedding/tokens": f"{embedding}.weight"}),
        *norm(final_norm, "final_norm"),
        *extra,
    )
    return Table(
        prefix=prefix,
        token_embedding=f"{prefix}{embedding}.weight",
        heads=heads,
        ignored=ignored,
        rules=(
            *(rule._replace(name=prefix + rule.name) for rule in whole),
            *copied({"head/kernel": heads[0]}, Linear()),
            *copied({"head/bias": heads[0].replace("weight", "bias")}),
            *(rule._replace(name=f"{prefix}{block}{rule.name}") for rule in layer),
        ),
    )
