import jax
import numpy as np
import pytest
from oracle_finetune import Toy, random_texts

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.finetune import PretrainConfig, pack, pretrain
from lt_mia_jax.finetune.step import validation_loss
from lt_mia_jax.training import OptimizerConfig

TEXTS = random_texts(25, seed=3)
CONFIG = PretrainConfig(
    steps=60, batch_size=4, optimizer=OptimizerConfig(learning_rate=0.03, clip_norm=1.0)
)


def test_packing_keeps_every_token_in_order():
    packed = pack(TEXTS)
    expected = [
        int(token)
        for row, mask in zip(TEXTS.input_ids, TEXTS.attention_mask, strict=True)
        for token, real in zip(row, mask, strict=True)
        if real
    ]
    assert packed.input_ids[packed.attention_mask == 1].tolist() == expected
    assert packed.attention_mask[:-1].all()
    assert len(packed.input_ids) == -(-len(expected) // 12)


def test_learns_and_continues(tmp_path):
    result = pretrain(Toy(), pack(TEXTS), CONFIG, directory=tmp_path)
    unseen = random_texts(10, seed=4)
    measure = validation_loss(Toy(), None, unseen, 4, make_executor(), 0.0)
    assert measure(result.params)["validation_loss"] < np.log(32) - 0.5
    again = pretrain(Toy(), pack(TEXTS), CONFIG, directory=tmp_path)
    assert again.resumed_from == 60
    for a, b in zip(
        jax.tree.leaves(result.params), jax.tree.leaves(again.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_steps_beyond_the_data_repeat_it(tmp_path):
    pretrain(Toy(), TEXTS.take(np.arange(3)), CONFIG, directory=tmp_path)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == 60


def test_bad_settings():
    with pytest.raises(InputError, match="steps = 0"):
        PretrainConfig(steps=0)
