"""What speaks for and against the result of an audit, phrased from its numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lt_mia_jax.arrays import Float
from lt_mia_jax.attacks.calibration import q_values
from lt_mia_jax.attacks.controls import SHIFTED
from lt_mia_jax.attacks.estimate import AttackSummary
from lt_mia_jax.audit.records import (
    NO_REFERENCE,
    PERMUTATION,
    TEXT_ONLY,
    CombinationSummary,
)
from lt_mia_jax.audit.verdict import differs_most
from lt_mia_jax.report.membership.run import UNKNOWN, Run
from lt_mia_jax.report.panels import Finding, caution, in_order, note, passed
from lt_mia_jax.report.wording import (
    attack_name,
    bounds,
    listed,
    p_text,
    percent,
    percentage,
    plural,
    unit,
)

SMALL = 300
"""Fewer members or non-members than this deserve a word of caution."""


def findings(run: Run) -> list[Finding]:
    """All findings about a run, cautions first."""
    combinations = [c for c in run.summary.combinations if c.attacks]
    found = _Labeled(run.summary.primary, combinations)
    checks = (_text_only, _permutation, _few_texts, _refused, _against_chance, _novelty)
    labeled = (each for check in checks for each in check(found))
    first = labeled if combinations else _unlabeled(run)
    seen = (_reference, _comparison, _p_values, _coverage)
    return in_order([*(each for check in seen for each in check(run)), *first])


def auc_of(found: Mapping[str, AttackSummary], name: str) -> float | None:
    """The AUC of an attack, or None where it is missing or undefined."""
    return found[name].auc.value if name in found else None


class _Labeled(NamedTuple):
    """Combinations with labels, and the attack of the verdict."""

    primary: str
    combinations: Sequence[CombinationSummary]

    @property
    def label(self) -> str:
        """What the attack is called."""
        return attack_name(self.primary).label

    def where(self, names: Sequence[str]) -> str:
        """`In 2 of 8 combinations (a, b), `, or nothing when there is only one."""
        many = len(self.combinations)
        if many == 1:
            return ""
        if len(names) == many:
            return "In every combination, "
        return f"In {len(names)} of {many} combinations ({listed(names)}), "


def _unlabeled(run: Run) -> Iterator[Finding]:
    calibrated = run.summary.calibration is not None
    if (run.texts.labels != UNKNOWN).any():
        yield caution(
            "Too few labels",
            "Too few members or non-members carry a label to compute how often the "
            "attack is right.",
        )
        return
    yield note(
        "No labels",
        "No text carries a known membership label, so this page cannot say how often "
        "the attack is right on these texts. It shows scores "
        + ("and their p-values." if calibrated else "only."),
    )
    if not calibrated and run.summary.comparison is None:
        yield caution(
            "No calibration",
            "No known non-members were given. Scores rank the texts against each "
            "other, but no threshold on them has a known error rate.",
        )


def _reference(run: Run) -> Iterator[Finding]:
    if any(each.reference == NO_REFERENCE for each in run.summary.combinations):
        yield caution(
            "No reference",
            "The model before fine-tuning was not given. Scores of the target alone "
            "cannot tell what it learned in fine-tuning from what it knew before, or "
            "from text that is easy to predict: they find far fewer members.",
        )


def _comparison(run: Run) -> Iterator[Finding]:
    """Whether the known non-members are like the texts, as far as texts tell."""
    found = run.summary.comparison
    if found is None:
        return
    reached = f"an AUC of {unit(found.auc.value)} {bounds(found.auc)}"
    if found.decision == "different":
        yield caution(
            "Texts and non-members differ",
            f"A classifier that never sees a model tells them apart with {reached}, "
            f"above {SHIFTED}. Whatever their scores, nothing follows from them about "
            f"training: this page gives no p-values and no verdict. "
            f"{differs_most(found)}",
        )
    elif found.decision == "doubtful":
        yield caution(
            "Texts and non-members may differ",
            f"A classifier that never sees a model tells them apart with {reached}. "
            f"P-values may be too small. {differs_most(found)}",
        )
    elif found.decision == "untested":
        yield caution(
            "Texts and non-members were not compared",
            "There are too few texts to test whether the known non-members are like "
            "them. The p-values hold only if they are: same source, period, kind and "
            "length.",
        )
    else:
        yield passed(
            "Texts and non-members look alike",
            f"A classifier that never sees a model tells them apart with {reached} "
            f"(0.5 or less is guessing, above {SHIFTED} no verdict would be given).",
        )


def _text_only(found: _Labeled) -> Iterator[Finding]:
    values = {
        each.name: value
        for each in found.combinations
        if (value := auc_of(each.controls, TEXT_ONLY)) is not None
    }
    missing = [each.name for each in found.combinations if each.name not in values]
    if missing:
        yield caution(
            "No text-only baseline",
            found.where(missing) + "no classifier without model access was run, so a "
            "difference between members and non-members that has nothing to do with "
            "memorization would go unnoticed.",
        )
    shifted = [name for name, value in values.items() if value > SHIFTED]
    if shifted:
        worst = max(shifted, key=lambda name: values[name])
        which = f" ({worst})" if len(found.combinations) > 1 else ""
        yield caution(
            "The split is shifted",
            found.where(shifted) + "a bag-of-words classifier that never sees a model "
            f"separates members from non-members with an AUC of {unit(values[worst])}"
            f"{which}, above {SHIFTED}. Only the margin of an attack over this "
            "text-only baseline is evidence of memorization.",
        )
    elif values:
        own = {c.name: auc_of(c.attacks, found.primary) for c in found.combinations}
        margins = [
            x - values[n] for n, x in own.items() if n in values and x is not None
        ]
        margin = f" {found.label} exceeds it by {unit(min(margins))}" if margins else ""
        if len(margins) > 1:
            margin += f" to {unit(max(margins))}"
        at_most = "at most " if len(values) > 1 else ""
        yield passed(
            "The split is not shifted",
            "The text-only baseline, a bag-of-words classifier, reaches an AUC of "
            f"{at_most}{unit(max(values.values()))} (0.5 is guessing, above {SHIFTED} "
            f"would be suspicious).{margin}{'.' if margin else ''}",
        )


def _permutation(found: _Labeled) -> Iterator[Finding]:
    control = {
        each.name: each.controls[PERMUTATION].auc
        for each in found.combinations
        if auc_of(each.controls, PERMUTATION) is not None
    }
    if not control:
        yield note(
            "No permutation control",
            "The evaluation was not repeated with shuffled labels.",
        )
        return
    off = [
        name
        for name, auc in control.items()
        if auc.low is not None and auc.high is not None
        if not auc.low <= 0.5 <= auc.high
    ]
    # One interval in twenty misses .5 by chance, so several combinations may.
    if len(off) > max(0 if len(control) == 1 else 1, 0.1 * len(control)):
        auc = control[off[0]]
        yield caution(
            "Shuffled labels are not at chance",
            found.where(off) + f"with shuffled labels the AUC is {unit(auc.value)} "
            f"{bounds(auc)} instead of 0.5. One interval in twenty misses by chance; "
            "otherwise the evaluation leaks.",
        )
        return
    first = next(iter(control.values()))
    detail = (
        f"the AUC is {unit(first.value)} {bounds(first)}"
        if len(control) == 1
        else f"the interval of the AUC covers 0.5 in {len(control) - len(off)} of "
        f"{len(control)} combinations (about one in twenty misses by chance)"
    )
    yield passed("Shuffled labels give chance", f"With permuted labels {detail}.")


def _few_texts(found: _Labeled) -> Iterator[Finding]:
    smallest = {
        each.name: min(min(a.n_members, a.n_nonmembers) for a in each.attacks.values())
        for each in found.combinations
    }
    few = {name: size for name, size in smallest.items() if size < SMALL}
    if few:
        yield caution(
            "Few texts",
            found.where([*few]) + "the smaller group has only "
            f"{plural(min(few.values()), 'text')}. The intervals are wide, and "
            "differences between attacks within them should not be read as a ranking.",
        )


def _refused(found: _Labeled) -> Iterator[Finding]:
    attacks = [(c.name, a) for c in found.combinations for a in c.attacks.values()]
    refused: dict[float, list[str]] = {}
    for name, attack in attacks:
        for rate, result in attack.tpr.items():
            if result.refused:
                refused.setdefault(float(rate), []).append(name)
    if not refused:
        return
    rates = sorted(refused, reverse=True)
    names = dict.fromkeys(name for rate in rates[::-1] for name in refused[rate])
    needed = [f"{10 / rate:,.0f} non-members for {percent(rate)}" for rate in rates]
    yield caution(
        "Some rates are not quoted",
        found.where([*names]) + f"TPR at {' and '.join(map(percent, rates))} FPR is "
        "refused: fewer than ten false positives would decide it. It takes at least "
        f"{' and '.join(needed)}; there are "
        f"{min(attack.n_nonmembers for _, attack in attacks):,}.",
    )


def _against_chance(found: _Labeled) -> Iterator[Finding]:
    weak, beaten = [], {}
    for each in found.combinations:
        value = auc_of(each.attacks, found.primary)
        if value is None:
            yield caution(
                "No result for the attack behind the verdict",
                f"In {each.name} there is no AUC for {found.label}.",
            )
            continue
        low = each.attacks[found.primary].auc.low
        if low is not None and low <= 0.5:
            weak.append(each.name)
        best = best_rival(each, found.primary)
        if best is not None and best[1] > value:
            beaten[each.name] = f"{best[0]} ({unit(best[1])})"
    if weak:
        yield caution(
            "Not distinguishable from chance",
            found.where(weak)
            + f"the 95 % interval of the AUC of {found.label} includes 0.5.",
        )
    if beaten:
        yield note(
            "A simpler attack scores higher",
            found.where([*beaten])
            + f"{listed([*beaten.values()])} has a higher AUC than {found.label}. The "
            "best of many attacks chosen on the same texts is an optimistic number; "
            "the verdict keeps the attack that was fixed beforehand.",
        )


def best_rival(found: CombinationSummary, *but: str) -> tuple[str, float] | None:
    """Label and AUC of the best attack other than `but`."""
    rivals = {
        attack_name(name).label: value
        for name in found.attacks
        if name not in but and (value := auc_of(found.attacks, name)) is not None
    }
    return max(rivals.items(), key=lambda item: item[1], default=None)


def _novelty(found: _Labeled) -> Iterator[Finding]:
    seen = [each.name for each in found.combinations if each.unseen is False]
    if seen:
        yield caution(
            "Not a held-out combination",
            found.where(seen) + "model and corpus were part of what the learned attack "
            "was trained on. Transfer to a new model may be weaker.",
        )
    elif all(each.unseen for each in found.combinations):
        yield passed(
            "Held out",
            "The learned attack was trained on other models and corpora.",
        )


def _p_values(run: Run) -> Iterator[Finding]:
    calibration = run.summary.calibration
    if calibration is None:
        return
    n, ks_p = calibration.n_calibration, calibration.ks_p
    if ks_p is not None and ks_p < 0.05:
        yield caution(
            "P-values of non-members are not uniform",
            f"Kolmogorov-Smirnov p = {p_text(ks_p)}. The two halves of the "
            "non-members differ, so the p-values cannot be taken at face value.",
        )
    elif ks_p is not None:
        yield passed(
            "P-values of non-members look uniform",
            f"Kolmogorov-Smirnov p = {p_text(ks_p)} on held-out non-members.",
        )
    values = np.asarray(calibration.p_values, float)
    if len(values):
        yield note(
            "Many texts, many p-values",
            f"{int((values <= 0.05).sum()):,} of {len(values):,} texts have "
            f"p \N{LESS-THAN OR EQUAL TO} 0.05; about {0.05 * len(values):,.0f} would "
            f"by chance if none were a member. {discoveries(values, 0.05):,} remain at "
            f"a false discovery rate of 5 % (Benjamini-Hochberg). With {n:,} "
            f"calibration texts no p-value can be below {p_text(1 / (n + 1))}.",
        )
    yield note(
        "P-values assume exchangeable non-members",
        "They hold if the calibration texts are what these texts would be, had they "
        "not been trained on: same source, period and length.",
    )


def discoveries(p_values: Float[np.ndarray, " n"], level: float) -> int:
    """How many texts are called members at false discovery rate `level`.

    Source: valid for conformal p-values, which are positively dependent (Testing for
    Outliers with Conformal p-values, arXiv 2104.08279).
    """
    return int((q_values(p_values) <= level).sum())


def _coverage(run: Run) -> Iterator[Finding]:
    score = run.texts.scores[run.summary.primary]
    missing, total = int(np.isnan(score).sum()), len(score)
    if missing:
        yield Finding(
            "caution" if missing > 0.01 * total else "note",
            "Texts without a score",
            f"{plural(missing, 'text')} of {total:,} ({percentage(missing / total)}) "
            "could not be scored and count neither as members nor as non-members.",
        )
    dataset = run.summary.dataset
    if dataset is not None and dataset.decision != "member":
        yield note(
            "No evidence is not absence",
            "The test did not find that the texts were trained on. It cannot show "
            "that they were not.",
        )
