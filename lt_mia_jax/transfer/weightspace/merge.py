"""Models in folders into one model: what `lt-mia merge` does."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from lt_mia_jax.arrays import Params
from lt_mia_jax.checkpoints import Pretrained, load_pretrained, weights_sha256
from lt_mia_jax.checkpoints.tokenizer import check_agreement
from lt_mia_jax.configs import to_dict
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.models import ModelConfig
from lt_mia_jax.transfer.weightspace import difference, expand, pack, swap, ties
from lt_mia_jax.trees import flatten

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Numbers of the methods; each reads its own."""

    density: float = 0.2
    scale: float = 1.0
    bottom: int | None = None
    top: int | None = None
    layers: int | None = None


class Work(NamedTuple):
    """What a method is given."""

    models: list[Pretrained]
    base: Pretrained | None
    onto: Pretrained | None
    setting: Setting
    out: Path
    """Folder for files beside the model."""


class Made(NamedTuple):
    """What a method gives."""

    config: ModelConfig
    params: Params
    facts: Mapping[str, Any]
    """For `merge.json`."""


class Method(NamedTuple):
    """A way to make one model of some."""

    make: Callable[[Work], Made]
    fewest: int
    """Models that it takes at least."""
    most: int | None
    """And at most; None: any number."""
    needs: tuple[str, ...] = ()
    """Flags that must be given."""


def _ties(work: Work) -> Made:
    tasks, options = [m.params for m in work.models], work.setting
    params = ties.ties_merge(
        _of(work.base).params, tasks, density=options.density, lam=options.scale
    )
    return Made(work.models[0].config, params, {})


def _arithmetic(work: Work) -> Made:
    tasks = [model.params for model in work.models]
    start = _of(work.base).params
    params = ties.task_arithmetic(start, tasks, lam=work.setting.scale)
    return Made(work.models[0].config, params, {})


def _mean(work: Work) -> Made:
    params = ties.mean([model.params for model in work.models])
    return Made(work.models[0].config, params, {})


def _difference(work: Work) -> Made:
    target, (tuned,) = _of(work.onto), work.models
    start = _of(work.base).params
    scale = work.setting.scale
    params = difference.transfer_diff(target.params, start, tuned.params, scale=scale)
    return Made(target.config, params, {})


def _swap(work: Work) -> Made:
    task, lang = work.models
    sizes = swap.default_sizes(task.params)
    if work.setting.bottom is not None:
        sizes["bottom"] = work.setting.bottom
    if work.setting.top is not None:
        sizes["top"] = work.setting.top
    units = int(swap.unit_of(task.params)[-1]) + 1
    if sum(sizes.values()) > units:
        raise InputError(
            f"--bottom {sizes['bottom']} and --top {sizes['top']}: the model has "
            f"{units} layers or repeating units; give at most as many together"
        )
    share = swap.swap_weights(task.params, **sizes)
    params = swap.layer_swap(task.params, lang.params, **sizes)
    return Made(task.config, params, {"second_model_in_layers": share.tolist()})


def _pack(work: Work) -> Made:
    (tuned,), base = work.models, _of(work.base).params
    skill = pack.pack(base, tuned.params)
    pack.save(work.out / "pack.safetensors", skill)
    size = (work.out / "pack.safetensors").stat().st_size
    whole = sum(leaf.nbytes for leaf in flatten(tuned.params).values())
    log.info(
        "pack.safetensors: %d bytes, %.1f %% of the model", size, 100 * size / whole
    )
    params = pack.apply(base, [skill])
    return Made(tuned.config, params, {"pack_bytes": size, "model_bytes": whole})


def _expand(work: Work) -> Made:
    ((config, params, _),), layers = work.models, work.setting.layers
    gene, fit = expand.fit_gene(params)
    depth = layers or config.layers
    explained = {name: float(r2) for name, r2 in flatten(fit).items()}
    made = dataclasses.replace(config, layers=depth)
    return Made(made, expand.expand(gene, depth), {"explained": explained})


METHODS: dict[str, Method] = {
    "ties": Method(_ties, 1, None, ("base",)),
    "arithmetic": Method(_arithmetic, 1, None, ("base",)),
    "mean": Method(_mean, 2, None),
    "difference": Method(_difference, 1, 1, ("base", "onto")),
    "swap": Method(_swap, 2, 2),
    "pack": Method(_pack, 1, 1, ("base",)),
    "expand": Method(_expand, 1, 1, ("layers",)),
}

_NEEDED = {
    "base": "--base, the model that --models were fine-tuned from",
    "onto": "--onto, the model that the difference is added to",
    "layers": "--layers, the depth of the new model",
}


class Merged(NamedTuple):
    """A merged model, and where it came from."""

    config: ModelConfig
    params: Params
    tokenizer: Any
    like: str
    """The folder whose config.json lends the fields that change no logits."""
    record: dict[str, Any]
    """Content of `merge.json`."""


def merge(
    method: str,
    models: Sequence[str],
    out: Path,
    *,
    base: str | None = None,
    onto: str | None = None,
    setting: Setting | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> Merged:
    """One model of several, by a method of `METHODS`.

    Args:
      method: its name.
      models: Hugging Face directories, adapters or hub ids.
      out: an existing folder for files beside the model, such as a pack.
      base: what they were fine-tuned from; of adapters too.
      onto: the model that a difference is added to.
      setting: numbers of the method.
      dtype: of the parameters, "float32" or "bfloat16".
      mesh: devices that share the parameters.

    Raises:
      InputError: models or flags that do not fit the method or each other.
    """
    row, setting = METHODS[method], setting or Setting()
    given = {"base": base, "onto": onto, "layers": setting.layers}
    check_flags(method, len(models), given)
    load = partial(load_pretrained, dtype=dtype, mesh=mesh)
    loaded: dict[str, Pretrained] = {}
    for name in (base, *models) if "base" in row.needs and base else models:
        if name not in loaded:
            log.info("loading %s", name)
            loaded[name] = load(name, base=base)
            first = next(iter(loaded))
            check_pair(loaded[first], loaded[name], (first, name))
    tuned = [loaded[name] for name in models]
    target = None
    if onto is not None:
        target = loaded[onto] if onto in loaded else load(onto)
        check_pair(loaded[models[0]], target, (models[0], onto), grown=True)
    like, own = (models[0], tuned[0]) if target is None else (str(onto), target)
    start = loaded[base] if base in loaded else None
    made = row.make(Work(tuned, start, target, setting, out))
    read = {name: weights_sha256(name, base=base) for name in loaded}
    if onto is not None and onto not in read:
        read[onto] = weights_sha256(onto)
    record = {
        "method": method,
        "models": list(models),
        "base": base,
        "onto": onto,
        "setting": to_dict(setting, tagged=False),
        "dtype": dtype,
        "weights_sha256": read,
        **made.facts,
    }
    return Merged(made.config, made.params, own.tokenizer, like, record)


def check_flags(method: str, count: int, given: Mapping[str, Any]) -> None:
    """Refuse a number of models or flags that the method does not take."""
    row = METHODS[method]
    if count < row.fewest or (row.most is not None and count > row.most):
        most = "or more" if row.most is None else f"to {row.most}"
        expected = row.fewest if row.fewest == row.most else f"{row.fewest} {most}"
        raise InputError(
            f"--method {method}: found {count} in --models, expected {expected}"
        )
    for name, value in given.items():
        if name in row.needs and value is None:
            raise InputError(f"--method {method}: needs {_NEEDED[name]}")
        # A base may be that of adapters.
        if name not in (*row.needs, "base") and value is not None:
            raise InputError(f"--method {method}: does not use --{name}; leave it out")


def check_pair(
    one: Pretrained, other: Pretrained, names: tuple[str, str], *, grown: bool = False
) -> None:
    """Refuse models of two architectures or vocabularies.

    With `grown` the second may have a vocabulary of another size.

    Raises:
      InputError: what differs, and in which model.
    """
    ignored: dict[str, Any] = {"dropout": one.config.dropout}
    if grown:
        ignored["vocab_size"] = one.config.vocab_size
    first = _fields(to_dict(one.config))
    second = _fields(to_dict(dataclasses.replace(other.config, **ignored)))
    differ = [
        f"{name} {second.get(name)} (expected {first.get(name)})"
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]
    if differ:
        raise InputError(
            f"{names[1]}: of another architecture than {names[0]}: {capped(differ)}; "
            "give fine-tunes of one base model"
        )
    limit = min(one.config.vocab_size, other.config.vocab_size)
    check_agreement(one.tokenizer, other.tokenizer, names, limit)


def _fields(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every number and word of a config by its path."""
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= _fields(item, f"{prefix}.{name}" if prefix else str(name))
    return found


def _of(model: Pretrained | None) -> Pretrained:
    assert model is not None, "check_flags has seen that it is given"
    return model
