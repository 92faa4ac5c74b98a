"""A tiny bidirectional model with random parameters, and a decoder in slow NumPy."""

import jax
import numpy as np
from model_zoo import random_params

from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.policy.diffusion.model import Diffusion, bidirectional

VOCAB, MASK, END = 11, 10, 8
CONFIG = bidirectional(gpt2_like(VOCAB, width=8, layers=1, heads=2, context=16))
DENOISER = Diffusion(LanguageModel(CONFIG), mask=MASK, end=END)
PARAMS = random_params(CONFIG, seed=3, scale=0.6)
# Behind a prompt stands anything.
PROMPTS = np.random.default_rng(4).integers(0, VOCAB - 1, (3, 5)).astype(np.int32)
LENGTHS = np.array([2, 5, 3])


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@jax.jit
def _apply(ids):
    return DENOISER.model.apply(PARAMS, ids)


def logits_of(row, state):
    """Logits of one text without any padding; the mask is no answer."""
    text = np.concatenate([PROMPTS[row, : LENGTHS[row]], state])
    found = np.asarray(_apply(text[None]), np.float64)[0, LENGTHS[row] :]
    found[:, MASK] = -np.inf
    return found


def noise(key, row, step, length):
    own = jax.random.fold_in(jax.random.fold_in(key, row), step)
    return np.asarray(jax.random.gumbel(own, (length, VOCAB)), np.float64)


def decoded(settings, key, row):
    """Tokens, states, and log probabilities of one row, place by place."""
    length, bounds = settings.length, settings.bounds
    state = np.full(length, MASK)
    states, log_probs, steps = [state.copy()], np.zeros(length), np.zeros(length, int)
    for step in range(settings.steps):
        if MASK not in state:
            break
        logits = logits_of(row, state)
        heat = settings.temperature
        noisy = logits
        if heat:
            noisy = logits / heat + noise(key, row, step, length)
        own = log_softmax(logits / (heat or 1))
        end = next(b for b in bounds if MASK in state[:b])
        ranked = []
        for place in range(end):
            if state[place] != MASK:
                continue
            token = int(np.argmax(noisy[place]))
            confidence = np.exp(log_softmax(logits[place]))[token]
            if token == END and settings.end_factors:
                confidence *= settings.end_factors[step]
            ranked.append((-confidence, place, token))
        ranked.sort()
        if settings.counts:
            chosen = ranked[: settings.counts[step]]
        else:
            sure = [each for each in ranked if -each[0] > settings.threshold]
            chosen = sure or ranked[:1]
        for _, place, token in chosen:
            state[place], steps[place] = token, step
            log_probs[place] = own[place, token]
        states.append(state.copy())
    return state, states, steps, log_probs
