"""The attacks that the transfer study trains: the main one, ablations and scaling."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from experiments.transfer.plan import Learner, Plan
from lt_mia_jax.attacks.learned.classifier_config import Block
from lt_mia_jax.data.texts import hash_unit
from lt_mia_jax.features.layout import FeatureLayout
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.study.stages import Combination

Columns = Literal["all", "target", "reference", "comparison"]

MAIN = "main"
SEEDS = 3
"""Attacks of the main kind, which differ in their seed."""
REFERENCE = "columns-reference"
"""The control that sees only what the reference model says."""

BLOCKS: dict[str, tuple[Block, ...]] = {
    "all": ("truth", "head", "tail", "loss", "text"),
    "no_lists": ("truth", "loss", "text"),
    "no_text": ("truth", "loss"),
    "losses": ("loss", "text"),
    "lists": ("head", "tail"),
}
"""Blocks of columns that ablations leave; lists are those of likely tokens."""


def is_first(combination: Any) -> bool:
    """Of repetitions of a base and a corpus, those that every attack is judged on."""
    return combination.draw == 0


def yardstick(plan: Plan) -> str:
    """The attack that ablations are to be compared with."""
    return f"{MAIN}-0" if plan.small is None else "yardstick"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """One attack: what it learns from and how."""

    study: str
    """Table that it belongs to."""
    setting: str
    """Its row there."""
    learner: Learner
    combinations: frozenset[str]
    """Names of the training combinations."""
    rows: int | None = None
    """Training texts of each combination; None takes all."""
    columns: Columns = "all"
    everywhere: bool = False
    """Judged on every combination, not only on the first of each base and corpus."""

    def judged(self, plan: Plan) -> list[Combination]:
        """The combinations that it scores."""
        return [c for c in plan.judge if self.everywhere or is_first(c)]

    def views(self, stores: Sequence[FeatureStore]) -> list["View"]:
        """What it sees of some stores."""
        return [View(store, self) for store in stores]


class View:
    """A store of which some columns and training rows are hidden."""

    def __init__(self, store: FeatureStore, spec: AttackSpec) -> None:
        """Rows are kept by hash, as many members as non-members."""
        self.store = store
        self.meta: Mapping[str, Any] = store.meta
        self.name = store.name + ("" if spec.columns == "all" else f" {spec.columns}")
        self.n, self.ids, self.labels = store.n, store.ids, store.labels
        self.n_steps = store.n_steps
        self.split: Sequence[str] = store.split
        self._hidden = ~columns_of(store.layout, spec.columns)
        if spec.rows is not None:
            self.split = _fewer(store, spec.rows, spec.learner.recipe.seed)

    def features(self, rows: Any) -> tuple[Any, Any]:
        """Features and mask of some texts; hidden columns are zero."""
        features, mask = self.store.features(rows)
        if self._hidden.any():
            features[..., self._hidden] = 0
        return features, mask


def columns_of(layout: FeatureLayout, columns: Columns) -> np.ndarray:
    """Which feature columns `[C]` (bool) are about one model, or about both.

    `target` and `reference` hold what one model alone says of the true token;
    `comparison` is everything that depends on both.
    """
    names = np.array(layout.names)
    if columns == "all":
        return np.ones(len(names), bool)

    def alone(model: str) -> np.ndarray:
        wanted = {
            f"truth.{model}_rank",
            f"loss.{model}_loss",
            f"text.{model}_loss_mean",
            f"text.{model}_loss_std",
        }
        return np.isin(names, list(wanted))

    if columns == "comparison":
        return ~(alone("target") | alone("reference"))
    return alone(columns)


def _fewer(store: FeatureStore, rows: int, seed: int) -> list[str]:
    """Leave so many training rows, and a quarter as many for validation."""
    split = np.asarray(store.split, dtype=object)
    labels = np.asarray(store.labels, np.int64)
    for label, (part, count) in itertools.product(
        (0, 1), (("train", rows), ("validation", max(8, rows // 4)))
    ):
        own = np.flatnonzero((split == part) & (labels == label))
        order = sorted(own, key=lambda row: hash_unit("rows", seed, store.ids[row]))
        split[order[count // 2 :]] = "unused"
    return split.tolist()


def attacks(plan: Plan, seed: int) -> dict[str, AttackSpec]:
    """Every attack of the study by name."""
    everything = frozenset(c.name for c in plan.train)
    # A text is for training with probability 0.7 (`attack_split`).
    per_combination = int(
        0.7 * min(c.members + min(c.members, c.nonmembers) for c in plan.train)
    )
    small = plan.small or plan.main
    found: dict[str, AttackSpec] = {}

    def add(name: str, study: str, setting: str, **changes: Any) -> None:
        learner = changes.pop("learner", small).trained(seed=changes.pop("seed", seed))
        own = {"learner": learner, "combinations": everything, **changes}
        found[name] = AttackSpec(study=study, setting=setting, **own)

    for draw in range(SEEDS):
        add(
            f"{MAIN}-{draw}",
            MAIN,
            f"seed {draw}",
            learner=plan.main,
            seed=seed + draw,
            everywhere=True,
        )
    add(REFERENCE, "columns", "reference", columns="reference", everywhere=True)
    if yardstick(plan) not in found:
        add(yardstick(plan), "yardstick", "everything")

    def changed(**changes: Any) -> Learner:
        classifier = dataclasses.replace(small.classifier, **changes)
        return dataclasses.replace(small, classifier=classifier)

    for architecture in ("lr", "mlp", "mean_mlp", "pooled_transformer"):
        add(
            f"architecture-{architecture}",
            "architecture",
            architecture,
            learner=changed(architecture=architecture),
        )
    other = not small.classifier.standardise
    add(
        "inputs",
        "inputs",
        "standardized" if other else "as they are",
        learner=changed(standardise=other),
    )
    logs = small.classifier.log_probabilities
    if logs:
        add(
            "inputs-logits",
            "inputs",
            "raw logits of the true token",
            learner=changed(log_probabilities=False),
        )
    for name, blocks in BLOCKS.items():
        if set(blocks) != set(small.classifier.blocks):
            # Of the lists there are raw logits only.
            raw = bool({"head", "tail"} & set(blocks))
            add(
                f"columns-{name}",
                "columns",
                name.replace("_", " ") + (", raw logits" if raw and logs else ""),
                learner=changed(blocks=blocks, log_probabilities=logs and not raw),
            )
    for columns in ("target", "comparison"):
        add(f"columns-{columns}", "columns", columns, columns=columns)
    _add_scaling(plan, small, seed, per_combination, add)
    return found


def _add_scaling(
    plan: Plan, small: Learner, seed: int, per_combination: int, add: Any
) -> None:
    """Diversity at a fixed number of texts, and texts of each combination."""
    names = [c.name for c in plan.train]
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < len(names)] + [len(names)]
    recipe = small.recipe
    # As many updates as with all texts would be many times more than these need.
    few = small.trained(epochs=4 * recipe.epochs, batch_size=min(32, recipe.batch_size))
    for count in counts:
        rows = 2 * max(1, per_combination // count // 2)
        for draw in range(SEEDS):
            order = sorted(names, key=lambda name: hash_unit("order", draw, name))
            add(
                f"diversity-{count}-{draw}",
                "diversity",
                str(count),
                seed=seed + draw,
                combinations=frozenset(order[:count]),
                rows=rows,
                learner=few,
            )
    for share in (32, 8, 2):
        rows = 2 * max(1, per_combination // share // 2)
        # As many updates as with all rows, on batches of 32 at least.
        batch = max(32, recipe.batch_size // share)
        epochs = max(1, recipe.epochs * share * batch // recipe.batch_size)
        add(
            f"volume-{rows}",
            "volume",
            str(rows),
            rows=rows,
            learner=small.trained(epochs=epochs, batch_size=batch),
        )
