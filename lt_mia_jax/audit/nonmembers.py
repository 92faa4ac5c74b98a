"""What the scores of known non-members say about those of the texts under audit."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lt_mia_jax.attacks import calibration, controls
from lt_mia_jax.attacks.estimate import Comparison, DatasetVerdict
from lt_mia_jax.audit.records import Calibration
from lt_mia_jax.audit.results import calibrate
from lt_mia_jax.audit.scoring import ScoredTexts


class Judged(NamedTuple):
    """What a comparison of scores has shown; None where it may not be concluded."""

    comparison: Comparison | None = None
    """Of the two sets of texts without any model."""
    lower: float | None = None
    """P-value of "the texts do not score lower than non-members", which training on
    them cannot cause."""
    p_values: Float[np.ndarray, " N"] | None = None
    q_values: Float[np.ndarray, " N"] | None = None
    dataset: DatasetVerdict | None = None
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()


def judge(
    scored: ScoredTexts,
    against: ScoredTexts,
    *,
    primary: str,
    independent: Bool[np.ndarray, " N"],
    alpha: float = calibration.ALPHA,
    seed: int = 0,
) -> Judged:
    """Conformal p-values of the texts and a verdict on the set, where they are valid.

    First the two sets are compared without any model. If they differ as texts, their
    scores may differ for that reason, and nothing is concluded.

    Args:
      scored: N texts under audit.
      against: known non-members, drawn like them.
      primary: score of the p-values.
      independent: texts that are no near copies of earlier ones; the others enter
        neither the comparison nor the verdict on the set.
      alpha: level of that verdict.
      seed: of samples, splits and folds.
    """
    rows = np.flatnonzero(independent)
    words = scored.words or [""] * len(scored.ids)
    comparison = controls.compare_sets(
        [words[int(row)] for row in rows], against.words or [], seed=seed
    )
    own, usable = scored.scores[primary], against.scores[primary]
    found = Judged(comparison, calibration.lower_p_value(own[rows], usable))
    if comparison.decision == "different":
        return found
    p_values = calibration.conformal_p_values(own, usable)
    found = found._replace(
        p_values=p_values,
        q_values=calibration.q_values(p_values),
        calibration=calibrate(primary, p_values, usable, seed=seed),
    )
    distinct = {name: values[rows] for name, values in scored.scores.items()}
    scorable = int(np.sum(~np.isnan(distinct["loss"])))
    if scorable < calibration.FEWEST:
        return found._replace(
            notes=(
                f"{scorable} distinct texts could be scored; a verdict on the whole "
                f"set needs at least {calibration.FEWEST}, so only p-values of single "
                "texts are given.",
            )
        )
    return found._replace(
        dataset=calibration.dataset_inference(
            distinct, against.scores, alpha=alpha, seed=seed
        )
    )
