"""Batches of forget and retain texts."""

import dataclasses

import numpy as np
import pytest
import unlearning_world as world
from unlearning_world import FAST

from lt_mia_jax.executor import make_executor
from lt_mia_jax.unlearning.batches import UnlearningBatches
from lt_mia_jax.unlearning.methods import METHODS


@pytest.mark.parametrize("every", [1, 3])
def test_forgetting_steps_of_graceful_forgetting_pass_over_all_texts(every):
    """Three steps make an epoch, so that each third one stands at one place of it."""
    method = dataclasses.replace(METHODS["graceful_forgetting"], every=every)
    texts = world.forget_texts()
    config = dataclasses.replace(FAST, epochs=every, batch_size=2)
    executor = make_executor("single")
    sets = UnlearningBatches(
        texts, world.RETAIN, method, config, executor, world.VOCABULARY
    )
    assert sets.schedule.epoch == 3
    read = [
        sets.batch_at(step).forget.input_ids
        for step in range(sets.schedule.total)
        if (step + 1) % every == 0
    ]
    width = texts.answers.input_ids.shape[1]
    found = [
        np.pad(row, (0, width - len(row))).tobytes() for batch in read for row in batch
    ]
    assert sorted(found) == sorted(row.tobytes() for row in texts.answers.input_ids)


@pytest.mark.parametrize("most", [2, 3, 100])
def test_what_a_method_looks_at_comes_from_all_retain_texts(most):
    config = dataclasses.replace(FAST, prepare_texts=most, batch_size=2)
    executor = make_executor("single")
    texts, forget = world.RETAIN, world.forget_texts()
    method = METHODS["guard"]
    sets = UnlearningBatches(forget, texts, method, config, executor, world.VOCABULARY)
    count = len(texts.input_ids)
    wanted = [int(k * count / min(most, count)) for k in range(min(most, count))]
    found = [
        np.asarray(ids)[: int(length)]
        for batch in sets.some_retain()
        for ids, length, weight in zip(
            batch.input_ids, batch.attention_mask.sum(1), batch.weight, strict=True
        )
        if weight
    ]
    assert len(found) == len(wanted)
    for ids, row in zip(found, wanted, strict=True):
        length = int(texts.attention_mask[row].sum())
        np.testing.assert_array_equal(ids, texts.input_ids[row][:length])
