"""Models in folders into one model: what `lt-mia merge` does."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lt_mia_jax.checkpoints import weights_sha256
from lt_mia_jax.checkpoints.pretrained import write_model
from lt_mia_jax.checkpoints.rules import Place, part_name
from lt_mia_jax.checkpoints.streaming import StoredModel, check_architecture, stored
from lt_mia_jax.configs import to_dict
from lt_mia_jax.errors import InputError
from lt_mia_jax.training.progress import Progress
from lt_mia_jax.transfer.weightspace import difference, expand, pack, swap, ties
from lt_mia_jax.trees import flatten, unflatten

log = logging.getLogger(__name__)

PACK = "pack.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Numbers of the methods; None is the default of those that use it."""

    density: float | None = None
    scale: float | None = None
    bottom: int | None = None
    top: int | None = None
    layers: int | None = None


Read = Callable[[Place], Any]
"""One layer's part of a parameter of the merged model."""


class Work(NamedTuple):
    """What a method is given; models are read from their files as they are needed."""

    models: list[StoredModel]
    base: Any
    """A `StoredModel`, as `onto`; None where none is given."""
    onto: Any
    setting: Any
    """A `Setting` with the defaults of the method."""
    pack_file: Path
    record: dict[str, Any]
    """Content of `merge.json`, to which the method adds what it found."""


class Method(NamedTuple):
    """A way to make one model of some, and its flags."""

    make: Callable[[Work], Read]
    models: int
    more: bool = False
    """Whether it takes more models too."""
    needs: tuple[str, ...] = ()
    """Flags that must be given."""
    uses: Mapping[str, float | None] = {}
    """Fields of the setting that it reads, with their defaults."""


def _leafwise(merged: Callable[..., Any], *models: StoredModel) -> Read:
    """A function of trees, on trees of one part each."""
    parts = [model.parts for model in models]

    def read(place: Place) -> Any:
        name = part_name(place)
        return merged(*({name: jnp.asarray(own[name])} for own in parts))[name]

    return read


def _ties(work: Work) -> Read:
    tasks = [model.parts for model in work.models]
    sizes = work.setting.density, work.setting.scale
    merged = ties.merger(work.base.parts, tasks, *sizes)
    return lambda place: merged(part_name(place))


def _arithmetic(work: Work) -> Read:
    merged = partial(ties.task_arithmetic, lam=work.setting.scale)
    return _leafwise(lambda b, *t: merged(b, t), work.base, *work.models)


def _difference(work: Work) -> Read:
    moved = partial(difference.transfer_diff, scale=work.setting.scale)
    return _leafwise(moved, work.onto, work.base, work.models[0])


def _swap(work: Work) -> Read:
    task, lang = work.models
    tree = unflatten(task.shapes)
    sizes = swap.default_sizes(tree)
    sizes |= {n: x for n in sizes if (x := getattr(work.setting, n)) is not None}
    units = int(swap.unit_of(tree)[-1]) + 1
    if sum(sizes.values()) > units:
        raise InputError(
            f"--bottom {sizes['bottom']} and --top {sizes['top']}: the model has "
            f"{units} layers or repeating units; give at most as many together"
        )
    weights = swap.swap_weights(tree, **sizes)
    work.record["second_model_in_layers"] = weights.tolist()
    shares = flatten(swap.shares(tree, weights, **swap.outside(**sizes)))
    one, other = task.parts, lang.parts

    def read(place: Place) -> Any:
        layer = place.part[0] if place.path.startswith("periods/") else 0
        share, name = shares[place.path].reshape(-1)[layer], part_name(place)
        return swap.blend(jnp.asarray(one[name]), jnp.asarray(other[name]), share)

    return read


def _pack(work: Work) -> Read:
    (tuned,), file, base = work.models, work.pack_file, work.base
    skill = pack.pack(base.params, tuned.params)
    pack.save(file, skill)
    size, whole = file.stat().st_size, pack.nbytes(tuned.shapes)
    log.info("%s: %d bytes, %.1f %% of the model", file.name, size, 100 * size / whole)
    work.record.update(pack_bytes=size, model_bytes=whole)
    leaves = flatten(base.params)

    @lru_cache(base.leaves_together)
    def grafted(path: str) -> Any:
        own = pack.SkillPack({path: skill.parts[path]})
        return pack.apply({path: leaves[path]}, [own])[path]

    return lambda place: grafted(place.path)[place.part]


def _expand(work: Work) -> Read:
    gene, fit = expand.fit_gene(jax.tree.map(jnp.asarray, work.models[0].params))
    work.record["explained"] = {name: float(x) for name, x in flatten(fit).items()}
    leaves = flatten(expand.expand(gene, work.setting.layers))
    return lambda place: leaves[place.path][place.part]


METHODS: dict[str, Method] = {
    "ties": Method(_ties, 1, True, ("base",), {"density": 0.2, "scale": 1.0}),
    "arithmetic": Method(_arithmetic, 1, True, ("base",), {"scale": 1.0}),
    "mean": Method(lambda w: _leafwise(lambda *m: ties.mean(m), *w.models), 2, True),
    "difference": Method(_difference, 1, False, ("base", "onto"), {"scale": 1.0}),
    "swap": Method(_swap, 2, uses={"bottom": None, "top": None}),
    "pack": Method(_pack, 1, False, ("base",)),
    "expand": Method(_expand, 1, False, ("layers",), {"layers": None}),
}


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
) -> dict[str, Any]:
    """One model of several, by a method of `METHODS`: what is written to `merge.json`.

    Models are Hugging Face directories, adapters or hub ids: `base` is what `models`
    were fine-tuned from, and that of adapters; a difference is added to `onto`. The
    merged model is written to the existing folder `out`, and by the method `pack` its
    pack. Models or flags that do not fit the method or each other raise an
    `InputError`.

    Memory: tensors are read, merged and written one at a time. `pack` has one parameter
    of all layers in memory, and `expand` the whole model.
    """
    row, given = METHODS[method], to_dict(setting or Setting(), tagged=False)
    check_flags(method, len(models), {"base": base, "onto": onto, **given})
    chosen: Any = {n: x if given[n] is None else given[n] for n, x in row.uses.items()}
    setting = Setting(**chosen)
    alike = (base, *models) if "base" in row.needs and base else tuple(models)
    bases: dict[str, str | None] = dict.fromkeys(alike, base)
    if onto is not None:
        bases.setdefault(onto, None)
    with contextlib.ExitStack() as files:
        opened: dict[str | None, Any] = {None: None}
        for name, own in bases.items():
            model = stored(name, base=own, dtype=dtype, mesh=mesh)
            opened[name] = files.enter_context(model)
            pair, grown = (alike[0], name), name not in alike
            check_architecture(opened[alike[0]], opened[name], pair, grown=grown)
        record = {"method": method, "models": list(models), "base": base, "onto": onto}
        record |= {"dtype": dtype, "setting": to_dict(setting, tagged=False)}
        hashes = {name: weights_sha256(name, base=own) for name, own in bases.items()}
        record["weights_sha256"] = hashes
        trees = [opened[name] for name in models], opened.get(base), opened.get(onto)
        read = row.make(Work(*trees, setting, out / PACK, record))
        like = onto or models[0]
        config, tokenizer = opened[like].config, opened[like].tokenizer
        if setting.layers:
            config = dataclasses.replace(config, layers=setting.layers)
        with Progress("merging", len(opened[like].parts), "part") as bar:
            write_model(out, config, dtype, bar.counting(read), tokenizer, like=like)
    return record


def check_flags(method: str, count: int, given: Mapping[str, Any]) -> None:
    """Refuse a number of models or flags that the method does not take."""
    row = METHODS[method]
    if count < row.models or (count > row.models and not row.more):
        expected = f"expected {row.models}{' or more' if row.more else ''}"
        raise InputError(f"--method {method}: found {count} in --models, {expected}")
    for name, value in given.items():
        if name in row.needs and value is None:
            raise InputError(f"--method {method}: needs --{name} (see --help)")
        # A base may be that of adapters.
        if name not in (*row.needs, *row.uses, "base") and value is not None:
            raise InputError(f"--method {method}: does not use --{name}; leave it out")
