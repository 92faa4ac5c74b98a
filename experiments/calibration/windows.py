"""False positives of long texts in windows, by the number of windows and by rule.

lt-mia demo --out runs/demo
python -m experiments.calibration.windows --demo runs/demo --out runs/windows

All texts of the demo's corpus are scored with `lt_mia_jax.audit`'s code: cut to one
window, and in windows under each rule. A random half of the non-members calibrates
p-values of the other half, many times; the table counts those that reach the level.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lt_mia_jax.attacks import calibration
from lt_mia_jax.attacks.learned.storage import shipped_attack
from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.audit.scoring import ModelPair, score_texts
from lt_mia_jax.audit.verdict import LEVEL
from lt_mia_jax.checkpoints import load_pretrained
from lt_mia_jax.data.texts import Text
from lt_mia_jax.executor import make_executor
from lt_mia_jax.files import write_atomic
from lt_mia_jax.outputs import Output, Writing, WritingFlags, claimed
from lt_mia_jax.study import demo
from lt_mia_jax.study import stages as study
from lt_mia_jax.study.launch import command

WRITES = Output(("scores.npz", "windows.md", "run.json", "config.json"))
GROUPS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 1000))
"""Numbers of windows that are counted together, both ends included."""
SCORES = (LEARNED, "ez", "wbc", "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Score the demo's texts whole, and count false positives by length."""

    out: Path
    """Folder of scores and table."""
    demo: Path = Path("runs/demo")
    """Folder of a finished demo."""
    overlap: int = 32
    """Tokens of context that a window takes from the one before it."""
    halvings: int = 200
    """Random halves of the non-members."""
    seed: int = 0
    """The seed that the demo ran with, and of the halvings."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""


def run(config: Windows) -> None:
    """Score what is not scored yet, and write the table."""
    overwrite = config.writing.overwrite
    with claimed(config.out, WRITES, "windows", config, overwrite=overwrite):
        path = config.out / "scores.npz"
        if not path.exists():
            arrays: dict[str, Any] = scored(config)
            np.savez_compressed(path, **arrays)
        with np.load(path) as found:
            lines = table(dict(found), config)
        text = "\n".join(lines) + "\n"
        write_atomic(config.out / "windows.md", text)
        print(text)


def scored(config: Windows) -> dict[str, np.ndarray]:
    """Labels, numbers of windows, and scores by rule and name."""
    (combination,) = demo.judged_combinations(False)
    corpus = demo.load_corpora(config.demo, full=False)[combination.corpus]
    rows = study.split(corpus, combination, seed=config.seed)
    both = [*rows.members, *rows.nonmembers]
    texts = [Text(corpus.ids[row], corpus.texts[row]) for row in both]
    pair = ModelPair(
        load_pretrained(config.demo / "bases" / combination.base),
        load_pretrained(config.demo / "targets" / combination.name),
        make_executor(),
    )
    attack, length = shipped_attack(), study.LENGTH
    found = {"label": np.repeat([1, 0], [len(rows.members), len(rows.nonmembers)])}
    for rule in ("cut", "mean", "max"):
        options = {} if rule == "cut" else {"overlap": config.overlap, "combine": rule}
        scores = score_texts(texts, pair, attack=attack, length=length, **options)
        new = length - config.overlap
        beyond = np.maximum(0, scores.n_tokens - length)
        found["windows"] = 1 + -(-beyond // new)
        found |= {f"{rule} {name}": scores.scores[name] for name in SCORES}
    return found


def table(found: dict[str, np.ndarray], config: Windows) -> Iterator[str]:
    """False positives among held-out non-members, and members found, by length."""
    members, windows = found["label"] == 1, found["windows"]
    names, inside = [], []
    for low, high in GROUPS:
        group = (windows >= low) & (windows <= high) & ~members
        if group.any():
            span = f"{low}" if low == high else f"{low} to {high}"
            names.append(f"of {span} (n = {group.sum()})")
            inside.append(group)
    heads = ["score", "rule", "false positives, all", *names, "members found"]
    yield f"| {' | '.join(heads)} |"
    yield "| --- | --- |" + " --- |" * (len(inside) + 2)
    for name in SCORES:
        for rule in ("cut", "mean", "max"):
            scores = found[f"{rule} {name}"]
            low = _low_p_values(scores, members, config)
            rates = [np.nanmean(low[:, group]) for group in inside]
            everywhere = np.nanmean(low[:, ~members])
            against = scores[~members]
            p_values = calibration.conformal_p_values(scores[members], against)
            shown = " | ".join(f"{100 * rate:.1f} %" for rate in (everywhere, *rates))
            power = 100 * np.mean(p_values <= LEVEL)
            yield f"| {name} | {rule} | {shown} | {power:.1f} % |"


def _low_p_values(
    scores: np.ndarray, members: np.ndarray, config: Windows
) -> np.ndarray:
    """Whether a non-member's p-value is low, `[H, N]`; NaN where it calibrates."""
    rows = np.flatnonzero(~members)
    low = np.full((config.halvings, len(scores)), np.nan)
    for number, line in enumerate(low):
        order = np.random.default_rng([config.seed, number]).permutation(rows)
        held, rest = np.split(order, [len(order) // 2])
        found = calibration.conformal_p_values(scores[held], scores[rest])
        line[held] = found <= LEVEL
    return low


if __name__ == "__main__":
    sys.exit(command(Windows, run, __doc__))
