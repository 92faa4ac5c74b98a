import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import configs, random_ids, random_params
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel, placement
from lt_mia_jax.models.generation import greedy
from lt_mia_jax.transfer.adapt import steering

N, L, D, E = 12, 3, 6, 5
FAMILIES = ("gpt2", "mamba-preset", "rwkv-preset", "griffin-preset")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def streams(seed=0):
    """Off, and on with a shift that differs between prompts along one direction."""
    off, axis = numbers(N, L, D, seed=seed), numbers(L, D, seed=seed + 1)
    size = 2 + numbers(N, 1, 1, seed=seed + 2)
    return off + size * axis + 0.01 * numbers(N, L, D, seed=seed + 3), off, axis


def test_the_mean_direction_is_the_difference_of_means():
    on, off, _ = streams()
    expected = np.zeros((L, D))
    for n in range(N):
        expected += (on[n] - off[n]) / N
    np.testing.assert_allclose(
        steering.skill_direction(on, off), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_the_sign_of_the_principal_direction_is_that_of_the_mean(seed, turn):
    # An SVD alone returns either sign; over these cases it returns both.
    on, off, axis = streams(seed=10 * seed)
    found = steering.skill_direction(turn * on, turn * off, how="pca")
    unit = turn * axis / np.linalg.norm(axis, axis=1, keepdims=True)
    assert ((found * unit).sum(axis=1) > 0.99).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_the_principal_direction_leaves_the_mean_out():
    # The mean difference is along one axis, its variation along another.
    wide, off = numbers(N, 1, 1, seed=1), numbers(N, 1, 2)
    on = off + np.array([1.0, 0.1]) + wide * np.array([0.0, 3.0])
    found = steering.skill_direction(on, off, how="pca")[0]
    assert abs(found[1]) > 0.999


def test_alignment_is_exact_on_data_of_its_rank():
    left, inner = numbers(N, 3), numbers(3, D, seed=1)
    x, y = left @ inner, left @ inner @ numbers(D, E, seed=2)
    found = steering.align(x, y, rank=3)
    np.testing.assert_allclose(x @ found, y, atol=1e-4)
    assert np.linalg.matrix_rank(found, tol=1e-5) == 3
    assert np.abs(x @ steering.align(x, y, rank=1) - y).max() > 0.1
    new = numbers(4, 3, seed=5) @ inner  # also for rows that were not fitted
    np.testing.assert_allclose(new @ found, new @ numbers(D, E, seed=2), atol=1e-4)


@pytest.mark.parametrize("centered", [False, True])
def test_alignment_equals_its_definition(centered):
    x, y, rank = numbers(N, D) + 1, numbers(N, E, seed=1) - 2, 2
    found = steering.align(x, y, rank, centered=centered)
    if centered:
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    # Projectors on main directions by eigenvectors; least squares by normal equations.
    p, q = (v @ v.T for v in (np.linalg.eigh(a.T @ a)[1][:, -rank:] for a in (x, y)))
    inner = np.linalg.pinv(p @ x.T @ x @ p, rcond=1e-9) @ p @ x.T @ y @ q
    np.testing.assert_allclose(found, inner, rtol=1e-4, atol=1e-5)


def test_more_directions_than_the_skill_has_are_needed_for_its_direction():
    """The first direction is spent on the mean activation."""
    rng, rank = np.random.default_rng(0), 4
    left = rng.normal(size=(64, rank)) + np.array([6.0, 0, 0, 0])
    a, b = rng.normal(size=(rank, 32)), rng.normal(size=(rank, 24))
    skill = rng.normal(size=rank) * np.array([0.0, 1, 1, 1])
    cosines = []
    for r in (1, 2, rank):
        moved = (skill @ a) @ steering.align(left @ a, left @ b, r)
        true = skill @ b
        cosines.append(moved @ true / np.linalg.norm(moved) / np.linalg.norm(true))
    assert cosines[-1] > 0.999
    assert cosines[0] < 0.6


def test_layers_correspond_by_their_depth():
    for source in range(1, 9):
        for target in range(2, 9):
            steps = range(target)
            expected = [np.floor((source - 1) * n / (target - 1)) for n in steps]
            assert steering.layer_map(source, target) == expected
            assert (expected[0], expected[-1]) == (0, source - 1)
    assert steering.layer_map(5, 1) == [4]


def test_a_direction_moves_layer_by_layer():
    source, target = numbers(N, 3, D), numbers(N, 5, E, seed=1)
    direction = numbers(3, D, seed=2)
    found = steering.transfer_direction(direction, source, target, rank=2)
    for layer, own in enumerate([0, 0, 1, 1, 2]):
        w = steering.align(source[:, own], target[:, layer], 2)
        np.testing.assert_allclose(found[layer], direction[own] @ w, rtol=1e-5)


STREAM = numbers(2, 4, D).astype(np.float32)
VECTOR, LAST = numbers(D, seed=1).astype(np.float32), np.array([1, 3])


def test_steering_equals_its_definition():
    expected = np.float64(STREAM)
    for b, t in enumerate(LAST):
        h = expected[b, t]
        moved = h / np.linalg.norm(h) + 0.3 * VECTOR / np.linalg.norm(VECTOR)
        expected[b, t] = np.linalg.norm(h) * moved / np.linalg.norm(moved)
    found = np.asarray(steering.steer(jnp.asarray(STREAM), VECTOR, 0.3, LAST))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert (np.abs(found - STREAM).max(axis=2) > 0.01).sum() == 2
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=2), np.linalg.norm(STREAM, axis=2), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_nothing_to_add_changes_no_bit(dtype, alpha):
    stream = jnp.asarray(STREAM, dtype).at[0, 1].set(0.0)
    vector = VECTOR if alpha == 0 else 0 * VECTOR
    found = jax.jit(steering.steer)(stream, vector, alpha, LAST)
    assert found.dtype == dtype
    assert (found == stream).all()


def test_a_stream_of_zeros_stays():
    found = steering.steer(jnp.zeros((2, 4, D)), VECTOR, 0.5, LAST)
    assert (found == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_acts_on_every_family(family):
    config = configs()[family]
    model, params = LanguageModel(config), random_params(config)
    ids, lengths = random_ids(), np.array([4, 6])
    directions = numbers(config.layers, config.width).astype(np.float32)

    @jit
    def logits(alpha):
        edit = steering.PromptEnd(directions, alpha).for_prompts(lengths)
        return model.apply(params, ids, intervention=edit)

    plain, none, some = jit(model.apply)(params, ids), logits(0.0), logits(0.3)
    np.testing.assert_allclose(none, plain, rtol=1e-5, atol=1e-5)
    moved = np.abs(np.asarray(some - none)).max(axis=2)
    for row, length in enumerate(lengths):
        # Tokens before the end of the prompt cannot know; all later ones read it.
        assert moved[row, : length - 1].max() < 1e-5
        assert moved[row, length - 1 :].min() > 1e-4


def test_streams_of_prompts_are_those_at_their_last_tokens():
    config = configs()["gpt2"]
    model, params = LanguageModel(config), random_params(config)
    ids, lengths = random_ids(), np.array([4, 6])
    found = steering.prompt_streams(model, params, ids, lengths)
    assert found.shape == (2, config.layers, config.width)
    everywhere = range(1, config.layers + 1)
    capture = jit(lambda p, x: model.apply(p, x, capture=everywhere)[1])
    for row, length in enumerate(lengths):  # without what follows
        taps = capture(params, ids[row : row + 1, :length])
        for layer in range(config.layers):
            np.testing.assert_allclose(
                found[row, layer], taps[layer + 1][0, -1], rtol=1e-4, atol=1e-5
            )


def test_greedy_decoding_takes_it():
    config = configs()["gpt2"]
    model, params = LanguageModel(config), random_params(config)
    ids, lengths = random_ids(shape=(2, 4)), np.array([4, 3])
    directions = numbers(config.layers, config.width).astype(np.float32)
    edit = placement.prompted(steering.PromptEnd(directions, 0.8), lengths)
    found = greedy(
        model, params, ids, lengths, max_new_tokens=3, end_token=None, intervention=edit
    )
    text = np.pad(ids, ((0, 0), (0, 3)))
    logits = jit(lambda p, x: model.apply(p, x, intervention=edit))
    for step in range(3):
        guess = np.asarray(logits(params, text).argmax(axis=-1))
        for row, length in enumerate(lengths):
            token = guess[row, length + step - 1]
            assert token == found.tokens[row, step]
            text[row, length + step] = token


def test_refusals():
    on, off, _ = streams()
    with pytest.raises(InputError, match=r"on is \[12, 3, 6\], off is \[11, 3, 6\]"):
        steering.skill_direction(on, off[:-1])
    with pytest.raises(InputError, match="not finite"):
        steering.skill_direction(on * np.nan, off)
    with pytest.raises(InputError, match="on is empty"):
        steering.skill_direction(on[:0], off[:0])
    with pytest.raises(InputError, match=r"rank = 7 .* expected 1 to 5"):
        steering.align(numbers(N, D), numbers(N, E), 7)
    with pytest.raises(InputError, match="12 rows, target has 11"):
        steering.align(numbers(N, D), numbers(N - 1, E), 2)
    with pytest.raises(InputError, match="its layers and its width"):
        steering.transfer_direction(numbers(2, D), on, on, 2)
    with pytest.raises(ValueError, match="at least one"):
        steering.layer_map(0, 3)
    with pytest.raises(ValueError, match="lengths of this batch are missing"):
        steering.PromptEnd(numbers(2, D), 0.5)(jnp.asarray(STREAM), jnp.int32(1))
