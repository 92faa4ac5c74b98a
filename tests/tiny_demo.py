"""A demo that takes seconds: tiny corpora, a tiny model, one epoch."""

import dataclasses
from typing import Any

from tiny_world import sentences

from lt_mia_jax.data import corpora
from lt_mia_jax.models import mamba_like
from lt_mia_jax.study import demo


@dataclasses.dataclass(frozen=True)
class Domain:
    """Documents that stand for real ones."""

    seed: int
    code: bool = False

    def documents(self) -> list[str]:
        return sentences(self.seed, 160)

    def versions(self) -> dict[str, str]:
        return {"tiny": "1"}


def shrink() -> None:
    """Make `lt-mia demo` tiny in this process."""
    names = [each.corpus for each in (*demo.TRAINING, *demo.JUDGED)]
    domains: dict[str, Any] = corpora.DOMAINS
    domains.clear()
    domains.update({name: Domain(i) for i, name in enumerate(names)})
    demo.VOCABULARY = 300
    demo.bases = lambda: {demo.UNSEEN: mamba_like(300, width=16, layers=1)}
    small = {"members": 16, "nonmembers": 16, "validation": 8, "epochs": 1}
    demo.JUDGED = tuple(dataclasses.replace(each, **small) for each in demo.JUDGED)
