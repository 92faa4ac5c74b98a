"""Pieces of the demonstrations on streams that cost no training."""

import numpy as np

from experiments.survival import streaming, toy
from experiments.survival.demos import libero, mbtl, nevis, quick_learners, replay
from experiments.survival.demos import unlearn_canvas as canvas
from lt_mia_jax.transfer.streams.grid import GridScores


def test_the_matrix_worked_out_by_hand_is_that_of_the_metrics(monkeypatch):
    assert libero.exact()
    monkeypatch.setattr(libero, "MATRIX", libero.MATRIX + np.eye(3))
    assert not libero.exact()


def test_guesses_are_scored_on_answers_alone():
    texts = toy.Task("copy", length=2).texts(np.random.default_rng(0), 3)
    guessed = texts.ids[:, 1:].copy()
    guessed[:, :3] = -1  # question and separator
    assert streaming.score(guessed, texts) == 1.0
    guessed[0, -1] = -1
    assert streaming.score(guessed, texts) == 1 - 1 / 9


def test_padding_moves_no_answer():
    plain = toy.Task("copy", length=3).texts(np.random.default_rng(1), 4)
    wide = mbtl.padded(3, np.random.default_rng(1), 4)
    assert wide.ids.shape[1] == 2 * mbtl.LENGTHS[-1] + 3
    np.testing.assert_array_equal(wide.ids[wide.answer], plain.ids[plain.answer])
    assert wide.answer.sum() == plain.answer.sum()


def test_a_batch_around_a_length_holds_its_neighbors():
    longest = int(mbtl.LENGTHS[-1])
    for length, near in ((1, [1, 1, 2]), (4, [3, 4, 5]), (longest, None)):
        batch = mbtl.batch(length, np.random.default_rng(2))
        found = sorted(set(batch.answer.sum(axis=1) - 1))
        assert found == sorted(set(near or [longest - 1, longest]))


def test_targets_are_not_among_the_tasks_before_them():
    assert quick_learners.TARGET not in quick_learners.INSTRUCTED
    assert len(quick_learners.INSTRUCTED) == 8
    assert not set(replay.STREAM) & set(replay.BEFORE)
    assert len(set(nevis.TASKS)) == 12


def test_texts_of_the_grid_show_their_style_and_their_topic():
    rng = np.random.default_rng(3)
    styles, topics = np.divmod(np.arange(1600) % 16, 4)
    made = canvas.texts(rng, styles, topics)
    body = made.ids[made.answer].reshape(1600, canvas.BODY) - toy.FIRST
    np.testing.assert_array_equal(body // 10, np.repeat(styles[:, None], 8, axis=1))
    words = (body - 3 * styles[:, None]) % 10
    share = (words // 2 == topics[:, None]).mean()
    assert abs(share - 0.84) < 0.02  # 0.8 + 0.2 * 2 / 10


def test_the_pair_of_most_equal_unlearning_is_compared():
    def run(*values):
        return [(GridScores(ua, 1.0, 1.0), None) for ua in values]

    assert canvas.equal_unlearning(run(0.1, 0.7, 0.9), run(0.71, 0.8, 0.89)) == (2, 2)
    assert canvas.equal_unlearning(run(0.9, 1.0, 1.0), run(0.2, 1.0, 1.0)) == (1, 1)
    assert canvas.equal_unlearning(run(0.3), run(0.3)) is None
    assert canvas.equal_unlearning(run(0.9), run(0.8)) is None
