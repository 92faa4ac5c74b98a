"""Whether an unlearned model can be told from the original one by its activations."""

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics.checks import per_item

_FOLDS = 5


class Trace(NamedTuple):
    """Accuracy of a classifier on prompts that it was not trained on."""

    accuracy: float
    """Chance is 0.5."""
    p_value: float
    """When the models are exchanged on prompts; at least 1 / (permutations + 1)."""


def trace_accuracy(
    original: Float[np.ndarray | Array, "_ D"],
    unlearned: Float[np.ndarray | Array, "_ D"],
    *,
    permutations: int = 100,
    seed: int = 0,
) -> Trace:
    """Cross-validated accuracy at naming the model behind an activation.

    Logistic regression in five folds; both activations of a prompt are always in the
    same fold. For the p-value the two models are exchanged at random on each prompt and
    the whole procedure is repeated.

    Args:
      original: pre-logit features of the last token, one row a prompt.
      unlearned: of the same prompts in the same order. Mix forget-related and unrelated
        prompts: a classifier trained on the former alone sees nothing elsewhere.
      permutations: of the p-value.
      seed: of folds and permutations.

    Raises:
      InputError: different shapes, NaN, or fewer than five prompts.

    Source: Unlearning Isn't Invisible, arXiv 2506.14003; there with deep classifiers,
    here with a linear one and a permutation test, for small sets.
    """
    before = per_item("features of the original model", original, ndim=2)
    after = per_item("features of the unlearned model", unlearned, ndim=2)
    if before.shape != after.shape or len(before) < _FOLDS:
        raise InputError(
            f"features have shapes {list(before.shape)} and {list(after.shape)}; "
            f"expected the same prompts and widths, at least {_FOLDS} prompts"
        )
    if permutations < 1:
        raise InputError(f"permutations is {permutations}; expected at least 1")
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(before)) % _FOLDS
    pairs = np.stack([before, after], axis=1)  # prompts, models, features
    accuracy = _cross_validated(pairs, fold)
    reached = 0
    for _ in range(permutations):
        exchanged = rng.random(len(pairs)) < 0.5
        shuffled = np.where(exchanged[:, None, None], pairs[:, ::-1], pairs)
        reached += _cross_validated(shuffled, fold) >= accuracy
    return Trace(accuracy, (1 + reached) / (permutations + 1))


def _cross_validated(pairs: Float[np.ndarray, "N two D"], fold: np.ndarray) -> float:
    right = 0
    for held in range(_FOLDS):
        train, test = pairs[fold != held], pairs[fold == held]
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(train.reshape(-1, pairs.shape[2]), np.tile([0, 1], len(train)))
        found = model.predict(test.reshape(-1, pairs.shape[2]))
        right += int((found == np.tile([0, 1], len(test))).sum())
    return right / (2 * len(pairs))
