"""What stands for and against a result, phrased from its numbers."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from lt_mia_jax.report.drawing.curves import benjamini_hochberg
from lt_mia_jax.report.membership.data import UNKNOWN, Run
from lt_mia_jax.report.schema import Number
from lt_mia_jax.report.wording import (
    NBSP,
    attack_name,
    bounds,
    listed,
    p_text,
    percentage,
    plural,
    unit,
)

NBSP_PERCENT = f"{NBSP}%"
SHIFTED = 0.6
"""A blind baseline above this AUC marks the split as shifted."""
SMALL = 300
"""Fewer members or non-members than this deserve a word of caution."""


class Check(NamedTuple):
    """One finding: passed, a caution, or a remark that is neither."""

    level: Literal["pass", "caution", "note"]
    title: str
    text: str


def checks(run: Run) -> list[Check]:
    """All findings about a run, cautions first."""
    labeled = [each for each in run.summary["combinations"] if each["attacks"]]
    found = list(_unlabeled(run)) if not labeled else list(_labeled(run, labeled))
    found += _p_values(run)
    found += _coverage(run)
    # Phrases may begin with a place or, for a single combination, without one.
    found = [
        each._replace(
            text=(each.text[0].upper() + each.text[1:]).replace(" %", NBSP_PERCENT)
        )
        for each in found
    ]
    order = {"caution": 0, "note": 1, "pass": 2}
    return sorted(found, key=lambda check: order[check.level])


def auc_of(summary: Mapping[str, Any] | None) -> Number | None:
    """The AUC of an attack, or None when it is missing or undefined."""
    interval = summary and summary["auc"]
    return interval["value"] if interval else None


def _unlabeled(run: Run) -> Iterator[Check]:
    if (run.texts.labels != UNKNOWN).any():
        yield Check(
            "caution",
            "Too few labels",
            "Too few members or non-members carry a label to compute how often the "
            "attack is right.",
        )
        return
    yield Check(
        "note",
        "No labels",
        "No text carries a known membership label, so this page cannot say how often "
        "the attack is right on these texts. It shows scores"
        + (" and their p-values." if run.summary["calibration"] else " only."),
    )
    if run.summary["calibration"] is None:
        yield Check(
            "caution",
            "No calibration",
            "No known non-members were given. Scores rank the texts against each "
            "other, but no threshold on them has a known error rate.",
        )


def _labeled(run: Run, combinations: list[Mapping[str, Any]]) -> Iterator[Check]:
    yield from _blind(run, combinations)
    yield from _permutation(combinations)
    yield from _size(combinations)
    yield from _against_chance(run, combinations)
    yield from _novelty(combinations)


def _blind(run: Run, combinations: list[Mapping[str, Any]]) -> Iterator[Check]:
    values = {
        each["name"]: value
        for each in combinations
        if (value := auc_of(each["controls"].get("blind"))) is not None
    }
    missing = [each["name"] for each in combinations if each["name"] not in values]
    if missing:
        yield Check(
            "caution",
            "No blind baseline",
            _where(missing, combinations) + "no classifier without model access was "
            "run, so a difference between members and non-members that has nothing to "
            "do with memorization would go unnoticed.",
        )
    shifted = [name for name, value in values.items() if value > SHIFTED]
    if shifted:
        worst = max(shifted, key=lambda name: values[name])
        yield Check(
            "caution",
            "The split is shifted",
            _where(shifted, combinations) + "a bag-of-words classifier that never sees "
            "a model separates members from non-members with an AUC of "
            f"{unit(values[worst])}{_worst(worst, combinations)}, above {SHIFTED}. "
            "Only the margin of an attack over this baseline is evidence of "
            "memorization.",
        )
    elif values:
        label = attack_name(run.summary["primary"])[0]
        margins = [
            value - values[each["name"]]
            for each in combinations
            if each["name"] in values
            and (value := auc_of(each["attacks"].get(run.summary["primary"])))
            is not None
        ]
        margin = f" {label} exceeds it by {unit(min(margins))}" if margins else ""
        if len(margins) > 1:
            margin += f" to {unit(max(margins))}"
        yield Check(
            "pass",
            "The split is not shifted",
            "Without a model, a bag-of-words classifier reaches an AUC of "
            f"{'at most ' if len(values) > 1 else ''}{unit(max(values.values()))} (0.5 "
            f"is guessing, above {SHIFTED} would be "
            f"suspicious).{margin + '.' if margin else ''}",
        )


def _permutation(combinations: list[Mapping[str, Any]]) -> Iterator[Check]:
    control = {
        each["name"]: each["controls"]["permutation"]
        for each in combinations
        if auc_of(each["controls"].get("permutation")) is not None
    }
    if not control:
        yield Check(
            "note",
            "No permutation control",
            "The evaluation was not repeated with shuffled labels.",
        )
        return
    off = [name for name, each in control.items() if not _covers_half(each["auc"])]
    first = next(iter(control.values()))["auc"]
    # One interval in twenty misses .5 by chance, so several combinations may.
    if len(off) > max(0 if len(control) == 1 else 1, 0.1 * len(control)):
        interval = control[off[0]]["auc"]
        yield Check(
            "caution",
            "Shuffled labels are not at chance",
            _where(off, combinations) + "with shuffled labels the AUC is "
            f"{unit(interval['value'])} {bounds(interval)} instead of 0.5. One "
            "interval in twenty misses by chance; otherwise the evaluation leaks.",
        )
    else:
        detail = (
            f"the AUC is {unit(first['value'])} {bounds(first)}"
            if len(control) == 1
            else f"the interval of the AUC covers 0.5 in {len(control) - len(off)} of "
            f"{len(control)} combinations (about one in twenty misses by chance)"
        )
        yield Check(
            "pass",
            "Shuffled labels give chance",
            f"With permuted labels {detail}.",
        )


def _covers_half(interval: Mapping[str, Any]) -> bool:
    low, high = interval["low"], interval["high"]
    return low is None or high is None or low <= 0.5 <= high


def _size(combinations: list[Mapping[str, Any]]) -> Iterator[Check]:
    smallest: dict[str, int] = {}
    refused: dict[float, list[str]] = {}
    fewest = None
    for each in combinations:
        for summary in each["attacks"].values():
            size = min(summary["n_members"], summary["n_nonmembers"])
            if size < SMALL:
                smallest[each["name"]] = min(size, smallest.get(each["name"], size))
            for rate, result in summary["tpr"].items():
                names = refused.setdefault(float(rate), [])
                if result["refused"] and each["name"] not in names:
                    names.append(each["name"])
            n = summary["n_nonmembers"]
            fewest = n if fewest is None else min(fewest, n)
    if smallest:
        yield Check(
            "caution",
            "Few texts",
            _where(list(smallest), combinations)
            + f"the smaller group has only {plural(min(smallest.values()), 'text')}. "
            "The intervals are wide, and differences between attacks within them "
            "should not be read as a ranking.",
        )
    rates = sorted(rate for rate, names in refused.items() if names)
    if rates:
        names = list(dict.fromkeys(name for rate in rates for name in refused[rate]))
        needed = " and ".join(
            f"{10 / rate:,.0f} non-members for {100 * rate:g} %"
            for rate in reversed(rates)
        )
        yield Check(
            "caution",
            "Some rates are not quoted",
            _where(names, combinations)
            + "TPR at "
            + " and ".join(f"{100 * rate:g} %" for rate in reversed(rates))
            + f" FPR is refused: fewer than ten false positives would decide it. It "
            f"takes at least {needed}; there are {fewest:,}.",
        )


def _against_chance(run: Run, combinations: list[Mapping[str, Any]]) -> Iterator[Check]:
    primary = run.summary["primary"]
    label = attack_name(primary)[0]
    weak, beaten = [], {}
    for each in combinations:
        own = each["attacks"].get(primary)
        value = auc_of(own)
        if own is None or value is None:
            yield Check(
                "caution",
                "No result for the attack behind the verdict",
                f"In {each['name']} there is no AUC for {label}.",
            )
            continue
        if own["auc"]["low"] is not None and own["auc"]["low"] <= 0.5:
            weak.append(each["name"])
        rivals = {
            name: rival
            for name, summary in each["attacks"].items()
            if name != primary and (rival := auc_of(summary)) is not None
        }
        best = max(rivals, key=lambda name: rivals[name], default=None)
        if best is not None and rivals[best] > value:
            beaten[each["name"]] = f"{attack_name(best)[0]} ({unit(rivals[best])})"
    if weak:
        yield Check(
            "caution",
            "Not distinguishable from chance",
            _where(weak, combinations)
            + f"the 95 % interval of the AUC of {label} includes 0.5.",
        )
    if beaten:
        yield Check(
            "note",
            "A simpler attack scores higher",
            _where(list(beaten), combinations)
            + f"{listed(list(beaten.values()))} has a higher AUC than {label}. The "
            "best of many attacks chosen on the same texts is an optimistic number; "
            "the verdict keeps the attack that was fixed beforehand.",
        )


def _novelty(combinations: list[Mapping[str, Any]]) -> Iterator[Check]:
    seen = [each["name"] for each in combinations if each["unseen"] is False]
    if seen:
        yield Check(
            "caution",
            "Not a held-out combination",
            _where(seen, combinations) + "model and corpus were part of what the "
            "learned attack was trained on. Transfer to a new model may be weaker.",
        )
    elif all(each["unseen"] for each in combinations):
        yield Check(
            "pass",
            "Held out",
            "The learned attack was trained on other models and corpora.",
        )


def _p_values(run: Run) -> Iterator[Check]:
    calibration = run.summary["calibration"]
    if calibration is None:
        return
    n, ks_p = calibration["n_calibration"], calibration["ks_p"]
    if ks_p is not None and ks_p < 0.05:
        yield Check(
            "caution",
            "P-values of non-members are not uniform",
            f"Kolmogorov-Smirnov p = {p_text(ks_p)}. The two halves of the "
            "non-members differ, so the p-values cannot be taken at face value.",
        )
    elif ks_p is not None:
        yield Check(
            "pass",
            "P-values of non-members look uniform",
            f"Kolmogorov-Smirnov p = {p_text(ks_p)} on held-out non-members.",
        )
    values = np.asarray(calibration["p_values"], float)
    if len(values):
        below = int((values <= 0.05).sum())
        survive = benjamini_hochberg(values, 0.05)
        yield Check(
            "note",
            "Many texts, many p-values",
            f"{below:,} of {len(values):,} texts have p \N{LESS-THAN OR EQUAL TO} 0.05;"
            f" about {0.05 * len(values):,.0f} would by chance if none were a member. "
            f"{survive:,} remain at a false discovery rate of 5 % "
            "(Benjamini-Hochberg). With "
            f"{n:,} calibration texts no p-value can be below {p_text(1 / (n + 1))}.",
        )
    yield Check(
        "note",
        "P-values assume exchangeable non-members",
        "They hold if the calibration texts are what these texts would be, had they "
        "not been trained on: same source, period and length.",
    )


def _coverage(run: Run) -> Iterator[Check]:
    score = run.texts.scores[run.summary["primary"]]
    missing, total = int(np.isnan(score).sum()), len(score)
    if missing:
        yield Check(
            "caution" if missing > 0.01 * total else "note",
            "Texts without a score",
            f"{plural(missing, 'text')} of {total:,} ({percentage(missing / total)}) "
            "could not be scored and count neither as members nor as non-members.",
        )
    dataset = run.summary["dataset"]
    if dataset is not None and dataset["decision"] != "member":
        yield Check(
            "note",
            "No evidence is not absence",
            "The test did not find that the texts were trained on. It cannot show "
            "that they were not.",
        )


def _where(names: list[str], combinations: list[Mapping[str, Any]]) -> str:
    """`In 2 of 8 combinations (a, b), `, or nothing when there is only one."""
    if len(combinations) == 1:
        return ""
    if len(names) == len(combinations):
        return "In every combination, "
    return f"In {len(names)} of {len(combinations)} combinations ({listed(names)}), "


def _worst(name: str, combinations: list[Mapping[str, Any]]) -> str:
    return f" ({name})" if len(combinations) > 1 else ""
