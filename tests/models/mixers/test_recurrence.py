import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lt_mia_jax.models.mixers.recurrence import linear_recurrence, selective_scan, wkv
from lt_mia_jax.sharding import make_mesh

FORMS = ("sequential", "chunked", "associative")
LENGTHS = (1, 2, 63, 64, 65, 512)


def linear_oracle(decay, x):
    states = np.zeros_like(x)
    state = np.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        state = decay[:, t] * state + x[:, t]
        states[:, t] = state
    return states


def selective_oracle(x, step, decay, input_map, output_map):
    batch, length, width = x.shape
    y = np.zeros_like(x)
    for b in range(batch):
        for d in range(width):
            state = np.zeros(decay.shape[1])
            for t in range(length):
                kept = np.exp(step[b, t, d] * decay[d]) * state
                state = kept + step[b, t, d] * input_map[b, t] * x[b, t, d]
                y[b, t, d] = output_map[b, t] @ state
    return y


def wkv_oracle(decay, bonus, key, value):
    y = np.zeros_like(value)
    for t in range(value.shape[1]):
        exponents = [key[:, i] - (t - 1 - i) * np.exp(decay) for i in range(t)]
        exponents = np.stack([*exponents, bonus + key[:, t]], axis=1)
        weights = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        total = (weights * value[:, : t + 1]).sum(axis=1)
        y[:, t] = total / weights.sum(axis=1)
    return y


def make(name, length, batch=2, width=3, size=4):
    """Float64 arguments of one recurrence."""
    rng = np.random.default_rng(length)
    tokens = (batch, length, width)
    maps = (batch, length, size)
    match name:
        case "linear":
            return rng.uniform(0, 1, tokens), rng.normal(size=tokens)
        case "selective":
            return (
                rng.normal(size=tokens),
                rng.gamma(1.0, size=tokens),
                -np.exp(rng.normal(size=(width, size))),
                rng.normal(size=maps),
                rng.normal(size=maps),
            )
        case "wkv":
            return (
                rng.normal(size=width),
                rng.normal(size=width),
                3 * rng.normal(size=tokens),
                rng.normal(size=tokens),
            )


RECURRENCES = {
    "linear": (linear_recurrence, linear_oracle),
    "selective": (selective_scan, selective_oracle),
    "wkv": (wkv, wkv_oracle),
}
BATCHED = {"linear": (0, 1), "selective": (0, 1, 3, 4), "wkv": (2, 3)}
"""Positions of arguments that have a batch."""
REMEMBERED = {"linear": (0, 1), "selective": (0, 1, 3), "wkv": (2, 3)}
"""Positions of arguments that change later results."""
every = pytest.mark.parametrize("name", RECURRENCES)
every_form = pytest.mark.parametrize("form", FORMS)


def single(arrays, dtype=jnp.float32):
    return [jnp.asarray(a, dtype) for a in arrays]


@functools.cache
def compiled(name, form, **options):
    """Result and gradients of its sum under weights that differ at every place."""
    function = functools.partial(RECURRENCES[name][0], form=form, **options)

    def loss(arrays):
        y = function(*arrays)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y * weights).sum(), y

    def result(*arrays):
        (_, y), gradients = jax.value_and_grad(loss, has_aux=True)(list(arrays))
        return y, gradients

    return jax.jit(result)


def assert_close(found, expected, tolerance):
    """Largest difference relative to the largest expected magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale + 1e-30)


def assert_all_close(found, expected, tolerance):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, tolerance)


@every
@pytest.mark.parametrize("length", LENGTHS)
def test_forms_match_definition_and_each_other(name, length):
    arrays = make(name, length)
    expected = RECURRENCES[name][1](*arrays)
    y, gradients = compiled(name, "sequential")(*single(arrays))
    assert_close(y, expected, 1e-5)
    for form in ("chunked", "associative"):
        y, others = compiled(name, form)(*single(arrays))
        assert_close(y, expected, 1e-5)
        assert_all_close(others, gradients, 1e-4)


@every
@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_of_any_length(name, chunk):
    arrays = single(make(name, 20))
    y, gradients = compiled(name, "sequential")(*arrays)
    other, others = compiled(name, "chunked", chunk=chunk)(*arrays)
    assert_close(other, y, 1e-5)
    assert_all_close(others, gradients, 1e-4)


@every
@every_form
def test_gradients_match_differences_of_oracle(name, form):
    arrays = make(name, 5, batch=1, width=2, size=3)
    oracle = RECURRENCES[name][1]

    def loss(arrays):
        y = oracle(*arrays)
        return (y * np.cos(np.arange(y.size)).reshape(y.shape)).sum()

    expected = []
    for position, array in enumerate(arrays):
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            ends = []
            for change in (1e-5, -1e-5):
                moved = [a.copy() for a in arrays]
                moved[position][index] += change
                ends.append(loss(moved))
            gradient[index] = (ends[0] - ends[1]) / 2e-5
        expected.append(gradient)
    _, found = compiled(name, form)(*single(arrays))
    assert_all_close(found, expected, 1e-4)


@every
@every_form
def test_gradient_is_zero_after_the_probed_token(name, form):
    arrays = single(make(name, 6))
    function = RECURRENCES[name][0]

    def probe(*arrays):
        return function(*arrays, form=form, chunk=2)[:, 3].sum()

    for gradient in jax.jit(jax.grad(probe, REMEMBERED[name]))(*arrays):
        per_token = jnp.abs(gradient).sum(axis=(0, 2))
        assert (per_token[4:] == 0).all()
        assert (per_token[1:4] > 0).all()


@every_form
@pytest.mark.parametrize("decay", [-12.0, 6.0])  # a fall by 1 - 6e-6, or to nothing
def test_wkv_of_huge_keys(form, decay):
    _, bonus, key, value = make("wkv", 20)
    key = 60 * np.sign(key)
    arrays = np.full(3, decay), bonus, key, value
    y, gradients = compiled("wkv", form)(*single(arrays))
    assert_close(y, wkv_oracle(*arrays), 1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert any((np.asarray(gradient) != 0).any() for gradient in gradients)


@every_form
def test_wkv_does_not_change_when_all_keys_move(form):
    arrays = single(make("wkv", 20))
    y, gradients = compiled("wkv", form)(*arrays)
    arrays[2] = arrays[2] + 1000.0
    moved, others = compiled("wkv", form)(*arrays)
    assert_close(moved, y, 1e-3)  # float32 keys near 1000 are that coarse
    assert_all_close(others, gradients, 1e-3)


@every_form
def test_wkv_of_equal_exponents_is_the_mean(form):
    value = single(make("wkv", 20))[3]
    zero = jnp.zeros(3)
    y, (_, bonus, key, _) = compiled("wkv", form)(
        zero - 30, zero, jnp.zeros_like(value), value
    )
    counts = np.arange(1, 21)[None, :, None]
    assert_close(y, np.cumsum(value, axis=1) / counts, 1e-5)
    # Here every pair of maxima ties; that must not stop the gradient.
    assert (bonus != 0).all()
    assert (key[:, :-1] != 0).all()


@every_form
@pytest.mark.parametrize("rate", [0.0, 1e-6, 1e4])
def test_selective_scan_of_extreme_decay(form, rate):
    x, step, decay, into, out = make("selective", 20)
    arrays = x, step, np.full_like(decay, -rate), into, out
    y, gradients = compiled("selective", form)(*single(arrays))
    assert_close(y, selective_oracle(*arrays), 1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@every_form
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_linear_recurrence_of_extreme_decay(form, decay):
    x = make("linear", 20)[1]
    decay = np.full_like(x, decay)
    y, gradients = compiled("linear", form)(*single((decay, x)))
    assert_close(y, linear_oracle(decay, x), 1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@every
@every_form
def test_bfloat16_is_summed_in_float32(name, form):
    arrays = single(make(name, 32), jnp.bfloat16)
    if name == "linear":  # sums of 32 terms, in which bfloat16 would lose digits
        arrays[0] = jnp.ones_like(arrays[0])
    if name == "wkv":
        arrays[0] = arrays[0] - 6
    shapes = jax.eval_shape(compiled(name, form), *arrays)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}
    y = jax.jit(functools.partial(RECURRENCES[name][0], form=form))(*arrays)
    expected = RECURRENCES[name][1](*(np.asarray(a, np.float64) for a in arrays))
    assert_close(y, expected, 2.0**-8)  # the rounding of the result alone


@every
def test_vmap_is_a_loop(name):
    arrays = single(make(name, 20))
    runs = arrays, [0.9 * a for a in arrays]
    stacked = [jnp.stack(pair) for pair in zip(*runs, strict=True)]
    y, gradients = jax.jit(jax.vmap(compiled(name, "chunked")))(*stacked)
    for index, arrays in enumerate(runs):
        expected, others = compiled(name, "chunked")(*arrays)
        assert_close(y[index], expected, 1e-5)
        assert_all_close([g[index] for g in gradients], others, 1e-5)


@every
def test_batch_sharded_over_devices(name):
    arrays = single(make(name, 20, batch=4))
    expected, gradients = compiled(name, "chunked")(*arrays)
    mesh = make_mesh()
    placed = [
        jax.device_put(a, NamedSharding(mesh, P("data") if i in BATCHED[name] else P()))
        for i, a in enumerate(arrays)
    ]
    y, others = compiled(name, "chunked")(*placed)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), y.ndim)
    assert_close(y, expected, 1e-6)
    assert_all_close(others, gradients, 1e-5)


@pytest.mark.parametrize(
    ("name", "form"),
    [("linear", "chunked"), ("wkv", "chunked"), ("selective", "sequential")],
)
def test_forward_mode_matches_differences(name, form):
    arrays = make(name, 9)
    directions = [np.cos(np.arange(a.size)).reshape(a.shape) for a in arrays]
    oracle = RECURRENCES[name][1]
    ends = [
        oracle(*(a + h * d for a, d in zip(arrays, directions, strict=True)))
        for h in (1e-5, -1e-5)
    ]
    function = functools.partial(RECURRENCES[name][0], form=form)

    @jax.jit
    def derivative(arrays, directions):
        return jax.jvp(function, arrays, directions)[1]

    found = derivative(single(arrays), single(directions))
    assert_close(found, (ends[0] - ends[1]) / 2e-5, 1e-4)


@every
def test_hessian_product_of_chunked(name):
    arrays = single(make(name, 9))
    directions = [jnp.ones_like(a) for a in arrays]

    def product(form):
        def gradients(*arrays):
            return compiled(name, form, chunk=4)(*arrays)[1]

        return jax.jit(lambda: jax.jvp(gradients, arrays, directions)[1])()

    assert_all_close(product("chunked"), product("sequential"), 1e-4)


def array_sizes(jaxpr):
    """Element counts of all intermediate values, those of inner programs included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape))
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from array_sizes(inner)


@pytest.mark.parametrize("form", ["chunked", "associative"])
def test_selective_scan_keeps_no_states_of_all_steps(form):
    length, width, size = 128, 8, 8
    arrays = single(make("selective", length, batch=1, width=width, size=size))

    def largest(form):
        program = jax.make_jaxpr(compiled("selective", form))(*arrays)
        return max(array_sizes(program.jaxpr))

    assert largest(form) < length * width * size
    assert largest("sequential") >= length * width * size


@every
def test_equal_shapes_compile_once(name):
    function = jax.jit(functools.partial(RECURRENCES[name][0]))
    for factor in (1.0, 0.5):
        function(*(factor * a for a in single(make(name, 20))))
    assert function._cache_size() == 1
