"""Extraction with small real models: batches, devices, resuming, errors."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.features import lt_mia_features, token_statistics
from lt_mia_jax.features.extract import extract
from lt_mia_jax.features.program import ExtractConfig, Extraction
from lt_mia_jax.features.scorer import StatisticsExtractor
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.presets import gpt2_like

N, LENGTH, VOCABULARY = 21, 9, 37
CONFIG = ExtractConfig(k=3, batch_size=4, block_batches=2)


@dataclasses.dataclass(frozen=True)
class Bigram:
    """A causal model: the logits depend on the present token and the mean so far."""

    vocabulary: int = VOCABULARY
    width: int = 8

    def init(self, seed):
        rng = np.random.default_rng(seed)
        embed = rng.standard_normal((self.vocabulary, self.width), np.float32)
        return {"embed": embed, "head": rng.standard_normal(embed.T.shape, np.float32)}

    def apply(self, params, input_ids):
        x = params["embed"][input_ids]
        count = jnp.arange(1, x.shape[1] + 1)[None, :, None]
        return (x + jnp.cumsum(x, axis=1) / count) @ params["head"]


def draw(seed=0, n=N):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LENGTH + 1, n)
    lengths[0], lengths[1] = LENGTH, 1
    mask = (np.arange(LENGTH)[None, :] < lengths[:, None]).astype(np.uint8)
    ids = rng.integers(0, VOCABULARY, (n, LENGTH)).astype(np.int32)
    no = np.zeros(n, bool)
    return Encoded(np.where(mask, ids, 0).astype(np.int32), mask, no, no)


MODEL = Bigram()
TARGET, REFERENCE = MODEL.init(0), MODEL.init(1)
TEXTS = [f"text number {i} é" * 3 for i in range(N)]


def run(out_dir, **changes):
    options = {
        "ids": [f"id{i}" for i in range(N)],
        "labels": np.arange(N) % 2,
        "splits": ["train"] * N,
        "texts": TEXTS,
        "flags": [["truncated"]] + [[]] * (N - 1),
        "lower": draw(5),
        "config": CONFIG,
        "meta": {"name": "tiny", "corpus": "made up"},
    } | changes
    encoded = options.pop("encoded", draw())
    target = options.pop("target", TARGET)
    return extract(MODEL, target, MODEL, REFERENCE, encoded, out_dir=out_dir, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return run(tmp_path_factory.mktemp("extract") / "store")


def direct(encoded):
    """Statistics and features without batching, devices or storage."""
    logits = [MODEL.apply(p, encoded.input_ids) for p in (TARGET, REFERENCE)]
    return (
        token_statistics(*logits, *encoded[:2], k=3),
        lt_mia_features(*logits, *encoded[:2], k=3),
    )


def test_scorer_equals_direct_computation():
    encoded = draw()
    found = StatisticsExtractor(MODEL, TARGET, MODEL, REFERENCE, CONFIG)(encoded)
    stats, (features, mask) = direct(encoded)
    for name, value in stats._asdict().items():
        np.testing.assert_allclose(
            getattr(found.statistics, name), value, 1e-5, 2e-5, err_msg=name
        )
        assert isinstance(getattr(found.statistics, name), np.ndarray)
    np.testing.assert_allclose(found.features, features, atol=2e-5)
    np.testing.assert_array_equal(found.mask, mask)


def test_with_language_models():
    model = LanguageModel(gpt2_like(VOCABULARY, 16, 2, 2, LENGTH))
    params = [model.init(jax.random.key(seed)) for seed in range(2)]
    encoded = draw()
    found = StatisticsExtractor(model, params[0], model, params[1], CONFIG)(encoded)
    logits = [model.apply(p, encoded.input_ids) for p in params]
    features, mask = lt_mia_features(*logits, *encoded[:2], k=3)
    np.testing.assert_allclose(found.features[mask], features[mask], atol=1e-4)


def test_batch_size_and_sharding_do_not_matter():
    encoded = draw()
    whole = StatisticsExtractor(MODEL, TARGET, MODEL, REFERENCE, CONFIG)(encoded)
    for changes, fsdp in (
        ({"batch_size": 9}, 1),
        ({"batch_size": 1, "vocab_chunk": 5}, 2),
    ):
        config, executor = (
            dataclasses.replace(CONFIG, **changes),
            make_executor(fsdp=fsdp),
        )
        scorer = StatisticsExtractor(MODEL, TARGET, MODEL, REFERENCE, config, executor)
        other = scorer(encoded)
        np.testing.assert_allclose(whole.features, other.features, atol=2e-5)
        np.testing.assert_array_equal(
            whole.statistics.target_rank, other.statistics.target_rank
        )


def test_single_model_and_no_texts():
    encoded = draw()
    scorer = StatisticsExtractor(MODEL, TARGET, None, None, CONFIG)
    found = scorer(encoded)
    assert found.features is None
    assert found.statistics.reference_log_prob is None
    both = StatisticsExtractor(MODEL, TARGET, MODEL, REFERENCE, CONFIG)
    alone = both.statistics(encoded, target_only=True)
    np.testing.assert_array_equal(
        found.statistics.target_log_prob, alone.target_log_prob
    )
    none = both(encoded.take(np.arange(0)))
    assert none.features.shape == (0, LENGTH, 35)


def test_store_holds_the_features(store):
    encoded = draw()
    stats, (features, mask) = direct(encoded)
    found, found_mask = store.features()
    np.testing.assert_array_equal(found_mask, mask)
    bound = np.abs(np.asarray(features)) * 2.0**-11 + 3e-5
    assert (np.abs(found - features) <= bound).all()
    kept = store.statistics()
    for name in (
        "target_log_prob",
        "reference_log_prob",
        "target_mean",
        "target_var",
        "reference_mean",
        "cross_mean",
        "cross_var",
    ):
        np.testing.assert_allclose(
            getattr(kept, name), getattr(stats, name), 1e-5, 2e-5, err_msg=name
        )
    for name in ("target_rank", "reference_rank", "target_top1", "valid"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(stats, name))
    real = encoded.attention_mask != 0
    np.testing.assert_array_equal(kept.input_ids[real], encoded.input_ids[real])


def test_store_describes_the_texts(store):
    assert (store.name, store.n, store.split[3]) == ("tiny", N, "train")
    assert store.n_bytes[3] == len(TEXTS[3].encode())
    assert store.flags[:2] == [["truncated"], []]
    lower = draw(5)
    stats, _ = direct(lower)
    counts = np.asarray(stats.valid).sum(1)
    sums = -np.asarray(stats.target_log_prob, np.float64).sum(1)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(store.lower_loss, sums / counts, rtol=1e-5)
    assert np.isnan(store.lower_loss[1])


def test_resume(tmp_path, store, monkeypatch):
    # The first run dies in the third block.
    from lt_mia_jax.features.writer import StoreWriter

    append = StoreWriter.append_block

    def dying(self, block, *rest):
        if block == 2:
            raise KeyboardInterrupt
        append(self, block, *rest)

    monkeypatch.setattr(StoreWriter, "append_block", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match="unfinished"):
        FeatureStore.open(tmp_path)
    run(tmp_path)
    one = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    two = {p.name: p.read_bytes() for p in store.path.iterdir()}
    assert one == two


def test_finished_store_is_only_opened(store, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("models were run again")

    module = sys.modules["lt_mia_jax.features.extract"]
    monkeypatch.setattr(module, "StatisticsExtractor", never)
    assert run(store.path).n == N


def test_other_inputs_are_refused(store):
    with pytest.raises(InputError, match=r"different: meta\.models"):
        run(store.path, target=MODEL.init(2))
    with pytest.raises(InputError, match=r"different: meta\.inputs"):
        run(store.path, encoded=draw(3))
    with pytest.raises(InputError, match=r"different: labels"):
        run(store.path, labels=np.zeros(N, int))
    assert FeatureStore.open(store.path).n == N


def test_models_share_the_first_ids():
    small = Bigram(30)
    scorer = StatisticsExtractor(MODEL, TARGET, small, small.init(0), CONFIG)
    encoded = draw()
    with pytest.raises(InputError, match=r"text x has token 3\d but .* below 30"):
        scorer(encoded, ids="x" * N)
    scorer.statistics(encoded, target_only=True)
    encoded = encoded._replace(input_ids=encoded.input_ids % 30)
    found, features, _ = scorer(encoded)
    expected = token_statistics(
        MODEL.apply(TARGET, encoded.input_ids),
        small.apply(small.init(0), encoded.input_ids),
        encoded.input_ids,
        encoded.attention_mask,
        k=CONFIG.k,
    )
    assert features.shape == (N, LENGTH, 7 * CONFIG.k + 14)
    for name, one, other in zip(found._fields, found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=name)


def test_padding_may_have_an_id_outside_the_vocabulary():
    scorer = StatisticsExtractor(MODEL, TARGET, MODEL, REFERENCE, CONFIG)
    encoded = draw()
    padding = encoded.attention_mask == 0
    found = scorer.statistics(
        encoded._replace(input_ids=np.where(padding, 99, encoded.input_ids))
    )
    expected = scorer.statistics(encoded)._replace(input_ids=found.input_ids)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_tokens_outside_the_vocabulary(tmp_path):
    encoded = draw()
    encoded.input_ids[0, 4] = VOCABULARY
    with pytest.raises(InputError, match="text id0 has token 37"):
        run(tmp_path, encoded=encoded)


@pytest.mark.parametrize(("model", "word"), [(0, "the target"), (1, "the reference")])
def test_broken_weights_are_reported(model, word):
    encoded = draw()
    params = [dict(TARGET), dict(REFERENCE)]
    token = int(encoded.input_ids[0, 2])
    params[model]["embed"] = params[model]["embed"].copy()
    params[model]["embed"][token] = np.nan
    scorer = StatisticsExtractor(MODEL, params[0], MODEL, params[1], CONFIG)
    with pytest.raises(InputError, match=rf"{word} gives logits.*first"):
        scorer(encoded, ids=["first", *"x" * (N - 1)])


def test_unequal_columns(tmp_path):
    with pytest.raises(InputError, match="expected as many"):
        run(tmp_path, ids=["a"])
    with pytest.raises(InputError, match="differ in length"):
        run(tmp_path, texts=TEXTS[:-1])
    with pytest.raises(InputError, match="batch_size = 0"):
        ExtractConfig(batch_size=0)


def test_compiles_once_per_shape():
    scorer = StatisticsExtractor(MODEL, TARGET, MODEL, REFERENCE, CONFIG)
    scorer(draw())
    program = Extraction(target=MODEL, reference=MODEL, config=CONFIG)
    cached = program.on(scorer.executor)._cache_size
    before = cached()
    assert before > 0
    scorer(draw(1, n=13))
    StatisticsExtractor(MODEL, MODEL.init(4), MODEL, REFERENCE, CONFIG)(draw(2))
    assert cached() == before


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_parts_change_nothing(kind):
    # 16 texts of 9 steps and 37 entries on 4 devices: 10,656 bytes a device, and
    # 2,664 a text.
    whole, halves, single = (
        StatisticsExtractor(
            *(MODEL, TARGET, MODEL, REFERENCE),
            dataclasses.replace(CONFIG, batch_size=16, logits_gib=room / 2**30),
            make_executor(kind),
        )(draw(n=16))
        for room in (10_656, 10_655, 2_665)
    )
    for parts in (halves, single):
        np.testing.assert_allclose(parts.features, whole.features, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(
            parts.statistics.target_rank, whole.statistics.target_rank
        )


@pytest.mark.parametrize(("room", "parts"), [(10_656, 1), (10_655, 2), (2_665, 4)])
def test_texts_at_a_time(room, parts):
    config = dataclasses.replace(CONFIG, logits_gib=room / 2**30)
    program = Extraction(target=MODEL, reference=MODEL, config=config)
    params = jax.tree.map(jnp.asarray, (TARGET, REFERENCE))
    seen = []

    def part(ids, mask):
        seen.append(ids.shape)
        return token_statistics(*program.logits(*params, ids), ids, mask, k=3)

    encoded = draw(n=16)
    rows = (jnp.asarray(x) for x in encoded[:2])
    found = program.in_parts(*params, *rows, part, 4)
    assert seen == [(16 // parts, LENGTH)]
    np.testing.assert_array_equal(found.input_ids, encoded.input_ids)


def test_only_reductions_leave_the_device():
    scorer = StatisticsExtractor(MODEL, TARGET, MODEL, REFERENCE, CONFIG)
    found = jax.tree.leaves(scorer(draw()).statistics)
    assert all(x.ndim == 2 or x.shape[2] == 18 for x in found)
