"""What attacks see of a model: members of its ingredients, and texts it never saw."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from experiments.survival.ingredients import World, encoded, parts
from lt_mia_jax.arrays import Params
from lt_mia_jax.attacks import scores as formulas
from lt_mia_jax.attacks.learned.attack import score_features
from lt_mia_jax.attacks.learned.storage import shipped_attack
from lt_mia_jax.attacks.metrics import summarize
from lt_mia_jax.configs import to_dict
from lt_mia_jax.features.extract import ExtractConfig, StatisticsExtractor

SCORES = ("lt_mia", "ez", "wbc", "loss")


class Made(NamedTuple):
    """What an operation gives back: a model under audit."""

    model: Any
    """With a pure `apply(params, ids)`; hashable."""
    params: Params
    reference: Params | None = None
    """What an auditor compares with; None is the late base."""


def measure(world: World, made: Made, names: Iterable[str]) -> dict[str, Any]:
    """Attack summaries and losses by corpus, of the corpora `names`.

    `members` compares the members of the corpus's expert with non-members, `controls`
    texts that no model learned with the same non-members: there every attack must be at
    .5. `loss` is that on non-members, nats a token: what the model is worth.
    """
    attack = shipped_attack()
    reference = world.base.params if made.reference is None else made.reference
    extractor = StatisticsExtractor(
        made.model,
        made.params,
        world.model,
        reference,
        ExtractConfig(k=attack.k, batch_size=32),
    )
    found: dict[str, Any] = {}
    for name in names:
        texts = parts(world.config, name)
        sets = (texts.members, texts.controls, texts.nonmembers)
        group = np.repeat(["members", "controls", "nonmembers"], [len(s) for s in sets])
        scored = extractor(encoded(sum(sets, ()), texts.code, world.base))
        statistics, features, mask = scored
        assert features is not None
        values = {
            "lt_mia": score_features(attack, features, mask),
            "ez": formulas.ez(statistics),
            "wbc": formulas.wbc(statistics),
            "loss": formulas.loss(statistics),
        }
        values = {key: np.asarray(value, np.float64) for key, value in values.items()}
        outside = values["loss"][group == "nonmembers"]
        found[name] = {"loss": float(-np.nanmean(outside))}
        for kind in ("members", "controls"):
            rows = np.isin(group, [kind, "nonmembers"])
            truth = (group[rows] == kind).astype(int)
            found[name][kind] = {
                key: to_dict(summarize(truth, values[key][rows]), tagged=False)
                for key in SCORES
            }
    return found
