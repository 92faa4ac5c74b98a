import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_finetune import loss_oracle, random_texts

from lt_mia_jax.finetune import next_token_loss, token_log_probs


@pytest.fixture(scope="module")
def case():
    texts = random_texts(6, seed=1)
    logits = 3 * np.random.default_rng(2).normal(size=(6, 12, 32)).astype(np.float32)
    return logits, texts.input_ids, texts.attention_mask


def test_log_probs_equal_their_definition(case):
    logits, ids, _ = case
    p = np.exp(np.float64(logits))
    expected = np.log(np.take_along_axis(p, ids[..., None], 2)[..., 0] / p.sum(2))
    found = token_log_probs(jnp.asarray(logits), jnp.asarray(ids))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [None, np.array([1, 0, 0.5, 1, 0, 1], np.float32)])
def test_loss_equals_its_definition(case, weight):
    total, count = loss_oracle(*case, weight)
    mean, number = next_token_loss(
        *map(jnp.asarray, case), None if weight is None else jnp.asarray(weight)
    )
    np.testing.assert_allclose(mean, total / count, rtol=1e-6)
    assert float(number) == count


def test_padding_and_weightless_rows_have_no_influence(case):
    logits, ids, mask = map(jnp.asarray, case)
    weight = jnp.array([1.0, 1, 1, 0, 1, 1])
    gradient = jax.grad(lambda z: next_token_loss(z, ids, mask, weight)[0])(logits)
    scored = np.zeros(mask.shape, bool)
    scored[:, :-1] = np.asarray(mask[:, 1:], bool)
    scored[3] = False
    moved = np.abs(np.asarray(gradient)).sum(axis=2) > 0
    np.testing.assert_array_equal(moved, scored)
    # Even logits that are not numbers stay without influence.
    broken = jnp.where(scored[..., None], logits, jnp.nan)
    assert float(next_token_loss(broken, ids, mask, weight)[0]) == float(
        next_token_loss(logits, ids, mask, weight)[0]
    )


def test_a_batch_without_targets(case):
    logits, ids, _ = map(jnp.asarray, case)
    mask = jnp.zeros_like(ids).at[:, 0].set(1)
    loss = lambda z: next_token_loss(z, ids, mask)[0]  # noqa: E731
    assert float(loss(logits)) == 0
    assert float(jnp.abs(jax.grad(loss)(logits)).max()) == 0


def test_half_precision_logits_are_reduced_in_float32(case):
    logits, ids, mask = map(jnp.asarray, case)
    half = logits.astype(jnp.bfloat16)
    mean, _ = next_token_loss(half, ids, mask)
    total, count = loss_oracle(np.asarray(half.astype(jnp.float32)), *case[1:])
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, total / count, rtol=1e-6)
