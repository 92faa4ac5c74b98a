"""Token statistics against the slow definition, and their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle_features
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.features import TokenStatistics, token_statistics
from lt_mia_jax.features.statistics import without_context

BATCH, LENGTH, VOCABULARY, K = 3, 9, 83, 4


def draw(seed=0, batch=BATCH, length=LENGTH, vocabulary=VOCABULARY, ties=False):
    rng = np.random.default_rng(seed)
    shape = (batch, length, vocabulary)
    target, reference = 2 * rng.standard_normal((2, *shape))
    if ties:
        target, reference = np.round(target), np.round(reference)
    ids = rng.integers(0, vocabulary, (batch, length))
    lengths = rng.integers(1, length + 1, batch)
    lengths[0] = length
    attention = np.arange(length)[None, :] < lengths[:, None]
    return (
        target.astype(np.float32),
        reference.astype(np.float32),
        ids.astype(np.int32),
        attention.astype(np.int32),
    )


def assert_same(one: TokenStatistics, two: TokenStatistics, **tolerance):
    for name, a, b in zip(one._fields, one, two, strict=True):
        assert (a is None) == (b is None), name
        if a is None:
            continue
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("vocab_chunk", "row_block"), [(None, None), (20, 6), (83, 1), (7, 3)]
)
def test_oracle(ties, vocab_chunk, row_block):
    inputs = draw(ties=ties)
    stats = token_statistics(*inputs, k=K, vocab_chunk=vocab_chunk, row_block=row_block)
    expected = oracle_features.token_statistics(*inputs)
    for name, values in expected.items():
        np.testing.assert_allclose(
            getattr(stats, name), values, atol=2e-5, rtol=2e-5, err_msg=name
        )


def test_large_vocabulary_uses_the_inner_chunks():
    inputs = draw(1, batch=2, length=4, vocabulary=1500, ties=True)
    stats = token_statistics(*inputs, k=3)
    expected = oracle_features.token_statistics(*inputs)
    np.testing.assert_array_equal(stats.target_rank, expected["target_rank"])
    np.testing.assert_array_equal(stats.reference_rank, expected["reference_rank"])


@pytest.mark.parametrize("ties", [False, True])
def test_chunks_and_blocks_do_not_matter(ties):
    inputs = draw(2, ties=ties)
    whole = token_statistics(*inputs, k=K)
    for vocab_chunk, row_block in ((20, 6), (83, 1), (7, 3), (82, 27)):
        parts = token_statistics(
            *inputs, k=K, vocab_chunk=vocab_chunk, row_block=row_block
        )
        assert_same(whole, parts, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("widths", [(70,), (9,), (21, 41), (1, 100)])
def test_compare_at_once_equals_compare_by_rows(widths):
    from lt_mia_jax.features.reductions import _count_at_once, _count_by_rows

    rng = np.random.default_rng(0)
    drawn = np.round(3 * rng.standard_normal((len(widths), 5, 700)))
    values = [jnp.asarray(x, jnp.float32) for x in drawn]
    queries = [x[:, :width] for x, width in zip(values, widths, strict=True)]
    wanted = _count_at_once(values, queries)
    for one, two in zip(wanted, _count_by_rows(values, queries), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("vocabulary", [64 * 41, 3000, 5183])
@pytest.mark.parametrize("step", [1e-6, 0.5, 4.0])
def test_largest_by_tiles(vocabulary, step):
    # Coarse steps tie hundreds of entries, within tiles and across them.
    from lt_mia_jax.features.reductions import _largest

    rng = np.random.default_rng(vocabulary)
    rows = np.round(3 * rng.standard_normal((6, vocabulary)) / step) * step
    rows[0] = 1.0  # all tie
    rows[1, -3:] = 99.0  # behind the last whole tile, where there is a rest
    rows[2, 100:] = -np.inf  # fewer candidates than tiles
    rows = rows.astype(np.float32)
    values, index = jax.jit(_largest, static_argnums=1)(rows, 20)
    for row, value, found in zip(rows, values, index, strict=True):
        np.testing.assert_array_equal(found, oracle_features.largest(row, 20))
        np.testing.assert_array_equal(value, row[found])


def test_single_model():
    target, reference, ids, attention = draw()
    both = token_statistics(target, reference, ids, attention, k=0)
    alone = token_statistics(target, None, ids, attention, k=0)
    for name in TokenStatistics._fields:
        value = getattr(alone, name)
        if name in (
            "reference_log_prob",
            "reference_mean",
            "cross_mean",
            "cross_var",
            "reference_rank",
            "columns",
        ):
            assert value is None
        else:
            np.testing.assert_allclose(value, getattr(both, name), rtol=1e-6)


def test_padding_does_not_change_a_text():
    target, reference, ids, attention = draw(3)
    n = int(attention[1].sum())
    whole = token_statistics(target, reference, ids, attention, k=K)
    short = token_statistics(
        target[1:2, :n], reference[1:2, :n], ids[1:2, :n], attention[1:2, :n], k=K
    )
    assert_same(jax.tree.map(lambda x: x[1:2, :n], whole), short, rtol=1e-6, atol=1e-6)


def test_permuting_the_batch_permutes_the_result():
    inputs = draw(4)
    order = np.array([2, 0, 1])
    there = token_statistics(*(x[order] for x in inputs), k=K)
    assert_same(
        jax.tree.map(lambda x: x[order], token_statistics(*inputs, k=K)),
        there,
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_on_padding_is_harmless(poison):
    target, reference, ids, attention = draw(5)
    clean = token_statistics(target, reference, ids, attention, k=K)
    invalid = ~np.asarray(clean.valid)
    assert invalid.sum() > BATCH
    target, reference, ids = target.copy(), reference.copy(), ids.copy()
    target[invalid] = poison
    reference[invalid] = poison
    ids[attention == 0] = VOCABULARY + 7  # a padding token outside the vocabulary
    dirty = token_statistics(target, reference, ids, attention, k=K)
    dirty = dirty._replace(input_ids=clean.input_ids)
    assert_same(clean, dirty, rtol=0, atol=0)


def test_poison_on_a_valid_step_is_visible():
    target, reference, ids, attention = draw()
    target = target.copy()
    target[0, 2, 5] = np.nan
    stats = token_statistics(target, reference, ids, attention, k=K)
    assert np.isnan(stats.target_log_prob[0, 2])
    assert np.isfinite(stats.target_log_prob).sum() == stats.target_log_prob.size - 1
    outside = ids.copy()
    outside[0, 3] = VOCABULARY
    stats = token_statistics(draw()[0], reference, outside, attention, k=K)
    assert np.isnan(stats.reference_log_prob[0, 2])


def test_impossible_tokens_do_not_spoil_the_moments():
    target, _, ids, attention = draw()
    blocked = target.copy()
    blocked[..., -3:] = np.finfo(np.float32).min
    ids = np.minimum(ids, VOCABULARY - 4)
    full = token_statistics(blocked, None, ids, attention, k=0)
    cut = token_statistics(target[..., :-3], None, ids, attention, k=0)
    assert_same(full, cut, rtol=1e-5, atol=1e-6)


def test_vocab_size_drops_the_last_rows():
    target, reference, ids, attention = draw()
    ids = np.minimum(ids, 49)
    cut = token_statistics(target[..., :50], reference[..., :50], ids, attention, k=K)
    option = token_statistics(
        target, reference, ids, attention, k=K, vocab_size=50, vocab_chunk=16
    )
    assert_same(cut, option, rtol=1e-6, atol=3e-6)


def test_small_variance_keeps_its_digits():
    # A nearly uniform prediction: E[x^2] - E[x]^2 in float32 would be noise.
    rng = np.random.default_rng(0)
    target = (1e-3 * rng.standard_normal((1, 3, 4096))).astype(np.float32)
    ids = np.zeros((1, 3), np.int32)
    stats = token_statistics(target, None, ids, np.ones_like(ids), k=0)
    expected = oracle_features.token_statistics(target, target, ids, np.ones_like(ids))
    np.testing.assert_allclose(
        stats.target_var[0, :2], expected["target_var"][0, :2], rtol=2e-3
    )


def test_vmap_and_half_precision():
    inputs = [np.stack([a, b]) for a, b in zip(draw(0), draw(1), strict=True)]
    mapped = jax.vmap(lambda *x: token_statistics(*x, k=K))(*inputs)
    for i in range(2):
        single = token_statistics(*(x[i] for x in inputs), k=K)
        assert_same(jax.tree.map(lambda x, i=i: x[i], mapped), single, rtol=1e-6)
    half = [jnp.asarray(x[0], jnp.bfloat16) for x in inputs[:2]]
    rounded = [np.asarray(x, np.float32) for x in half]
    ids, attention = inputs[2][0], inputs[3][0]
    assert_same(
        token_statistics(*half, ids, attention, k=K),
        token_statistics(*rounded, ids, attention, k=K),
        rtol=0,
        atol=0,
    )


def test_user_mistakes():
    target, reference, ids, attention = draw()
    with pytest.raises(InputError, match="k is 81"):
        token_statistics(target, reference[..., :80], ids, attention, k=81)
    with pytest.raises(InputError, match="k is 84"):
        token_statistics(target, reference, ids, attention, k=84)


def test_steps_of_context_are_left_out_in_order():
    target, reference, ids, attention = draw(seed=4)
    scored = attention * np.random.default_rng(5).integers(0, 2, attention.shape)
    scored[1] = 0
    stats = token_statistics(target, reference, ids, scored, k=K)
    host = jax.tree.map(np.asarray, stats)
    found = without_context(host)
    for row in range(BATCH):
        steps = [t for t in range(LENGTH - 1) if scored[row, t + 1]]
        tokens = (
            [ids[row, steps[0]], *(ids[row, t + 1] for t in steps)] if steps else []
        )
        assert found.valid[row].tolist() == [n < len(steps) for n in range(LENGTH)]
        for name, values in found._asdict().items():
            if name not in ("input_ids", "valid"):
                np.testing.assert_array_equal(
                    values[row, : len(steps)], getattr(host, name)[row][steps]
                )
                assert not values[row, len(steps) :].any()
        rest = [0] * (LENGTH - len(tokens))
        assert found.input_ids[row].tolist() == [*tokens, *rest]
    whole = jax.tree.map(
        np.asarray, token_statistics(target, reference, ids, attention, k=K)
    )
    assert without_context(whole) is whole
