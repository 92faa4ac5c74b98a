"""The base of the package, and the quick demo that starts from it."""

import dataclasses
import inspect
import json
import re
import statistics

import numpy as np
from tiny_demo import Domain

from lt_mia_jax.checkpoints import BASE, load_pretrained
from lt_mia_jax.cli import main
from lt_mia_jax.data import corpora
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.files import sha256_file
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.study import demo


def test_the_base_is_small_and_its_card_is_its_own():
    sizes = {path.name: path.stat().st_size for path in BASE.iterdir()}
    assert sum(sizes.values()) <= 3_000_000
    assert set(sizes) > {"config.json", "model.safetensors", "README.md"}
    card = (BASE / "README.md").read_text()
    (digest,) = re.findall(r"`([0-9a-f]{64})`", card)
    assert digest == sha256_file(BASE / "model.safetensors")


def test_the_base_has_learned_to_read_code():
    model = load_pretrained(BASE)
    assert model.config == demo.bases()[demo.UNSEEN]
    source = inspect.getsource(statistics.median_grouped)
    ids = np.array(model.tokenizer(source)["input_ids"][:64])
    mixed = np.random.default_rng(0).permutation(ids)

    def loss(tokens):
        logits = LanguageModel(model.config).apply(model.params, tokens[None])
        rows = np.asarray(logits[0, :-1], np.float64)
        largest = rows.max(axis=1, keepdims=True)
        rows = rows - largest - np.log(np.exp(rows - largest).sum(1, keepdims=True))
        return -rows[np.arange(len(rows)), tokens[1:]].mean()

    uniform = np.log(model.config.vocab_size)
    assert loss(ids) < uniform - 1.5
    assert loss(ids) < loss(mixed) - 1.5


def test_the_quick_demo_fine_tunes_the_base_of_the_package(tmp_path, monkeypatch):
    small = {"members": 16, "nonmembers": 16, "validation": 8, "epochs": 1}
    judged = [dataclasses.replace(each, **small) for each in demo.JUDGED]
    monkeypatch.setattr(demo, "JUDGED", tuple(judged))
    first = judged[0]
    monkeypatch.setattr(corpora, "DOMAINS", {first.corpus: Domain(4)})
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out), "--bootstraps", "10"]) == 0
    before, after = out / "bases" / first.base, out / "targets" / first.name
    weights = "model.safetensors"
    assert sha256_file(before / weights) == sha256_file(BASE / weights)
    assert sha256_file(after / weights) != sha256_file(before / weights)
    store = FeatureStore.open(out / "features" / first.name)
    assert (store.n, sum(store.labels)) == (32, 16)
    summary = json.loads((out / "summary.json").read_text())
    assert [each["name"] for each in summary["combinations"]] == [first.name]
    example = out / "example"
    assert [path.name for path in example.iterdir()] == [first.corpus]
    assert (out / "report.html").stat().st_size > 10_000
