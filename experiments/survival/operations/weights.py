"""Operations on parameters: merges, differences, swaps, packs, masks."""

import functools

from experiments.survival.ingredients import World
from experiments.survival.measure import Made
from experiments.survival.operations.operation import Operation
from lt_mia_jax.transfer.weightspace import pack as packs
from lt_mia_jax.transfer.weightspace.difference import transfer_diff
from lt_mia_jax.transfer.weightspace.masking import mask_teacher
from lt_mia_jax.transfer.weightspace.pack import SkillPackSpec
from lt_mia_jax.transfer.weightspace.swap import default_sizes, layer_swap
from lt_mia_jax.transfer.weightspace.ties import mean, task_arithmetic, ties_merge

MASKED = 0.2


def _base(world: World) -> Made:
    # Against the early base: a model compared with itself has no score.
    return Made(world.model, world.base.params, world.early)


def _expert(world: World, name: str) -> Made:
    return Made(world.model, world.expert(name))


def _both(world: World) -> list:
    return [world.expert(name) for name in "ab"]


def _mean(world: World) -> Made:
    return Made(world.model, mean(_both(world)))


def _arithmetic(world: World) -> Made:
    return Made(world.model, task_arithmetic(world.base.params, _both(world)))


def _ties(world: World) -> Made:
    return Made(world.model, ties_merge(world.base.params, _both(world)))


def _difference(world: World) -> Made:
    moved = transfer_diff(world.base.params, world.early, world.expert("a", "early"))
    return Made(world.model, moved)


def _swap(world: World) -> Made:
    task, lang = _both(world)
    return Made(world.model, layer_swap(task, lang, **default_sizes(task)))


def _packed(world: World, spec: SkillPackSpec) -> Made:
    base = world.base.params
    skill = packs.pack(base, world.expert("a"), spec)
    return Made(world.model, packs.apply(base, [skill]))


def _masked(world: World) -> Made:
    return Made(world.model, mask_teacher(world.expert("a"), MASKED))


def _pack_row(name: str, about: str, spec: SkillPackSpec) -> Operation:
    make = functools.partial(_packed, spec=spec)
    return Operation(name, "GraftLLM (SkillPack)", about, "a", make)


ROWS = (
    Operation("base", "control", "the base, against its early version", "", _base),
    *(
        Operation(
            row,
            "before",
            f"expert {name} as it is",
            name,
            functools.partial(_expert, name=name),
        )
        for row, name in (("expert", "a"), ("expert-b", "b"))
    ),
    Operation("mean", "uniform soup", "the mean of both experts", "ab", _mean),
    Operation(
        "arithmetic",
        "task arithmetic",
        "the base plus both differences",
        "ab",
        _arithmetic,
    ),
    Operation(
        "ties", "TIES", "both differences, trimmed to 20 %, signs elected", "ab", _ties
    ),
    Operation(
        "difference",
        "fine-tuning transfer",
        "the late base plus what learning a changed in the early base",
        "a",
        _difference,
    ),
    Operation(
        "swap",
        "layer swapping",
        "expert a in the middle, first and last layers of expert b",
        "ab",
        _swap,
    ),
    _pack_row("pack", "8, 4 and 2 bits, a quarter of the ranks", SkillPackSpec()),
    _pack_row(
        "pack-2-bits", "all kept ranks at 2 bits", SkillPackSpec(bits=((2, 1.0),))
    ),
    Operation(
        "mask",
        "Masters (masked teacher)",
        "expert a without the fifth of smallest magnitude in each layer",
        "a",
        _masked,
    ),
)
