"""`lt-mia merge`: one model of several fine-tunes."""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Literal

from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import COUNT, UNIT, InputError, Range, between
from lt_mia_jax.outputs import MODEL, Output, Source, Writing, WritingFlags

log = logging.getLogger(__name__)

RECORD, PACK = "merge.json", "pack.safetensors"
WRITES = Output((*MODEL, RECORD, PACK), record="training", resumes=False)
SIZE = between(0, 10**4)
FACTOR = Range("-100 to 100", lambda x: -100 <= x <= 100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge fine-tunes of one base model, without training.

    Methods: `ties` trims what each fine-tune changed, elects a sign for each parameter
    and averages what agrees; `arithmetic` adds all changes; `mean` averages the models;
    `difference` adds the change of one fine-tune to another version of its base;
    `swap` puts the first and last layers of a language model around a task model;
    `pack` compresses the change of one fine-tune to a small file, and writes the model
    that it gives back; `expand` fits layers that are linear in depth to those of one
    model, and makes a model of --layers of them, a start for training.

    Writes a Hugging Face directory and merge.json, which says what was merged.
    """

    method: Literal[
        "ties", "arithmetic", "mean", "difference", "swap", "pack", "expand"
    ]
    """How models become one."""
    models: tuple[Source, ...]
    """Fine-tunes: Hugging Face directories, PEFT adapters or hub ids, of one
    architecture and vocabulary. For swap the task model, then the language model; for
    difference, pack and expand one."""
    base: Source | None = None
    """What they were fine-tuned from: for ties, arithmetic, difference and pack."""
    onto: Source | None = None
    """For difference: the other version of the base; its vocabulary may have grown."""
    out: Path
    """Folder of the merged model."""
    density: Annotated[float | None, UNIT] = None
    """For ties: fraction of each fine-tune's changes that is kept, the largest; by
    default 0.2."""
    scale: Annotated[float | None, FACTOR] = None
    """For ties, arithmetic and difference: factor on what is added to the base, by
    default 1. The sum of several changes (arithmetic) often needs less."""
    bottom: Annotated[int | None, SIZE] = None
    """For swap: layers (in models that repeat several: units) from the language model
    at the input; by default 5 of 32, at least 1. One more is mixed."""
    top: Annotated[int | None, SIZE] = None
    """For swap: the same at the output; by default 2 of 32, at least 1."""
    layers: Annotated[int | None, COUNT] = None
    """For expand: depth of the new model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the written parameters. bfloat16 halves memory and files."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""
    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def run(config: Merge) -> None:
    """Merge and save."""
    from lt_mia_jax.audit.scoring import warn_of_intervention
    from lt_mia_jax.checkpoints.adapters.export import clear_adapter
    from lt_mia_jax.configs import narrowed
    from lt_mia_jax.files import write_json
    from lt_mia_jax.transfer.weightspace.merge import Setting, merge
    from lt_mia_jax.unlearning.interventions.storage import save_intervention

    if config.devices.distributed != "off":
        raise InputError("--distributed: merge runs in one process; leave it out")
    for model in config.models:
        warn_of_intervention(model, config.base)
    record = merge(
        config.method,
        config.models,
        config.out,
        base=config.base,
        onto=config.onto,
        setting=narrowed(config, Setting),
        dtype=config.dtype,
        mesh=config.devices.make().mesh,
    )
    save_intervention(config.out, None)  # that of a model which was overwritten
    clear_adapter(config.out / "adapter")  # the same
    if config.method != "pack":
        (config.out / PACK).unlink(missing_ok=True)
    write_json(config.out / RECORD, record)
    log.info("wrote %s (%s of %s)", config.out, config.method, ", ".join(config.models))
