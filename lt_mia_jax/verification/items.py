"""What is measured of a model item by item, before anything is averaged."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lt_mia_jax.arrays import Float
from lt_mia_jax.verification.metrics.checks import PerItem
from lt_mia_jax.verification.metrics.traces import Trace


class Items(NamedTuple):
    """Values of each question of a set, `[N]`; NaN where a question has none."""

    probability: Float[np.ndarray, " N"]
    """exp(-mean loss of the answer)."""
    rouge: Float[np.ndarray, " N"]
    """ROUGE-L recall of the greedy answer."""
    exact_memorization: Float[np.ndarray, " N"]
    extraction_strength: Float[np.ndarray, " N"]
    slot_accuracy: Float[np.ndarray, " N"]
    """Whether the value alone is predicted, teacher forced."""
    slot_log_rank: Float[np.ndarray, " N"]
    truth_ratio: Float[np.ndarray, " N"]
    """Wrong answers over the paraphrased (or plain) right one."""
    normalized_probability: Float[np.ndarray, " N"]
    """Probability among right and wrong answers."""
    generated: tuple[str, ...]
    """The greedy answers."""


class Measured(NamedTuple):
    """Everything about one model that a card is made of."""

    sets: Mapping[str, Items]
    """`forget`, and for model utility `retain`, `real_authors`, `world_facts`."""
    forget_scores: Mapping[str, Float[np.ndarray, " N"]] = {}
    """Membership scores of forgotten texts, by attack."""
    holdout_scores: Mapping[str, Float[np.ndarray, " M"]] = {}
    """The same of texts that no model has seen."""
    memo: PerItem | None = None
    """MEMO of the forgotten answers."""
    topics: tuple[str | None, ...] = ()
    """Groups of the texts behind `forget_scores`."""
    trace: Trace | None = None
    """Told from the model before unlearning."""
    distance: PerItem | None = None
    """Squared distance of next-token distributions to the retrained model."""


class MuseMeasured(NamedTuple):
    """Values of one model on the texts of MUSE."""

    verbatim: PerItem
    """VerbMem: ROUGE-L F1 of the continuation."""
    forget_knowledge: PerItem
    """KnowMem on the forget set: ROUGE-L F1 of the answer."""
    retain_knowledge: PerItem
    """The same on the retain set: utility."""
    forget_scores: Mapping[str, PerItem]
    holdout_scores: Mapping[str, PerItem]
