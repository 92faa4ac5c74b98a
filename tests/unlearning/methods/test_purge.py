"""PURGE: what it samples, what it learns from, and that a run goes on as it was."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unlearning_world as world

from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import InputError, Stopped
from lt_mia_jax.executor import make_executor
from lt_mia_jax.finetune.config import LoraConfig
from lt_mia_jax.policy.rollouts import Decoding, Rollouts
from lt_mia_jax.unlearning import train
from lt_mia_jax.unlearning.methods import METHODS
from lt_mia_jax.unlearning.methods.purge import prompt_lengths, sampled_batch
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.unlearning.recipe import UnlearnConfig

FORBIDDEN = "w7"
FAST = UnlearnConfig(learning_rate=0.02, epochs=4, batch_size=4, warmup_epochs=0.0)
PURGE = dataclasses.replace(METHODS["purge"], group=4, new_tokens=4)


class Words:
    """A tokenizer: token 7 is the word w7."""

    eos_token_id = 0

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(f"w{i}" for i in ids if i or not skip_special_tokens)


def texts():
    """Prompts after which the model may say anything; w7 is forbidden."""
    rows = [Question(str(n), "?", FORBIDDEN, value=FORBIDDEN) for n in range(8)]
    answers = world.answers(5, 8)
    short = answers._replace(
        **{
            name: getattr(answers, name)[:, :6]
            for name in ("input_ids", "attention_mask", "label_mask", "value_mask")
        }
    )
    return world.ForgetTexts(short, rows=rows, tokenizer=Words())


def start():
    """A model that says w7 half of the time."""
    params = world.start()
    tokens = params["embedding"]["tokens"]
    scale = params["final_norm"]["bias"] + 4.0 * tokens[7] / (tokens[7] ** 2).sum()
    return {**params, "final_norm": {**params["final_norm"], "bias": scale}}


def run(folder, method=PURGE, config=FAST, executor=None, **options):
    return train.unlearn(
        world.model(),
        start(),
        texts(),
        None,
        method,
        config,
        directory=folder,
        executor=executor,
        **options,
    )


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").open()]


def says_forbidden(params):
    """How often w7 is among four sampled tokens."""
    found = world.sampled(world.model(), params, texts().answers)
    return float((found == 7).any(axis=1).mean())


def test_the_forbidden_word_becomes_rare(tmp_path):
    result = run(tmp_path)
    before, after = says_forbidden(start()), says_forbidden(result.params)
    assert before > 0.3
    assert after < before / 2
    rows = history(tmp_path)
    assert np.mean([row["reward"] for row in rows[-3:]]) > rows[0]["reward"]
    # 4 prompts, 4 answers of at most 4 tokens.
    assert all(0 < row["sampled_tokens"] <= 64 for row in rows)


def test_a_run_that_was_stopped_ends_the_same(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    asked = []

    def stop_later(request):
        asked.append(1)
        return len(asked) == 5

    with monkeypatch.context() as patch:
        patch.setattr("lt_mia_jax.training.preemption.StopRequest.reached", stop_later)
        with pytest.raises(Stopped):
            run(tmp_path / "parts", save_every_seconds=1000.0)
    found = run(tmp_path / "parts")
    assert found.resumed_from == 5
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)
    assert history(tmp_path / "parts") == history(tmp_path / "whole")


def test_devices_change_rounding_only(tmp_path):
    config = dataclasses.replace(FAST, epochs=1)
    found = run(tmp_path / "all", config=config, executor=make_executor("pmap"))
    alone = make_executor(data=1)
    expected = run(tmp_path / "one", config=config, executor=alone)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
        found.params,
        expected.params,
    )


def test_adapters_learn_it_too(tmp_path):
    config = dataclasses.replace(FAST, epochs=2, lora=LoraConfig(rank=4, dropout=0.0))
    result = run(tmp_path, config=config)
    assert says_forbidden(result.params) < says_forbidden(start())


def test_what_an_update_reads():
    """Two prompts, two answers each, laid out by hand."""
    found = Rollouts(
        input_ids=jnp.array([[5, 6, 9, 0], [5, 6, 7, 8], [4, 7, 1, 0], [4, 3, 0, 0]]),
        mask=jnp.array(
            [[0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool
        ),
        log_probs=jnp.zeros((4, 4)),
        lengths=jnp.array([2, 2, 1, 1]),
        decoding=Decoding(max_new_tokens=2),
    )
    assert found.answers() == [[9], [7, 8], [7, 1], [3]]
    rewards = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    batch = sampled_batch(found, rewards, np.array([1.0, 0.5], np.float32))
    np.testing.assert_array_equal(
        batch.label_mask, [[0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]]
    )
    np.testing.assert_array_equal(batch.attention_mask.sum(axis=1), [3, 4, 3, 2])
    np.testing.assert_allclose(batch.advantages, [1, -1, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(batch.weight, [1, 1, 0.5, 0.5])


def test_prompts_end_where_answers_begin():
    labels = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]], np.uint8)
    real = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]], np.uint8)
    batch = TextBatch(labels, real, labels, np.ones(3, np.float32))
    # The second is plain text: its first half.
    np.testing.assert_array_equal(prompt_lengths(batch), [2, 2, 2])


def test_concepts_come_from_a_file_or_are_missed(tmp_path):
    file = tmp_path / "concepts.txt"
    file.write_text("\nw9\n", encoding="utf-8")
    method = dataclasses.replace(PURGE, concepts=str(file))
    config = dataclasses.replace(FAST, epochs=1)
    assert method.words(texts()) == ["w9"]
    assert PURGE.words(texts()) == (FORBIDDEN,)
    run(tmp_path / "own", method, config)
    rows = history(tmp_path / "own")
    assert np.mean([row["reward"] for row in rows]) > 0.5  # w9 is rare
    file.write_text("w3\n")
    with pytest.raises(InputError, match="of other data"):
        run(tmp_path / "own", method, config)
    file.write_text("\n\n")
    with pytest.raises(InputError, match="no forbidden concepts"):
        run(tmp_path / "none", method, config)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="invalid UTF-8"):
        run(tmp_path / "bytes", method, config)
