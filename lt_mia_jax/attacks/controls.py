"""What every attack is compared with: a text-only baseline and permuted labels."""

import logging
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from scipy.stats import mannwhitneyu
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import StratifiedKFold

from lt_mia_jax.attacks import metrics
from lt_mia_jax.attacks.estimate import Comparison
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

FOLDS = 5
FREQUENCY = 0.05
"""Share of the texts in which a word must occur."""

SHIFTED = 0.6
"""A text-only classifier above this AUC says that two sets of texts differ."""
FEWEST = 10
"""Texts of each kind that the comparison of two sets needs."""
_MOST = 2000  # texts of each kind that it looks at
_CERTAIN, _LIKELY = 0.01, 0.05

Labels = Integer[np.ndarray, " N"]


def permuted_labels(labels: Labels, seed: int) -> Labels:
    """The same labels in random order: against them every score must give AUC 0.5."""
    return np.random.default_rng(seed).permutation(labels)


def text_only_baseline(
    texts: Sequence[str], labels: Labels, *, seed: int
) -> Float[np.ndarray, " N"]:
    """Out-of-fold probability of membership from words alone; no model is asked.

    An AUC above 0.6 says that members and non-members differ as texts, so that the
    split does not measure memorization; an attack counts only by its margin over this.

    Args:
      texts: as the models saw them.
      labels: 1 member, 0 non-member; at least 5 of each.
      seed: of folds and forest.

    Raises:
      InputError: fewer than 5 members or non-members.

    Source: SoK: Membership Inference Attacks on LLMs are Rushing Nowhere, arXiv
    2406.17975: word counts of minimum document frequency 5 %, random forest of 100
    trees of depth 2 with 5 texts a leaf, stratified 5-fold.
    """
    truth = np.asarray(labels)
    smallest = min(int((truth == 1).sum()), int((truth == 0).sum()))
    if smallest < FOLDS:
        raise InputError(
            f"the smaller class has {smallest} texts; {FOLDS}-fold cross-validation "
            f"needs at least {FOLDS} members and {FOLDS} non-members"
        )
    # A float is a share of the texts; scikit-learn's stub knows counts only.
    share: Any = FREQUENCY

    def counts(train: np.ndarray, test: np.ndarray) -> tuple[Any, Any] | None:
        known = [texts[int(i)] for i in train]
        vectorizer = CountVectorizer(min_df=share)
        if not _has_words(known, vectorizer):
            log.warning("no word occurs in 5 %% of the texts; the baseline says 0.5")
            return None
        held = [texts[int(i)] for i in test]
        return vectorizer.fit_transform(known), vectorizer.transform(held)

    return _out_of_fold(counts, truth, seed)


def compare_sets(
    suspects: Sequence[str], nonmembers: Sequence[str], *, seed: int = 0
) -> Comparison:
    """Whether known non-members are like the texts under audit, as far as texts tell.

    If not, a score that differs says nothing about training. Two forests, of words and
    of text statistics (`TEXT_STATISTICS`), are cross-validated to tell the sets apart.
    With the p-value of the better AUC (Mann-Whitney, doubled for the choice of two),
    the sets are `different` above an AUC of .6 if p <= .01, and `doubtful` above .6 or
    if p <= .05. At most 2,000 texts of each set are looked at.

    Args:
      suspects: texts under audit, without near copies, as far as they were scored.
      nonmembers: known non-members, alike.
      seed: of samples, folds, forests and resamples.

    Example:
      >>> from lt_mia_jax.attacks.controls import compare_sets
      >>> early, late = ([f"{year} {i}" for i in range(40)] for year in (1790, 1990))
      >>> found = compare_sets(early, late)
      >>> found.decision, found.auc.value
      ('different', 1.0)
    """
    if min(len(suspects), len(nonmembers)) < FEWEST:
        return Comparison(decision="untested")
    rng = np.random.default_rng(seed)
    sets = [
        [texts[int(i)] for i in rng.permutation(len(texts))[:_MOST]]
        for texts in (suspects, nonmembers)
    ]
    texts = [text for each in sets for text in each]
    truth = np.repeat([1, 0], [len(each) for each in sets])
    table = text_statistics(texts)
    by_words = text_only_baseline(texts, truth, seed=seed)
    by_statistics = _out_of_fold(
        lambda train, test: (table[train], table[test]), truth, seed
    )
    better = max(by_words, by_statistics, key=lambda scores: metrics.auc(truth, scores))
    found = metrics.summarize(truth, better, seed=seed).auc
    test: Any = mannwhitneyu(
        better[truth == 1], better[truth == 0], alternative="greater"
    )
    p_value, shifted = min(1.0, 2 * float(test.pvalue)), (found.value or 0) > SHIFTED
    apart = [abs(metrics.auc(truth, column) - 0.5) for column in table.T]
    most = int(np.argmax(apart))
    return Comparison(
        decision="different"
        if shifted and p_value <= _CERTAIN
        else "doubtful"
        if shifted or p_value <= _LIKELY
        else "alike",
        auc=found,
        statistic=TEXT_STATISTICS[most],
        suspects=float(np.median(table[truth == 1, most])),
        nonmembers=float(np.median(table[truth == 0, most])),
    )


TEXT_STATISTICS = (
    "characters",
    "words",
    "characters per word",
    "lines",
    "compressed size per byte",
    "share of distinct words",
    "share of digits",
    "share of capitals",
    "share of white space",
    "share of punctuation",
    "share of characters beyond ASCII",
)
"""What `text_statistics` takes, in its order."""


def text_statistics(texts: Sequence[str]) -> Float[np.ndarray, "N S"]:
    """Numbers that describe texts without any model, a column for each statistic."""
    return np.stack([_statistics(text) for text in texts])


def _statistics(text: str) -> Float[np.ndarray, " _"]:
    words, size = text.split(), max(1, len(text))
    raw = text.encode("utf-8", "replace")

    def share(kind: Callable[[str], bool]) -> float:
        return sum(map(kind, text)) / size

    found = [
        len(text),
        len(words),
        sum(map(len, words)) / max(1, len(words)),
        text.count("\n") + 1,
        len(zlib.compress(raw)) / max(1, len(raw)),
        len(set(words)) / max(1, len(words)),
        share(str.isdigit),
        share(str.isupper),
        share(str.isspace),
        share(lambda x: not x.isalnum() and not x.isspace()),
        share(lambda x: not x.isascii()),
    ]
    return np.array(found, np.float64)


def _out_of_fold(
    columns: Callable[[np.ndarray, np.ndarray], tuple[Any, Any] | None],
    truth: np.ndarray,
    seed: int,
) -> Float[np.ndarray, " N"]:
    """Cross-validated probability of label 1 under a forest.

    `columns` gives the features of the texts of two lists of rows, to fit on and to
    judge; with None these are judged 0.5.
    """
    scores = np.full(len(truth), 0.5)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(truth, truth):
        if (features := columns(train, test)) is None:
            continue
        forest = RandomForestClassifier(
            100, max_depth=2, min_samples_leaf=5, random_state=seed
        )
        forest.fit(features[0], truth[train])
        member = list(forest.classes_).index(1)
        scores[test] = np.asarray(forest.predict_proba(features[1]))[:, member]
    return scores


def _has_words(texts: Sequence[str], vectorizer: CountVectorizer) -> bool:
    """Whether some word is frequent enough; otherwise scikit-learn raises."""
    analyze = vectorizer.build_analyzer()
    frequency = Counter(word for text in texts for word in set(analyze(text)))
    return max(frequency.values(), default=0) >= FREQUENCY * len(texts)
