"""Fine-tuning Transfer: what an early base learned, added to the finished base."""

import jax
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, accuracy, answer_loss, tiny, train
from lt_mia_jax.transfer.weightspace.difference import loss_barrier, transfer_diff

LENGTH = 4
PRETRAINING = (Task("copy", 0, LENGTH), Task("copy", 1, LENGTH))
TARGET = Task("reverse", 1, LENGTH)
"""A task that no base knows, in a language that all know."""
STEPS = 1250
"""Of one run at a constant rate; it knows both languages at 20 % already."""
EARLY = STEPS // 5
TUNING = 300


def run(seed: int) -> Outcome:
    """Fine-tune at 20 % of pretraining; move it to the end, and to another seed."""
    model = tiny()

    def pretrain(number: int, steps: int, params=None):
        key = jax.random.key(number)
        params = model.init(key) if params is None else params
        return train(model, params, PRETRAINING, steps=steps, seed=number + steps)[0]

    early = pretrain(seed, EARLY)
    late = pretrain(seed, STEPS - EARLY, early)
    alien = pretrain(seed + 5000, STEPS)
    tuned, _ = train(model, early, TARGET, steps=TUNING, seed=seed)
    texts = PRETRAINING[1].texts(np.random.default_rng(998), 256)

    def gain(base) -> float:
        """Points that fine-tuning this very base gains."""
        own, _ = train(model, base, TARGET, steps=TUNING, seed=seed + 1)
        return accuracy(model, own, TARGET) - accuracy(model, base, TARGET)

    def moved(base) -> float:
        """Points that the difference of the early base gains."""
        params = transfer_diff(base, early, tuned)
        return accuracy(model, params, TARGET) - accuracy(model, base, TARGET)

    def barrier(base) -> float:
        """Between the early base and the one that its difference is added to."""
        return loss_barrier(early, base, lambda p: answer_loss(model, p, texts)).height

    own, own_alien = gain(late), gain(alien)
    measures = {
        "gain": own,
        "gain_alien": own_alien,
        "recovered": moved(late) / max(own, 1e-6),
        "recovered_alien": moved(alien) / max(own_alien, 1e-6),
        "barrier": barrier(late),
        "barrier_alien": barrier(alien),
    }
    return Outcome(
        measures,
        passed=measures["recovered"] >= 0.5
        and measures["recovered_alien"] <= 0.1
        and measures["barrier"] < measures["barrier_alien"],
    )


DEMONSTRATION = Demonstration(
    system="Fine-tuning Transfer",
    claim=(
        "The difference of an early checkpoint recovers at least 50 % of the gain of "
        "fine-tuning on the later one and at most 10 % on another seed's; the loss "
        "barrier is lower for the later one."
    ),
    run=run,
)
