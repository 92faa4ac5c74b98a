"""Streams: order of events, success matrix, operations, fronts."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_mia_jax.transfer.streams import protocol
from lt_mia_jax.transfer.streams.protocol import (
    Learner,
    Predict,
    ResourceUsage,
    Train,
    fine_tuner,
    from_previous,
    from_scratch,
    pareto_front,
    program_flops,
    run_stream,
    task_stream,
)

TASKS = [(name, ord(name), f"in {name}", f"out {name}") for name in "cab"]


def recorder():
    """A learner whose state is the list of what it was given."""

    def train(state, event):
        return (*state, event.data), ResourceUsage(10.0 * event.data, event.data)

    def predict(state, task, inputs):
        return (state, task, inputs), ResourceUsage(1.0, 7)

    return Learner(tuple, train, predict)


def test_the_success_matrix_has_a_row_for_each_training():
    seen = []

    def score(outputs, targets):
        state, task, inputs = outputs
        seen.append((task, inputs, targets))
        return len(state) + ord(task) / 1000

    result = run_stream(recorder(), task_stream(TASKS), score)
    expected = [[k + 1 + ord(name) / 1000 for name in "cab"] for k in range(3)]
    np.testing.assert_allclose(result.matrix, expected)
    assert result.tasks == ("c", "a", "b")
    assert seen[:3] == [(n, f"in {n}", f"out {n}") for n in "cab"]
    assert result.prediction == ResourceUsage(9.0, 7)
    assert result.training[1] == ResourceUsage(970.0, 97)
    assert result.state == tuple(map(ord, "cab"))


def test_the_point_is_the_mean_error_right_after_training_and_all_flops():
    scores = iter([0.5, 0.25, 0.9])
    result = run_stream(
        recorder(), task_stream(TASKS, every=False), lambda *_: next(scores)
    )
    assert np.isnan(result.matrix).sum() == 6
    error, flops = result.point
    assert error == pytest.approx(1 - (0.5 + 0.25 + 0.9) / 3)
    assert flops == 10 * sum(map(ord, "abc"))


def test_usage_adds_operations_and_keeps_the_larger_memory():
    parts = [ResourceUsage(1.0, 5), ResourceUsage(2.0, 3), ResourceUsage(4.0, 4)]
    assert sum(parts, ResourceUsage()) == ResourceUsage(7.0, 5)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([Predict("a", 0, 0)], "must begin with training"),
        ([Train("a", 0), Train("a", 0)], "trained twice"),
        ([Train("a", 0), Predict("z", 0, 0)], r"\['z'\] are tested"),
    ],
)
def test_streams_that_make_no_matrix_are_refused(events, message):
    with pytest.raises(ValueError, match=message):
        run_stream(recorder(), events, lambda *_: 0.0)


def lineage(choose):
    """Models are the list of data that they were trained on."""

    def fit(model, data):
        return (*model, data), ResourceUsage(1.0)

    def predict(model, inputs):
        return model, ResourceUsage()

    seen = {}

    def score(model, target):
        seen[target, len(seen)] = model
        return 0.0

    stream = task_stream([(n, n, None, n) for n in "abc"], every=False)
    result = run_stream(fine_tuner((), fit, predict, choose), stream, score)
    return ["".join(model) for model in seen.values()], result


def test_fine_tuners_start_where_they_are_told():
    def first_or_none(models, data):
        return (0 if models else None), ResourceUsage(100.0)

    assert lineage(from_scratch)[0] == ["a", "b", "c"]
    assert lineage(from_previous)[0] == ["a", "ab", "abc"]
    models, result = lineage(first_or_none)
    assert models == ["a", "ab", "ac"]
    assert result.point[1] == 303.0


def test_a_task_that_was_not_trained_is_answered_by_the_newest_model():
    learner = fine_tuner(
        0,
        lambda model, data: (data, ResourceUsage()),
        lambda model, inputs: (model, ResourceUsage()),
        from_scratch,
    )
    stream = task_stream([("a", 1, 0, 0), ("b", 2, 0, 0)])
    result = run_stream(learner, stream, lambda output, _: output)
    np.testing.assert_array_equal(result.matrix, [[1, 1], [1, 2]])


def test_operations_of_matrix_products_are_counted():
    def layer(x, w, v):
        return jnp.dot(jnp.dot(x, w), v)

    shapes = [(32, 64), (64, 128), (128, 16)]
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    expected = 2 * 32 * 64 * 128 + 2 * 32 * 128 * 16
    assert program_flops(layer, *args) == expected


def test_loops_are_refused_because_their_body_would_count_once():
    weights, x = jnp.ones((4, 8, 8)), jnp.ones((8, 8))

    def stack(x, weights, unroll):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights, unroll=unroll)[0]

    with pytest.raises(ValueError, match="a loop counts once"):
        program_flops(lambda x, w: stack(x, w, 1), x, weights)
    unrolled = program_flops(lambda x, w: stack(x, w, 4), x, weights)
    assert unrolled == pytest.approx(4 * 2 * 8**3, rel=0.05)


def test_the_front_holds_what_nothing_dominates():
    points = np.random.default_rng(0).integers(0, 5, (40, 2)).astype(float)
    expected = [
        not any(
            (q[0] <= p[0] and q[1] <= p[1]) and (q[0] < p[0] or q[1] < p[1])
            for q in points
        )
        for p in points
    ]
    np.testing.assert_array_equal(pareto_front(points), expected)


def test_examples_run():
    assert doctest.testmod(protocol).failed == 0
