"""`lt-mia finetune`: a target model from a base model and texts."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import (
    BATCH,
    COUNT,
    INSIDE_UNIT,
    LENGTH,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    InputError,
)
from lt_mia_jax.finetune.flags import Lora
from lt_mia_jax.outputs import MODEL, Output, Source, Writing, WritingFlags

if TYPE_CHECKING:
    from lt_mia_jax.data.texts import Text

log = logging.getLogger(__name__)

WRITES = Output(MODEL, record="training")
TEXTS = ("members.jsonl", "validation.jsonl")
"""What a target was trained on and chosen by, beside its training state."""
ENCODED = ("length", "side", "bos", "score")
"""Flags that say how texts become tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune:
    """Fine-tune a model on texts and write a Hugging Face directory.

    AdamW at a constant rate; the epoch with the lowest validation loss is kept. The
    run continues where it was interrupted, with the same result.
    """

    model: Source
    """The base model: a Hugging Face directory, a PEFT adapter (which is merged), or a
    hub id."""
    texts: Path
    """The fine-tuning data: a .jsonl, .jsonl.gz, .csv or .parquet file, a folder
    of .txt files, or hub:NAME:CONFIG:SPLIT."""
    out: Path
    """Folder of the fine-tuned model; training state goes to its `training` folder."""
    validation: Path | None = None
    """Validation texts, of which near copies of --texts are left out; without it, part
    of --texts is held out."""
    validation_fraction: Annotated[float, INSIDE_UNIT] = 0.05
    """Share of --texts held out when no --validation is given."""
    epochs: Annotated[int, COUNT] = 3
    """Passes over the texts."""
    batch_size: Annotated[int, BATCH] = 16
    """Texts in one step."""
    learning_rate: Annotated[float, POSITIVE] = 5e-5
    """Constant rate of AdamW."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """Decoupled weight decay, on all parameters."""
    column: str = "text"
    """Field or column that holds the texts."""
    length: Annotated[int, LENGTH] = 128
    """Tokens a text is cut to, the final end-of-text token included."""
    side: Literal["right", "left"] = "right"
    """Which end of a long text is cut off; left for code."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """Begin every text with the beginning-of-text token, which is no target; auto does
    what the tokenizer does."""
    score: Literal["response", "all"] = "response"
    """Tokens of conversations that are learned; plain texts are learned whole."""
    lora: Lora = dataclasses.field(default_factory=Lora)
    """Adapters instead of full fine-tuning. They are merged into the model, and written
    to its `adapter` folder in PEFT's format too."""
    save_seconds: Annotated[float, NOT_NEGATIVE] = 60.0
    """Least time between checkpoints; 0 saves after every step."""
    seed: Annotated[int, SEED] = 0
    """Seed of order, dropout, adapters and of the held-out share."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""
    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def run(config: Finetune) -> None:
    """Fine-tune and save."""
    from lt_mia_jax.audit.scoring import warn_of_intervention
    from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
    from lt_mia_jax.checkpoints.adapters.export import clear_adapter, save_adapter
    from lt_mia_jax.checkpoints.tokenizer import fit_vocabulary
    from lt_mia_jax.data.chat.rendering import check_responses
    from lt_mia_jax.data.texts import write_texts
    from lt_mia_jax.data.tokenize import (
        describe_beginning,
        encode,
        flag_texts,
    )
    from lt_mia_jax.executor import fetch, is_primary, wait_for_all
    from lt_mia_jax.finetune import FinetuneConfig, finetune
    from lt_mia_jax.models import LanguageModel
    from lt_mia_jax.models.length import check_length
    from lt_mia_jax.unlearning.interventions.storage import save_intervention

    train, validation = _split(config)
    executor = config.devices.make()
    warn_of_intervention(config.model)
    config_, params, tokenizer = load_pretrained(config.model, mesh=executor.mesh)
    check_length(config.length, model=config_)
    state = config.out / "training"
    log.info("%d texts to train on, %d to validate", len(train), len(validation))
    log.info("%s", describe_beginning(tokenizer, config.bos, train[0].content))
    cut: Any = {name: getattr(config, name) for name in ENCODED}
    encoded = [
        encode([text.content for text in texts], tokenizer, **cut)
        for texts in (train, validation)
    ]
    for each in encoded:
        check_responses(flag_texts(each), config.length)
    encoded = [
        fit_vocabulary(
            each, tokenizer, [x.id for x in texts], {"model": config_.vocab_size}
        )
        for each, texts in zip(encoded, (train, validation), strict=True)
    ]
    result = finetune(
        LanguageModel(config_),
        params,
        encoded[0],
        encoded[1],
        FinetuneConfig(
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            lora=config.lora.config,
            seed=config.seed,
        ),
        directory=state,
        executor=executor,
        save_every_seconds=config.save_seconds,
    )
    params, adapters = fetch(result.params), fetch(result.adapters)
    if is_primary():
        # After training, which refuses the folder of another run.
        for name, part in zip(TEXTS, (train, validation), strict=True):
            write_texts(state / name, part)
        save_intervention(config.out, None)  # that of a model which is overwritten
        clear_adapter(config.out / "adapter")  # the same
        save_pretrained(config.out, config_, params, tokenizer, like=config.model)
        if adapters is not None:
            save_adapter(
                config.out / "adapter",
                config_,
                adapters,
                base=config.model,
                rank=config.lora.rank,
                alpha=config.lora.alpha,
                dropout=config.lora.dropout,
            )
    wait_for_all("model saved")
    log.info("wrote %s (best epoch %d)", config.out, result.best_epoch)


def _split(config: Finetune) -> tuple[list["Text"], list["Text"]]:
    """Texts to train on, and those that choose the epoch."""
    from lt_mia_jax.data.splits import hold_out
    from lt_mia_jax.data.texts import read_texts

    read = partial(read_texts, column=config.column)
    texts = [text for text in read(config.texts) if text.text.strip()]
    if config.validation is not None:
        if not texts:
            raise InputError(f"{config.texts}: every text is empty")
        return texts, _unseen(read(config.validation), texts, config)
    kept, held = hold_out(texts, config.validation_fraction, seed=config.seed)
    if not kept or not held:
        raise InputError(
            f"{config.texts}: {len(texts)} non-empty texts, at least 2 are needed that "
            "are no near copies of each other (one is held out for validation); add "
            "texts or pass --validation"
        )
    return [texts[i] for i in kept], [texts[i] for i in held]


def _unseen(
    validation: list["Text"], texts: list["Text"], config: Finetune
) -> list["Text"]:
    """Validation texts that are no near copies of texts to train on."""
    from lt_mia_jax.data.duplicates import copies

    first = copies([text.text for text in (*texts, *validation)])[len(texts) :]
    kept = [text for text, n in zip(validation, first, strict=True) if n >= len(texts)]
    if not kept:
        raise InputError(
            f"{config.validation}: every text is a near copy of one in {config.texts}; "
            "give texts that the model is not trained on"
        )
    if len(kept) < len(validation):
        log.warning(
            "validation texts left out as near copies of texts to train on: %d",
            len(validation) - len(kept),
        )
    return kept
