"""Fine-tuning Transfer: what an early base learned, added to the finished base."""

import jax
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, accuracy, answer_loss, tiny, train
from lt_mia_jax.transfer.weightspace.difference import loss_barrier, transfer_diff

PRETRAINING = (Task("copy"), Task("reverse"), Task("copy", 1))
TARGET = Task("reverse", 1)
STEPS = 600
EARLY = STEPS // 5
TUNING = 150


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
    texts = TARGET.texts(np.random.default_rng(998), 256)

    def recovered(base) -> float:
        """Fraction of what fine-tuning this very base gains."""
        own, _ = train(model, base, TARGET, steps=TUNING, seed=seed + 1)
        moved = transfer_diff(base, early, tuned)
        before = accuracy(model, base, TARGET)
        gain = accuracy(model, own, TARGET) - before
        return (accuracy(model, moved, TARGET) - before) / max(gain, 1e-6)

    def barrier(base) -> float:
        """Between the tuned model and the base that its difference is added to."""
        return loss_barrier(tuned, base, lambda p: answer_loss(model, p, texts)).height

    measures = {
        "recovered": recovered(late),
        "recovered_alien": recovered(alien),
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
