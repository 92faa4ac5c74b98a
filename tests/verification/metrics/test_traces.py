import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics import traces


def test_trace_is_found_where_there_is_one():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(30, 6))
    shift = np.array([1.5, 0, 0, 0, 0, 0])
    found = traces.trace_accuracy(
        before, before + shift + 0.3 * rng.normal(size=(30, 6)), permutations=19
    )
    assert found.right.mean() > 0.7
    assert found.p_value == 1 / 20
    untouched = traces.trace_accuracy(before, before.copy(), permutations=5)
    assert (untouched.right.mean(), untouched.p_value) == (0.5, 1)


def test_trace_p_value_without_a_trace():
    rng = np.random.default_rng(1)
    p = [
        traces.trace_accuracy(
            *rng.normal(size=(2, 12, 2)), permutations=9, seed=i
        ).p_value
        for i in range(8)
    ]
    assert np.mean(np.array(p) <= 0.2) <= 0.6  # 0.2 expected
    assert max(p) > 0.5


def test_trace_is_judged_on_prompts_not_trained_on():
    # With more features than rows any classifier is perfect on what it has seen.
    noise = np.random.default_rng(2).normal(size=(2, 20, 60))
    assert traces.trace_accuracy(*noise, permutations=1).right.mean() < 0.75


def test_bad_input_is_told():
    with pytest.raises(InputError, match="at least 5 texts"):
        traces.trace_accuracy(np.zeros((3, 2)), np.zeros((3, 2)))


def test_accuracy_and_permutations_equal_a_ridge_classifier_of_sklearn():
    """Each fold fitted anew, the exchanged models as exchanged rows."""
    rng = np.random.default_rng(3)
    before = rng.normal(size=(17, 4)) * [1, 5, 0.2, 1]
    after = before + rng.normal(0.1, 0.8, size=before.shape)
    before[:, 3] = after[:, 3] = 2.0  # does not vary

    def accuracy(one, other, fold):
        right = np.zeros(len(one))
        for held in range(5):
            train, test = fold != held, fold == held
            model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1.0))
            model.fit(
                np.concatenate([one[train], other[train]]),
                np.repeat([0, 1], train.sum()),
            )
            right[test] += model.predict(one[test]) == 0
            right[test] += model.predict(other[test]) == 1
        return right / 2

    seed, permutations = 7, 12
    found = traces.trace_accuracy(before, after, permutations=permutations, seed=seed)
    rng = np.random.default_rng(seed)
    fold = rng.permutation(17) % 5
    np.testing.assert_array_equal(found.right, accuracy(before, after, fold))
    exchanged = rng.random((17, permutations + 1)) < 0.5
    reached = 0
    for column in exchanged[:, 1:].T[:, :, None]:
        one, other = np.where(column, after, before), np.where(column, before, after)
        reached += accuracy(one, other, fold).mean() >= found.right.mean()
    assert 0 < reached < permutations
    assert found.p_value == (1 + reached) / (1 + permutations)
