"""LoRA educational guidance: adapters on a 4-bit base, handed from noisy to clean data.

The original's fourth version (arXiv 2504.15610) withdraws claims of earlier ones and
finds its facts worse than the base's, so accuracy stands beside the loss here.
Mechanism only, at toy scale.
"""

from typing import Any

import jax
import numpy as np

from experiments.survival.adapters import adapted_loss, batches, train_adapters
from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.toy import Task, accuracy, adam, tiny, train
from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.transfer.adapt.quantized import (
    QuantizedAdapted,
    dequantize_base,
    quantize_base,
)

MODEL = tiny(layers=2)
LORA = LoraConfig(rank=8, alpha=16.0)
ADAPTED = QuantizedAdapted(MODEL, LORA.scale)
ADAM = adam(1e-3)
KNOWN = [Task("copy", 0, 4), Task("reverse", 0, 4), Task("copy", 1, 4)]
NEW = Task("reverse", 1, 4)
STEPS = 400
FIRST = 10
"""Updates after the hand-over in which the loss may not rise."""


def run(seed: int) -> Outcome:
    """Pretrain, quantize, train two phases; compare losses around the hand-over."""
    start = jax.jit(MODEL.init)(jax.random.key(seed))
    params, _ = train(MODEL, start, KNOWN, steps=700, seed=seed, rate=2e-3)
    base = quantize_base(params)
    held_out = NEW.texts(np.random.default_rng((seed, 2)), 256)
    new = lora.init(jax.random.key(seed + 1), params, LORA)

    def held(adapters: Any) -> float:
        return float(adapted_loss(ADAPTED, base, adapters, held_out))

    def share_right(adapters: Any, task: Task) -> float:
        both = {"base": base, "adapters": adapters}
        return accuracy(MODEL, ADAPTED.merged(both), task)

    noisy = NEW._replace(noise=0.2)
    first, _, _ = train_adapters(
        ADAPTED, ADAM, base, new, ADAM.init(new), batches(noisy, seed, STEPS)
    )
    # The adapters alone are handed over: the optimizer starts anew.
    curve, clean, state = [], batches(NEW, seed + 1, STEPS), ADAM.init(first)
    second = first
    for step in range(FIRST):
        batch = jax.tree.map(lambda x, i=step: x[i : i + 1], clean)
        second, state, _ = train_adapters(ADAPTED, ADAM, base, second, state, batch)
        curve.append(held(second))
    second, _, _ = train_adapters(ADAPTED, ADAM, base, first, ADAM.init(first), clean)
    both = {"base": base, "adapters": second}
    beside = jax.jit(ADAPTED.apply)(both, held_out.ids)
    merged = jax.jit(MODEL.apply)(ADAPTED.merged(both), held_out.ids)
    gap = float(abs(beside - merged).max() / abs(merged).max())
    jump = max(curve) / held(first) - 1
    measures = {
        "jump": jump,
        "jump with new adapters": held(new) / held(first) - 1,
        "merged gap": gap,
        "loss, base": held(new),
        "loss, phase 1": held(first),
        "loss, phase 2": held(second),
        "accuracy, base": share_right(new, NEW),
        "accuracy, phase 1": share_right(first, NEW),
        "accuracy, phase 2": share_right(second, NEW),
        "known, full precision": accuracy(MODEL, params, KNOWN[0]),
        "known, 4 bits": accuracy(MODEL, dequantize_base(base), KNOWN[0]),
        "known, phase 2": share_right(second, KNOWN[0]),
    }
    return Outcome(measures, jump <= 0.05 and gap <= 1e-5)


DEMONSTRATION = Demonstration(
    system="LoRA educational guidance",
    claim="In the first 10 updates after the adapters are handed over, the held-out "
    "loss never rises by more than 5 %; merged and separate adapters give the same "
    "logits to 1e-5 of the largest; accuracy stands beside the loss.",
    run=run,
)
