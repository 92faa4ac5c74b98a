"""What speaks for and against the result of unlearning, phrased from its cards."""

from collections.abc import Iterator

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.attacks.scores.table import CARD_FRACTION, describe
from lt_mia_jax.report.forgetting.likeness import (
    FAR,
    QUANTITIES,
    ends,
    leak_of,
    outside,
)
from lt_mia_jax.report.forgetting.metrics import REJECTED
from lt_mia_jax.report.forgetting.verdict import both
from lt_mia_jax.report.panels import Finding, caution, in_order, note, passed
from lt_mia_jax.report.wording import percent, percentage, plural, unit
from lt_mia_jax.verification.leakage import LEAK_SCORE
from lt_mia_jax.verification.metrics.equivalence import FEWEST
from lt_mia_jax.verification.records import (
    DIFFERENT,
    EQUIVALENT,
    Card,
    Relearning,
    Rounding,
    UnlearningRun,
    Verification,
)

FEW = 80
"""The forget-quality test has little power on fewer items."""
RETURNED = 0.1
"""Fraction of the forgotten knowledge that may come back from rounding unnoticed."""
LOST = 0.1
"""Fraction of the utility that may go unnoticed."""
KEPT_MOST = 0.5
"""With more than this left, nothing can be said of what comes back."""
_LEAKS = {
    "over": caution(
        "Over-forgotten",
        "Forgotten texts look less familiar than texts never seen. Weaker or shorter "
        "unlearning would be closer to retraining.",
    ),
    "leaks": caution(
        "Still recognized",
        "Attacks on membership still succeed. The answers may be gone while the texts "
        "are not.",
    ),
    "even": passed(
        "No leak beyond retraining",
        f"PrivLeak lies within {FAR:g} % of the retrained model.",
    ),
}
"""By the CSS class of what PrivLeak says."""


def findings(run: UnlearningRun) -> list[Finding]:
    """What speaks for and against the verdict, cautions first."""
    found = run.verification
    before, after = found.models["before"], found.models["after"]
    return in_order(
        [
            *_not_compared(found),
            *_likeness(after),
            *_leak(after),
            *_quality(after),
            *_robust(found),
            *_utility(before, after),
            *_refused(after),
            *(note("Not measured", text) for text in found.notes),
        ]
    )


def _not_compared(found: Verification) -> Iterator[Finding]:
    if "retrained" not in found.models:
        yield caution(
            "No retrained model",
            "Without a model that never saw the texts (--retrained) nobody knows how "
            "much a good result would have forgotten: less is not always better.",
        )
    if not found.scores:
        yield caution(
            "No attack",
            "Without texts that no model has seen (--holdout) it was not tried to "
            "tell the forgotten texts from others.",
        )


def _likeness(after: Card) -> Iterator[Finding]:
    """The test of equivalence to the retrained model."""
    found = after.equivalence
    if found is None:
        return
    margin = percent(found.margin)
    if found.decision == EQUIVALENT:
        compared = ", ".join(QUANTITIES[name] for name in found.shares)
        yield passed(
            "Like the retrained model",
            f"On {plural(found.n, 'question')} {compared} differ from its own by "
            f"less than {margin} of what was learned.",
        )
    elif found.decision == DIFFERENT:
        parts = (
            f"{percentage(share.value)} of what was learned by the {QUANTITIES[name]} "
            f"(90 % interval {percentage(share.low)} to {percentage(share.high)})"
            for name, share in outside(found).items()
        )
        yield caution(
            "Not like the retrained model",
            f"{'; '.join(parts)}: beyond the margin of {margin} around 0.",
        )
    else:
        yield note(
            "Too few questions to tell",
            f"On {plural(found.n, 'question')} it is not shown that the model is like "
            f"the retrained one to within {margin} of what was learned, nor that it is "
            "not.",
        )


def _leak(after: Card) -> Iterator[Finding]:
    if found := _LEAKS.get(leak_of(after).css):
        yield found
    attack = after.attacks.get(LEAK_SCORE)
    if attack is None or after.priv_leak is not None:
        return
    low, high = ends(attack.auc)
    if high < 0.5:  # needs no retrained model to be seen
        yield caution(
            "Over-forgotten",
            "Forgotten texts look less familiar than texts never seen: "
            f"{describe(LEAK_SCORE, CARD_FRACTION).label} has an AUC of "
            f"{unit(attack.auc.value, 2)} (95 % interval {unit(low, 2)} to "
            f"{unit(high, 2)}), below 0.5.",
        )


def _quality(after: Card) -> Iterator[Finding]:
    quality = after.forget_quality
    if quality is None:
        return
    if quality.value >= REJECTED and leak_of(after).css in ("over", "leaks"):
        yield caution(
            "Forget quality alone misleads",
            "The test of truth ratios finds no difference where PrivLeak does: read "
            "them together.",
        )
    if min(quality.n) < FEW:
        yield note(
            "Few questions",
            f"Forget quality rests on {plural(min(quality.n), 'question')}; under "
            f"{FEW} the test misses large differences.",
        )


def _utility(before: Card, after: Card) -> Iterator[Finding]:
    found = both("model_utility", before, after)
    if not found or not found[0]:
        return
    left = found[1] / found[0]
    utility = after.model_utility
    least = ((utility and utility.low) or 0.0) / found[0]
    if 1 - left > LOST:
        yield caution("Utility lost", f"{percentage(1 - left)} of it is gone.")
    elif 1 - least > LOST:
        yield note(
            "Utility",
            f"{percentage(left)} is left, but its 95 % interval begins at "
            f"{percentage(least)}.",
        )
    else:
        yield passed("Utility kept", f"{percentage(left)} is left.")


def _refused(after: Card) -> Iterator[Finding]:
    rates = [each.tpr for each in after.attacks.values()]
    for rate in [rate for rate in rates if rate and rate.refused][:1]:
        yield note(
            "No true-positive rate",
            f"TPR at {percent(rate.rate)} FPR is refused with {rate.n_holdout:,} "
            "unseen texts: fewer than ten false positives would decide it. It takes "
            f"{10 / rate.rate:,.0f}.",
        )


def _robust(found: Verification) -> Iterator[Finding]:
    left = found.models["after"].forget_knowledge_left
    known = left and left.value
    for each in found.rounded:
        yield _rounding(known, each)
    if found.relearning and found.relearning.robustness:
        yield _relearning(known, found.relearning, found.relearning.robustness)


def _says_nothing(left: float) -> str:
    return (
        f"It says nothing: {percentage(left)} of what the model before knew beyond the "
        "retrained one had not been forgotten"
    )


def _rounding(left: float | None, found: Rounding) -> Finding:
    title = f"Rounded to {found.bits} bits"
    if found.grid == "bitsandbytes":
        title += " as by bitsandbytes"
    codes = (
        f"{percentage(found.changed_codes)} of the rounded weights changed under "
        "unlearning."
    )
    back = found.recovered
    if back is None or back.value is None or left is None:
        return note(title, codes)
    if left > KEPT_MOST:
        return note(title, f"{_says_nothing(left)}; {codes}")
    left, (low, high) = max(0.0, left), ends(back)
    there = (
        f"{percentage(max(0.0, back.value))} of what the model before knew beyond the "
        f"retrained one is there, against {percentage(left)} without rounding"
    )
    if low - left > 0 and back.value - left > RETURNED:
        return caution(title, f"{there}; {codes}")
    few = back.low is None or found.models["after"].n_forget < FEWEST
    if high - left <= RETURNED and not few:
        most = f"At most {percentage(RETURNED)} more comes back"
        return passed(title, f"{most}; {codes}")
    return note(title, f"{there}, which may be chance; {codes}")


def _relearning(left: float | None, found: Relearning, back: Estimate) -> Finding:
    if left is not None and left > KEPT_MOST:
        return note("Relearning", f"{_says_nothing(left)}.")
    assert back.value is not None
    low, high = ends(back)
    few = back.low is None or found.asked < FEWEST
    level = "caution" if high < 0.5 else "note" if low < 0.5 or few else "pass"
    unsure = "; with so few questions that may be chance" if level == "note" else ""
    if back.value >= 1:
        gain = "gain no more than on the retrained model"
    elif back.value <= 0:
        gain = "come back, which they do not on the retrained model"
    else:
        gain = f"gain {1 / back.value:.1f} times as much as on the retrained model"
    return Finding(
        level,
        "Relearning",
        f"After {found.steps[-1]} steps on {found.taught} of the forgotten questions, "
        f"the answers to {found.asked} others {gain}{unsure}.",
    )
