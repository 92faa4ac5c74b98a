"""Collectives stand in the program once, however deep the model is."""

import jax
import numpy as np
import pytest

from experiments.speed.compiled import describe
from lt_mia_jax.executor import Executor
from lt_mia_jax.features.program import ExtractConfig, Extraction
from lt_mia_jax.finetune.step import TokenBatch, TokenStep
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.sharding import batch_sharding, make_mesh, parameter_shardings
from lt_mia_jax.training.config import OptimizerConfig
from lt_mia_jax.training.loop import _advance
from lt_mia_jax.training.optimizer import make_optimizer
from lt_mia_jax.training.state import init_state

DEPTHS = (2, 6)
SHAPE = (8, 16)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(fsdp=4)


def language_model(layers):
    # The leaves of narrower models are split or copied depending on their depth,
    # since a leaf below `SMALLEST_SHARDED` is copied and a leaf holds all layers.
    return LanguageModel(gpt2_like(512, width=128, layers=layers, heads=4, context=16))


def placed(shapes, shardings):
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        shardings,
    )


def rows(dtype, mesh, shape=SHAPE):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))


def extraction(layers, mesh):
    model = language_model(layers)
    params = placed(model.shapes(), parameter_shardings(model.shapes(), mesh))
    ids = rows(np.int32, mesh)
    program = Extraction(
        target=model, reference=model, config=ExtractConfig(k=4), half=True
    )
    return program.on(Executor("jit", mesh)).lower(params, params, ids, ids).compile()


def finetuning(layers, mesh):
    model, optimizer = language_model(layers), OptimizerConfig()
    made = jax.eval_shape(
        lambda params: init_state(params, make_optimizer(optimizer, 0)), model.shapes()
    )
    state = placed(made, parameter_shardings(made, mesh))
    weight = rows(np.float32, mesh, SHAPE[:1])
    batch = TokenBatch(rows(np.int32, mesh), rows(np.uint8, mesh), weight)
    step = jax.tree_util.Partial(TokenStep(model, optimizer, 0), None)
    lowered = _advance.lower(step, state, batch, jax.random.key(0), mesh=mesh)
    return lowered.compile()


@pytest.mark.parametrize("program", [extraction, finetuning])
def test_collectives_in_the_program_do_not_grow_with_depth(program, mesh):
    shallow, deep = (describe(program(layers, mesh)) for layers in DEPTHS)
    assert shallow.collectives == deep.collectives
    assert sum(shallow.collectives.values()) > 0
    assert shallow.unbounded_loops == deep.unbounded_loops == 0
    # The loop over the layers runs some of them once a layer and none more often.
    few, many = (sum(x.collectives_run.values()) for x in (shallow, deep))
    per_layer, rest = divmod(many - few, DEPTHS[1] - DEPTHS[0])
    assert rest == 0
    assert 0 < per_layer <= sum(deep.collectives.values())
