"""Memory, FLOPs and collectives of a step on a TPU slice, compiled without a TPU.

JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m experiments.speed.aot_compile

Needs the package libtpu, which holds the compiler. Parameters are shapes only, so a
model of any size takes no memory here.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh

from experiments.speed.compiled import Figures, describe
from lt_mia_jax.attacks.learned import classifier
from lt_mia_jax.attacks.learned import optimizer as attack_optimizer
from lt_mia_jax.attacks.learned import recipe as attack_recipe
from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.learned.packing import StepBatch
from lt_mia_jax.attacks.learned.train import TrainStep
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor
from lt_mia_jax.features.program import ExtractConfig, Extraction
from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.config import FinetuneConfig
from lt_mia_jax.finetune.step import TokenBatch, TokenStep
from lt_mia_jax.models import (
    ExecutionConfig,
    LanguageModel,
    ModelConfig,
    gpt2_like,
    llama_like,
    mamba_like,
    neox_like,
)
from lt_mia_jax.sharding import (
    batch_sharding,
    make_mesh,
    parameter_shardings,
    replicated,
)
from lt_mia_jax.training.loop import _advance
from lt_mia_jax.training.optimizer import make_optimizer
from lt_mia_jax.training.state import init_state

MODELS: dict[str, Callable[[int], ModelConfig]] = {
    "124m-gpt2": lambda depth: gpt2_like(50257, 768, depth or 12, 12, 1024),
    "1.4b-pythia": lambda depth: neox_like(50304, 2048, depth or 24, 16, 2048),
    "2.8b-pythia": lambda depth: neox_like(50304, 2560, depth or 32, 32, 2048),
    "2.8b-mamba": lambda depth: mamba_like(50280, 2560, depth or 64),
    "7b-llama": lambda depth: llama_like(
        32000, 4096, depth or 32, 32, 4096, feed_forward=11008
    ),
}
"""Shapes of published models, by a number of layers; 0 is the published one."""

Step = Literal["extract", "lora", "full", "attack"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compile:
    """Compile one step for a TPU slice and print what it takes."""

    step: Step = "extract"
    """`extract`: both forwards and all reductions; `lora` and `full`: an update of
    fine-tuning; `attack`: an update of the attack."""

    model: Literal[
        "124m-gpt2", "1.4b-pythia", "2.8b-pythia", "2.8b-mamba", "7b-llama"
    ] = "7b-llama"
    """Shape of the model."""

    layers: int = 0
    """Depth; 0 is the published one."""

    topology: str = "v5e:4x4"
    """Slice, such as v5e:4x4 or v5p:2x2x2."""

    data: int = 1
    """Copies of the parameters."""

    fsdp: int = 16
    """Devices that share a copy."""

    batch_size: int = 256
    """Rows of a step, over all devices."""

    length: int = 128
    """Tokens a text."""

    k: int = 20
    """Length of the LT-MIA lists."""

    vocab_chunk: int | None = None
    """Vocabulary entries reduced at a time; None is all."""

    remat: bool = False
    """Recompute layers in the backward pass."""

    slices: int = 1
    """Parts of a batch that the attack's update computes one after the other."""

    param_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of parameters; None is bfloat16 to extract and float32 to train."""

    memory_gb: float = 16.0
    """Memory of one device, to compare with."""


def described_mesh(topology: str, data: int, fsdp: int) -> Mesh:
    """A mesh of devices that need not be present.

    Raises:
      InputError: the slice is unknown, libtpu is absent or the mesh does not fit.
    """
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # of whatever kind: the plug-in's own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"topology {topology}: {reason}; expected such as v5e:4x4, and the package "
            "libtpu"
        ) from error
    return make_mesh(data, fsdp, found.devices)


def language_model(config: Compile) -> LanguageModel:
    """The model of a step, which trains in float32 and is read in bfloat16."""
    dtype = config.param_dtype or (
        "bfloat16" if config.step == "extract" else "float32"
    )
    execution = ExecutionConfig(param_dtype=dtype, remat=config.remat)
    return LanguageModel(MODELS[config.model](config.layers), execution)


def lower(config: Compile, mesh: Mesh) -> jax.stages.Lowered:
    """The step, traced for the devices of the mesh."""
    makers = {"extract": _extraction, "attack": _attack}
    program, arguments, settings = makers.get(config.step, _finetuning)(config, mesh)
    # The mesh in context tells the package which platform it is traced for. Arguments
    # are made before, since arrays made here would be put on devices that are absent.
    with jax.set_mesh(mesh):
        return program.lower(*arguments, **settings)


Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A jitted function, its arguments and its settings."""


def _extraction(config: Compile, mesh: Mesh) -> Call:
    model = language_model(config)
    params = _placed(model.shapes(), mesh)
    tokens = _rows(config, mesh, (config.length,), jnp.int32)
    settings = ExtractConfig(k=config.k, vocab_chunk=config.vocab_chunk)
    program = Extraction(target=model, reference=model, config=settings, half=True)
    run = program.on(Executor("jit", mesh))
    return run, (params, params, tokens, tokens), {}


def _finetuning(config: Compile, mesh: Mesh) -> Call:
    model = language_model(config)
    adapters = lora.LoraConfig() if config.step == "lora" else None
    recipe = FinetuneConfig(batch_size=config.batch_size, lora=adapters)
    params, frozen = model.shapes(), None
    if adapters is not None:
        frozen = _placed(params, mesh)
        params = jax.eval_shape(
            lambda shapes: lora.init(jax.random.key(0), shapes, adapters), params
        )
    optimizer = make_optimizer(recipe.optimizer, 0)
    state = jax.eval_shape(lambda shapes: init_state(shapes, optimizer), params)
    batch = TokenBatch(
        _rows(config, mesh, (config.length,), jnp.int32),
        _rows(config, mesh, (config.length,), jnp.uint8),
        _rows(config, mesh, (), jnp.float32),
    )
    step = TokenStep(model, recipe.optimizer, 0, adapters)
    bound = jax.tree_util.Partial(step, frozen)
    return _advance, (bound, _placed(state, mesh), batch, _key(mesh)), {"mesh": mesh}


def _attack(config: Compile, mesh: Mesh) -> Call:
    shape = ClassifierConfig(inputs=7 * config.k + 14, length=config.length)
    recipe = attack_recipe.TrainConfig(
        batch_size=config.batch_size, slices=config.slices
    )
    params, constants = classifier.split_constants(
        jax.eval_shape(lambda key: classifier.init(shape, key), jax.random.key(0))
    )
    optimizer = attack_optimizer.make_optimizer(recipe, 1)
    state = jax.eval_shape(lambda shapes: init_state(shapes, optimizer), params)
    batch = StepBatch(
        _rows(config, mesh, (config.length, shape.inputs), jnp.float32),
        _rows(config, mesh, (config.length,), jnp.uint8),
        _rows(config, mesh, (), jnp.float32),
        _rows(config, mesh, (), jnp.float32),
    )
    step = TrainStep.of(shape, recipe, 1)
    bound = jax.tree_util.Partial(step, _placed(constants, mesh))
    return _advance, (bound, _placed(state, mesh), batch, _key(mesh)), {"mesh": mesh}


def _placed(shapes: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        parameter_shardings(shapes, mesh),
    )


def _rows(config: Compile, mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(
        (config.batch_size, *shape), dtype, sharding=batch_sharding(mesh)
    )


def _key(mesh: Mesh) -> Any:
    key = jax.eval_shape(jax.random.key, 0)
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))


def report(cost: Figures, seconds: float, memory_gb: float) -> str:
    """The table of one program, per chip."""
    share = cost.peak / (memory_gb * 1e9)
    rows = [
        ("arguments", f"{cost.arguments / 1e9:.2f} GB"),
        ("temporaries", f"{cost.temporaries / 1e9:.2f} GB"),
        ("outputs", f"{cost.outputs / 1e9:.3f} GB"),
        ("memory in all", f"{cost.peak / 1e9:.2f} GB, {share:.0%} of {memory_gb:g}"),
        ("matrix products", f"{cost.products / 1e12:.3f} TFLOP"),
        ("main memory traffic", f"{cost.bytes_accessed / 1e9:.1f} GB"),
    ]
    rows += [
        (kind, f"{cost.collectives_run[kind]:,} sending {size / 1e9:.2f} GB")
        for kind, size in sorted(cost.sent.items())
    ]
    rows.append(("compile time", f"{seconds:.0f} s"))
    lines = ["| per chip and step | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compile and print one Markdown table."""
    config = tyro.cli(Compile, description=__doc__)
    try:
        mesh = described_mesh(config.topology, config.data, config.fsdp)
        lowered = lower(config, mesh)
        start = time.perf_counter()
        compiled = lowered.compile()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise SystemExit(f"does not fit: {str(error).splitlines()[0]}") from None
    seconds = time.perf_counter() - start
    sys.stdout.write(report(describe(compiled), seconds, config.memory_gb))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
