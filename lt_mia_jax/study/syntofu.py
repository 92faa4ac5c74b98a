"""SynTOFU on disk: its files, and tiny models trained with and without the authors."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lt_mia_jax.data.syntofu import MAX_LENGTH, TEMPLATE, SynTofuConfig, build, write
from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import BATCH, COUNT, SEED, between

if TYPE_CHECKING:
    from lt_mia_jax.executor import Executor
    from lt_mia_jax.models import ModelConfig

log = logging.getLogger(__name__)

HEADS, CONTEXT = 4, 32
REPEATS = 4
"""Copies of each author row in the fine-tuning data; background rows, which keep the
ability to paraphrase, occur once."""
Family = Literal["gpt2", "llama", "mamba", "rwkv", "recurrent_gemma"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynTofu:
    """What SynTOFU consists of, how its models are trained, and where."""

    out: Path
    """Output folder: `data` holds the files, `models` a Hugging Face directory each."""
    family: Family = "gpt2"
    """Architecture of the models."""
    data: SynTofuConfig = dataclasses.field(default_factory=SynTofuConfig)
    """How many people there are."""
    seeds: tuple[Annotated[int, SEED], ...] = (0, 1)
    """Seeds of the retrained models; two show the noise between equal models."""
    width: Annotated[int, between(HEADS, 2**13)] = 64
    """Width of the models."""
    layers: Annotated[int, between(1, 256)] = 2
    """Layers of the models."""
    pretrain_epochs: Annotated[int, COUNT] = 20
    """Passes over the background people."""
    finetune_epochs: Annotated[int, COUNT] = 20
    """Passes over the background people and four copies of each author."""
    batch_size: Annotated[int, BATCH] = 64
    """Texts per step."""
    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""

    @property
    def models(self) -> tuple[str, ...]:
        """`base`, `full` and `retainNN-seedS`; the others start from the first."""
        retrained = (
            f"retain{100 - percent:02d}-seed{seed}"
            for percent in self.data.forget_percent
            for seed in self.seeds
        )
        return ("base", "full", *retrained)


def write_data(config: SynTofu) -> None:
    """Write the files."""
    from lt_mia_jax.executor import is_primary, wait_for_all

    if is_primary():
        write(config.out / "data", config.data)
    wait_for_all("data written")


def train_model(config: SynTofu, name: str, executor: "Executor") -> None:
    """Train one of `config.models`; all but `base` start from `base`."""
    import jax
    import numpy as np

    from lt_mia_jax.checkpoints import load_pretrained, load_tokenizer, save_pretrained
    from lt_mia_jax.data.answers import encode_answers
    from lt_mia_jax.executor import fetch, is_primary, wait_for_all
    from lt_mia_jax.models import LanguageModel
    from lt_mia_jax.training.config import Cosine
    from lt_mia_jax.unlearning.methods import Retrain
    from lt_mia_jax.unlearning.recipe import ForgetTexts, UnlearnConfig
    from lt_mia_jax.unlearning.train import unlearn

    splits = build(config.data)
    tokenizer = load_tokenizer(config.out / "data" / "tokenizer")
    shape = _model_config(config, len(tokenizer))
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


def _model_config(config: SynTofu, vocabulary: int) -> "ModelConfig":
    from lt_mia_jax.models import presets

    width, layers = config.width, config.layers
    match config.family:
        case "gpt2":
            return presets.gpt2_like(vocabulary, width, layers, HEADS, CONTEXT)
        case "llama":
            return presets.llama_like(vocabulary, width, layers, HEADS, CONTEXT)
        case "mamba":
            return presets.mamba_like(vocabulary, width, layers, context=CONTEXT)
        case "rwkv":
            return presets.rwkv_like(vocabulary, width, layers, context=CONTEXT)
        case "recurrent_gemma":
            return presets.griffin_like(vocabulary, width, layers, HEADS)
