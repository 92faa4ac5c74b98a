"""What every attack is compared with: a text-only baseline and permuted labels."""

import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from scipy.sparse import hstack
from scipy.stats import mannwhitneyu
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from lt_mia_jax.attacks import metrics
from lt_mia_jax.attacks.estimate import Comparison
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

FOLDS = 5
FREQUENCY = 0.05
"""Share of the texts in which a word must occur."""
# scikit-learn's stub knows counts only.
_SHARE: Any = FREQUENCY

SHIFTED = 0.6
"""A text-only classifier above this AUC says that two sets of texts differ."""
FEWEST = 10
"""Texts of each kind that the comparison of two sets needs."""
_MOST = 2000  # texts of each kind that it looks at
_CERTAIN, _LIKELY = 0.01, 0.05
_STATISTIC = 0.1  # weight of a standardized text statistic beside a tf-idf vector

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
    scores = np.full(len(truth), 0.5)
    for train, test in _folds(truth, seed):
        known, held = _texts(texts, train), _texts(texts, test)
        vectorizer = CountVectorizer(min_df=_SHARE)
        if not _has_words(known, vectorizer):
            log.warning("no word occurs in 5 %% of the texts; the baseline says 0.5")
            continue
        forest = RandomForestClassifier(
            100, max_depth=2, min_samples_leaf=5, random_state=seed
        )
        forest.fit(vectorizer.fit_transform(known), truth[train])
        member = list(forest.classes_).index(1)
        found = forest.predict_proba(vectorizer.transform(held))
        scores[test] = np.asarray(found)[:, member]
    return scores


def compare_sets(
    suspects: Sequence[str], nonmembers: Sequence[str], *, seed: int = 0
) -> Comparison:
    """Whether known non-members are like the texts under audit, as far as texts tell.

    If not, a score that differs says nothing about training. A logistic regression on
    words (tf-idf) and text statistics (`TEXT_STATISTICS`) is cross-validated to tell
    the sets apart. They are `different` above an AUC of .6 if its p-value (of the
    Mann-Whitney test) is at most .01, and `doubtful` above .6 or if p <= .05. At most
    2,000 texts of each set are looked at.

    Args:
      suspects: texts under audit, without near copies, as far as they were scored.
      nonmembers: known non-members, alike.
      seed: of samples, folds and resamples.

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
        _texts(texts, rng.permutation(len(texts))[:_MOST])
        for texts in (suspects, nonmembers)
    ]
    texts = [text for each in sets for text in each]
    truth = np.repeat([1, 0], [len(each) for each in sets])
    table = text_statistics(texts)
    scores = _told_apart(texts, table, truth, seed)
    found = metrics.summarize(truth, scores, seed=seed).auc
    # Any: the stub does not know its result's fields.
    test: Any = mannwhitneyu(
        scores[truth == 1], scores[truth == 0], alternative="greater"
    )
    shifted = (found.value or 0) > SHIFTED
    apart = [abs(metrics.auc(truth, column) - 0.5) for column in table.T]
    most = int(np.argmax(apart))
    return Comparison(
        decision="different"
        if shifted and test.pvalue <= _CERTAIN
        else "doubtful"
        if shifted or test.pvalue <= _LIKELY
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


def _told_apart(
    texts: Sequence[str],
    table: Float[np.ndarray, "N S"],
    truth: np.ndarray,
    seed: int,
) -> Float[np.ndarray, " N"]:
    """Cross-validated logit of label 1, from words and text statistics."""
    scores = np.zeros(len(truth))
    for train, test in _folds(truth, seed):
        known, held = _texts(texts, train), _texts(texts, test)
        mean, deviation = table[train].mean(axis=0), table[train].std(axis=0)
        scaled = _STATISTIC * (table - mean) / np.where(deviation > 0, deviation, 1)
        columns: list[list[Any]] = [[scaled[train]], [scaled[test]]]
        vectorizer = TfidfVectorizer(min_df=_SHARE, sublinear_tf=True)
        if _has_words(known, vectorizer):
            columns[0].append(vectorizer.fit_transform(known))
            columns[1].append(vectorizer.transform(held))
        fitting, judged = (hstack(each, format="csr") for each in columns)
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        scores[test] = model.fit(fitting, truth[train]).decision_function(judged)
    return scores


def _folds(truth: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows to judge."""
    return StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(truth, truth)


def _texts(texts: Sequence[str], rows: np.ndarray) -> list[str]:
    return [texts[int(row)] for row in rows]


def _has_words(texts: Sequence[str], vectorizer: CountVectorizer) -> bool:
    """Whether some word is frequent enough; otherwise scikit-learn raises."""
    analyze = vectorizer.build_analyzer()
    frequency = Counter(word for text in texts for word in set(analyze(text)))
    return max(frequency.values(), default=0) >= FREQUENCY * len(texts)
