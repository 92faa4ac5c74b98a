"""What the survival study computes, one resumable job at a time.

OUT/demos/NAME-SEED.json          one seed of a demonstration
OUT/survival/NAME-STRENGTH.json   one operation at one strength
"""

import logging
import math
import time
from pathlib import Path

from experiments.survival.config import CORPORA, Study
from experiments.survival.demonstration import Outcome
from experiments.survival.demos import DEMOS
from experiments.survival.ingredients import World
from experiments.survival.measure import measure
from experiments.survival.operations import OPERATIONS
from lt_mia_jax.files import read_json, write_json

log = logging.getLogger("lt_mia_jax.survival")


def demo_file(out: Path, name: str, seed: int) -> Path:
    """Where one seed of a demonstration is kept."""
    return out / "demos" / f"{name}-{seed}.json"


def demonstrate(out: Path, name: str, seed: int) -> None:
    """Run one seed of a demonstration, unless it is there."""
    path = demo_file(out, name, seed)
    if path.exists():
        return
    began = time.monotonic()
    outcome = DEMOS[name].run(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {
        "measures": {key: _number(value) for key, value in outcome.measures.items()},
        "passed": bool(outcome.passed),
        "precondition": bool(outcome.precondition),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(path, row)
    log.info("%s, seed %d: %s", name, seed, row)


def _number(value: float) -> float | str:
    """As JSON has it, which knows no infinite steps to a goal that is not reached."""
    return float(value) if math.isfinite(value) else str(float(value))


def read_outcome(path: Path) -> Outcome:
    """An outcome that `demonstrate` wrote."""
    row = read_json(path)
    measures = {key: float(value) for key, value in row["measures"].items()}
    return Outcome(measures, row["passed"], row["precondition"])


def survival_file(out: Path, name: str, strength: str) -> Path:
    """Where the figures of one operation are kept."""
    return out / "survival" / f"{name}-{strength}.json"


def survive(config: Study, name: str, strength: str) -> None:
    """Make the model of an operation and attack it, unless that is done."""
    path = survival_file(config.out, name, strength)
    if path.exists():
        return
    began = time.monotonic()
    world = World(config, strength)
    operation = OPERATIONS[name]
    made = operation.make(world)
    trained = time.monotonic()
    found = measure(world, made, operation.ingredients or CORPORA)
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = {"make": trained - began, "measure": time.monotonic() - trained}
    found["seconds"] = {key: round(value, 1) for key, value in seconds.items()}
    write_json(path, found)
    log.info("%s, %s: %.0f s", name, strength, time.monotonic() - began)
