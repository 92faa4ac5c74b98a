"""Sections of the transfer study's page, in Markdown."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.transfer.architectures import FAMILY_NAMES, Family
from experiments.transfer.attacks import MAIN, AttackSpec, yardstick
from experiments.transfer.plan import Learner, Plan
from experiments.transfer.statistics import (
    Curve,
    Judged,
    Mean,
    Resamples,
    at_equal_gap,
    group,
    loss_gap,
    pooled_tpr,
    weighted_roc,
)
from lt_mia_jax.attacks import scores
from lt_mia_jax.attacks.metrics import refuses
from lt_mia_jax.attacks.scores.table import describe

LEARNED = f"{MAIN}-0"
SHOWN = (LEARNED, "ez", "wbc", "ratio", "min_k_plus_plus", "loss")
RATE, STRICT = 0.01, 0.001
TEXT_ONLY = "text only"
BESIDE = "as the main attack"
"""Row of the attack that ablations are compared with."""
FIRST = "first"
"""The group that every attack is judged on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What the sections are made of."""

    plan: Plan
    specs: Mapping[str, AttackSpec]
    """Of the finished attacks."""
    published: Sequence[str]
    """Names of the published scores."""
    judged: Sequence[Judged]
    """Every judged combination."""
    main: Sequence[Judged]
    """Those of the usual recipe."""
    families: Mapping[Family, Sequence[Judged]]
    """The same by family."""
    validation: Mapping[str, float]
    """Mean AUC on the training combinations' validation texts, by attack."""
    curves: Mapping[tuple[str, str], tuple[Curve, Curve]]
    """AUC and TPR at `RATE`, by attack and group: a family, `all`, `FIRST`, `code`."""
    resamples: Resamples

    def best(self, group: str, which: int) -> str:
        """The published score with the highest AUC (0) or TPR (1) on a group."""
        return max(self.published, key=lambda n: self.curves[group, n][which].value)


def point(judged: Judged, name: str) -> tuple[float, float]:
    """AUC and TPR at `RATE` of one combination; NaN where too few texts tell it."""
    one = np.ones((1, len(judged.labels)))
    auc, tpr = weighted_roc(judged.labels, judged.scores[name], one, RATE)
    refused = refuses(RATE, int((judged.labels == 0).sum()))
    return float(auc[0]), math.nan if refused else float(tpr[0])


def _point_text(auc: float, tpr: float) -> str:
    return f"{auc:.3f} / " + ("-" if math.isnan(tpr) else f"{tpr:.3f}")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(map(str, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def score_name(name: str) -> str:
    """What a score is called."""
    return describe(scores.LEARNED if name == LEARNED else name).label


def headline(found: Found) -> str:
    """Each family beside the best published score, and beside the transformer."""
    rows, margins = [], []
    for family, part in found.families.items():
        auc, tpr = found.curves[family, LEARNED]
        best, best_tpr = found.best(family, 0), found.best(family, 1)
        rows.append(
            [
                FAMILY_NAMES[family],
                len(part),
                f"{np.mean([loss_gap(j) for j in part]):.2f}",
                auc.mean,
                f"{score_name(best)} {found.curves[family, best][0].mean}",
                auc.less(found.curves[family, best][0]),
                tpr.mean,
                f"{score_name(best_tpr)} {found.curves[family, best_tpr][1].mean}",
                tpr.less(found.curves[family, best_tpr][1]),
            ]
        )
        if family != "transformer" and "transformer" in found.families:
            margin = auc.less(found.curves["transformer", LEARNED][0])
            margins.append(f"{FAMILY_NAMES[family]} {margin}")
    plan = found.plan
    head = [
        "judged on",
        "combinations",
        "gap",
        "AUC, LT-MIA",
        "best published",
        "difference",
        "TPR at 1 %, LT-MIA",
        "best published",
        "difference",
    ]
    return "\n\n".join(
        [
            "## Trained on transformers, judged on everything else",
            f"The attack saw {len(plan.train)} combinations of "
            f"{len({c.base for c in plan.train})} transformers and "
            f"{len({c.corpus for c in plan.train})} corpora, and none of what it is "
            "judged on. Mean over corpora and repetitions, 95 % intervals over texts "
            "and repetitions; the best published score is chosen with hindsight. Gap: "
            "mean loss of non-members minus that of members, nats a token. Which "
            "features the attack sees, and the size of two judged models, were settled "
            "with earlier results on judged combinations known "
            "([decisions](decisions.md)): no untouched test.",
            table(head, rows),
            *(
                [f"AUC less that on the unseen transformer: {'; '.join(margins)}."]
                if margins
                else []
            ),
        ]
    )


def equal_gap(found: Found) -> str:
    """AUC of each family at the loss gap of the unseen transformer."""
    epochs = {c.name: c.epochs for c in found.plan.judge}
    tuned = [j for j in found.judged if epochs[j.name]]
    family_of = {j.base: f for f, part in found.families.items() for j in part}
    if "transformer" not in found.families or len(tuned) < 3 * len(found.families):
        return ""
    gap = float(np.mean([loss_gap(j) for j in found.families["transformer"]]))
    shown = [LEARNED, found.best("all", 0)]
    fitted = {}
    for name in shown:
        curves = [
            group([j], [name], found.resamples, rate=RATE)[name][0] for j in tuned
        ]
        found_at = at_equal_gap(
            np.array([[c.value, *c.resampled] for c in curves]),
            np.array([loss_gap(j) for j in tuned]),
            [family_of[j.base] for j in tuned],
            [j.corpus for j in tuned],
            gap,
        )
        fitted[name] = {f: Curve(float(x[0]), x[1:]) for f, x in found_at.items()}
    rows = [
        [
            FAMILY_NAMES[family],
            *(fitted[name][family].mean for name in shown),
            fitted[LEARNED][family].less(fitted[LEARNED]["transformer"]),
        ]
        for family in found.families
    ]
    return "\n\n".join(
        [
            "### At equal loss gap",
            f"The AUC at a gap of {gap:.2f} nats, that of the unseen transformer: "
            "least squares of its probit in the gap, with constants for families and "
            f"corpora, over {len(tuned)} fine-tuned combinations of all strengths. "
            "Intervals over texts, not over repetitions.",
            table(
                [
                    "judged on",
                    *map(score_name, shown),
                    "LT-MIA less that on the transformer",
                ],
                rows,
            ),
        ]
    )


def strict(found: Found) -> str:
    """TPR at 0.1 %, by one threshold for a family and by one for each combination."""
    rows = []
    parts = {FAMILY_NAMES[f]: part for f, part in found.families.items()}
    for label, part in {**parts, "all": found.main}.items():
        names = (LEARNED, *found.published)
        every = pooled_tpr(part, names, found.resamples, rate=STRICT)
        count = sum(int((j.labels == 0).sum()) for j in part)
        texts = len({(j.corpus, id) for j in part for id in j.ids[j.labels == 0]})
        shown = f"{count:,} of {texts:,} texts"
        if not every:
            rows.append([label, shown, "", "too few non-members", "", ""])
            continue
        each = group(part, names, found.resamples, rate=STRICT)
        for threshold, curves in (
            ("one", every),
            ("each its own", {name: each[name][1] for name in names}),
        ):
            own = curves.pop(LEARNED)
            best = max(curves, key=lambda name: curves[name].value)
            rows.append(
                [
                    label,
                    shown,
                    threshold,
                    own.mean,
                    f"{score_name(best)} {curves[best].mean}",
                    own.over(curves[best]) if curves[best].value else "-",
                ]
            )
    return "\n\n".join(
        [
            "### TPR at 0.1 % FPR",
            "Of all texts of a family under one threshold; and the mean over "
            "combinations of what each one's own threshold finds, as an audit of one "
            "model sets it, where one false positive is allowed among 1,000 to 1,999 "
            "non-members. Non-members of the same corpus count once for each model "
            "that scored them.",
            table(
                [
                    "judged on",
                    "non-members",
                    "threshold",
                    "LT-MIA",
                    "best published score",
                    "ratio",
                ],
                rows,
            ),
        ]
    )


def baselines(found: Found) -> str:
    """Every score on every family; source code once more on its own."""
    curves = found.curves
    groups = [*found.families, "all"]
    groups += ["code"] if ("code", LEARNED) in curves else []
    order = sorted(found.published, key=lambda n: -curves["all", n][0].value)
    rows = [
        [
            score_name(name),
            *(
                f"{curves[g, name][0].value:.3f} / {curves[g, name][1].value:.3f}"
                for g in groups
            ),
        ]
        for name in (LEARNED, *order)
    ]
    heads = [{**FAMILY_NAMES}.get(g, g) for g in groups]
    return "\n\n".join(
        [
            "### Every score",
            "Mean AUC / mean TPR at 1 % FPR, same combinations.",
            table(["score", *heads], rows),
        ]
    )


def ablations(found: Found) -> str:
    """Every other attack beside the main one."""
    specs = found.specs
    titles = {
        MAIN: "Seeds of the main attack",
        "architecture": "Architecture",
        "inputs": "Inputs",
        "columns": "Feature columns",
        "diversity": "Combinations, at a fixed number of training texts",
        "volume": "Training texts of each combination",
    }
    parts = []
    for study_name, title in titles.items():
        own = [n for n in specs if specs[n].study == study_name]
        if not own:
            continue
        settings = list(dict.fromkeys(specs[n].setting for n in own))
        rows = []
        for setting in settings:
            same = [n for n in own if specs[n].setting == setting]
            rows.append(_ablation_row(setting, same, found))
        if study_name != MAIN and yardstick(found.plan) in specs:
            rows.append(_ablation_row(BESIDE, [yardstick(found.plan)], found))
        parts.append(
            f"**{title}**\n\n"
            + table(["setting", "attacks", "validation", "AUC", "TPR at 1 % FPR"], rows)
        )
    plan = found.plan
    small = "" if plan.small is None else _smaller(plan.main, plan.small)
    intro = (
        f"Mean over the first combination of each base and corpus.{small} Validation "
        "is the mean AUC on held-out texts of the training combinations, by which "
        "settings may be chosen; it is to be compared where the texts are the same."
    )
    return "\n\n".join(["### Ablations and scaling", intro, *parts])


def _smaller(main: Learner, small: Learner) -> str:
    return (
        " Apart from the seeds, these are attacks of less training "
        f"({small.recipe.epochs} epochs, the main one {main.recipe.epochs}), to be "
        "compared with one another."
    )


def _ablation_row(setting: str, names: Sequence[str], found: Found) -> list[object]:
    def mean(which: int) -> Mean:
        parts = [found.curves[FIRST, n][which] for n in names]
        return Curve(
            float(np.mean([p.value for p in parts])),
            np.mean([p.resampled for p in parts], axis=0),
        ).mean

    held_out = f"{np.mean([found.validation[n] for n in names]):.4f}"
    return [setting.replace("_", " "), len(names), held_out, mean(0), mean(1)]


def combinations(found: Found) -> str:
    """Each judged combination by itself."""
    recipes = {c.name: c for c in found.plan.judge}
    shown = [n for n in SHOWN if n == LEARNED or n in found.published]
    rows = []
    for one in found.judged:
        recipe = recipes[one.name]
        tuned = (
            "none"
            if not recipe.epochs
            else f"{recipe.epochs} epochs, {recipe.learning_rate:g}"
            + ("" if recipe.lora is None else f", LoRA {recipe.lora.rank}")
        )
        members = int((one.labels == 1).sum())
        rows.append(
            [
                one.name,
                tuned,
                f"{members} / {len(one.labels) - members}",
                f"{loss_gap(one):.2f}",
                *(_point_text(*point(one, n)) for n in shown),
            ]
        )
    return "\n\n".join(
        [
            "### Every judged combination",
            "AUC / TPR at 1 % FPR, refused below 1,000 non-members.",
            table(
                [
                    "combination",
                    "fine-tuning",
                    "members / non-members",
                    "gap",
                    *map(score_name, shown),
                ],
                rows,
            ),
        ]
    )
