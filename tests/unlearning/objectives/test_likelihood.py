from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle_unlearning as oracle
import pytest
from model_zoo import configs, forward, random_params
from objective_zoo import (
    CASES,
    Case,
    V,
    apply_fn,
    assert_same,
    device_case,
    numpy_case,
    random_batch,
    rows_of,
    value_and_gradient,
)

from lt_mia_jax.models import LanguageModel
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.objectives import distributions, representation
from lt_mia_jax.unlearning.objectives.batch import LossAux, shifted

each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each
def test_value_and_gradient_equal_the_definition(case):
    params, batch = numpy_case()
    point = np.float64(params[case.reads])
    terms = case.oracle(point, params, batch)
    (value, info), gradient = value_and_gradient(case, *device_case())
    assert value.dtype == info.normalizer.dtype == jnp.float32
    np.testing.assert_allclose(value, oracle.value(terms, batch.weight), rtol=1e-5)
    np.testing.assert_allclose(
        info.per_example, [term for term, _ in terms], rtol=1e-5, atol=1e-6
    )
    expected = np.dot(batch.weight != 0, [count for _, count in terms])
    np.testing.assert_allclose(info.normalizer, expected, rtol=1e-6)
    total = np.dot(np.float64(info.per_example), np.float64(batch.weight))
    np.testing.assert_allclose(value, total / expected, rtol=1e-5)

    slope = oracle.gradient(
        lambda z: oracle.value(case.oracle(z, params, batch), batch.weight), point
    )
    largest = np.abs(slope).max()
    assert largest > 1e-4
    np.testing.assert_allclose(
        gradient[case.reads], slope, rtol=1e-5, atol=1e-6 * largest
    )
    # The reference is data.
    for leaf in jax.tree.leaves(gradient["reference"]):
        assert not np.asarray(leaf).any()


def test_tokens_are_those_scored():
    params, batch = device_case()
    scored = [len(row) for row in oracle.predictions(batch)]
    other = [len(r) for r in oracle.predictions(batch.alternative, batch.weight)]
    assert min(scored) == 0
    expected = {
        "nll-token": scored,
        "npo": scored,
        "alternative_nll-sequence_sum": other,
        "dpo-loser": [n if m else 0 for n, m in zip(scored, other, strict=True)],
        "ce_u": [max(n - 1, 0) for n in scored],
        "rmu": batch.label_mask.sum(1) * (batch.weight != 0),
    }
    for name, tokens in expected.items():
        (_, info), _ = value_and_gradient(CASES[name], params, batch)
        np.testing.assert_array_equal(info.tokens, tokens, err_msg=name)


@each
def test_parts_of_a_batch_add_up(case):
    params, batch = device_case()
    (whole, info), gradient = value_and_gradient(case, params, batch)
    total, total_gradient = 0.0, jax.tree.map(jnp.zeros_like, params)
    norms = []
    for part in (slice(0, 3), slice(3, 6)):
        (value, piece), slope = value_and_gradient(
            case, rows_of(params, part), rows_of(batch, part)
        )
        norms.append(piece.normalizer)
        total += value * piece.normalizer
        total_gradient = jax.tree.map(
            lambda x, y, part=part, n=piece.normalizer: x.at[part].add(n * y),
            total_gradient,
            slope,
        )
    assert all(float(n) > 0 for n in norms)
    np.testing.assert_allclose(sum(norms), info.normalizer, rtol=1e-6)
    np.testing.assert_allclose(total / sum(norms), whole, rtol=1e-5)
    mean = jax.tree.map(lambda x: x / sum(norms), total_gradient)
    assert_same(mean, gradient, rtol=1e-5)


@each
def test_the_weight_of_a_text_counts_in_a_batch_of_one(case):
    params, batch = device_case()
    (_, info), _ = value_and_gradient(case, params, batch)
    row = int(np.abs(info.per_example).argmax())  # one that has targets
    part = slice(row, row + 1)
    one, its = rows_of(params, part), rows_of(batch, part)
    halves = (its._replace(weight=jnp.full(1, weight)) for weight in (0.5, 1.0))
    (half, _), (whole, _) = (value_and_gradient(case, one, b)[0] for b in halves)
    assert float(whole) != 0
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)


@each
def test_texts_without_weight_or_target_change_nothing(case):
    params, batch = device_case()
    (value, info), gradient = value_and_gradient(case, params, batch)
    assert float(info.per_example[2]) == 0
    assert not np.asarray(gradient[case.reads])[2].any()
    # Whatever the row of weight 0 holds, NaN included.
    broken = jax.tree.map(lambda x: x.at[2].set(jnp.nan), params)
    (same, _), slope = value_and_gradient(case, broken, batch)
    assert float(same) == float(value)
    assert_same(slope, gradient, rtol=0)
    # Nothing to score at all.
    empty = batch._replace(weight=jnp.zeros_like(batch.weight))
    (nothing, info), slope = value_and_gradient(case, params, empty)
    assert float(nothing) == float(info.normalizer) == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slope))


@each
def test_nan_outside_the_targets_reaches_nothing(case):
    params, batch = device_case()

    def spoil(values, mask):
        return jnp.where(
            mask.reshape(mask.shape + (1,) * (values.ndim - 2)), values, jnp.nan
        )

    here = shifted(batch).mask
    other = shifted(batch.alternative, batch.weight).mask
    label = batch.label_mask != 0
    broken = {
        "logits": spoil(params["logits"], here),
        "other": spoil(params["other"], other),
        "stream": spoil(params["stream"], label),
        "reference": {
            "logits": spoil(params["reference"]["logits"], here),
            "stream": spoil(params["reference"]["stream"], label),
        },
    }
    alternative = batch.alternative._replace(
        reference_nll=spoil(batch.alternative.reference_nll, other)
    )
    spoilt = batch._replace(
        reference_nll=spoil(batch.reference_nll, here), alternative=alternative
    )
    found = value_and_gradient(case, broken, spoilt)
    assert_same(found, value_and_gradient(case, params, batch), rtol=0)


@each
def test_appended_padding_changes_nothing(case):
    params, batch = device_case()

    def pad(x, value=0):
        widths = [(0, 0), (0, 5), (0, 0)][: x.ndim]
        return jnp.pad(x, widths if x.ndim > 1 else 0, constant_values=value)

    (value, info), gradient = value_and_gradient(case, params, batch)
    longer = jax.tree.map(partial(pad, value=9), params)
    (padded, same), slope = value_and_gradient(case, longer, jax.tree.map(pad, batch))
    assert_same((padded, same), (value, info))
    assert_same(slope, jax.tree.map(pad, gradient))


@each
def test_the_order_of_texts_is_theirs(case):
    params, batch = device_case()
    order = jnp.array([3, 0, 5, 2, 1, 4])
    (value, info), _ = value_and_gradient(case, params, batch)
    (same, moved), _ = value_and_gradient(
        case, rows_of(params, order), rows_of(batch, order)
    )
    np.testing.assert_allclose(same, value, rtol=1e-6)
    np.testing.assert_allclose(moved.per_example, info.per_example[order], rtol=1e-6)
    np.testing.assert_array_equal(moved.tokens, info.tokens[order])


# What theory says of single objectives.


def with_reference(params, batch):
    """The batch as cached at these parameters."""
    cached = partial(objectives.cached_reference_nll, params, apply_fn=apply_fn)
    alternative = batch.alternative
    return batch._replace(
        reference_nll=cached(batch),
        alternative=alternative._replace(reference_nll=cached(alternative)),
    )


def slope_of_sequence_sums(params, batch):
    """Gradient of their weighted sum over the number of texts: p minus one-hot."""
    rows = oracle.predictions(batch)
    slope = np.zeros(params["logits"].shape)
    for b, row in enumerate(rows):
        for t, y in row:
            slope[b, t] = oracle.softmax(params["logits"][b, t])
            slope[b, t, y] -= 1
    weight = np.array([w * bool(r) for w, r in zip(batch.weight, rows, strict=True)])
    return slope * weight[:, None, None] / np.count_nonzero(weight)


def mean_weight(batch, info):
    """Of the texts that have something to score."""
    return np.asarray(batch.weight)[np.asarray(info.tokens) > 0].mean()


def test_npo_starts_as_gradient_ascent_on_sequence_sums():
    params, batch = device_case()
    (value, info), gradient = value_and_gradient(
        CASES["npo"], params, with_reference(params, batch)
    )
    expected = 2 / 0.1 * np.log(2) * mean_weight(batch, info)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    expected = -slope_of_sequence_sums(params, batch)
    np.testing.assert_allclose(gradient["logits"], expected, rtol=1e-5, atol=1e-7)


def test_npo_becomes_gradient_ascent_everywhere_for_small_beta():
    params, batch = device_case()  # far from the reference
    case = Case(partial(objectives.npo, beta=1e-6), None)
    _, gradient = value_and_gradient(case, params, batch)
    expected = -slope_of_sequence_sums(params, batch)
    np.testing.assert_allclose(gradient["logits"], expected, rtol=1e-4, atol=1e-7)
    _, far = value_and_gradient(CASES["npo"], params, batch)
    assert np.abs(far["logits"] - expected).max() > 1e-2


def test_npo_far_from_the_reference_stays_finite():
    params, batch = device_case()
    for factor in (-1e4, 1e4):
        far = batch._replace(reference_nll=factor * batch.reference_nll)
        (value, _), gradient = value_and_gradient(CASES["npo-2"], params, far)
        assert np.isfinite(value)
        assert np.isfinite(gradient["logits"]).all()


def test_simnpo_where_all_means_are_delta():
    # Uniform predictions: every mean is log V.
    params, batch = device_case()
    flat = {**params, "logits": jnp.zeros_like(params["logits"])}
    value, info = objectives.simnpo(
        flat, batch, apply_fn=apply_fn, beta=2.5, delta=float(np.log(V))
    )
    expected = 2 / 2.5 * np.log(2) * mean_weight(batch, info)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_dpo_of_a_text_against_itself():
    params, batch = device_case()
    same = batch._replace(alternative=batch._replace(alternative=None))
    (value, info), gradient = value_and_gradient(CASES["dpo-loser"], params, same)
    expected = 20 * np.log(2) * mean_weight(same, info)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient["logits"], 0, atol=1e-7)


@pytest.mark.parametrize(
    "call",
    [
        partial(objectives.wga, beta=0.0),
        partial(objectives.satimp, beta1=0.0, beta2=0.0),
    ],
)
def test_without_exponents_reweighted_ascent_is_ascent(call):
    params, batch = device_case()
    found = value_and_gradient(Case(call, None), params, batch)
    assert_same(found, value_and_gradient(CASES["neg_nll-token"], params, batch))


def test_cached_reference_holds_the_losses_of_all_targets():
    params, batch = device_case()
    found = objectives.cached_reference_nll(params, batch, apply_fn=apply_fn)
    everyone = np.ones(6)
    expected = np.zeros(found.shape)
    rows = oracle.predictions(batch, everyone)
    lists = oracle.losses(params["logits"], batch, everyone)
    for b, (row, values) in enumerate(zip(rows, lists, strict=True)):
        for (t, _), nll in zip(row, values, strict=True):
            expected[b, t] = nll
    assert rows[2]  # a row of weight 0 is cached too
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not found[:, -1].any()


def test_what_is_missing_is_named():
    params, batch = device_case()
    bare = batch._replace(reference_nll=None)
    for name in ("npo", "tnpo", "wtnpo", "dpo-loser"):
        with pytest.raises(ValueError, match=r"batch\.reference_nll.*cached_reference"):
            CASES[name](params, bare)
    alternative = batch.alternative._replace(reference_nll=None)
    with pytest.raises(ValueError, match=r"batch\.alternative\.reference_nll"):
        CASES["dpo-loser"](params, batch._replace(alternative=alternative))
    for name in ("dpo-loser", "alternative_nll-token"):
        with pytest.raises(ValueError, match=r"needs batch\.alternative"):
            CASES[name](params, batch._replace(alternative=None))
    fewer = rows_of(batch.alternative, slice(0, 2))
    with pytest.raises(ValueError, match="2 rows; expected 6"):
        CASES["alternative_nll-token"](params, batch._replace(alternative=fewer))


def test_half_precision_logits_are_reduced_in_float32():
    params, batch = device_case()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    back = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    for name in ("nll-token", "kl", "pdu_flatten", "rmu"):
        (value, info), _ = value_and_gradient(CASES[name], half, batch)
        assert value.dtype == jnp.float32
        (expected, same), _ = value_and_gradient(CASES[name], back, batch)
        assert_same((value, info), (expected, same))


# A real model.


def test_a_language_model_under_jit():
    model = LanguageModel(configs()["llama"])
    params, reference = random_params(model.config), random_params(model.config, 5)
    batch = random_batch(3, 4, 9, np.ones(4))
    cache = jax.jit(partial(objectives.cached_reference_nll, apply_fn=model.apply))
    batch = jax.tree.map(jnp.asarray, batch)
    batch = batch._replace(reference_nll=cache(reference, batch))
    logits = np.float64(forward(model, params, batch.input_ids))
    reference_logits = np.float64(forward(model, reference, batch.input_ids))
    control = representation.control_vector(jax.random.key(0), model.config.width)
    capture = jax.jit(partial(model.apply, capture=(1,)))
    stream, kept = (capture(p, batch.input_ids)[1][1] for p in (params, reference))

    frozen = {"reference_params": reference}
    calls = {
        "npo": (objectives.npo, {}, oracle.npo(logits, batch, beta=0.1)),
        "kl": (
            distributions.kl_to_reference,
            {**frozen, "block": 4},
            oracle.kl(logits, reference_logits, batch),
        ),
        "rmu": (
            representation.rmu,
            {"layer": 1, "control": control},
            oracle.stream_distance(stream, batch, lambda b, t: 2 * np.asarray(control)),
        ),
        "rmu_retain": (
            representation.rmu_retain,
            {**frozen, "layer": 1},
            oracle.stream_distance(stream, batch, lambda b, t: np.float64(kept)[b, t]),
        ),
    }

    @jax.jit
    def everything(params, batch, settings):
        found = {}
        for name, (objective, static, _) in calls.items():
            static = {k: v for k, v in static.items() if k in ("layer", "block")}
            function = partial(
                objective, apply_fn=model.apply, **static, **settings[name]
            )
            found[name] = jax.value_and_grad(function, has_aux=True)(params, batch)
        return found

    settings = {
        name: {k: v for k, v in given.items() if k not in ("layer", "block")}
        for name, (_, given, _) in calls.items()
    }
    for name, ((value, info), gradient) in everything(params, batch, settings).items():
        assert isinstance(info, LossAux)
        np.testing.assert_allclose(
            value, oracle.value(calls[name][2], batch.weight), rtol=1e-4, err_msg=name
        )
        largest = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)]
        assert np.isfinite(largest).all(), name
        assert max(largest) > 1e-4, name
