"""The comparison with the reference: what differs, and what is refused."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import oracle_features
import pytest

from experiments.speed import agreement, peer, throughput_results
from experiments.speed.compiled import Figures
from experiments.speed.throughput_results import Measured, Record
from lt_mia_jax.errors import InputError
from lt_mia_jax.features import lt_mia_features

BATCH, LENGTH, VOCABULARY, K = 3, 12, 211, 5


@pytest.fixture(scope="module")
def logits():
    """Both models' logits, in steps so fine that many tokens are all but tied."""
    rng = np.random.default_rng(0)
    coarse = np.round(rng.standard_normal((2, BATCH, LENGTH, VOCABULARY)), 1)
    return coarse + 1e-6 * rng.standard_normal(coarse.shape)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(1).integers(0, VOCABULARY, (BATCH, LENGTH))


def features(logits, ids):
    pair = logits.astype(np.float32)
    found, mask = lt_mia_features(*pair, ids, np.ones_like(ids), k=K)
    return np.asarray(found), np.asarray(mask)


def test_rounding_is_no_difference_though_it_reorders_tied_tokens(logits, ids):
    ours, mask = features(logits, ids)
    noise = 2e-6 * np.random.default_rng(2).standard_normal(logits.shape)
    theirs, _ = features(logits + noise, ids)
    assert np.abs(ours - theirs).max() > 0.05
    found = agreement.compare(ours, theirs, mask, *logits)
    assert found.largest < 1e-4
    assert 0 < found.left_out < found.slots


def test_distinct_logits_leave_nothing_out_and_meet_the_slow_definition(ids):
    rng = np.random.default_rng(3)
    grid = np.linspace(-3, 3, VOCABULARY)
    shape = (2, BATCH, LENGTH, VOCABULARY)
    spread = rng.permuted(np.broadcast_to(grid, shape), axis=-1).astype(np.float32)
    ours, mask = features(spread, ids)
    theirs, _ = oracle_features.lt_mia_features(*spread, ids, np.ones_like(ids), K)
    found = agreement.compare(ours, theirs, mask, *spread)
    assert found.left_out == 0
    assert found.largest < 1e-4


@pytest.mark.parametrize("column", ["truth.target_rank", "head[2].target_logit"])
def test_a_wrong_column_is_found(ids, column):
    rng = np.random.default_rng(4)
    pair = rng.standard_normal((2, BATCH, LENGTH, VOCABULARY)).astype(np.float32)
    ours, mask = features(pair, ids)
    wrong = ours.copy()
    names = agreement.FeatureLayout(K).names
    wrong[..., names.index(column)] += 0.1
    assert agreement.compare(ours, ours, mask, *pair).largest == 0
    assert agreement.compare(ours, wrong, mask, *pair).largest > 0.05
    wrong[0, 0, names.index(column)] = np.nan
    assert agreement.compare(ours, wrong, mask, *pair).largest == np.inf


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (None, "found nothing"),
        ({}, "without features/extraction.py"),
        ({"features/extraction.py": "pass"}, "without extract_per_token_features"),
    ],
)
def test_a_path_that_is_no_checkout_is_refused(tmp_path, files, found):
    path = tmp_path / "checkout"
    write(path, files)
    with pytest.raises(InputError, match=found) as error:
        peer.check(path)
    assert "git clone" in str(error.value)


def write(root, files):
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if files is not None:
        root.mkdir(exist_ok=True)


def test_a_missing_package_of_the_reference_is_named(tmp_path):
    source = f"import absent_module\ndef {peer.FUNCTION}(): pass\n"
    files = {"__init__.py": "", "features/__init__.py": "", peer.MODULE: source}
    write(tmp_path / "checkout", files)
    with pytest.raises(InputError, match="pip install absent_module"):
        peer.Peer(tmp_path / "checkout", tmp_path, k=K, threads=1)


CHECKOUT = {
    "__init__.py": "print('what a reference says is not an answer')",
    "utils/__init__.py": "def get_device(): return 'cpu'",
    "features/__init__.py": "",
    peer.MODULE: f"""
import numpy as np

def {peer.FUNCTION}(
    model_tgt, model_ref, tokenizer, texts, device, batch_size, sequence_length, k
):
    ids = np.array([tokenizer.encode(t, truncation=True) for t in texts])
    assert ids.shape == (batch_size, sequence_length)
    features = np.repeat(ids[:, :, None], 7 * k + 14, axis=-1).astype(np.float32)
    return features, np.ones_like(ids), ids
""",
}
"""A checkout whose features are the token ids, so that the way there is seen."""


@pytest.mark.parity
@pytest.mark.slow
def test_the_reference_gets_our_weights_and_tokens(tmp_path, ids):
    pytest.importorskip("torch", reason="needs the extra 'parity'")
    from experiments.speed import throughput

    write(tmp_path / "checkout", CHECKOUT)
    config = throughput.Throughput(
        vocabulary=VOCABULARY, batch_size=4, length=LENGTH, k=K, peer_threads=1
    )
    config = dataclasses.replace(config, peer=tmp_path / "checkout")
    work = throughput.workload(config, "tiny")
    with throughput.reference_process(config, work) as other:
        assert other.seconds("two forwards") > 0
        assert other.seconds("extraction") > 0
        found, mask = other.features()
    np.testing.assert_array_equal(found[..., 0], work.ids)
    assert mask.all()
    assert other.settings["dtype"] == "float32"


def record(size, *, rate=2.0, reference=True, vocabulary=50257):
    config = SimpleNamespace(
        vocabulary=vocabulary,
        batch_size=16,
        length=128,
        k=20,
        vocab_chunk=None,
        executor="jit",
    )
    figures = Figures(2e9, None, 1e9, None, 0, {}, {"all-gather": 3}, 10, 20, 30)
    programs = {
        "two forwards": Measured([16 / rate / 2, 16 / rate], figures),
        "extraction": Measured([16 / rate], figures),
    }
    machine = {"jax": "0", "dtype": "float32", "devices": 2, "device": "cpu"}
    machine["weights"] = 2**20
    settings = throughput_results.settings_of(config, size)
    if not reference:
        return Record(settings, machine, programs)
    programs["reference two forwards"] = Measured([16.0], None)
    programs["reference extraction"] = Measured([32.0], None)
    described = {"torch": "2", "dtype": "float32", "device": "cpu", "threads": 2}
    described |= {"batch_size": 16, "attention": "sdpa"}
    found = agreement.Agreement(1e-6, 2e-6, 3e-6, 4, 500)
    return Record(settings, machine, programs, described, found)


def test_results_are_kept_and_sizes_join_them(tmp_path):
    first, second = record("tiny"), record("125m", reference=False)
    throughput_results.save(tmp_path, [first])
    kept = throughput_results.load(tmp_path)
    assert kept == [first]
    throughput_results.save(tmp_path, throughput_results.replace(kept, second))
    again = record("tiny", rate=3.0)
    records = throughput_results.replace(throughput_results.load(tmp_path), again)
    assert records == [again, second]
    other = record("tiny", vocabulary=256000)
    assert throughput_results.find(records, other.settings) is None
    drawn = (tmp_path / throughput_results.FIGURE).read_text()
    assert "sequences a second" in drawn
    assert "125m" in drawn


def test_tables_show_rates_and_overheads():
    text = throughput_results.tables([record("tiny")])
    assert "| tiny | ours: extraction | 2.00 | 8,000 | 2.00 |" in text
    assert "| tiny | reference: extraction | 0.50 | 32,000 | 2.00 |" in text
    assert "4 of 500" in text


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / throughput_results.RESULTS).write_text('{"rows": []}')
    with pytest.raises(InputError, match="holds no results"):
        throughput_results.load(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        throughput_results.load(tmp_path / "absent", must_exist=True)


def test_a_wrong_path_ends_with_code_2_and_one_line(tmp_path, monkeypatch, capsys):
    from experiments.speed import throughput

    monkeypatch.setattr(sys, "argv", ["throughput.py", "--peer", str(tmp_path)])
    assert throughput.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a checkout" in line
