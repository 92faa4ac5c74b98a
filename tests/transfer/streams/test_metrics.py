"""Metrics of success matrices: known answers, loops, NumPy against JAX."""

import doctest
import math

import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import jit

from lt_mia_jax.transfer.streams import metrics

MATRIX = np.array([[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.3, 0.6, 1.0]])
CURVES = np.array([[0.0, 0.6, 0.9], [0.2, 0.8, 0.4], [0.4, 1.0, 1.0]])


def random_case(seed, tasks=5, checkpoints=7):
    rng = np.random.default_rng(seed)
    return rng.random((tasks, tasks)), rng.random((tasks, checkpoints))


def loops(matrix, curves, joint):
    """Every metric as its definition reads."""
    tasks, checkpoints = curves.shape
    held = curves.copy()
    for k in range(tasks):
        best = list(curves[k]).index(max(curves[k]))
        for m in range(best, checkpoints):
            held[k, m] = curves[k, best]
    fwt = [sum(held[k]) / checkpoints for k in range(tasks)]
    nbt, area = [], []
    for k in range(tasks):
        later = range(k + 1, tasks)
        if later:
            nbt.append(sum(matrix[k, k] - matrix[j, k] for j in later) / len(later))
        area.append((fwt[k] + sum(matrix[j, k] for j in later)) / (tasks - k))
    last = tasks - 1
    return {
        "fwt": fwt,
        "nbt": nbt,
        "auc": area,
        "final_mean": sum(matrix[last]) / tasks,
        "mean_average_accuracy": sum(
            sum(matrix[k, i] for i in range(k + 1)) / (k + 1) for k in range(tasks)
        )
        / tasks,
        "bwt": sum(matrix[last, i] - matrix[i, i] for i in range(last)) / last,
        "intransigence": [joint[k] - matrix[k, k] for k in range(tasks)],
    }


def measured(matrix, curves, joint):
    return {
        "fwt": metrics.fwt(curves),
        "nbt": metrics.nbt(matrix),
        "auc": metrics.auc(matrix, curves),
        "final_mean": metrics.final_mean(matrix),
        "mean_average_accuracy": metrics.mean_average_accuracy(matrix),
        "bwt": metrics.bwt(matrix),
        "intransigence": metrics.intransigence(matrix, joint),
    }


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_their_definitions(seed):
    matrix, curves = random_case(seed)
    joint = np.random.default_rng(seed + 50).random(len(matrix))
    expected = loops(matrix, curves, joint)
    found = measured(matrix, curves, joint)
    on_device = jit(measured)(*map(jnp.asarray, (matrix, curves, joint)))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(on_device[name], value, rtol=1e-5, err_msg=name)
        assert np.asarray(found[name]).dtype == np.float64
        assert on_device[name].dtype == jnp.float32


def test_a_matrix_that_was_worked_out_by_hand():
    np.testing.assert_allclose(metrics.fwt(CURVES), [0.5, 0.6, 0.8])
    np.testing.assert_allclose(metrics.nbt(MATRIX), [0.5, 0.2])
    np.testing.assert_allclose(metrics.auc(MATRIX, CURVES), [1.3 / 3, 0.6, 0.8])
    assert metrics.bwt(MATRIX) == pytest.approx(-0.4)
    assert metrics.mean_average_accuracy(MATRIX) == pytest.approx(
        (0.9 + 0.65 + 1.9 / 3) / 3
    )


def test_the_best_checkpoint_is_kept_and_not_the_last():
    held = metrics.hold_best(CURVES)
    np.testing.assert_array_equal(held[1], [0.2, 0.8, 0.8])
    np.testing.assert_array_equal(metrics.hold_best(held), held)


def test_no_forgetting_is_zero_and_gain_is_negative():
    kept = np.tile([0.5, 0.75, 0.875], (3, 1))
    np.testing.assert_array_equal(metrics.nbt(kept), [0, 0])
    assert (metrics.nbt(kept + 0.1 * np.arange(3)[:, None]) < 0).all()


def test_scores_of_tasks_not_yet_learned_may_be_missing():
    holes = np.where(np.triu(np.ones((3, 3)), 1) > 0, np.nan, MATRIX)
    np.testing.assert_array_equal(metrics.nbt(holes), metrics.nbt(MATRIX))
    np.testing.assert_array_equal(
        metrics.auc(holes, CURVES), metrics.auc(MATRIX, CURVES)
    )
    assert metrics.mean_average_accuracy(holes) == metrics.mean_average_accuracy(MATRIX)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="expected K x K"):
        metrics.auc(MATRIX[:2], CURVES)
    with pytest.raises(ValueError, match="K >= 2"):
        metrics.nbt(MATRIX[:1, :1])


def recovery_loop(steps, scores, original, share):
    for step, score in zip(steps, scores, strict=True):
        if score >= share * original:
            return step
    return math.inf


def match_loop(fractions, scores, target):
    """The running best, interpolated by NumPy on a fine line between neighbors."""
    best = [max(scores[: i + 1]) for i in range(len(scores))]
    for i, value in enumerate(best):
        if value >= target:
            if i == 0:
                return fractions[0]
            pair = [best[i - 1], best[i]], [fractions[i - 1], fractions[i]]
            return np.interp(target, *pair)
    return math.inf


@pytest.mark.parametrize("target", [0.05, 0.5, 0.8, 1.5])
def test_recovery_and_data_to_match_equal_loops(target):
    on_device = jit(metrics.data_to_match)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        x, scores = np.sort(rng.random(6)), rng.random(6)
        expected = match_loop(x, scores, target)
        assert metrics.data_to_match(x, scores, target) == pytest.approx(expected)
        found = on_device(jnp.asarray(x), jnp.asarray(scores), target)
        assert float(found) == pytest.approx(expected, rel=1e-4)
        steps = np.arange(6) * 10
        found = metrics.recovery_steps(steps, scores, target, share=0.9)
        assert found == recovery_loop(steps, scores, target, 0.9)


def test_a_dip_does_not_count_against_the_curve():
    x, scores = np.array([0.1, 0.2, 0.4, 1.0]), np.array([0.3, 0.6, 0.1, 0.8])
    assert metrics.data_to_match(x, scores, 0.7) == pytest.approx(0.7)
    assert metrics.data_to_match(x, scores, 0.6) == pytest.approx(0.2)
    assert metrics.data_to_match(x, scores, 0.2) == pytest.approx(0.1)


def test_examples_run():
    assert doctest.testmod(metrics).failed == 0
