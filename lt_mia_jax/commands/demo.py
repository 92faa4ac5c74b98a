"""`lt-mia demo`: the whole study in miniature, on real text, without a network."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Annotated

from lt_mia_jax.errors import COUNT, RESAMPLES, SEED
from lt_mia_jax.outputs import RESULT, Output, Writing, WritingFlags

log = logging.getLogger(__name__)

WRITES = Output(
    (
        *RESULT.names,
        *("corpora", "tokenizer", "bases", "targets", "features", "attack", "example"),
    ),
    fixed=("full", "learn"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Find what a tiny Mamba was fine-tuned on, with an attack trained on transformers.

    Fine-tunes a small pretrained Mamba that comes with the package on text that ships
    with our dependencies, and judges the learned attack of the package there, beside
    every published score; it never saw such a model or these texts. Writes
    report.html. About a minute on 2 cores, no network; an interrupted run continues.
    """

    out: Path = Path("runs/demo")
    """Folder for everything the demo makes."""
    seed: Annotated[int, SEED] = 0
    """Decides membership, splits, initial weights and order."""
    full: bool = False
    """Pretrain the Mamba here too, and judge the attack on a second corpus; some
    minutes more, and the extra `demo`."""
    learn: bool = False
    """Do all of --full and train an attack here as well, on a GPT-2-like model and four
    other corpora, and judge that one instead; it is kept in OUT/attack."""
    pretrain_steps: Annotated[int, COUNT] = 300
    """Updates of each base, 32 sequences of 128 tokens each, with --full."""
    attack_epochs: Annotated[int, COUNT] = 8
    """Passes over the attack's training rows, with --learn."""
    bootstraps: Annotated[int, RESAMPLES] = 1000
    """Resamples behind each 95 % interval."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""


def run(config: Demo) -> None:
    """Run every stage that is not finished yet, and write the report."""
    from lt_mia_jax.audit.judge import evaluate_stores
    from lt_mia_jax.audit.results import clear_result, write_result
    from lt_mia_jax.configs import to_dict
    from lt_mia_jax.provenance import write_run_record
    from lt_mia_jax.report import write_report
    from lt_mia_jax.study import demo

    began, out = time.monotonic(), config.out
    stage = demo.Stages(6 if config.learn else 5 if config.full else 4)
    study = demo.prepare(
        out,
        stage,
        seed=config.seed,
        full=config.full,
        learn=config.learn,
        pretrain_steps=config.pretrain_steps,
        attack_epochs=config.attack_epochs,
    )
    with stage("judging the attack on models and corpora that it never saw"):
        result = evaluate_stores(
            study.attack,
            study.stores,
            bootstraps=config.bootstraps,
            seed=config.seed,
            notes=[
                "Tiny models (about a million parameters) on code, technical text and "
                "speeches: figures show the mechanism, not the size of the effect on "
                "production models."
            ],
        )
        title = "Demo: one signature of memorization, tiny models, real text"
        clear_result(out)
        write_run_record(out, "demo", config)
        write_result(result, out, kind="demo", title=title, config=to_dict(config))
        write_report([out], out / "report.html")
    with stage("writing example files for `lt-mia audit`"):
        demo.write_examples(study.corpora, out, config.seed)
    log.info(
        "done in %.1f minutes; open %s",
        (time.monotonic() - began) / 60,
        out / "report.html",
    )
