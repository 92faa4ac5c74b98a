"""Operations on parameters alone; nothing is trained after the experts."""

from experiments.survival.ingredients import World
from experiments.survival.measure import Made
from experiments.survival.operations.operation import Operation


def _base(world: World) -> Made:
    # Against the early base: a model compared with itself has no score.
    return Made(world.model, world.base.params, world.early)


def _expert(world: World) -> Made:
    return Made(world.model, world.expert("a"))


ROWS = (
    Operation("base", "none", "the base itself, against its early version", "", _base),
    Operation("expert", "none", "the expert on a as it is", "a", _expert),
)
