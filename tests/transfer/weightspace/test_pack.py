"""SkillPacks: lossless at full size, bytes as counted, no bit changed in vain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick_compile import jit
from transfer_models import CONFIGS, moved, params_like, same_bits, tiny_model

from lt_mia_jax.errors import InputError
from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.transfer.weightspace.pack import (
    SkillPackSpec,
    apply,
    load,
    nbytes,
    nearest_centroid,
    pack,
    save,
    task_weights,
    unpack,
)
from lt_mia_jax.trees import flatten, unflatten

LOSSLESS = SkillPackSpec(
    alpha=1.0, rank=1.0, beta=1.0, max_rank=1.0, bits=((32, 1.0),), rest_bits=32
)
SPEC = SkillPackSpec(
    alpha=0.3, rank=0.5, max_rank=0.75, bits=((8, 0.25), (2, 0.75)), group=16
)


def pair(name, seed=0):
    base = params_like(tiny_model(name), seed)
    return base, moved(base, seed + 1)


def delta(base, ft):
    pairs = zip(flatten(base).items(), flatten(ft).values(), strict=True)
    return {
        n: np.asarray(b, np.float64) - np.asarray(a, np.float64) for (n, a), b in pairs
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_a_full_pack_loses_nothing(name):
    base, ft = pair(name)
    found, expected = flatten(unpack(pack(base, ft, LOSSLESS))), delta(base, ft)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-6)


def quantized_bytes(rows, length, bits, group):
    number = -(-length // group)
    size = -(-length // number)
    while size * bits % 8:
        size += 1
    return rows * number * (size * bits // 8 + 2) + 4


def counted_bytes(path, value):
    """Bytes of one parameter under SPEC, from the text of its docstring."""
    last = path.split("/")[-1]
    if path in ("embedding/tokens", "embedding/positions", "head/kernel"):
        kept = round(0.3 * value.size)
        return -(-value.size // 8) + quantized_bytes(1, kept, 8, 16)
    if last not in ("kernel", "blocks"):
        return quantized_bytes(1, value.size, 8, 16)
    *stack, inputs, outputs = value.shape
    full = min(inputs, outputs)
    rank = 0.5 * full
    if "feed_forward" in path:
        rank = 0
        for layer in value.reshape(-1, inputs, outputs):
            squares = np.sort(np.linalg.eigvalsh(layer @ layer.T))[::-1]
            needed = 1
            while squares[:needed].sum() < 0.9 * squares.sum():
                needed += 1
            rank = max(rank, needed)
        rank = min(rank, 0.75 * full)
    rank = max(1, round(rank))
    first, total = int(np.ceil(0.25 * rank)), 0
    for bits, columns in ((8, first), (2, rank - first)):
        if columns:
            rows = int(np.prod(stack)) * columns
            total += quantized_bytes(rows, inputs, bits, 16)
            total += quantized_bytes(rows, outputs, bits, 16)
    return total


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_are_those_of_a_formula(name):
    base, ft = pair(name)
    found = pack(base, ft, SPEC)
    for path, value in delta(base, ft).items():
        assert nbytes(found.parts[path]) == counted_bytes(path, value), path
    assert nbytes(found) == sum(map(nbytes, found.parts.values()))


def test_each_layer_has_its_best_approximation_of_low_rank():
    base, ft = pair("gpt2")
    spec = SkillPackSpec(rank=0.5, bits=((32, 1.0),))
    path = "periods/slot_0/mixer/query/kernel"
    found = np.asarray(flatten(unpack(pack(base, ft, spec)))[path], np.float64)
    for layer, value in zip(found, delta(base, ft)[path], strict=True):
        squares = np.sort(np.linalg.eigvalsh(value @ value.T))
        missed = np.square(value - layer).sum()
        assert missed == pytest.approx(squares[:4].sum(), rel=1e-4)
        assert np.linalg.matrix_rank(layer, tol=1e-6) == 4


def test_later_slices_and_right_factors_make_up_for_rounding():
    """The order: left codes, right factor given them, then the next slice."""
    base, ft = pair("llama")
    path = "periods/slot_0/mixer/query/kernel"
    spec = SkillPackSpec(rank=1.0, bits=((4, 0.5), (4, 0.5)), group=16)
    found = np.asarray(flatten(unpack(pack(base, ft, spec)))[path])
    blind, closer = [], []
    for layer, value in zip(found, delta(base, ft)[path], strict=True):
        u, s, v = np.linalg.svd(value)

        def rounded(rows):
            scale = np.abs(rows).max(axis=1, keepdims=True) / 7.5
            return (np.clip(np.round(rows / scale + 7.5), 0, 15) - 7.5) * scale

        straight = rounded(u.T).T @ rounded(s[:, None] * v)
        blind.append(np.square(value - straight).sum())
        closer.append(np.square(value - layer).sum())
    assert sum(closer) < 0.8 * sum(blind)


def test_pruned_tables_keep_an_exact_count_also_of_equal_magnitudes():
    base, _ = pair("llama")
    flat = flatten(base)
    flat["embedding/tokens"] = flat["embedding/tokens"] + 1.0
    found = flatten(unpack(pack(base, unflatten(flat), SkillPackSpec(alpha=0.25))))
    kept = np.asarray(found["embedding/tokens"]).reshape(-1) != 0
    assert kept.sum() == 20 * 8 / 4
    assert not np.asarray(found["head/kernel"]).any()


def test_weights_load_and_unload_packs():
    base, one = pair("gpt2", 0)
    two = moved(base, 7)
    packs = [pack(base, ft, SPEC) for ft in (one, two)]
    parts = [flatten(unpack(p)) for p in packs]
    grafted = jit(apply)(base, packs, np.array([1.0, -0.5], np.float32))
    for path, leaf in flatten(base).items():
        expected = np.asarray(leaf) + parts[0][path] - 0.5 * parts[1][path]
        np.testing.assert_allclose(flatten(grafted)[path], expected, atol=1e-6)
    routed = apply(base, packs, task_weights(1, 2))
    assert same_bits(routed, apply(base, packs[1:]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nothing_added_keeps_every_bit(dtype):
    base = params_like(tiny_model("gpt2"), 0, dtype=dtype)
    base["final_norm"]["bias"] = jnp.full(8, -0.0, dtype)
    ft = moved(base, 1)
    skill = pack(base, ft, SPEC)
    assert not same_bits(apply(base, [skill]), base)
    for packs, weights in (
        ([], None),
        ([skill], [0.0]),
        ([skill, skill], task_weights(-1, 2)),
        ([pack(base, base, SPEC)], None),
    ):
        assert same_bits(apply(base, packs, weights), base)


def test_the_nearest_centroid_is_routed_to():
    rng = np.random.default_rng(0)
    features, centroids = rng.normal(size=(6, 3)), rng.normal(size=(4, 3))
    means = [sum(row[d] for row in features) / 6 for d in range(3)]
    distances = [
        sum((c - m) ** 2 for c, m in zip(x, means, strict=True)) for x in centroids
    ]
    expected = np.eye(4)[distances.index(min(distances))]
    np.testing.assert_array_equal(nearest_centroid(features, centroids), expected)


def test_a_file_holds_the_pack_and_little_else(tmp_path):
    base, ft = pair("griffin")
    skill, path = pack(base, ft, SPEC), tmp_path / "skill.safetensors"
    save(path, skill)
    read = load(path)
    assert jax.tree.structure(read) == jax.tree.structure(skill)
    assert same_bits(read, skill)
    tensors = len(jax.tree.leaves(skill))
    assert nbytes(skill) < path.stat().st_size < nbytes(skill) + 250 * tensors
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        load(path)


def test_a_file_of_something_else_is_no_pack(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, path)
    with pytest.raises(InputError, match="no skill pack"):
        load(path)


def test_a_sharded_base_stays_sharded():
    base, ft = pair("gpt2")
    mesh = make_mesh(2, 2)
    spread = jax.tree.map(
        lambda x: jax.device_put(
            x, NamedSharding(mesh, P(*(None,) * (x.ndim - 1), "fsdp"))
        ),
        (base, ft),
    )
    skill = pack(*spread, SPEC)
    assert same_bits(skill, pack(base, ft, SPEC))
    found = apply(spread[0], [skill])
    expected = apply(base, [skill])
    for path, leaf in flatten(found).items():
        assert leaf.sharding.is_equivalent_to(
            flatten(spread[0])[path].sharding, leaf.ndim
        )
        np.testing.assert_allclose(leaf, flatten(expected)[path], atol=1e-7)


def test_other_models_and_wrong_settings_are_refused():
    base, ft = pair("gpt2")
    other, _ = pair("llama")
    with pytest.raises(ValueError, match=r"pack: .*embedding.positions"):
        pack(base, other)
    skill = pack(base, ft, SPEC)
    with pytest.raises(ValueError, match=r"apply: .*embedding.positions"):
        apply(other, [skill])
    with pytest.raises(ValueError, match="1 packs, weights"):
        apply(base, [skill], [1.0, 2.0])
    for wrong in (
        {"alpha": 0.0},
        {"rank": 1.5},
        {"rest_bits": 5},
        {"bits": ((8, 0.5),)},
        {"bits": ()},
        {"group": 0},
    ):
        with pytest.raises(InputError, match="expected"):
            SkillPackSpec(**wrong)
