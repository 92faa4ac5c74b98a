"""What speaks for and against the result of unlearning, phrased from its card."""

from collections.abc import Iterator, Mapping
from typing import Any

from lt_mia_jax.attacks.scores.table import CARD_FRACTION, describe
from lt_mia_jax.report.forgetting.cards import Card
from lt_mia_jax.report.forgetting.quantities import FAR, PASSED, leak_word, value_of
from lt_mia_jax.report.membership.checks import Check
from lt_mia_jax.report.wording import NBSP, percentage, plural, unit

FEW = 80
"""The forget-quality test has little power on fewer items."""
RETURNED = 0.1
"""Share of the forgotten knowledge that may come back from rounding unnoticed."""
LEAK_SCORE = "min_k"
"""The score that PrivLeak reads."""
KEPT_MOST = 0.5
"""With more than this share left, nothing can be said of what comes back."""


def findings(document: Mapping[str, Any]) -> list[Check]:
    """What speaks for and against the verdict, cautions first."""
    found = [*_findings(document)]
    order = {"caution": 0, "note": 1, "pass": 2}
    found = [each._replace(text=each.text.replace(" %", f"{NBSP}%")) for each in found]
    return sorted(found, key=lambda check: order[check.level])


def _findings(document: Mapping[str, Any]) -> Iterator[Check]:
    models = document["models"]
    after, before = models["after"], models["before"]
    word = leak_word(after)[1]
    quality = after.get("forget_quality")
    if "retrained" not in models:
        yield Check(
            "caution",
            "No retrained model",
            "Without a model that never saw the texts (--retrained) nobody knows how "
            "much a good result would have forgotten: less is not always better.",
        )
    if not document["scores"]:
        yield Check(
            "caution",
            "No attack",
            "Without texts that no model has seen (--holdout) it was not tried to "
            "tell the forgotten texts from others.",
        )
    if word == "over":
        yield Check(
            "caution",
            "Over-forgotten",
            "Forgotten texts look less familiar than texts never seen. Weaker or "
            "shorter unlearning would be closer to retraining.",
        )
    elif word == "leaks":
        yield Check(
            "caution",
            "Still recognized",
            "Attacks on membership still succeed. The answers may be gone while the "
            "texts are not.",
        )
    elif word == "even":
        yield Check(
            "pass",
            "No leak beyond retraining",
            f"PrivLeak lies within {FAR:g} % of the retrained model.",
        )
    yield from _unfamiliar(after)
    if quality and quality["value"] >= PASSED and word in ("over", "leaks"):
        yield Check(
            "caution",
            "Forget quality alone misleads",
            "The test of truth ratios passes while PrivLeak does not: read them "
            "together.",
        )
    if quality and min(quality["n"]) < FEW:
        yield Check(
            "note",
            "Few questions",
            f"Forget quality rests on {plural(min(quality['n']), 'question')}; under "
            f"{FEW} the test misses large differences.",
        )
    yield from _robust(document)
    old, new = (value_of(x, "model_utility") for x in (before, after))
    if old and new is not None:
        lost = 1 - new / old
        if lost > 0.1:
            yield Check("caution", "Utility lost", f"{percentage(lost)} of it is gone.")
        else:
            yield Check("pass", "Utility kept", f"{percentage(new / old)} is left.")
    refused = [key for key in after if key[:4] == "tpr_" and after[key]["refused"]]
    if refused:
        first = after[refused[0]]
        yield Check(
            "note",
            "No true-positive rate",
            f"TPR at {100 * first['rate']:g} % FPR is refused with "
            f"{first['n_holdout']:,} unseen texts: fewer than ten false positives "
            f"would decide it. It takes {10 / first['rate']:,.0f}.",
        )
    for note in document["notes"]:
        yield Check("note", "Not measured", note)


def _unfamiliar(after: Card) -> Iterator[Check]:
    """Less familiar than new texts: that needs no retrained model to be seen."""
    found = after.get(f"auc_{LEAK_SCORE}")
    if found and "priv_leak" not in after and found["high"] < 0.5:
        yield Check(
            "caution",
            "Over-forgotten",
            "Forgotten texts look less familiar than texts never seen: "
            f"{describe(LEAK_SCORE, CARD_FRACTION).label} has an AUC of "
            f"{unit(found['value'], 2)} (95 % interval {unit(found['low'], 2)} to "
            f"{unit(found['high'], 2)}), below 0.5.",
        )


def _robust(document: Mapping[str, Any]) -> Iterator[Check]:
    left = value_of(document["models"]["after"], "forget_knowledge_left")
    for each in document["rounded"]:
        codes = (
            f"{percentage(each['changed_codes'])} of the rounded weights changed under "
            "unlearning."
        )
        yield _rounding(left, each["bits"], each["recovered"], codes)
    curve = document["relearning"]
    if curve and curve["robustness"] is not None:
        back = curve["robustness"]
        if left is not None and left > KEPT_MOST:
            yield Check("note", "Relearning", f"It says nothing: {_most(left)}.")
            return
        low, high = _ends(back)
        level = "caution" if high < 0.5 else "pass" if low >= 0.5 else "note"
        unsure = "" if level != "note" else "; with so few questions that may be chance"
        yield Check(
            level,
            "Relearning",
            f"After {curve['steps'][-1]} steps on {curve['taught']} of the forgotten "
            f"questions, the answers to {curve['asked']} others "
            f"{_gain(back['value'])}{unsure}.",
        )


def _most(left: float) -> str:
    return (
        f"{percentage(left)} of what the model before knew beyond the retrained one "
        "had not been forgotten"
    )


def _ends(found: Mapping[str, float | None]) -> tuple[float, float]:
    """Ends of an interval; both are the value where there is none."""
    low, high = found["low"], found["high"]
    value = found["value"]
    assert value is not None
    return value if low is None else low, value if high is None else high


def _rounding(
    left: float | None,
    bits: int,
    found: Mapping[str, float | None] | None,
    codes: str,
) -> Check:
    title = f"Rounded to {bits} bits"
    if found is None or left is None:
        return Check("note", title, codes)
    if left > KEPT_MOST:
        return Check("note", title, f"It says nothing: {_most(left)}; {codes}")
    left, (low, high) = max(0.0, left), _ends(found)
    there = (
        f"{percentage(max(0.0, found['value'] or 0.0))} of what the model before knew "
        f"beyond the retrained one is there, against {percentage(left)} without "
        "rounding"
    )
    if low - left > 0 and (found["value"] or 0.0) - left > RETURNED:
        return Check("caution", title, f"{there}; {codes}")
    if high - left <= RETURNED:
        return Check(
            "pass", title, f"At most {percentage(RETURNED)} more comes back; {codes}"
        )
    return Check("note", title, f"{there}, which may be chance; {codes}")


def _gain(robustness: float) -> str:
    if robustness >= 1:
        return "gain no more than on the retrained model"
    if robustness <= 0:
        return "come back, which they do not on the retrained model"
    return f"gain {1 / robustness:.1f} times as much as on the retrained model"
