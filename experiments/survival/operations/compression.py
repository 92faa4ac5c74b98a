"""Operations that store or shrink an expert and train what is left."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.survival.ingredients import World
from experiments.survival.learning import Batch, adamw, learn, only
from experiments.survival.measure import Made
from experiments.survival.operations.operation import Operation
from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.training.transforms.mask import saliency_masked
from lt_mia_jax.transfer.adapt.distillation import distil_loss, outputs
from lt_mia_jax.transfer.weightspace.expand import expand, fit_gene
from lt_mia_jax.transfer.weightspace.sparse import (
    compose,
    lt_mask,
    sparse_delta,
    trainable,
)
from lt_mia_jax.transfer.weightspace.trim import matched_layers, shrink_depth
from lt_mia_jax.trees import named_leaves

DENSITY, GENERAL, PASSES = 0.08, 960, 2


def _sparse(world: World) -> Made:
    """Lottery tickets of a and of b: both learned again in 8 % of the weights."""
    base = world.base.params
    sizes = {name: np.size(x) for name, x in named_leaves(base).items()}
    kept = round(DENSITY * sum(n for name, n in sizes.items() if trainable(name)))
    deltas = []
    for name in "ab":
        mask = lt_mask(world.expert(name), base, kept)
        tuned, _ = learn(
            world.model,
            base,
            world.members(name),
            epochs=world.epochs,
            seed=world.config.seed,
            optimizer=saliency_masked(adamw(), mask),
        )
        deltas.append(sparse_delta(tuned, base, mask))
    return Made(world.model, compose(base, deltas))


def _expanded(world: World) -> Made:
    """The straight line through the layers of expert a, trained on general text."""
    gene, _ = fit_gene(world.expert("a"))
    start = expand(gene, world.base.config.layers)
    params, _ = learn(
        world.model,
        start,
        world.general(GENERAL),
        epochs=PASSES,
        seed=world.config.seed,
    )
    return Made(world.model, params)


@dataclass(frozen=True)
class Pair:
    """A teacher and a student with the streams that are compared."""

    teacher: LanguageModel
    student: LanguageModel
    layers: tuple[tuple[int, int], ...]


def distillation_loss(pair: Pair, params: Any, batch: Batch) -> Array:
    """Distance of the student from the teacher on a batch."""
    teacher, student = zip(*pair.layers, strict=True)
    told = outputs(pair.teacher, params["teacher"], batch.ids, teacher)
    said = outputs(pair.student, params["student"], batch.ids, student)
    return distil_loss(told, said, mask=batch.mask > 0)


def _halved(world: World) -> Made:
    """Every second layer of expert a, taught by expert a on texts of neither expert."""
    config, expert = world.base.config, world.expert("a")
    small, start = shrink_depth(config, expert, 2)
    layers = tuple(matched_layers(config, small, 2))
    pair = Pair(world.model, LanguageModel(small), layers)
    trained: dict[str, Params] = {"teacher": expert, "student": start}
    trained, _ = learn(
        pair,
        trained,
        world.general(GENERAL),
        epochs=PASSES,
        seed=world.config.seed,
        optimizer=only("student", adamw()),
        loss=distillation_loss,
    )
    return Made(pair.student, trained["student"])


ROWS = (
    Operation(
        "sparse",
        "lottery-ticket sparse fine-tuning (BiStil)",
        "a and b learned again in the 8 % of the weights that their experts moved "
        "most; both differences added to the base",
        "ab",
        _sparse,
    ),
    Operation(
        "gene",
        "TLEG",
        "the straight line through the layers of expert a, then general text",
        "a",
        _expanded,
    ),
    Operation(
        "half-depth",
        "BiStil",
        "every second layer of expert a, distilled from it on general text",
        "a",
        _halved,
    ),
)
