"""Training-free scores: worked vectors, definitions, edge cases, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle_scores
import pytest

from lt_mia_jax.attacks import scores
from lt_mia_jax.errors import InputError
from lt_mia_jax.features import TokenStatistics, token_statistics

LP_T = [-1, -0.2, -3, -0.1, -2, -0.5, -4, -0.3]
LP_R = [-1.5, -0.1, -3.5, -0.4, -1.5, -1, -5, -0.2]
NAMES = (
    "loss zlib min_k max_k min_k_plus_plus rank log_rank entropy lrr reference ratio ez"
    " wbc binoculars fast_detectgpt lowercase"
).split()


def draw(seed=0, batch=7, length=48, vocabulary=60):
    """Statistics of random logits; text 3 has no valid step, text 4 one."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, batch, length, vocabulary))
    target = (2 * noise[0]).astype(np.float32)
    reference = (2 * noise[0] + noise[1]).astype(np.float32)
    ids = rng.integers(0, vocabulary, (batch, length)).astype(np.int32)
    # Half of the true tokens are likely ones, so that ranks of 1 occur.
    likely = target[:, :-1].argmax(-1)
    ids[:, 1:] = np.where(rng.random(likely.shape) < 0.5, likely, ids[:, 1:])
    lengths = np.array([length, 30, 11, 1, 2, 3, length - 1])[:batch]
    attention = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int32)
    return target, reference, ids, attention


def on_host(inputs):
    return jax.tree.map(np.asarray, token_statistics(*inputs, k=0))


@pytest.fixture(scope="module")
def stats():
    return on_host(draw())


def worked():
    lp = np.array([LP_T, LP_R])
    hit = np.array([[t not in (0, 2, 4, 6) for t in range(8)]])
    zeros = np.zeros((1, 8))
    return TokenStatistics(
        input_ids=zeros.astype(np.int32),
        valid=np.ones((1, 8), bool),
        target_log_prob=lp[:1],
        target_mean=zeros,
        target_var=zeros,
        target_rank=np.where(hit, 1, 2).astype(np.int32),
        target_top1=hit,
        reference_log_prob=lp[1:],
        reference_mean=zeros,
        cross_mean=zeros,
        cross_var=zeros,
        reference_rank=zeros.astype(np.int32),
    )


@pytest.mark.parametrize("device", [False, True])
def test_worked_vector(device):
    stats = jax.tree.map(jnp.asarray, worked()) if device else worked()
    expected = {
        "loss": -1.3875,
        "reference": 0.2625,
        "ratio": -0.840909,
        "min_k": -4.0,
        "ez": 3.0,
        "wbc": 0.971429,
    }
    for name, value in expected.items():
        found = getattr(scores, name)(stats)
        np.testing.assert_allclose(found, [value], atol=6e-7, err_msg=name)
    np.testing.assert_allclose(scores.min_k(stats, fraction=0.5), [-2.5])
    np.testing.assert_allclose(scores.wbc(stats, windows=(1,)), [0.625])
    np.testing.assert_allclose(
        scores.wbc(stats, windows=(2, 3, 4)), [0.904762], atol=6e-7
    )


def oracle(name, stats, row, lower, sizes):
    x = oracle_scores.text_of(stats, row)
    if not x["target_log_prob"]:
        return np.nan
    function = getattr(oracle_scores, name)
    if name == "wbc":
        return function(x, (2, 3, 4, 6, 9, 13, 18, 25, 32, 40))
    if name == "zlib":
        return function(x, sizes[row])
    if name == "lowercase":
        return function(x, oracle_scores.text_of(lower, row))
    return function(x)


@pytest.fixture(scope="module")
def found(stats):
    """All scores of the same texts: on the host, and compiled for a device."""
    lower = on_host(draw(9))
    sizes = np.array([100, 80, 30, 8, 9, 10, 90])
    host = scores.all_scores(stats, zlib_bytes=sizes, lower=lower)
    compiled = jax.jit(lambda s, z, low: scores.all_scores(s, zlib_bytes=z, lower=low))
    arrays = [jax.tree.map(jnp.asarray, x) for x in (stats, sizes, lower)]
    return host, compiled(*arrays), lower, sizes


@pytest.mark.parametrize("name", NAMES)
def test_oracle(name, stats, found):
    host, device, lower, sizes = found
    expected = [oracle(name, stats, row, lower, sizes) for row in range(7)]
    assert set(host) == set(device) == set(NAMES)
    assert host[name].dtype == np.float64
    np.testing.assert_allclose(host[name], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(device[name], expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(expected).tolist() == [r == 3 for r in range(7)]


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6, 1.0])
def test_fractions(stats, fraction):
    for name in ("min_k", "max_k", "min_k_plus_plus"):
        expected = []
        for row in range(7):
            x = oracle_scores.text_of(stats, row)
            function = getattr(oracle_scores, name)
            expected.append(function(x, fraction) if x["target_log_prob"] else np.nan)
        found = getattr(scores, name)(stats, fraction)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("repeat_clamped", [True, False])
@pytest.mark.parametrize(
    "windows", [scores.WBC_PAPER_WINDOWS, (1,), (3, 60, 47), (46, 47, 48, 100)]
)
def test_wbc_windows(stats, windows, repeat_clamped):
    options = {"windows": windows, "repeat_clamped": repeat_clamped}
    found = scores.wbc(stats, **options)
    for row in (0, 1, 2, 4, 5, 6):
        x = oracle_scores.text_of(stats, row)
        expected = oracle_scores.wbc(x, **options)
        np.testing.assert_allclose(found[row], expected, rtol=1e-12)


def test_paper_windows_follow_the_formula():
    geometric = tuple(round(2 * 20 ** (i / 9)) for i in range(10))
    assert geometric == scores.WBC_PAPER_WINDOWS


def test_equal_models_never_win_a_window(stats):
    same = stats._replace(reference_log_prob=stats.target_log_prob)
    np.testing.assert_array_equal(scores.wbc(same)[[0, 1, 2]], 0)


def test_ez_edges(stats):
    plain = worked()
    no_error = plain._replace(target_top1=np.ones((1, 8), bool))
    one_error = plain._replace(target_top1=np.arange(8)[None, :] != 4)
    no_loss = plain._replace(reference_log_prob=plain.target_log_prob - 1)
    for case in (no_error, one_error, no_loss):
        assert scores.ez(case) == 0
        assert scores.ez_edge_cases(case).tolist() == [True]
        x = oracle_scores.text_of(case, 0)
        found = scores.ez(case, edge="member")
        np.testing.assert_allclose(found, oracle_scores.ez(x, "member"))
        assert scores.count_ez_edge_cases(case) == 1
        blank = case._replace(valid=np.zeros((1, 8), bool))
        assert scores.count_ez_edge_cases(blank) == 0
    assert scores.ez(no_loss, edge="member") > 1e10
    assert scores.ez(no_error, edge="member") > scores.ez(no_loss, edge="member")
    assert scores.count_ez_edge_cases(plain._replace(reference_log_prob=None)) == 0
    assert not scores.ez_edge_cases(plain).any()
    usual = ~scores.ez_edge_cases(stats)
    assert usual.sum() >= 3
    np.testing.assert_array_equal(
        scores.ez(stats)[usual], scores.ez(stats, edge="member")[usual]
    )


def test_fast_detectgpt_with_reference_sampling(stats):
    found = scores.fast_detectgpt(stats, sampling="reference")
    for row in (0, 1, 4):
        x = oracle_scores.text_of(stats, row)
        expected = oracle_scores.fast_detectgpt(x, "reference")
        np.testing.assert_allclose(found[row], expected, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 3.7, -41.3])
@pytest.mark.parametrize("vocabulary", [60, 50_257])
def test_a_uniform_prediction_is_no_evidence(vocabulary, shift):
    """All log-probabilities are their mean: nothing is above or below it."""
    logits = jnp.full((1, 6, vocabulary), shift, jnp.float32)
    ids, mask = jnp.arange(6)[None], jnp.ones((1, 6), jnp.uint8)
    both = token_statistics(logits, logits, ids, mask)
    for found in (both, jax.tree.map(np.asarray, both)):
        assert scores.min_k_plus_plus(found) == 0
        assert scores.lrr(found) == 0
        for sampling in ("target", "reference"):
            assert scores.fast_detectgpt(found, sampling=sampling) == 0


@pytest.mark.parametrize("device", [False, True])
def test_a_saturated_text_is_the_strongest_evidence_of_lrr(device):
    """Every token is predicted for certain; one text below is so but for a token."""
    ids = np.array([[1, 2, 3, 4]] * 2)
    logits = np.zeros((2, 4, 50), np.float32)
    for step in range(3):
        logits[:, step, ids[0, step + 1]] = 1000
    logits[1, 2] = np.linspace(0, 1, 50)
    found = token_statistics(logits, None, ids, np.ones((2, 4), np.uint8))
    if not device:
        found = jax.tree.map(np.asarray, found)
    saturated, almost = np.asarray(scores.lrr(found))
    assert np.isfinite(saturated)
    assert saturated > almost > 0


def test_precomputed_lower_loss(stats):
    lower = on_host(draw(9))
    np.testing.assert_allclose(
        scores.lowercase(stats, lower),
        scores.lowercase(stats, lower_loss=-scores.loss(lower)),
    )
    with pytest.raises(InputError, match="exactly one"):
        scores.lowercase(stats)


def test_constant_on_all_logits_changes_nothing():
    target, reference, ids, attention = draw(1)
    one = scores.all_scores(on_host((target, reference, ids, attention)))
    two = scores.all_scores(on_host((target + 3, reference - 2, ids, attention)))
    for name, values in one.items():
        np.testing.assert_allclose(values, two[name], rtol=1e-3, atol=1e-4)


def test_what_stands_on_padding_is_ignored(stats):
    def poison(x):
        if x.dtype == bool:
            return np.where(stats.valid, x, True)
        return np.where(stats.valid, x, 7).astype(x.dtype)

    poisoned = jax.tree.map(poison, stats)._replace(valid=stats.valid)
    for name, values in scores.all_scores(stats).items():
        np.testing.assert_array_equal(values, scores.all_scores(poisoned)[name])


def test_trailing_padding_and_order_of_texts(stats):
    wide = jax.tree.map(lambda x: np.pad(x[::-1], ((0, 0), (0, 5))), stats)
    for name, values in scores.all_scores(wide).items():
        expected = scores.all_scores(stats)[name][::-1]
        np.testing.assert_allclose(values, expected, rtol=1e-12, err_msg=name)


def test_vmap(stats, found):
    split = jax.tree.map(lambda x: jnp.asarray(x)[:, None], stats)
    mapped = jax.jit(jax.vmap(scores.all_scores))(split)
    for name, values in mapped.items():
        expected = found[1][name]
        np.testing.assert_allclose(values[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_single_model_leaves_comparisons_out(stats):
    alone = stats._replace(
        reference_log_prob=None,
        reference_mean=None,
        cross_mean=None,
        cross_var=None,
        reference_rank=None,
    )
    found = scores.all_scores(alone)
    left_out = {"reference", "ratio", "ez", "wbc", "binoculars"}
    assert set(found) == set(NAMES) - left_out - {"zlib", "lowercase"}
    for name in left_out:
        with pytest.raises(InputError, match="reference"):
            getattr(scores, name)(alone)


def test_no_texts_at_all(stats):
    empty = jax.tree.map(lambda x: x[:0], stats)
    for values in scores.all_scores(empty).values():
        assert values.shape == (0,)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("min_k", {"fraction": 0.0}),
        ("wbc", {"windows": ()}),
        ("wbc", {"windows": (0, 3)}),
    ],
)
def test_bad_options(stats, name, options):
    with pytest.raises(InputError, match="expected"):
        getattr(scores, name)(stats, **options)
