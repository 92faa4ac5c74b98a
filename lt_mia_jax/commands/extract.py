"""`lt-mia extract`: texts with known membership into a feature store."""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Literal

from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import BATCH, COUNT, LENGTH, SEED, InputError, between
from lt_mia_jax.outputs import Output, Source, Writing, WritingFlags

log = logging.getLogger(__name__)

WRITES = Output(
    (
        *("store.json", "texts.json", "block-*.safetensors", "progress-*.json"),
        *("manifest.json", "run.json", "config.json"),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract:
    """Turn texts of known membership into a feature store, for train and evaluate.

    One forward pass of each model per text; nothing of vocabulary size is kept. The
    run continues where it was interrupted.
    """

    reference: Source
    """The model before fine-tuning: a Hugging Face directory or hub id."""
    target: Source
    """The fine-tuned model: a Hugging Face directory, a PEFT adapter, or a hub id."""
    members: Path
    """Texts that the target was fine-tuned on: a .jsonl, .jsonl.gz, .csv or .parquet
    file, a folder of .txt files, or hub:NAME:CONFIG:SPLIT."""
    nonmembers: Path
    """Texts drawn like the members that it never saw."""
    out: Path
    """Folder of the store."""
    name: str = ""
    """Name of the combination in tables; empty takes the folder's name."""
    corpus: str = ""
    """Name of the corpus in tables; empty takes the members file's name."""
    k: Annotated[int, between(1, 1000)] = 20
    """Top and bottom tokens kept per step; 7k + 14 feature columns."""
    column: str = "text"
    """Field or column that holds the texts."""
    length: Annotated[int, LENGTH] = 128
    """Tokens a text is cut to, the final end-of-text token included."""
    side: Literal["right", "left"] = "right"
    """Which end of a long text is cut off; left for code."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """Begin every text with the beginning-of-text token, which is not scored; auto does
    what the tokenizer does."""
    score: Literal["response", "all"] = "response"
    """Tokens of conversations that are scored; plain texts are scored whole."""
    batch_size: Annotated[int, BATCH] = 16
    """Texts in one forward pass."""
    block_texts: Annotated[int, COUNT] = 256
    """Texts in one file; an interruption loses at most one file's work."""
    seed: Annotated[int, SEED] = 0
    """Decides which texts train, select and test a learned attack."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""
    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def run(config: Extract) -> None:
    """Extract both lists into one store."""
    import numpy as np

    from lt_mia_jax.audit.inputs import place
    from lt_mia_jax.audit.scoring import load_pair
    from lt_mia_jax.data.formats.sources import source_name
    from lt_mia_jax.data.texts import check_one_kind, read_texts
    from lt_mia_jax.features.extract import extract_texts
    from lt_mia_jax.features.program import ExtractConfig

    sides = (config.members, config.nonmembers)
    members, nonmembers = (read_texts(side, column=config.column) for side in sides)
    both = {text.text for text in members} & {text.text for text in nonmembers}
    if both:
        first = next(text for text in nonmembers if text.text in both)
        raise InputError(
            f"{config.nonmembers}: {len(both)} texts also stand in {config.members} "
            f"(first: {place(first)}); a text is a member or not, remove them from one"
        )
    check_one_kind(members, nonmembers)
    texts = [*members, *nonmembers]
    labels = np.repeat([1, 0], [len(members), len(nonmembers)])
    pair = load_pair(config.reference, config.target, config.devices.make())
    assert pair.reference is not None  # a required flag
    store = extract_texts(
        pair.target,
        pair.reference,
        [text.content for text in texts],
        ids=[text.id for text in texts],
        labels=labels,
        length=config.length,
        side=config.side,
        bos=config.bos,
        score=config.score,
        seed=config.seed,
        out_dir=config.out,
        config=ExtractConfig(
            k=config.k,
            batch_size=config.batch_size,
            block_batches=max(1, config.block_texts // config.batch_size),
        ),
        meta={
            "name": config.name or config.out.name,
            "target": config.target,
            "reference": config.reference,
            "corpus": config.corpus or source_name(config.members),
            "side": config.side,
        },
        executor=pair.executor,
    )
    log.info("wrote %d texts to %s", store.n, config.out)
