"""Running methods: what they do to the losses, devices, resuming, errors."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import unlearning_world as world
from unlearning_world import answer_loss, start

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.finetune import LoraConfig
from lt_mia_jax.training.state import init_state
from lt_mia_jax.trees import flatten
from lt_mia_jax.unlearning import objectives, transforms
from lt_mia_jax.unlearning.batches import UnlearningBatches
from lt_mia_jax.unlearning.methods import METHODS, GeometricUnlearning, Method
from lt_mia_jax.unlearning.methods.method import Schedule
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.unlearning.recipe import UnlearnConfig
from lt_mia_jax.unlearning.step import Frozen, PairBatch, TrainableModel, UnlearnStep
from lt_mia_jax.unlearning.train import unlearn

FAST = UnlearnConfig(learning_rate=3e-3, epochs=4, batch_size=4, warmup_epochs=0.0)


def run(folder, method, *, family="gpt2", config=FAST, **options):
    defaults = {
        "forget": world.forget_texts(),
        "retain": world.RETAIN,
        "executor": make_executor("single"),
    }
    options = defaults | options
    if isinstance(method, str):
        method = METHODS[method]
    return unlearn(
        world.model(family),
        start(family),
        options.pop("forget"),
        options.pop("retain"),
        method,
        config,
        directory=folder,
        **options,
    )


def rows(folder):
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


EVERYTHING = "LT_MIA_EVERY_METHOD" in os.environ
"""Run every method, on every family: about a quarter of an hour."""


@pytest.fixture(autouse=True)
def _programs_do_not_pile_up():
    """Of every method they are more than the memory maps of a process."""
    yield
    if EVERYTHING:
        jax.clear_caches()


INTERVENED = [name for name in METHODS if METHODS[name].intervention() is not None]
"""They have tests of their own, in test_intervened.py."""
FORGETS = [n for n in METHODS if n not in ("retrain", "undial", *INTERVENED)]
if not EVERYTHING:  # one of each kind of objective and of transformation
    FORGETS = ["npo", "rmu", "salun", "guard", "graceful_forgetting"]


@pytest.mark.parametrize("name", FORGETS)
def test_forget_loss_rises(name, tmp_path):
    method = METHODS[name]
    config = FAST
    if name == "pdu":  # from its first step on 100 times the retain loss
        method = dataclasses.replace(method, initial=0.1)
    if name in ("rmu", "salun", "sure"):
        config = dataclasses.replace(FAST, epochs=12)
    texts = world.forget_texts().answers
    before = answer_loss(start(), texts)
    result = run(tmp_path, method, config=config)
    history = rows(tmp_path)
    # They move streams, or flatten: of a model at chance the loss need not follow.
    if name in ("rmu", "pdu"):
        assert history[-1]["forget_loss"] < history[0]["forget_loss"]
    else:
        assert answer_loss(result.params, texts) > before + 0.005
    assert [row["step"] for row in history] == list(range(1, result.steps + 1))
    assert all(np.isfinite(list(row.values())).all() for row in history)


def test_undial_lowers_the_true_token(tmp_path):
    # Its aim is a small probability of the true token, whatever the loss at the start.
    texts = world.forget_texts().answers
    result = run(tmp_path, "undial")

    def mean_logit(params):
        logits = world.model().apply(params, texts.input_ids)
        centered = logits - logits.mean(-1, keepdims=True)
        true = jnp.take_along_axis(centered[:, :-1], texts.input_ids[:, 1:, None], -1)
        return float(true[..., 0][texts.label_mask[:, 1:] == 1].mean())

    assert mean_logit(result.params) < mean_logit(start())


def test_retraining_learns_what_is_kept(tmp_path):
    result = run(tmp_path, "retrain")
    before, after = (answer_loss(p, world.RETAIN) for p in (start(), result.params))
    assert after < before - 0.05
    assert all("forget_loss" not in row for row in rows(tmp_path))


@pytest.mark.parametrize("family", world.MODELS)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "guard_it"])
def test_every_method_fits_every_family(name, family):
    """Traced and not compiled: shapes, data and states of all of them fit."""
    model, method = world.model(family), METHODS[name]
    method = method.fitted(model.config)
    step = UnlearnStep(
        trainable=TrainableModel(model=model, intervention=method.intervention()),
        method=method,
        optimizer=FAST.optimizer,
        schedule=Schedule(12, 3),
    )
    texts, retain = (
        TextBatch(*rows[:3], np.ones(4, np.float32))
        for rows in (world.answers(0, 4), world.answers(1, 4))
    )
    reference = np.ones((4, world.LENGTH), np.float32)
    if method.cached_reference:
        texts = texts._replace(reference_nll=reference)
    if method.alternative:
        texts = texts._replace(alternative=texts)
    data = {"control": jnp.ones(model.config.width)}

    def update(params, texts, retain):
        mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
        base, trained = None, params
        if name == "mrp":
            rows = jnp.ones((len(method.layers), method.rows, model.config.width))
            base, trained = params, {"rows": rows, "earlier": rows}
        state = init_state(trained, step.transform({"mask": mask}))
        frozen = Frozen(base, {**data, "reference_params": params})
        return state, step(frozen, state, PairBatch(texts, retain), jax.random.key(0))

    state, (after, metrics) = jax.eval_shape(update, model.shapes(), texts, retain)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )
    assert all(x.shape == () for x in metrics.values())


@pytest.mark.skipif(not EVERYTHING, reason="LT_MIA_EVERY_METHOD runs them")
@pytest.mark.parametrize("family", [name for name in world.MODELS if name != "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_every_family(name, family, tmp_path):
    config = dataclasses.replace(FAST, epochs=3 if name == "graceful_forgetting" else 1)
    if name == "causal_layer_unlearning" and family == "mamba":
        with pytest.raises(InputError, match="has none"):
            run(tmp_path, name, family=family, config=config)
        return
    if name == "guard_it":
        name = dataclasses.replace(METHODS[name], threshold=0.5)
    result = run(tmp_path, name, family=family, config=config)
    if result.intervention is not None:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.intervention))
        return
    pairs = zip(
        jax.tree.leaves(result.params), jax.tree.leaves(start(family)), strict=True
    )
    assert any(bool((a != b).any()) for a, b in pairs)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(result.params))


def losses_and_params(folder, name, executor):
    config = dataclasses.replace(FAST, epochs=3 if name == "graceful_forgetting" else 2)
    method = METHODS[name]
    if isinstance(method, GeometricUnlearning):
        # At 4.5 its loss is flat here, and all of it rounding.
        method = dataclasses.replace(method, beta=0.5)
    result = run(folder, method, config=config, executor=executor)
    found = [row["loss"] for row in rows(folder)]
    if name == "mrp":  # of the basis only the span means anything
        q = np.asarray(result.intervention.stacked.rows)
        return np.array(found), {"projector": q.swapaxes(1, 2) @ q}
    return np.array(found), flatten(result.params)


DEVICES = [name for name in METHODS if name != "guard_it"]


@pytest.mark.parametrize("name", DEVICES if EVERYTHING else ["npo", "gu"])
def test_devices_do_not_matter(name, tmp_path):
    # Adam's first steps are signs: where a gradient is rounding, so is its sign.
    losses, params = losses_and_params(tmp_path / "one", name, make_executor("single"))
    for label, executor in {
        "data": make_executor("jit"),
        "fsdp": make_executor("jit", fsdp=4),
        "pmap": make_executor("pmap"),
    }.items():
        other_losses, other = losses_and_params(tmp_path / label, name, executor)
        np.testing.assert_allclose(
            other_losses,
            losses,
            rtol=1e-5,
            atol=1e-5 * abs(losses).max(),
            err_msg=label,
        )
        far = {
            n: float((abs(np.asarray(other[n]) - np.asarray(params[n])) > 1e-5).mean())
            for n in params
            # Attention does not depend on it: its gradient is nothing but rounding.
            if not n.endswith("key/bias")
        }
        assert max(far.values()) < 0.01, (label, far)


def test_devices_do_not_matter_for_what_is_fitted(tmp_path):
    method = dataclasses.replace(METHODS["guard_it"], threshold=0.5)
    one = run(tmp_path / "one", method).intervention
    for label, executor in {
        "data": make_executor("jit"),
        "fsdp": make_executor("jit", fsdp=4),
        "pmap": make_executor("pmap"),
    }.items():
        other = run(tmp_path / label, method, executor=executor).intervention
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5, err_msg=label)


@pytest.mark.parametrize("name", ["npo", "mrp"])
def test_continues_exactly(name, tmp_path):
    class Killed(Exception):
        pass

    whole = run(tmp_path / "whole", name)
    config = dataclasses.replace(FAST)
    from lt_mia_jax.unlearning import train

    original = train.UnlearningBatches.batch_at
    calls = []

    def failing(self, step):
        calls.append(step)
        if step == 5 and calls.count(5) == 1:
            raise Killed
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.UnlearningBatches, "batch_at", failing)
        with pytest.raises(Killed):
            run(tmp_path / "part", name, config=config, save_every_seconds=0.0)
    result = run(tmp_path / "part", name, config=config)
    assert result.resumed_from > 0
    jax.tree.map(np.testing.assert_array_equal, result.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, result.intervention, whole.intervention)


def test_adapters_leave_the_base(tmp_path):
    config = dataclasses.replace(FAST, lora=LoraConfig(rank=2))
    result = run(tmp_path, "kl_min", config=config)
    assert result.adapters
    base, merged = flatten(start()), flatten(result.params)
    adapted = {n for n in base if (np.asarray(base[n]) != np.asarray(merged[n])).any()}
    assert adapted == set(result.adapters)


def test_masked_weights_keep_every_bit(tmp_path):
    result = run(tmp_path, "causal_layer_unlearning")
    mask = flatten(transforms.layer_mask(start(), ["*/feed_forward/*"], [0]))
    before, after = flatten(start()), flatten(result.params)
    for name, old in before.items():
        still = ~np.broadcast_to(np.asarray(mask[name]), old.shape)
        np.testing.assert_array_equal(np.asarray(after[name])[still], old[still])
    moved = [n for n in before if (np.asarray(after[n]) != before[n]).any()]
    assert moved
    assert all("/feed_forward/" in name for name in moved)


def test_traced_layers_are_the_ones_that_move(tmp_path):
    method = dataclasses.replace(METHODS["causal_layer_unlearning"], layers="trace")
    before, after = flatten(start()), flatten(run(tmp_path, method).params)
    moved = set()
    for name in before:
        changed = np.asarray(after[name]) != np.asarray(before[name])
        if changed.any():
            assert "/feed_forward/" in name
            moved |= set(np.flatnonzero(changed.reshape(len(changed), -1).any(axis=1)))
    assert len(moved) == 1  # a third of two layers, at least one


def _value(method):
    return dataclasses.dataclass(frozen=True, kw_only=True)(method)


def test_a_method_may_look_at_the_gradient_nearby():
    @_value
    class Sharp(Method):
        retain_weight: float = 0.0

        def transform(self, optimizer, schedule, arrays):
            return transforms.sharpness_aware(optax.sgd(0.5), radius=0.1)

    step = UnlearnStep(
        trainable=TrainableModel(model=world.model()),
        method=Sharp(),
        optimizer=FAST.optimizer,
        schedule=Schedule(1, 1),
    )
    texts = TextBatch(*map(jnp.asarray, world.answers(0, 4)[:3]), jnp.ones(4))
    state = init_state(start(), step.transform())
    key = jax.random.key(0)
    after, _ = jax.jit(step)(Frozen(None, {}), state, PairBatch(texts, None), key)

    @jax.jit
    @jax.grad
    def slope(params):
        return objectives.neg_nll(params, texts, apply_fn=world.model().apply)[0]

    near = slope(start())
    length = np.sqrt(
        sum(float((np.float64(g) ** 2).sum()) for g in jax.tree.leaves(near))
    )
    moved = jax.tree.map(lambda p, g: p + 0.1 / length * g, start(), near)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, start(), slope(moved))
    plain = jax.tree.map(lambda p, g: p - 0.5 * g, start(), near)
    found, expected, plain = map(flatten, (after.params, expected, plain))
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-6)
    assert max(np.abs(found[n] - plain[n]).max() for n in plain) > 1e-4


def test_a_method_may_measure_by_adams_second_moment(tmp_path):
    @_value
    class Subspace(Method):
        metric: str = "adam"

        def transform(self, optimizer, schedule, arrays):
            project = transforms.retain_subspace_projection(size=2, metric=self.metric)
            return optax.chain(project, self.combine(schedule), optimizer)

    found = [
        run(tmp_path / metric, Subspace(metric=metric)).params
        for metric in ("adam", "euclidean")
    ]
    leaves = [jax.tree.leaves(params) for params in found]
    assert all(np.isfinite(x).all() for x in leaves[0])
    assert any(
        (np.asarray(a) != np.asarray(b)).any() for a, b in zip(*leaves, strict=True)
    )


def test_compiled_once(tmp_path):
    traced = []

    class Counting(Method):
        def forget(self):
            traced.append(1)
            return super().forget()

    counting = dataclasses.dataclass(frozen=True, kw_only=True)(Counting)()
    run(tmp_path / "a", counting)
    first = len(traced)
    other = dataclasses.replace(FAST, seed=1, learning_rate=FAST.learning_rate / 2)
    run(tmp_path / "b", counting, config=other)
    # The step is traced in the first run only; the rest asks for data and terms.
    assert len(traced) - first < first


def test_missing_and_empty_texts(tmp_path):
    nothing = world.answers(0, 6).take(np.arange(0))
    bare = world.forget_texts()._replace(refusals=(), inverted=())
    cases = {
        "Npo needs texts to keep": ("npo", {"retain": None}),
        "Retrain needs texts to keep": ("retrain", {"retain": nothing}),
        "no text to forget": (
            "grad_ascent",
            {"forget": bare._replace(answers=nothing)},
        ),
        "'refusal' in every row": ("idk_dpo", {"forget": bare}),
        "'inverted' in every row": ("meow", {"forget": bare}),
    }
    for message, (name, options) in cases.items():
        with pytest.raises(InputError, match=message):
            run(tmp_path / name, name, **options)
    config = dataclasses.replace(FAST, lora=LoraConfig(rank=2))
    with pytest.raises(InputError, match="leave --lora out"):
        run(tmp_path / "lora", "salun", config=config)
    with pytest.raises(InputError, match="Mrp trains no weights; leave --lora out"):
        run(tmp_path / "lora", "mrp", config=config)
    for name in ("mrp", "guard_it"):
        with pytest.raises(InputError, match="needs texts to keep"):
            run(tmp_path / name, name, retain=None)
    assert not list(tmp_path.rglob("history.jsonl"))


OUT_OF_RANGE = [
    ("npo", {"beta": 0.0}, "Npo: beta = 0, expected more than 0"),
    ("wga", {"beta": -1.0, "retain_weight": float("nan")}, "retain_weight = nan.*beta"),
    ("salun", {"share": 1.5}, "SalUn: share = 1.5, expected more than 0, at most 1"),
    ("sure", {"percentile": 101.0}, "Sure: percentile = 101"),
    (
        "graceful_forgetting",
        {"every": 0},
        "GracefulForgetting: every = 0, expected at least 1",
    ),
    (
        "graceful_forgetting",
        {"retain_weight": 0.0},
        "retain_weight = 0, expected more than 0",
    ),
    ("retrain", {"retain_weight": 0.0}, "Retrain: retain_weight = 0"),
    ("causal_layer_unlearning", {"highest": 1.0}, "at least 1.2, the smallest alpha"),
    ("gu_subspace", {"size": 0}, "GeometricUnlearning: size = 0"),
    ("pdu", {"initial": -1.0}, "Pdu: initial = -1, expected 0 or more"),
    ("guard", {"temperature": 0.0}, "Guard: temperature = 0"),
]


@pytest.mark.parametrize(("name", "changes", "message"), OUT_OF_RANGE)
def test_settings_outside_their_range_are_refused(name, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(METHODS[name], **changes)


@pytest.mark.parametrize(
    "name", ["causal_layer_unlearning", "pdu", "gu", "npo", "kl_min", "rmu"]
)
def test_retain_texts_are_read_where_something_needs_them(name):
    """A weight of 0 does without them, unless the transformation looks at them."""
    method = dataclasses.replace(METHODS[name], retain_weight=0.0)
    assert method.needs_retain == (name in ("causal_layer_unlearning", "pdu", "gu"))


def test_a_layer_outside_the_model_is_refused():
    method = dataclasses.replace(METHODS["rmu"], layer=9)
    with pytest.raises(InputError, match="rmu: layer = 9; expected 1 to 2"):
        method.fitted(world.model().config)


@pytest.mark.parametrize("retain_weight", [0.0, 1.0])
def test_forget_weight_scales_with_and_without_retain_texts(retain_weight):
    method = Method(forget_weight=0.5, retain_weight=retain_weight)
    tx = method.combine(Schedule(4, 2))
    ones, zeros = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
    found, _ = tx.update(
        ones, tx.init(ones), ones, retain_grads=zeros, retain_value=jnp.zeros(())
    )
    np.testing.assert_array_equal(found["w"], 0.5)


@pytest.mark.parametrize("every", [1, 3])
def test_forgetting_steps_of_graceful_forgetting_pass_over_all_texts(every):
    """Three steps make an epoch, so that each third one stands at one place of it."""
    method = dataclasses.replace(METHODS["graceful_forgetting"], every=every)
    texts = world.forget_texts()
    config = dataclasses.replace(FAST, epochs=every, batch_size=2)
    executor = make_executor("single")
    sets = UnlearningBatches(
        texts, world.RETAIN, method, config, executor, world.VOCABULARY
    )
    assert sets.schedule.epoch == 3
    read = [
        sets.batch_at(step).forget.input_ids
        for step in range(sets.schedule.total)
        if (step + 1) % every == 0
    ]
    width = texts.answers.input_ids.shape[1]
    found = [
        np.pad(row, (0, width - len(row))).tobytes() for batch in read for row in batch
    ]
    assert sorted(found) == sorted(row.tobytes() for row in texts.answers.input_ids)


def test_a_run_too_short_for_graceful_forgetting_is_refused(tmp_path):
    config = dataclasses.replace(FAST, epochs=1, batch_size=2)  # three steps
    with pytest.raises(InputError, match="every 5th step, and this run has 3"):
        run(tmp_path, "graceful_forgetting", config=config)


@pytest.mark.parametrize("most", [2, 3, 100])
def test_what_a_method_looks_at_comes_from_all_retain_texts(most):
    config = dataclasses.replace(FAST, prepare_texts=most, batch_size=2)
    executor = make_executor("single")
    texts, forget = world.RETAIN, world.forget_texts()
    method = METHODS["guard"]
    sets = UnlearningBatches(forget, texts, method, config, executor, world.VOCABULARY)
    count = len(texts.input_ids)
    wanted = [int(k * count / min(most, count)) for k in range(min(most, count))]
    found = [
        np.asarray(ids)[: int(length)]
        for batch in sets.some_retain()
        for ids, length, weight in zip(
            batch.input_ids, batch.attention_mask.sum(1), batch.weight, strict=True
        )
        if weight
    ]
    assert len(found) == len(wanted)
    for ids, row in zip(found, wanted, strict=True):
        length = int(texts.attention_mask[row].sum())
        np.testing.assert_array_equal(ids, texts.input_ids[row][:length])


def test_divergence_keeps_the_last_good_checkpoint(tmp_path):
    config = dataclasses.replace(FAST, learning_rate=1e15, epochs=20)
    with pytest.raises(InputError, match=r"unlearning diverged.*checkpoint.*kept"):
        run(tmp_path, "grad_ascent", config=config, save_every_seconds=0.0)
