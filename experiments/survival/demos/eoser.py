"""EOSER, ASS and CJ-GRPO: answers of noisy runs that end too early, or do not agree.

A run begins with any symbol, so before the first token is known every symbol is as
likely as any other: what makes an answer good is how its tokens depend on each other.
The factor of EOSER starts at 0.1, not at the published 0.4: an end token of this toy is
surer than a symbol by more than that. That was chosen on seeds that are not judged.

The claim may fail: a model that is nearly consistent leaves CJ-GRPO little to gain, and
on noisier runs (0.5 for 0.7) one-step GRPO raised the reward as well, though by less.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.survival.demonstration import Demonstration, Outcome
from experiments.survival.masked import (
    DIFFUSION,
    FULL,
    LENGTH,
    Learner,
    held_out,
    pretrained,
    reward,
    rollouts,
    symbols_of,
)
from lt_mia_jax.arrays import Array, Float, Params
from lt_mia_jax.policy.diffusion.decode import DecodeSettings, Rollout
from lt_mia_jax.policy.diffusion.schedules import (
    ascending_counts,
    ascending_end_factors,
    uniform_counts,
    uniform_end_factors,
)
from lt_mia_jax.policy.diffusion.trajectory import (
    cj_grpo_loss,
    one_step_log_probs,
    trajectory_log_probs,
)
from lt_mia_jax.policy.objective import group_advantages, policy_loss

STEPS = LENGTH // 2
PLAIN = DecodeSettings(LENGTH, uniform_counts(LENGTH, STEPS))
EOSER = DecodeSettings(
    LENGTH, PLAIN.counts, end_factors=uniform_end_factors(STEPS, 0.1)
)
ASCENDING = DecodeSettings(
    LENGTH, ascending_counts(LENGTH), end_factors=ascending_end_factors(LENGTH)
)
DECODERS = {"plain": PLAIN, "EOSER": EOSER, "ASS with EOSER": ASCENDING}
ROUNDS, INNER, NUMBER, GROUP = 24, 4, 16, 6
"""Rounds of new rollouts, updates on each, prompts of a round, answers to a prompt."""
PROVIDERS = {"CJ-GRPO": trajectory_log_probs, "one-step GRPO": one_step_log_probs}


class Batch(NamedTuple):
    """Rollouts with what their policy is compared with."""

    rollout: Rollout
    advantages: Float[Array, "N"]
    old: Float[Array, "N T"]
    reference: Float[Array, "N T"]


def consistent(params: Params, batch: Batch) -> Array:
    """The loss of CJ-GRPO."""
    log_probs = trajectory_log_probs(DIFFUSION, params, batch.rollout, EOSER)
    return cj_grpo_loss(
        log_probs,
        batch.rollout,
        batch.advantages,
        old=batch.old,
        reference=batch.reference,
    )[0]


def one_step(params: Params, batch: Batch) -> Array:
    """The same with every token scored on the masked response."""
    return policy_loss(
        one_step_log_probs(DIFFUSION, params, batch.rollout, EOSER),
        batch.old,
        batch.advantages,
        batch.rollout.tokens >= 0,
        clip=0.5,
        beta=0.04,
        reference=batch.reference,
        average="texts",
    )[0]


def learned(start: Params, name: str, seed: int) -> Params:
    """The parameters after all rounds."""
    score = jax.jit(lambda p, r: PROVIDERS[name](DIFFUSION, p, r, EOSER))
    learner = Learner(consistent if name == "CJ-GRPO" else one_step, 3e-4)
    params, state = start, learner.init(start)
    for number in range(ROUNDS):
        key = jax.random.fold_in(jax.random.key(seed), number)
        rollout = rollouts(params, EOSER, key, NUMBER, GROUP)
        groups = reward(rollout).reshape(NUMBER, GROUP).astype(np.float32)
        gain = group_advantages(jax.numpy.asarray(groups), scale=False).reshape(-1)
        batch = Batch(rollout, gain, score(params, rollout), score(start, rollout))
        for _ in range(INNER):
            params, state = learner.update(params, state, batch)
    return params


def run(seed: int) -> Outcome:
    """Decoders of one model, and two policies learned from the same rewards."""
    start = pretrained(seed)
    decoded = {
        name: held_out(start, settings, seed) for name, settings in DECODERS.items()
    }
    early = {
        name: 100 * float((symbols_of(found.tokens) < FULL).mean())
        for name, found in decoded.items()
    }
    ascending = decoded["ASS with EOSER"]
    passes = len(np.unique(ascending.steps))
    filled = bool((np.asarray(ascending.tokens) != DIFFUSION.mask).all())
    before = reward(held_out(start, EOSER, seed))
    measures: dict[str, Any] = {
        **{f"early ends, {name}, %": value for name, value in early.items()},
        "passes of ASS": passes,
        "reward before": before.mean(),
    }
    gains = {}
    for name in PROVIDERS:
        after = reward(held_out(learned(start, name, seed), EOSER, seed))
        error = (after - before).std(ddof=1) / np.sqrt(len(after))
        measures[f"reward, {name}"] = after.mean()
        gains[name] = (after - before).mean() / max(error, 1e-9)
        measures[f"standard errors gained, {name}"] = gains[name]
    passed = (
        early["EOSER"] <= early["plain"] / 2
        and passes == int(np.log2(LENGTH))
        and filled
        and gains["CJ-GRPO"] > 2 >= gains["one-step GRPO"]
    )
    return Outcome(
        {name: float(value) for name, value in measures.items()},
        bool(passed),
        precondition=early["plain"] >= 20,
    )


DEMONSTRATION = Demonstration(
    system="EOSER / ASS / CJ-GRPO",
    claim="At equal steps EOSER halves the rate of answers that end early; ASS fills "
    "every place in exactly floor(log2 L) passes; CJ-GRPO raises the held-out reward "
    "(by more than 2 standard errors), one-step GRPO on as many rollouts and updates "
    "does not.",
    run=run,
    precondition="Plain decoding of the whole response ends early on at least 20 % of "
    "the prompts.",
)
