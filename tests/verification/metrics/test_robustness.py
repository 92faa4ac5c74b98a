import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_unlearning_metrics import quantize_oracle

from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel, gpt2_like, mamba_like, rwkv_like
from lt_mia_jax.trees import flatten, unflatten
from lt_mia_jax.verification.metrics import memorization, robustness

KERNEL = "periods/slot_0/feed_forward/up/kernel"
EVERY_MATRIX = ("*kernel", "embedding/tokens")


def tree(seed=0, layers=2, inputs=10, outputs=6):
    rng = np.random.default_rng(seed)
    flat = {
        KERNEL: rng.normal(size=(layers, inputs, outputs)),
        "periods/slot_0/feed_forward/up/bias": rng.normal(size=(layers, outputs)),
        "periods/slot_0/mixer_norm/scale": rng.normal(size=(layers, inputs)),
        "embedding/tokens": rng.normal(size=(12, inputs)),
        "head/kernel": rng.normal(size=(inputs, 12)),
    }
    return unflatten({name: jnp.asarray(x, jnp.float32) for name, x in flat.items()})


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("group", [None, 4, 5, 128])
def test_rounding_equals_its_definition_bit_for_bit(bits, group):
    params = tree()
    expected, _ = quantize_oracle(np.asarray(flatten(params)[KERNEL]), bits, group)
    found = flatten(robustness.quantize(params, bits, group_size=group))
    np.testing.assert_array_equal(found[KERNEL], expected)
    levels = 2 ** (bits - 1) - 1
    if group is None:
        for column in np.asarray(found[KERNEL]).transpose(0, 2, 1).reshape(-1, 10):
            assert len(np.unique(column)) <= 2 * levels + 1
    for name, leaf in flatten(params).items():
        if name != KERNEL:
            assert found[name] is leaf


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("group", [None, 7])
def test_rounding_twice_is_rounding_once(bits, group):
    params = tree(seed=bits, inputs=64, outputs=64)
    once = robustness.quantize(params, bits, group_size=group)
    twice = robustness.quantize(once, bits, group_size=group)
    jax.tree.map(np.testing.assert_array_equal, twice, once)
    share = robustness.changed_codes(params, once, bits, group_size=group)
    assert share == 0


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [None, 16])
def test_small_changes_vanish_in_rounding(bits, group):
    """Every weight moves as far as its rounding interval allows; maxima stay."""
    params = tree(seed=3, inputs=48, outputs=20)
    before = np.asarray(flatten(params)[KERNEL])
    rounded, codes = quantize_oracle(before, bits, group)
    rng = np.random.default_rng(0)
    after, moves = before.copy(), []
    for layer in range(before.shape[0]):
        for channel in range(before.shape[2]):
            for start in range(0, before.shape[1], group or 48):
                part = np.s_[layer, start : start + (group or 48), channel]
                w, q = before[part], codes[part]
                top = np.abs(w).max()
                scale = top / (2 ** (bits - 1) - 1)
                # Anywhere in 98 % of the interval, but not above the maximum.
                target = (q + rng.uniform(-0.49, 0.49, w.shape)) * scale
                target = np.clip(target, -0.999 * top, 0.999 * top)
                after[part] = np.where(np.abs(w) == top, w, target)
                moves.append(np.abs(after[part] - w).mean() / scale)
    moved = unflatten(flatten(params) | {KERNEL: jnp.asarray(after)})
    assert np.mean(moves) > 0.2  # of a rounding step
    found = [
        flatten(robustness.quantize(p, bits, group_size=group)) for p in (params, moved)
    ]
    np.testing.assert_array_equal(found[0][KERNEL], found[1][KERNEL])
    np.testing.assert_array_equal(found[0][KERNEL], rounded)
    assert robustness.changed_codes(params, moved, bits, group_size=group) == 0


def test_share_of_changed_codes_counts_weights():
    params = tree(seed=5)
    before = np.asarray(flatten(params)[KERNEL])
    after = before + 0.1 * np.random.default_rng(1).normal(size=before.shape)
    after = after.astype(np.float32)
    changed = unflatten(flatten(params) | {KERNEL: jnp.asarray(after)})
    a, b = (quantize_oracle(w, 4, None)[1] for w in (before, after))
    share = robustness.changed_codes(params, changed, 4)
    assert share == (a != b).mean()
    assert 0.1 < share < 0.9
    coarse, fine = (robustness.changed_codes(params, changed, b) for b in (2, 8))
    assert coarse < share < fine


def test_embedding_and_head_on_request():
    params = tree()
    found = flatten(robustness.quantize(params, 4, patterns=EVERY_MATRIX))
    table = np.asarray(flatten(params)["embedding/tokens"])
    # Its rows are the channels, as if it were the head's kernel on its side.
    expected, _ = quantize_oracle(table.T[None], 4, None)
    np.testing.assert_array_equal(found["embedding/tokens"], expected[0].T)
    head, _ = quantize_oracle(np.asarray(flatten(params)["head/kernel"])[None], 4, None)
    np.testing.assert_array_equal(found["head/kernel"], head[0])


def test_dtype_is_kept_and_zero_groups_stay_zero():
    params = tree()
    kernel = flatten(params)[KERNEL].at[0, :, 2].set(0).astype(jnp.bfloat16)
    half = unflatten(flatten(params) | {KERNEL: kernel})
    found = flatten(robustness.quantize(half, 8))[KERNEL]
    assert found.dtype == jnp.bfloat16
    assert not np.asarray(found[0, :, 2], np.float32).any()
    np.testing.assert_allclose(
        np.asarray(found, np.float32), np.asarray(kernel, np.float32), atol=0.03
    )


def test_sixteen_bits_change_no_metric(key):
    config = gpt2_like(50, width=32, layers=2, heads=2, context=32)
    apply = jax.jit(LanguageModel(config).apply)
    params = jax.tree.map(lambda x: 5 * x, LanguageModel(config).init(key))
    ids = jax.random.randint(key, (4, 16), 0, 50)
    mask = jnp.ones_like(ids)
    values = []
    for bits in (None, 16, 2):
        tree = params if bits is None else robustness.quantize(params, bits)
        stats = memorization.answer_statistics(apply(tree, ids), ids, mask)
        values.append(memorization.mean_nll(stats))
    assert np.abs(values[1] - values[0]).max() < 1e-3
    assert np.abs(values[2] - values[0]).max() > 0.1


@pytest.mark.parametrize("preset", [gpt2_like, mamba_like, rwkv_like])
def test_defaults_take_layer_kernels_of_every_family(preset):
    heads = {"heads": 2, "context": 16} if preset is gpt2_like else {}
    shapes = LanguageModel(preset(40, width=16, layers=2, **heads)).shapes()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)
    found, flat = flatten(robustness.quantize(params, 3)), flatten(params)
    changed = {name for name in flat if (found[name] != flat[name]).any()}
    kernels = {n for n in flat if n.startswith("periods/") and n.endswith("/kernel")}
    # A matrix of one input holds nothing but its maxima, which move by a last bit.
    assert {n for n in kernels if flat[n].shape[-2] > 1} <= changed <= kernels


def test_recovered_fraction():
    for value, expected in ((0.2, 0), (0.8, 1), (0.35, 0.25), (0.05, -0.25)):
        found = robustness.recovered_fraction(value, original=0.8, retrained=0.2)
        assert found == pytest.approx(expected)


def test_relearning_area_by_hand():
    steps = [0, 1, 3]
    unlearned, retrained = np.array([0.2, 0.6, 0.6]), np.array([0.2, 0.2, 0.4])
    # Gaps 0, .4, .2; log(1 + steps) is 0, 1, 2 in units of log 2.
    area = robustness.relearning_area(steps, unlearned, retrained)
    assert area == pytest.approx((0.2 + 0.3) / 2)
    assert robustness.relearning_area(steps, retrained, unlearned) == pytest.approx(
        -area
    )
    assert robustness.relearning_area(steps, unlearned, unlearned) == 0


def test_relearning_robustness():
    def gain(unlearned_after, retrained_after):
        return robustness.relearning_robustness(
            np.array([0.1, unlearned_after]), np.array([0.1, retrained_after])
        )

    assert gain(0.9, 0.3) == pytest.approx(0.25)
    assert gain(0.2, 0.3) == 1  # slower than the retrained model
    assert gain(0.1, 0.1) == 1  # nothing is relearned
    assert gain(0.9, 0.0) == 0


def test_bad_input_is_told():
    params = tree()
    with pytest.raises(InputError, match="bits is 1"):
        robustness.quantize(params, 1)
    with pytest.raises(InputError, match="group_size is 0"):
        robustness.quantize(params, 4, group_size=0)
    with pytest.raises(InputError, match="match no parameter"):
        robustness.quantize(params, 4, patterns=("*/experts/*",))
    with pytest.raises(InputError, match="embedding/tokens"):
        robustness.quantize({"embedding": params["embedding"]}, 4)
    vector = {"head": {"kernel": jnp.ones(3)}}
    with pytest.raises(InputError, match="no matrices"):
        robustness.quantize(vector, 4, patterns=("head/kernel",))
    smaller = tree(outputs=5)
    with pytest.raises(InputError, match="differ in presence or shape"):
        robustness.changed_codes(params, smaller, 4)
    broken = unflatten(
        flatten(params) | {KERNEL: flatten(params)[KERNEL].at[0].set(jnp.nan)}
    )
    with pytest.raises(InputError, match="diverged"):
        robustness.changed_codes(params, broken, 4)
    with pytest.raises(InputError, match="both have"):
        robustness.recovered_fraction(0.3, original=0.5, retrained=0.5)
    with pytest.raises(InputError, match="steps 3, unlearned 2, retrained 3"):
        robustness.relearning_area([0, 1, 2], np.ones(2), np.ones(3))
    with pytest.raises(InputError, match="each larger than the last"):
        robustness.relearning_area([0, 2, 2], np.ones(3), np.ones(3))
    with pytest.raises(InputError, match="is NaN"):
        robustness.relearning_area([0, 1], np.array([0, np.nan]), np.ones(2))
    with pytest.raises(InputError, match="the unlearned model is NaN"):
        robustness.relearning_robustness(np.array([0.0, np.nan]), np.zeros(2))


BNB_FP4 = bytes.fromhex(
    "02f6e753c4966cead9ee45211667f32d61e434ff3f16e1aadee67db26666ca2a"
    "e617d4c9ee6db1e64c766c242ce67cd47eee66adf664aaa416e23c41b57664a7"
    "e196663ac66643a6e664db89699ab2ce3661ee3ad71662277ee1dd4496671f5f"
    "e9623a66bc69eeb34666e2a5e66e4a341666231616fba261"
)
"""Codes that bitsandbytes 0.50.2 gives `peer_weight`, outputs by inputs, two a byte."""
BNB_INT8 = bytes.fromhex(
    "0052e312ed1b3577cd30fb101ad3ebabb7f6f2ea2b3a6507050e0c1de27f5ec7"
    "0c09e6327630dee173e40a13f307b1a0c6e7eb131ebc836b14150d18d4965cb2"
    "e8130b25b52bd9fce8ee18bf8102f11728d41c130cd85d285ed8ec131ecdca27"
    "20e8f4ea0c0ea5c7e0130b2ba2aaa32a0710f34a7fcf2e03963d1c10142b9923"
    "ef02f6131a0c6a9ad0170d0e296fa20ce9110c2cbd8100f80dfbffac8652d1eb"
    "7e0d1a09f2eb7f8ab52202170f60631f27eaef01adae3b3af61112270ce052e0"
    "ebf6136a7c98191193cf14f9e8ed817f25160b18f45b9a41f41113e829996b2c"
    "050e170b6a6a0a140816dd90a54f0c07"
)
"""The same of its LLM.int8(), which takes float16."""
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
"""Sizes by the last three bits of a code; the first is the sign."""


def peer_weight():
    """Inputs by outputs, with blocks that run on from one output to the next."""
    n = np.arange(240, dtype=np.float64)
    x = np.sin(n**1.5) * np.exp(np.cos(n / 7))
    return x.reshape(40, 6).astype(np.float32)


def fp4_oracle(weight):
    """Each weight alone, in float64: the nearest size, times the largest of its 64."""
    flat = weight.astype(np.float64).swapaxes(-1, -2).reshape(-1)
    found = np.empty_like(flat)
    for i, x in enumerate(flat):
        start = i - i % 64
        top = np.abs(flat[start : start + 64]).max()
        grid = np.sort(FP4) * top
        found[i] = np.sign(x) * grid[np.abs(grid - abs(x)).argmin()]
    turned = weight.swapaxes(-1, -2).shape
    return found.reshape(turned).swapaxes(-1, -2)


def rounded(weight, bits, **settings):
    params = unflatten({KERNEL: jnp.asarray(weight)})
    return np.asarray(flatten(robustness.quantize(params, bits, **settings))[KERNEL])


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 3), (40, 6), (10, 5), (1, 1)])
def test_fp4_equals_its_definition(inputs, outputs):
    weight = np.random.default_rng(inputs).normal(size=(2, inputs, outputs))
    weight = weight.astype(np.float32)
    found = rounded(weight, 4, fp4=True)
    for layer, each in zip(weight, found, strict=True):
        np.testing.assert_allclose(each, fp4_oracle(layer), rtol=1e-6)
    np.testing.assert_array_equal(rounded(found, 4, fp4=True), found)
    assert not rounded(np.zeros((2, 8, 8), np.float32), 4, fp4=True).any()


def test_fp4_is_that_of_bitsandbytes():
    codes = np.frombuffer(BNB_FP4, np.uint8)
    codes = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)
    values = FP4[codes & 7] * np.where(codes & 8, -1, 1)
    flat = peer_weight().T.reshape(-1)
    tops = [np.abs(flat[i : i + 64]).max() for i in range(0, 240, 64)]
    expected = (values * np.repeat(tops, 64)[:240]).reshape(6, 40).T
    np.testing.assert_allclose(rounded(peer_weight()[None], 4, fp4=True)[0], expected)


def test_eight_bits_by_channel_are_the_weights_of_llm_int8():
    weight = peer_weight().astype(np.float16).astype(np.float32)
    codes = np.frombuffer(BNB_INT8, np.int8).reshape(6, 40).T
    found = rounded(weight[None], 8)[0]
    steps = found / (np.abs(weight).max(axis=0) / 127)
    np.testing.assert_array_equal(np.round(steps), codes)


def test_changed_codes_of_fp4_are_counted():
    rng = np.random.default_rng(8)
    before = rng.normal(size=(1, 64, 4)).astype(np.float32)
    after = before + 0.05 * rng.normal(size=before.shape).astype(np.float32)
    trees = [unflatten({KERNEL: jnp.asarray(x)}) for x in (before, after)]
    sizes = [
        fp4_oracle(x[0]) / np.abs(x[0]).max(axis=0) for x in (before, after)
    ]  # 64 inputs are one block
    share = (np.abs(sizes[0] - sizes[1]) > 1e-6).mean()
    assert 0 < share < 1
    assert robustness.changed_codes(*trees, 4, fp4=True) == pytest.approx(share)


@pytest.mark.parametrize("settings", [(8, {}), (4, {"group_size": 64})])
def test_fp4_has_four_bits_in_blocks(settings):
    bits, rest = settings
    with pytest.raises(InputError, match="fp4 with bits"):
        robustness.quantize(tree(), bits, fp4=True, **rest)
