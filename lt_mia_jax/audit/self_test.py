"""A ten-second audit whose right numbers are known: does this machine compute them?

The reference is the base of the demo, the target the same with all weights grown by two
percent; the attack is that of the package.
"""

import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from lt_mia_jax.attacks.learned.storage import shipped_attack
from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.audit.scoring import ModelPair, score_texts
from lt_mia_jax.checkpoints import BASE, Pretrained, load_pretrained
from lt_mia_jax.data.texts import Text
from lt_mia_jax.executor import Executor
from lt_mia_jax.files import read_json

RIGHT = Path(__file__).parent / "self_test.json"
"""The right scores of `TEXTS`, by name."""
GROWTH = 1.02
"""Factor on the weights of the target."""
CHECKED = ("loss", "reference", "entropy", "min_k_plus_plus", LEARNED)
"""Scores without a step, which rounding moves a little; ranks may jump."""
ALLOWED = 0.02
"""Largest deviation, absolute where the right number is below one, else relative."""
TEXTS = (
    "def area(radius):\n    return 3.14159 * radius * radius\n",
    "for name in sorted(names):\n    if name not in seen:\n        seen.add(name)\n",
    "The Congress shall have power to lay and collect taxes, duties and imposts.",
    "import os\n\nclass Reader:\n    def __init__(self, path):\n        self.p = 1\n",
    "Fellow citizens, the state of the Union is strong, and our work is not done.",
    "raise ValueError(f'expected {expected}, found {found}')",
    "xqzv 83914 ;; lorem ipsum dolor sit amet, consectetur adipiscing elit",
    "a",
)
"""Code, speeches, neither, and a text that is too short to score."""


class SelfTest(NamedTuple):
    """What the test found."""

    deviations: dict[str, float]
    """The largest of each checked score; see `ALLOWED`."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all are small enough; NaN is not."""
        return all(value <= ALLOWED for value in self.deviations.values())


def models(executor: Executor) -> ModelPair:
    """Reference and target of the test."""
    before = load_pretrained(BASE, mesh=executor.mesh)
    grown = jax.tree.map(lambda x: x * GROWTH, before.params)
    after = Pretrained(before.config, grown, before.tokenizer)
    return ModelPair(before, after, executor)


def scores(executor: Executor) -> dict[str, Float[np.ndarray, " N"]]:
    """Every score of `TEXTS` on this machine, by name."""
    texts = [Text(str(n), text) for n, text in enumerate(TEXTS)]
    pair, attack = models(executor), shipped_attack()
    found = score_texts(texts, pair, attack=attack, length=64, label="self-test")
    return dict(found.scores)


def self_test(executor: Executor) -> SelfTest:
    """Compare `scores` with the right ones.

    Example:
      >>> from lt_mia_jax.executor import make_executor
      >>> from lt_mia_jax.audit.self_test import self_test
      >>> self_test(make_executor()).passed
      True
    """
    began = time.monotonic()
    found = scores(executor)
    right = {
        name: np.array([np.nan if x is None else x for x in values])
        for name, values in read_json(RIGHT).items()
    }
    deviations = {
        name: float(_deviation(np.asarray(found[name]), right[name]))
        for name in CHECKED
    }
    return SelfTest(deviations, time.monotonic() - began)


def _deviation(found: np.ndarray, right: np.ndarray) -> float:
    """The largest one; infinite where one has a score and the other has none."""
    if (np.isnan(found) != np.isnan(right)).any():
        return np.inf
    return np.nanmax(np.abs(found - right) / np.maximum(1, np.abs(right)))
