"""`lt-mia syntofu`: fictitious authors, and tiny models with and without them."""

import dataclasses
import logging
from pathlib import Path
from typing import Literal, assert_never

import jax
import numpy as np

from lt_mia_jax.checkpoints import load_pretrained, load_tokenizer, save_pretrained
from lt_mia_jax.data.answers import encode_answers
from lt_mia_jax.data.syntofu import MAX_LENGTH, TEMPLATE, SynTofuConfig, build, write
from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.executor import Executor, fetch, is_primary, wait_for_all
from lt_mia_jax.models import LanguageModel, ModelConfig
from lt_mia_jax.models.presets import (
    gpt2_like,
    griffin_like,
    llama_like,
    mamba_like,
    rwkv_like,
)
from lt_mia_jax.provenance import write_run_record
from lt_mia_jax.training.optimizer import Cosine
from lt_mia_jax.unlearning.methods import Retrain
from lt_mia_jax.unlearning.train import ForgetTexts, UnlearnConfig, unlearn

log = logging.getLogger(__name__)

HEADS, CONTEXT = 4, 32
REPEATS = 4
"""How often an author's row stands among the texts of fine-tuning; background rows,
which keep the ability to paraphrase, stand there once."""
Family = Literal["gpt2", "llama", "mamba", "rwkv", "recurrent_gemma"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynTofu:
    """Write SynTOFU, the offline analogue of TOFU, and train its tiny models.

    A `base` model learns the language from people who are never forgotten. From it
    `full` learns all fictitious authors, and for each size of the forget set `retainNN`
    learns the others only: what perfect unlearning would give. Minutes on two cores; a
    stopped command goes on where it was.
    """

    out: Path
    """Folder: `data` gets the files, `models` one Hugging Face directory a model."""

    family: Family = "gpt2"
    """Architecture of the models."""

    data: SynTofuConfig = dataclasses.field(default_factory=SynTofuConfig)
    """How many people there are."""

    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the retrained models: two give the noise between equals."""

    width: int = 64
    """Width of the models."""

    layers: int = 2
    """Layers of the models."""

    pretrain_epochs: int = 20
    """Passes over the background people."""

    finetune_epochs: int = 20
    """Passes over background people and, four times each, authors."""

    batch_size: int = 64
    """Texts in one step."""

    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def run(config: SynTofu) -> None:
    """Write the data and train every model that is not there yet.

    Raises:
      InputError: the sizes do not fit, or the folder holds another run.
    """
    write_data(config)
    executor = config.devices.make()
    for name in model_names(config):
        train_model(config, name, executor)


def write_data(config: SynTofu) -> None:
    """The files, and the record of the run."""
    if is_primary():
        write(config.out / "data", config.data)
    wait_for_all("data written")
    write_run_record(config.out, "syntofu", config)


def model_config(config: SynTofu, vocabulary: int) -> ModelConfig:
    """The shape of the models."""
    width, layers = config.width, config.layers
    match config.family:
        case "gpt2":
            return gpt2_like(vocabulary, width, layers, HEADS, CONTEXT)
        case "llama":
            return llama_like(vocabulary, width, layers, HEADS, CONTEXT)
        case "mamba":
            return mamba_like(vocabulary, width, layers, context=CONTEXT)
        case "rwkv":
            return rwkv_like(vocabulary, width, layers, context=CONTEXT)
        case "recurrent_gemma":
            return griffin_like(vocabulary, width, layers, HEADS)
        case _:
            assert_never(config.family)


def model_names(config: SynTofu) -> tuple[str, ...]:
    """`base`, `full`, and `retainNN-seedS`; the others start from the first."""
    retrained = (
        f"retain{100 - percent:02d}-seed{seed}"
        for percent in config.data.forget_percent
        for seed in config.seeds
    )
    return ("base", "full", *retrained)


def train_model(config: SynTofu, name: str, executor: Executor) -> None:
    """One model of `model_names`; all but `base` need that one."""
    splits = build(config.data)
    tokenizer = load_tokenizer(config.out / "data" / "tokenizer")
    shape = model_config(config, len(tokenizer))
    model = LanguageModel(shape)
    folder = config.out / "models" / name
    kept, _, seed = name.partition("-seed")
    rows = [*splits["pretrain"]]
    if name == "base":
        start = fetch(model.init(jax.random.key(config.data.seed)))
        rate, epochs = 3e-3, config.pretrain_epochs
    else:
        start = load_pretrained(config.out / "models" / "base").params
        rate, epochs = 1e-3, config.finetune_epochs
        rows = [*splits[kept]] * REPEATS + rows
    texts = encode_answers(rows, tokenizer, max_length=MAX_LENGTH, template=TEMPLATE)
    result = unlearn(
        model,
        start,
        ForgetTexts(texts.take(np.arange(0))),
        texts,
        Retrain(),
        UnlearnConfig(
            learning_rate=rate,
            epochs=epochs,
            batch_size=config.batch_size,
            clip_norm=1.0,
            schedule=Cosine(),
            seed=int(seed or 0),
        ),
        directory=folder / "training",
        executor=executor,
    )
    params = fetch(result.params)
    if is_primary():
        save_pretrained(folder, shape, params, tokenizer)
    wait_for_all(f"{name} saved")
    log.info("wrote %s", folder)
