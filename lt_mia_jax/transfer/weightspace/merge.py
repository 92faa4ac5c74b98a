"""Models in folders into one model: what `lt-mia merge` does."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
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
from lt_mia_jax.trees import flatten, named_leaves

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
    """What a method is given; parameters are None for models that are not."""

    models: list[Params]
    base: Any
    onto: Any
    setting: Setting
    pack_file: Path
    """Where `pack` writes what it made."""
    record: dict[str, Any]
    """Content of `merge.json`, to which the method adds what it found."""


class Method(NamedTuple):
    """A way to make one model of some, and the flags that must be given."""

    make: Callable[[Work], Params]
    models: int
    more: bool = False
    """Whether it takes more models too."""
    needs: tuple[str, ...] = ()


def _ties(work: Work) -> Params:
    density, lam = work.setting.density, work.setting.scale
    return ties.ties_merge(work.base, work.models, density=density, lam=lam)


def _arithmetic(work: Work) -> Params:
    return ties.task_arithmetic(work.base, work.models, lam=work.setting.scale)


def _difference(work: Work) -> Params:
    trees = (work.onto, work.base, work.models[0])
    return difference.transfer_diff(*trees, scale=work.setting.scale)


def _swap(work: Work) -> Params:
    task, lang = work.models
    sizes, given = swap.default_sizes(task), work.setting
    sizes["bottom"] = sizes["bottom"] if given.bottom is None else given.bottom
    sizes["top"] = sizes["top"] if given.top is None else given.top
    units = int(swap.unit_of(task)[-1]) + 1
    if sum(sizes.values()) > units:
        raise InputError(
            f"--bottom {sizes['bottom']} and --top {sizes['top']}: the model has "
            f"{units} layers or repeating units; give at most as many together"
        )
    shares = swap.swap_weights(task, **sizes)
    work.record["second_model_in_layers"] = shares.tolist()
    return swap.layer_swap(task, lang, **sizes)


def _pack(work: Work) -> Params:
    (tuned,), file = work.models, work.pack_file
    skill = pack.pack(work.base, tuned)
    pack.save(file, skill)
    size, whole = file.stat().st_size, pack.nbytes(tuned)
    log.info("%s: %d bytes, %.1f %% of the model", file.name, size, 100 * size / whole)
    work.record.update(pack_bytes=size, model_bytes=whole)
    return pack.apply(work.base, [skill])


def _expand(work: Work) -> Params:
    gene, fit = expand.fit_gene(work.models[0])
    work.record["explained"] = {name: float(x) for name, x in flatten(fit).items()}
    assert work.setting.layers is not None, "check_flags has seen that it is given"
    return expand.expand(gene, work.setting.layers)


METHODS: dict[str, Method] = {
    "ties": Method(_ties, 1, True, ("base",)),
    "arithmetic": Method(_arithmetic, 1, True, ("base",)),
    "mean": Method(lambda work: ties.mean(work.models), 2, True),
    "difference": Method(_difference, 1, False, ("base", "onto")),
    "swap": Method(_swap, 2),
    "pack": Method(_pack, 1, False, ("base",)),
    "expand": Method(_expand, 1, False, ("layers",)),
}

_NEEDED = {
    "base": "--base, the model that --models were fine-tuned from",
    "onto": "--onto, the model that the difference is added to",
    "layers": "--layers, the depth of the new model",
}


class Merged(NamedTuple):
    """A merged model, with the content of `merge.json`."""

    config: ModelConfig
    params: Params
    tokenizer: Any
    like: str
    """The folder whose config.json lends the fields that change no logits."""
    record: dict[str, Any]


def merge(
    method: str,
    models: Sequence[str],
    pack_file: Path,
    *,
    base: str | None = None,
    onto: str | None = None,
    setting: Setting | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> Merged:
    """One model of several, by a method of `METHODS`.

    Models are Hugging Face directories, adapters or hub ids: `base` is what `models`
    were fine-tuned from, and that of adapters; a difference is added to `onto`. The
    method `pack` writes `pack_file`, in an existing folder. Models or flags that do not
    fit the method or each other raise an `InputError`.
    """
    row, setting = METHODS[method], setting or Setting()
    given = {"base": base, "onto": onto, "layers": setting.layers}
    check_flags(method, len(models), given)
    alike = (base, *models) if "base" in row.needs and base else tuple(models)
    bases: dict[str, str | None] = dict.fromkeys(alike, base)
    if onto is not None:
        bases.setdefault(onto, None)
    loaded: dict[str, Pretrained] = {}
    for name, own in bases.items():
        log.info("loading %s", name)
        loaded[name] = load_pretrained(name, base=own, dtype=dtype, mesh=mesh)
        pair, grown = (alike[0], name), name not in alike
        check_pair(loaded[alike[0]], loaded[name], pair, grown=grown)
    record = {
        "method": method,
        "models": list(models),
        "base": base,
        "onto": onto,
        "setting": to_dict(setting, tagged=False),
        "dtype": dtype,
        "weights_sha256": {n: weights_sha256(n, base=own) for n, own in bases.items()},
    }
    params: dict[str | None, Params] = {n: model.params for n, model in loaded.items()}
    trees = [params[name] for name in models], params.get(base), params.get(onto)
    merged = row.make(Work(*trees, setting, pack_file, record))
    like = onto or models[0]
    config = loaded[like].config
    if setting.layers:
        config = dataclasses.replace(config, layers=setting.layers)
    return Merged(config, merged, loaded[like].tokenizer, like, record)


def check_flags(method: str, count: int, given: Mapping[str, Any]) -> None:
    """Refuse a number of models or flags that the method does not take."""
    row = METHODS[method]
    if count < row.models or (count > row.models and not row.more):
        expected = f"expected {row.models}{' or more' if row.more else ''}"
        raise InputError(f"--method {method}: found {count} in --models, {expected}")
    for name, value in given.items():
        if name in row.needs and value is None:
            raise InputError(f"--method {method}: needs {_NEEDED[name]}")
        # A base may be that of adapters.
        if name not in (*row.needs, "base") and value is not None:
            raise InputError(f"--method {method}: does not use --{name}; leave it out")


def check_pair(
    one: Pretrained, other: Pretrained, names: tuple[str, str], *, grown: bool = False
) -> None:
    """Refuse models of two architectures or vocabularies by an `InputError`.

    With `grown` the second may have a vocabulary of another size.
    """
    ignored: dict[str, Any] = {"dropout": one.config.dropout}
    if grown:
        ignored["vocab_size"] = one.config.vocab_size
    first = named_leaves(to_dict(one.config), ".")
    second = named_leaves(to_dict(dataclasses.replace(other.config, **ignored)), ".")
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
