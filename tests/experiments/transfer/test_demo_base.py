"""The base of the demo is packed with a card that says what it is."""

import shutil

import pytest
from tiny_demo import Domain

from experiments.transfer.demo_base import FILES, Pack, run
from lt_mia_jax.checkpoints import BASE
from lt_mia_jax.data import corpora
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import sha256_file, write_json
from lt_mia_jax.study.demo import PRETRAINING, UNSEEN


def test_a_base_is_packed_with_its_card_and_only_over_another(tmp_path, monkeypatch):
    domains = {name: Domain(n) for n, name in enumerate(PRETRAINING)}
    monkeypatch.setattr(corpora, "DOMAINS", domains)
    demo, out = tmp_path / "demo", tmp_path / "out"
    config = Pack(demo=demo, out=out)
    with pytest.raises(InputError, match="no finished `lt-mia demo --full`"):
        run(config)
    shutil.copytree(BASE, demo / "bases" / UNSEEN)
    (demo / "tokenizer").mkdir()
    write_json(demo / "run.json", {"versions": {"jax": "1.2.3"}})
    write_json(demo / "config.json", {"pretrain_steps": 7, "seed": 5})
    for _ in range(2):  # a base gives way to a base
        run(config)
    assert {path.name for path in out.iterdir()} == {*FILES, "README.md"}
    for name in FILES:
        assert sha256_file(out / name) == sha256_file(BASE / name)
    card = (out / "README.md").read_text()
    assert sha256_file(BASE / "model.safetensors") in card
    assert "7 updates" in card
    assert "jax 1.2.3" in card
    for name in PRETRAINING:
        assert corpora.load_corpus(name).fingerprint[:16] in card
    (out / "README.md").write_text("My model")
    with pytest.raises(InputError, match="holds something else"):
        run(config)
    assert (out / "README.md").read_text() == "My model"
