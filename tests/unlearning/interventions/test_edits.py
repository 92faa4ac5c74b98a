from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import configs, random_ids, random_params

from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel, placement
from lt_mia_jax.models.generation import greedy
from lt_mia_jax.trees import flatten
from lt_mia_jax.unlearning.interventions import edits

B, T, D, K = 3, 5, 16, 2
LAYER = jnp.int32(1)
LENGTHS = np.array([2, 5, 0])


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def orthonormal(rows, width, seed=0):
    return np.linalg.qr(numbers(width, rows, seed=seed))[0].T


STREAM, ROWS = numbers(B, T, D), orthonormal(K, D, seed=1)
VECTORS = numbers(K, D, seed=2)
WEIGHTS = jnp.array([[0.5, 0.5], [0.0, 1.0], [0.0, 0.0]])
KINDS = {
    "steering": edits.Steering(VECTORS[0], 0.7),
    "rotation": edits.Rotation(VECTORS, WEIGHTS, 0.7),
    "input-aware": edits.InputAware(VECTORS[0], VECTORS[1], LENGTHS, 0.7),
    "projection": edits.Projection(ROWS),
}


def oracle(name, stream):
    """Token by token, in float64."""
    out = np.float64(stream)
    for b, t in np.ndindex(out.shape[:2]):
        h = np.float64(stream[b, t])
        match name:
            case "steering":
                out[b, t] = h + 0.7 * VECTORS[0]
            case "rotation":
                active = [k for k in range(K) if WEIGHTS[b, k] > 0]
                if active:
                    v = np.mean([np.float64(VECTORS[k]) for k in active], axis=0)
                    moved = h - 0.7 * v
                    out[b, t] = moved * np.linalg.norm(h) / np.linalg.norm(moved)
            case "input-aware":
                if t < LENGTHS[b]:
                    last = np.float64(stream[b, LENGTHS[b] - 1])
                    out[b, t] = h + 0.7 * (last @ VECTORS[0]) * VECTORS[1]
            case "projection":
                for row in np.float64(ROWS):
                    out[b, t] -= (h @ row) * row
    return out


@jax.jit
def call(intervention, stream, layer=LAYER):
    return intervention(stream, layer)


@pytest.mark.parametrize("name", KINDS)
def test_it_equals_its_definition(name):
    expected = oracle(name, STREAM)
    assert np.abs(expected - STREAM).max() > 0.1
    found = call(KINDS[name], jnp.asarray(STREAM))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_streams_are_rounded_once(name):
    half = jnp.asarray(STREAM, jnp.bfloat16)
    found = call(KINDS[name], half)
    assert found.dtype == jnp.bfloat16
    # Half a unit in the last of 8 places, and a float32 error at a tie.
    expected = oracle(name, np.asarray(half.astype(jnp.float32)))
    error = np.abs(np.asarray(found, np.float64) - expected)
    assert (error <= 2.0**-8 * np.abs(expected) + 1e-6).all()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["random", "zero", "the vector itself"])
def test_values_and_gradients_are_finite(name, kind):
    stream = {
        "random": jnp.asarray(STREAM),
        "zero": jnp.zeros_like(STREAM),
        "the vector itself": jnp.broadcast_to(0.7 * VECTORS[1], STREAM.shape),
    }[kind]

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), allow_int=True)
    def loss(intervention, stream):
        return jnp.square(intervention(stream, LAYER)).sum()

    value, gradients = loss(KINDS[name], stream)
    assert jnp.isfinite(value)
    leaves = [g for g in jax.tree.leaves(gradients) if g.dtype == jnp.float32]
    assert len(leaves) > 1
    assert all(jnp.isfinite(leaf).all() for leaf in leaves)
    if kind == "zero" and name in ("rotation", "projection"):
        np.testing.assert_array_equal(call(KINDS[name], stream), 0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 5.0])
def test_rotation_keeps_lengths_and_zero_strength_is_the_identity(scale, strength):
    stream = scale * jnp.asarray(STREAM)
    found = call(edits.Rotation(VECTORS, WEIGHTS, strength), stream)
    lengths = np.linalg.norm(np.float64(stream), axis=-1)
    found_lengths = np.linalg.norm(np.float64(found), axis=-1)
    np.testing.assert_allclose(found_lengths, lengths, rtol=1e-6)
    if strength == 0:
        np.testing.assert_array_equal(found, stream)
    elif scale <= 1:
        assert np.abs(found[:2] - stream[:2]).max() > 0.1 * scale


def test_a_token_on_the_vector_stays():
    """It has no direction to go to; a token beside it goes away from the vector."""
    vector = VECTORS[0]
    stream = jnp.stack([vector, vector + 0.1 * VECTORS[1]])[None]
    found = edits.rotate(stream, vector[None], 1.0)
    np.testing.assert_array_equal(found[0, 0], vector)
    length = np.linalg.norm(stream[0, 1])
    away = VECTORS[1] / np.linalg.norm(VECTORS[1])
    np.testing.assert_allclose(found[0, 1], away * length, rtol=1e-4, atol=1e-4)


def test_a_closed_gate_changes_no_bit_of_the_logits():
    model = LanguageModel(configs()["gpt2"])
    params, ids = random_params(model.config), random_ids(shape=(B, T))
    closed = placement.at_layers(edits.Rotation(VECTORS, jnp.zeros((B, K))), [1])
    mixed = placement.at_layers(edits.Rotation(VECTORS, WEIGHTS), [1])
    run = jax.jit(lambda f: model.apply(params, ids, intervention=f))
    plain = jax.jit(lambda: model.apply(params, ids))()
    np.testing.assert_array_equal(run(closed), plain)
    found = run(mixed)
    np.testing.assert_array_equal(found[2], plain[2])
    assert (np.abs(found[:2] - plain[:2]).max(axis=(1, 2)) > 0.1).all()
    # Closed, and not merely open for a vector of zeros: no arithmetic is left.
    huge = 1e30 * jnp.asarray(STREAM)  # Its lengths overflow.
    closed = edits.Rotation(VECTORS, jnp.zeros((B, K)))
    np.testing.assert_array_equal(call(closed, huge), huge)


def test_projecting_twice_is_projecting_once():
    once = edits.Projection(ROWS)(jnp.asarray(STREAM), LAYER)
    np.testing.assert_allclose(edits.Projection(ROWS)(once, LAYER), once, atol=1e-6)
    np.testing.assert_allclose(once @ ROWS.T, 0, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("rows", [3, D + 4])
def test_rows_are_orthonormal_and_span_what_they_should(rank, rows):
    matrix = 1e3 * numbers(rows, rank, seed=1) @ numbers(rank, D, seed=2)
    found = np.float64(jax.jit(edits.orthonormal_rows)(matrix))
    kept = found[:rank]
    assert found.shape == (min(rows, D), D)
    np.testing.assert_array_equal(found[rank:], 0)
    np.testing.assert_allclose(kept @ kept.T, np.eye(rank), atol=1e-5)
    projector = np.linalg.pinv(np.float64(matrix), rcond=1e-4) @ matrix
    np.testing.assert_allclose(kept.T @ kept, projector, atol=1e-5)


@pytest.mark.parametrize(
    "matrix",
    [
        numbers(K, D, seed=5),
        orthonormal(K, D, seed=5),  # Equal singular values: the bases are arbitrary.
        numbers(1, D, seed=5) * np.array([[1.0], [0.0]], np.float32),
    ],
    ids=["any", "equal singular values", "lost rank"],
)
def test_the_gradient_of_a_trained_projection(matrix):
    """Against the projector W^T (W W^T)^-1 W, whose derivative has no gauge."""
    target = numbers(B, T, D, seed=6)

    @jax.jit
    @jax.grad
    def found(matrix):
        rows = edits.orthonormal_rows(matrix)
        edited = edits.Projection(rows)(jnp.asarray(STREAM), LAYER)
        return jnp.square(edited - target).sum()

    kept = np.abs(matrix).sum(axis=1) > 0

    @jax.grad
    def expected(matrix):
        rows = matrix[kept]
        flat, goal = STREAM.reshape(-1, D), target.reshape(-1, D)
        inside = jnp.linalg.solve(rows @ rows.T, rows @ flat.T)
        return jnp.square(flat - (rows.T @ inside).T - goal).sum()

    gradient = found(matrix)
    assert np.abs(gradient[0]).max() > 0.1
    np.testing.assert_allclose(gradient, expected(matrix), rtol=1e-3, atol=1e-3)


def test_an_earlier_subspace_is_extended():
    new = numbers(K, D, seed=7)
    together = edits.orthonormal_rows(jnp.concatenate([ROWS, new]))
    assert together.shape == (2 * K, D)
    left = edits.Projection(together)(jnp.asarray(STREAM), LAYER)
    for rows in (ROWS, new):
        np.testing.assert_allclose(left @ rows.T, 0, atol=1e-4)


@pytest.mark.parametrize("rows", ["one for all layers", "one for each"])
def test_folding_is_projecting_the_output_of_a_linear_map(rows):
    """A Mamba layer adds one linear map to the stream: its output is a difference."""
    model = LanguageModel(configs()["mamba-biases"])
    params, ids = random_params(model.config), random_ids()
    width = model.config.width
    own = orthonormal(K, width)
    if rows == "one for each":
        own = np.stack([own, np.zeros_like(own)])
    path = "periods/slot_0/mixer/output/kernel"
    before = {name: np.array(leaf) for name, leaf in flatten(params).items()}
    folded = edits.fold_projection(params, path, own)

    streams = jax.jit(partial(model.apply, capture=(0, 1, 2)))
    _, plain = streams(params, ids)
    _, found = streams(folded, ids)
    first = own if own.ndim == 2 else own[0]
    np.testing.assert_allclose(
        found[1] - found[0],
        edits.Projection(first)(plain[1] - plain[0], LAYER),
        atol=1e-4,
    )
    inside = np.abs((found[2] - found[1]) @ first.T).max()
    assert inside < 1e-4 if own.ndim == 2 else inside > 0.1

    # Nothing else has changed, the given parameters not at all.
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, before[name])
        same = np.array_equal(flatten(folded)[name], leaf)
        assert same == ("mixer/output" not in name), name
    twice = flatten(edits.fold_projection(folded, path, own))
    np.testing.assert_allclose(twice[path], flatten(folded)[path], atol=1e-6)


def test_folding_keeps_the_dtype():
    kernel = {"down": {"kernel": jnp.asarray(numbers(4, D), jnp.bfloat16)}}
    assert edits.fold_projection(kernel, "down/kernel", ROWS)["down"][
        "kernel"
    ].dtype == (jnp.bfloat16)


@pytest.mark.parametrize(
    ("path", "width", "message"),
    [
        ("periods/slot_0/mixer/kernel", D, "is no kernel of this model; it has"),
        ("embedding/tokens", D, "is no kernel"),
        ("periods/slot_0/mixer/output/kernel", D + 1, r"expected \[K, 16\]"),
    ],
)
def test_folding_into_nothing_is_refused(path, width, message):
    params = random_params(configs()["gpt2"])
    with pytest.raises(InputError, match=message):
        edits.fold_projection(params, path, orthonormal(K, width))


def test_layers_and_order():
    steer, project = KINDS["steering"], KINDS["projection"]
    stream = jnp.asarray(STREAM)
    some = placement.at_layers(steer, [0, 2])
    own = placement.by_layer({0: steer, 2: edits.Steering(VECTORS[1], -1.0)})
    for layer in range(4):
        number = jnp.int32(layer)
        chosen = layer in (0, 2)
        expected = steer(stream, number) if chosen else stream
        np.testing.assert_array_equal(call(some, stream, number), expected)
        if layer == 2:
            expected = stream - VECTORS[1][None, None]
        np.testing.assert_allclose(call(own, stream, number), expected, rtol=1e-6)
    both = call(placement.compose(steer, project), stream)
    np.testing.assert_allclose(
        both, project(steer(stream, LAYER), LAYER), rtol=1e-5, atol=1e-6
    )
    assert np.abs(both - steer(project(stream, LAYER), LAYER)).max() > 0.1
    np.testing.assert_array_equal(call(placement.compose(), stream), stream)


def test_on_the_prompt_only():
    found = call(placement.on_prompt(KINDS["steering"], LENGTHS), jnp.asarray(STREAM))
    for b, t in np.ndindex(B, T):
        expected = STREAM[b, t] + (0.7 * VECTORS[0] if t < LENGTHS[b] else 0)
        np.testing.assert_allclose(found[b, t], expected, rtol=1e-6, atol=1e-6)


def test_wrong_layers_and_rows_are_refused():
    with pytest.raises(InputError, match=r"layers = \[\]"):
        placement.at_layers(KINDS["steering"], [])
    with pytest.raises(InputError, match=r"layers = \[3, -1\]"):
        placement.at_layers(KINDS["steering"], [3, -1])
    with pytest.raises(ValueError, match="different types"):
        placement.by_layer({0: KINDS["steering"], 1: KINDS["projection"]})
    with pytest.raises(ValueError, match="shape"):
        placement.by_layer({n: edits.Projection(ROWS[:n]) for n in (1, 2)})
    one = edits.Rotation(VECTORS, WEIGHTS[:1])
    with pytest.raises(ValueError, match="weights has 1 rows for a batch of 3"):
        one(jnp.asarray(STREAM), LAYER)


def test_a_batch_of_interventions_is_a_vmap():
    strengths = jnp.array([0.0, 0.5, 1.0])
    many = jax.vmap(lambda s: edits.Rotation(VECTORS, WEIGHTS, s))(strengths)
    found = jax.vmap(lambda f: f(jnp.asarray(STREAM), LAYER))(many)
    for strength, edited in zip(strengths, found, strict=True):
        own = edits.Rotation(VECTORS, WEIGHTS, strength)
        np.testing.assert_allclose(edited, call(own, jnp.asarray(STREAM)), rtol=1e-5)


def all_kinds(width, layers, lengths):
    """One intervention made of every kind."""
    rows = len(lengths)
    weights = jnp.zeros((rows, K)).at[0].set(0.5)
    vectors = numbers(K, width, seed=2)
    return placement.compose(
        placement.at_layers(edits.Rotation(3 * vectors, weights), [1, 2]),
        placement.by_layer(
            {
                layer: edits.InputAware(
                    numbers(width, seed=layer), numbers(width, seed=9), lengths, 0.3
                )
                for layer in range(layers + 1)
            }
        ),
        placement.at_layers(edits.Projection(orthonormal(K, width)), [layers]),
        placement.on_prompt(
            placement.at_layers(edits.Steering(vectors[1]), [1]), lengths
        ),
    )


@pytest.mark.parametrize("name", ["gpt2", "rwkv"])
def test_teacher_forcing_scores_what_generation_chose(name):
    model = LanguageModel(configs()[name])
    params, new = random_params(model.config), 5
    prompts, lengths = random_ids(shape=(B, 4)), np.array([4, 2, 3])
    before = {name: np.array(leaf) for name, leaf in flatten(params).items()}
    intervention = all_kinds(model.config.width, model.config.layers, lengths)
    options = {"max_new_tokens": new, "end_token": None}
    generated = greedy(
        model, params, prompts, lengths, intervention=intervention, **options
    )
    plain = greedy(model, params, prompts, lengths, **options)
    assert (plain.tokens != generated.tokens).any()

    texts = np.zeros((B, 4 + new), np.int32)
    for b, length in enumerate(lengths):
        texts[b, :length] = prompts[b, :length]
        texts[b, length : length + new] = generated.tokens[b]
    scored = jax.jit(model.apply)(params, texts, intervention=intervention)
    for b, length in enumerate(lengths):
        chosen = np.argmax(scored[b, length - 1 : length - 1 + new], axis=-1)
        np.testing.assert_array_equal(chosen, generated.tokens[b])
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, before[name])
