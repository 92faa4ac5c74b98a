"""What every attack is compared with: a text-only baseline and permuted labels."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import StratifiedKFold

from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

FOLDS = 5
FREQUENCY = 0.05
"""Share of the texts in which a word must occur."""

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
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    # A float is a share of the texts; scikit-learn's stub knows counts only.
    share: Any = FREQUENCY
    for train, test in folds.split(truth, truth):
        known = [texts[int(i)] for i in train]
        held = [texts[int(i)] for i in test]
        vectorizer = CountVectorizer(min_df=share)
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


def _has_words(texts: Sequence[str], vectorizer: CountVectorizer) -> bool:
    """Whether some word is frequent enough; otherwise scikit-learn raises."""
    analyze = vectorizer.build_analyzer()
    frequency = Counter(word for text in texts for word in set(analyze(text)))
    return max(frequency.values(), default=0) >= FREQUENCY * len(texts)
