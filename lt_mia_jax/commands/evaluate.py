"""`lt-mia evaluate`: a learned attack and published scores on feature stores."""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Literal

from lt_mia_jax.errors import RESAMPLES, SEED, InputError
from lt_mia_jax.outputs import RESULT, Source, Writing, WritingFlags

log = logging.getLogger(__name__)

WRITES = RESULT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score feature stores with a learned attack and every published score.

    Writes scores.jsonl, summary.json and report.html. Texts that the attack was
    trained or selected on are left out, whatever the model they were scored with.
    """

    features: tuple[Path, ...]
    """Feature stores made by `lt-mia extract`."""
    out: Path
    """Folder for the results."""
    attack: Source = "shipped"
    """The learned attack: `shipped` with the package, or a folder made by `lt-mia
    train`."""
    split: Literal["unseen", "test"] = "unseen"
    """unseen: every text the attack never saw. test: the rows marked test only."""
    bootstraps: Annotated[int, RESAMPLES] = 1000
    """Resamples behind each 95 % interval."""
    seed: Annotated[int, SEED] = 0
    """Seed of every resampling."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""


def run(config: Evaluate) -> None:
    """Evaluate and write the result files."""
    from lt_mia_jax.audit.judge import evaluate_stores
    from lt_mia_jax.audit.results import clear_result, write_result
    from lt_mia_jax.audit.scoring import choose_attack
    from lt_mia_jax.configs import to_dict
    from lt_mia_jax.features.store import FeatureStore
    from lt_mia_jax.provenance import write_run_record
    from lt_mia_jax.report import write_report

    attack = choose_attack(config.attack)
    if attack is None:
        raise InputError(
            "--attack none: evaluate judges a learned attack; give a folder made by "
            "`lt-mia train`, or leave the flag out for the attack of the package"
        )
    stores = [FeatureStore.open(path) for path in config.features]
    result = evaluate_stores(
        attack,
        stores,
        split=config.split,
        bootstraps=config.bootstraps,
        seed=config.seed,
    )
    clear_result(config.out)
    write_run_record(config.out, "evaluate", config)
    write_result(
        result,
        config.out,
        kind="evaluate",
        title=f"{Path(config.attack).name} on {len(stores)} combinations",
        config=to_dict(config),
    )
    write_report([config.out], config.out / "report.html")
    log.info("wrote %s", config.out / "report.html")
