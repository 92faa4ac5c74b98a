"""Tiny models and texts to unlearn."""

import json
from functools import lru_cache, partial

import jax
import numpy as np
import quick_compile

from lt_mia_jax.data.answers import EncodedAnswers
from lt_mia_jax.executor import make_executor
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.placement import prompted
from lt_mia_jax.models.presets import (
    gpt2_like,
    griffin_like,
    llama_like,
    mamba_like,
    rwkv_like,
)
from lt_mia_jax.models.sampling import sample
from lt_mia_jax.unlearning.methods import METHODS
from lt_mia_jax.unlearning.recipe import ForgetTexts, UnlearnConfig
from lt_mia_jax.unlearning.train import unlearn

VOCABULARY, LENGTH = 41, 12

MODELS = {
    "gpt2": gpt2_like(VOCABULARY, 16, 2, 2, LENGTH),
    "llama": llama_like(VOCABULARY, 16, 2, 2, LENGTH),
    "mamba": mamba_like(VOCABULARY, 16, 2, state=4, context=LENGTH),
    "rwkv": rwkv_like(VOCABULARY, 16, 2, context=LENGTH),
    "recurrent_gemma": griffin_like(VOCABULARY, 16, 3, 2),
}


def model(family="gpt2"):
    return LanguageModel(MODELS[family])


@lru_cache
def start(family="gpt2"):
    """Parameters of a usual size: the initial ones make every prediction flat."""
    params = model(family).init(jax.random.key(3))
    return jax.tree.map(lambda x: x * 4 if x.ndim > 2 else x, params)


@partial(quick_compile.jit, static_argnums=0)
def logits(model, params, ids, edit):
    return model.apply(params, ids, intervention=edit)


def answer_loss(params, texts, family="gpt2", intervention=None):
    """Mean over answer tokens, in float64, from the logits."""
    edit = prompted(intervention, texts.label_mask.argmax(axis=1))
    found = logits(model(family), params, texts.input_ids, edit)
    found = np.asarray(found, np.float64)[:, :-1]
    shifted = found - found.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    found = np.take_along_axis(log_p, texts.input_ids[:, 1:, None], -1)[..., 0]
    return -found[texts.label_mask[:, 1:] == 1].mean()


def answers(seed, count):
    """Random prompts and answers of all lengths."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCABULARY, (count, LENGTH)).astype(np.int32)
    lengths = rng.integers(10, LENGTH + 1, (count, 1))
    starts = rng.integers(2, 4, (count, 1))
    place = np.arange(LENGTH)[None, :]
    attention = (place < lengths).astype(np.uint8)
    labels = (attention & (place >= starts)).astype(np.uint8)
    return EncodedAnswers(
        np.where(attention, ids, 0).astype(np.int32),
        attention,
        labels,
        np.zeros_like(labels),
        np.zeros(count, bool),
    )


def forget_texts(count=6):
    return ForgetTexts(
        answers(1, count),
        [answers(10 + i, count) for i in range(3)],
        [answers(20 + i, count) for i in range(2)],
    )


RETAIN = answers(2, 9)

FAST = UnlearnConfig(learning_rate=3e-3, epochs=4, batch_size=4, warmup_epochs=0.0)


def run(folder, method, *, family="gpt2", config=FAST, **options):
    defaults = {
        "forget": forget_texts(),
        "retain": RETAIN,
        "executor": make_executor("single"),
    }
    options = defaults | options
    if isinstance(method, str):
        method = METHODS[method]
    return unlearn(
        model(family),
        start(family),
        options.pop("forget"),
        options.pop("retain"),
        method,
        config,
        directory=folder,
        **options,
    )


def history(folder):
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def sampled(model, params, texts, seed=11, group=16):
    """Four tokens behind the prompts, drawn `group` times."""
    ids = np.repeat(texts.input_ids, group, axis=0)
    lengths = np.repeat(texts.label_mask.argmax(axis=1), group)
    found = sample(
        model, params, ids, lengths, key=jax.random.key(seed), max_new_tokens=4
    )
    return np.asarray(found.tokens)
