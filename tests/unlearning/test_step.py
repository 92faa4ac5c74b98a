"""One update: the options that wrap every method's transformation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unlearning_world as world
from unlearning_world import answer_loss, start

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.finetune import LoraConfig
from lt_mia_jax.training.config import Constant
from lt_mia_jax.training.optimizer import make_sgd
from lt_mia_jax.training.state import init_state
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.methods import METHODS, GradAscent
from lt_mia_jax.unlearning.methods.method import Schedule
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.unlearning.recipe import UnlearnConfig
from lt_mia_jax.unlearning.step import Frozen, PairBatch, TrainableModel, UnlearnStep
from lt_mia_jax.unlearning.train import unlearn

FAST = UnlearnConfig(learning_rate=3e-3, epochs=2, batch_size=6, warmup_epochs=0.0)
RATE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(GradAscent):
    """Ascent by plain gradients, of which one step can be followed."""

    def optimizer(self, config, total_steps, rate):
        return make_sgd(config, total_steps, rate)


def one_step(**options):
    texts = TextBatch(*map(jnp.asarray, world.answers(0, 4)[:3]), jnp.ones(4))
    config = dataclasses.replace(FAST, learning_rate=RATE, weight_decay=0.0)
    optimizer = dataclasses.replace(config.optimizer, schedule=Constant())
    step = UnlearnStep(
        trainable=TrainableModel(model=world.model()),
        method=Plain(),
        optimizer=optimizer,
        schedule=Schedule(1, 1),
        **options,
    )
    state = init_state(start(), step.transform())
    batch = PairBatch(texts, None)
    after, metrics = jax.jit(step)(Frozen(None, {}), state, batch, jax.random.key(0))

    @jax.jit
    @jax.grad
    def slope(params):
        return objectives.neg_nll(params, texts, apply_fn=world.model().apply)[0]

    return after.params, slope, metrics


def flat(tree):
    return np.concatenate(
        [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)]
    )


def test_sharpness_takes_the_gradient_nearby():
    after, slope, metrics = one_step(sharpness=0.1)
    near = flat(slope(start()))
    length = np.sqrt((near**2).sum())
    moved = jax.tree.map(lambda p, g: p + 0.1 / length * g, start(), slope(start()))
    expected = flat(start()) - RATE * flat(slope(moved))
    np.testing.assert_allclose(flat(after), expected, rtol=1e-4, atol=1e-6)
    assert np.abs(flat(after) - (flat(start()) - RATE * near)).max() > 1e-4
    assert float(metrics["sharpness_aware_norm"]) == pytest.approx(length, rel=1e-5)


def test_fisher_share_moves_the_largest_gradients():
    after, slope, _ = one_step(fisher_share=0.1)
    gradient, moved = flat(slope(start())), flat(after) - flat(start())
    still = np.argsort(-(gradient**2), kind="stable")[round(0.1 * len(gradient)) :]
    assert not moved[still].any()
    rest = np.setdiff1d(np.arange(len(gradient)), still)
    expected = -RATE * gradient[rest]
    np.testing.assert_allclose(moved[rest], expected, rtol=1e-3, atol=1e-6)


def run(folder, name, **options):
    return unlearn(
        world.model(),
        start(),
        world.forget_texts(),
        world.RETAIN,
        METHODS[name],
        dataclasses.replace(FAST, **options),
        directory=folder,
        executor=make_executor("single"),
    )


@pytest.mark.parametrize("name", ["npo", "salun", "gu", "graceful_forgetting"])
def test_both_go_with_masks_projections_and_schedules(name, tmp_path):
    options = {"sharpness": 0.05, "fisher_share": 0.2, "epochs": 6}
    result = run(tmp_path, name, **options)
    texts = world.forget_texts().answers
    assert answer_loss(result.params, texts) > answer_loss(start(), texts)
    assert (flat(result.params) == flat(start())).any()


def test_adapters_take_both(tmp_path):
    options = {"sharpness": 0.05, "fisher_share": 0.5, "lora": LoraConfig(rank=2)}
    assert run(tmp_path, "npo", **options).adapters


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mrp", {"sharpness": 0.1}, "Mrp trains no weights; leave --sharpness out"),
        ("guard_it", {"fisher_share": 0.1}, "GuardIt trains no .* --fisher-share out"),
        ("retrain", {"sharpness": 0.1}, "takes no gradient on forget texts"),
        ("npo", {"sharpness": 0.0}, "sharpness = 0, expected more than 0"),
        ("npo", {"fisher_share": 1.5}, "fisher_share = 1.5, expected more than 0"),
    ],
)
def test_they_are_refused_where_they_cannot_work(name, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(tmp_path, name, **options)
