"""`lt-mia audit`: was each text in the target's fine-tuning data?"""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import (
    BATCH,
    COUNT,
    INSIDE_UNIT,
    LENGTH,
    RESAMPLES,
    SEED,
)
from lt_mia_jax.outputs import RESULT, Source, Writing, WritingFlags

log = logging.getLogger(__name__)

WRITES = RESULT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """Was each text in the fine-tuning data of the target model?

    Scores every text with the learned attack and with every published score, from the
    same forward pass, and writes scores.jsonl, summary.json and report.html into
    --out. Texts that carry labels give a table of AUCs; --nonmembers gives p-values
    and a verdict on the whole set. A model that runs elsewhere, such as behind a
    server, is audited from files: --target-statistics in the place of --target.
    """

    target: Source | None = None
    """The model under audit: a Hugging Face directory, a PEFT adapter, or a hub id."""
    reference: Source | None = None
    """The model before fine-tuning: a Hugging Face directory or hub id; of an adapter,
    its base is the default. Without it only the scores of the target alone are
    computed, which find far fewer members."""
    target_statistics: Path | None = None
    """File that `lt-mia collect` wrote for the model under audit (JSONL with `id`,
    `token_ids`, `log_probs`, `ranks` of all texts), in the place of --target. It also
    says what was cut and is scored: --side, --bos and --score do not count."""
    reference_statistics: Path | None = None
    """The same for the model before fine-tuning, in the place of --reference."""
    vocab_size: Annotated[int | None, COUNT] = None
    """Number of logits (vocab_size in the model's config.json), where the files of
    statistics do not say it; the learned attack scales ranks by it."""
    texts: Path
    """Rows with `text` (or `messages`, or `prompt` and `completion`) and optional `id`,
    `label` (1 member, 0 non-member): a .jsonl, .jsonl.gz, .csv or .parquet file, a
    folder of .txt files, or hub:NAME:CONFIG:SPLIT."""
    out: Path
    """Folder for the results."""
    attack: Source = "shipped"
    """The learned attack, which needs a reference: `shipped` with the package, trained
    on tiny transformers; a folder made by `lt-mia train`; a torch checkpoint of the
    reference implementation (FILE.pt, needs torch); `none` for the published scores
    alone."""
    nonmembers: Path | None = None
    """Texts known not to be in the fine-tuning data, drawn like --texts.
    They calibrate p-values and the verdict on the whole set, which need 20 distinct
    ones. Neither is given if a classifier without any model tells them from --texts."""
    column: str = "text"
    """Field or column that holds the texts."""
    length: Annotated[int, LENGTH] = 128
    """Tokens a text is cut to, the final end-of-text token included."""
    side: Literal["right", "left"] = "right"
    """Which end of a long text is cut off; left for code."""
    overlap: Annotated[int | None, COUNT] = None
    """Score long texts whole, in windows of --length tokens, of which this many are
    context from the window before: 32, say. For models that were fine-tuned on whole
    texts; by default texts are cut. --side does not count then."""
    combine: Literal["mean", "max"] = "mean"
    """How scores of windows (--overlap) become one: mean over all its tokens, or max,
    where a passage alone may have been trained on."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """Begin every text with the beginning-of-text token, which is not scored; auto does
    what the tokenizer does."""
    score: Literal["response", "all"] = "response"
    """Tokens of conversations that are scored; plain texts are scored whole."""
    batch_size: Annotated[int, BATCH] = 16
    """Texts in one forward pass."""
    alpha: Annotated[float, INSIDE_UNIT] = 0.01
    """Level of the verdict on the whole set."""
    bootstraps: Annotated[int, RESAMPLES] = 1000
    """Resamples behind each 95 % interval."""
    seed: Annotated[int, SEED] = 0
    """Seed of every resampling and split."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""
    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def run(config: Audit) -> None:
    """Audit, and write the three result files."""
    from lt_mia_jax.audit.inputs import check_texts
    from lt_mia_jax.audit.judge import audit
    from lt_mia_jax.audit.results import clear_result, write_result
    from lt_mia_jax.audit.scoring import choose_attack
    from lt_mia_jax.audit.served import choose_pair
    from lt_mia_jax.checkpoints.adapters.base import reference_of, title_of
    from lt_mia_jax.configs import to_dict
    from lt_mia_jax.data.formats.sources import source_name
    from lt_mia_jax.data.texts import read_texts
    from lt_mia_jax.executor import is_primary, wait_for_all
    from lt_mia_jax.provenance import write_run_record
    from lt_mia_jax.report import write_report

    read = partial(read_texts, column=config.column)
    texts = read(config.texts)
    nonmembers = [] if config.nonmembers is None else read(config.nonmembers)
    reference = config.reference or (config.target and reference_of(config.target))
    before = reference or config.reference_statistics
    attack = choose_attack(config.attack, reference=before is not None)
    # Before models are loaded, which takes longer.
    check_texts(texts, nonmembers, str(config.texts), str(config.nonmembers))
    pair = choose_pair(
        reference=reference,
        target=config.target,
        reference_statistics=config.reference_statistics,
        target_statistics=config.target_statistics,
        vocab_size=config.vocab_size,
        executor=config.devices.make,
    )
    result = audit(
        pair,
        texts,
        nonmembers,
        attack,
        length=config.length,
        side=config.side,
        bos=config.bos,
        score=config.score,
        overlap=config.overlap,
        combine=config.combine,
        batch_size=config.batch_size,
        alpha=config.alpha,
        bootstraps=config.bootstraps,
        seed=config.seed,
        name=source_name(config.texts),
        corpus=str(config.texts),
    )
    if is_primary():
        clear_result(config.out)
        write_run_record(config.out, "audit", config)
        title = f"Audit of {title_of(pair.target_name)}"
        write_result(
            result, config.out, kind="audit", title=title, config=to_dict(config)
        )
        write_report([config.out], config.out / "report.html")
    wait_for_all("result written")
    for sentence in result.verdict:
        log.info("%s", sentence)
    log.info("wrote %s", config.out / "report.html")
