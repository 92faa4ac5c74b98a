"""TLEG: a gene of two blocks, trained tied, starts models of three depths."""

from typing import Any

import jax
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, tiny, train
from lt_mia_jax.arrays import Float
from lt_mia_jax.transfer.weightspace.expand import GeneModel, expand, init_gene
from lt_mia_jax.trees import parameter_count

TRAINED = tiny(layers=8)
GENE = GeneModel(TRAINED)
TASKS = [Task("copy", 0, 4), Task("reverse", 0, 4)]
DEPTHS = (4, 6, 10)
STEPS = {"gene": 500, "expanded": 100, "random": 400}
"""Updates; fewer for models from the gene, which need no more to pass."""
REACHED = 0.3
"""The fixed loss, nats an answer token: the mean of the last 20 steps."""


def steps_to(losses: Float[np.ndarray, " N"]) -> float:
    """Updates before the loss is reached; infinite where it never is."""
    means = np.convolve(losses, np.full(20, 0.05), mode="valid")
    below = np.flatnonzero(means <= REACHED)
    return float(below[0] + 20) if below.size else float("inf")


def run(seed: int) -> Outcome:
    """Train the gene; then train each depth from it, and from random parameters."""
    gene: Any = jax.jit(init_gene, static_argnums=1)(jax.random.key(seed), TRAINED)
    gene, tied = train(GENE, gene, TASKS, steps=STEPS["gene"], seed=seed)
    block = parameter_count(gene.start)
    two = parameter_count((gene.start, gene.slope)) == 2 * block
    eight = parameter_count(TRAINED.shapes()["periods"]) == 8 * block
    measures = {"loss of the gene": float(tied[-20:].mean())}
    ratios = []
    for layers in DEPTHS:
        model = tiny(layers=layers)
        fresh = jax.jit(model.init)(jax.random.key(seed + 1))
        starts = {"expanded": expand(gene, layers), "random": fresh}
        found = {
            name: steps_to(
                train(model, params, TASKS, steps=STEPS[name], seed=seed + 1)[1]
            )
            for name, params in starts.items()
        }
        # A random start that has not arrived after all steps needs more than these.
        ratios.append(found["expanded"] / min(found["random"], STEPS["random"]))
        for name, steps in found.items():
            measures[f"steps, {name}, {layers} layers"] = steps
    measures["largest ratio"] = max(ratios)
    return Outcome(measures, two and eight and max(ratios) <= 0.6)


DEMONSTRATION = Demonstration(
    system="TLEG",
    claim="At depths 4, 6 and 10 a model expanded from the gene of an 8-layer model "
    "reaches a fixed loss in at most 60 % of the steps from random parameters; the "
    "gene is as large as 2 blocks.",
    run=run,
)
