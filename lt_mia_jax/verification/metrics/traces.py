"""Whether an unlearned model can be told from the original one by its activations."""

from typing import NamedTuple

import numpy as np

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.metrics.checks import PerItem, per_item

FOLDS = 5
_RIDGE = 1.0
_TIE = 1e-9


class Trace(NamedTuple):
    """How well a classifier names the model behind activations it has not seen."""

    right: PerItem
    """Fraction of each text's two activations that are attributed to their model; the
    mean is the accuracy, and chance is 0.5."""
    p_value: float
    """Of exchanging the models on texts; at least 1 / (permutations + 1)."""


def trace_accuracy(
    original: Float[np.ndarray | Array, "_ D"],
    unlearned: Float[np.ndarray | Array, "_ D"],
    *,
    permutations: int = 200,
    seed: int = 0,
) -> Trace:
    """Cross-validated accuracy at naming the model behind an activation.

    Ridge regression on -1 and +1 of standardized features in five folds; both
    activations of a text are always in the same fold. For the p-value the two models
    are exchanged at random on each text and the whole procedure is repeated, at the
    cost of one matrix product: exchanging moves labels only.

    Both features, before the output head, are of the same texts in the same order. Mix
    texts to forget with others: a classifier trained on the former alone sees nothing
    elsewhere.

    Raises:
      InputError: different shapes, or fewer than five texts.

    Source: Unlearning Isn't Invisible, arXiv 2506.14003; there with deep classifiers,
    here with a linear one and a permutation test, for small sets.
    """
    before = per_item("features of the original model", original, ndim=2)
    after = per_item("features of the unlearned model", unlearned, ndim=2)
    if before.shape != after.shape or len(before) < FOLDS:
        raise InputError(
            f"features have shapes {list(before.shape)} and {list(after.shape)}; "
            f"expected the same texts and widths, at least {FOLDS} texts"
        )
    if permutations < 1:
        raise InputError(f"permutations is {permutations}; expected at least 1")
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(before)) % FOLDS
    # One column a draw, the first of which exchanges nothing.
    sign = np.where(rng.random((len(before), permutations + 1)) < 0.5, -1.0, 1.0)
    sign[:, 0] = 1.0
    right = np.zeros(sign.shape)
    for held in range(FOLDS):
        train, test = fold != held, fold == held
        hat = _hat(
            np.concatenate([before[train], after[train]]),
            np.concatenate([before[test], after[test]]),
        )
        found = hat @ np.concatenate([-sign[train], sign[train]])
        found *= np.concatenate([-sign[test], sign[test]])
        score = np.where(np.abs(found) < _TIE, 0.5, found > 0)
        right[test] = score.reshape(2, -1, permutations + 1).mean(axis=0)
    accuracy = right.mean(axis=0)
    reached = int((accuracy[1:] >= accuracy[0]).sum())
    return Trace(right[:, 0], (1 + reached) / (permutations + 1))


def _hat(
    train: Float[np.ndarray, "n D"], test: Float[np.ndarray, "m D"]
) -> Float[np.ndarray, "m n"]:
    """The matrix that turns labels of `train` into ridge predictions on `test`."""
    center, spread = train.mean(axis=0), train.std(axis=0)
    train, test = (
        (x - center) / np.where(spread > 0, spread, 1) for x in (train, test)
    )
    gram = train @ train.T + _RIDGE * np.eye(len(train))
    return np.linalg.solve(gram, train @ test.T).T
