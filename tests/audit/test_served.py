"""An audit from files of statistics is the audit of the models, as far as they go."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from chat_tokenizer import (
    beginning_tokenizer,
    chat_tokenizer,
    conversation,
)
from tiny_world import BASES, base_of, save_pair, sentences

from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.learned.storage import shipped_attack
from lt_mia_jax.attacks.scores.table import SCORES
from lt_mia_jax.audit import audit, load_pair, load_statistics
from lt_mia_jax.audit.collect import collect_from_model
from lt_mia_jax.audit.inputs import check_texts
from lt_mia_jax.audit.judge import judge
from lt_mia_jax.audit.scoring import score_texts
from lt_mia_jax.audit.served import choose_pair
from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.data.chat.rows import Messages
from lt_mia_jax.data.texts import Text, read_texts
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.models import gpt2_like

QUICK = {"length": 24, "bootstraps": 50}
MOMENTS = {"min_k_plus_plus", "entropy", "fast_detectgpt", "binoculars"}


def tuned(world, base, family):
    """A target of that family beside its base."""
    if family not in BASES:
        return world.target
    path = world.root / f"{family}-tuned"
    if not path.exists():
        config, params, tokenizer = load_pretrained(base)
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        pairs = zip(leaves, keys, strict=True)
        moved = [x + 0.05 * jax.random.normal(key, x.shape) for x, key in pairs]
        save_pretrained(path, config, treedef.unflatten(moved), tokenizer)
    return path


@pytest.fixture(scope="module")
def executor():
    return make_executor()


def collected(world, family, executor, folder):
    """Models, and a folder with files of their statistics of all texts."""
    base = base_of(world, family)
    target = tuned(world, base, family)
    texts = [*read_texts(world.mixed), *read_texts(world.others), Text("none", "")]
    for name, model in (("reference", base), ("target", target)):
        out = folder / f"{name}.jsonl"
        assert collect_from_model(texts, str(model), out, executor, length=24) == 95
    return load_pair(str(base), str(target), executor), folder


@pytest.fixture(scope="module")
def both(world, executor, tmp_path_factory):
    """Of transformers."""
    return collected(world, "gpt2", executor, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def recurrent(world, executor, tmp_path_factory):
    """Of Mamba."""
    return collected(world, "mamba", executor, tmp_path_factory.mktemp("mamba"))


@pytest.mark.parametrize("family", ["both", "recurrent"])
def test_the_audit_from_files_is_that_of_the_models(world, family, request):
    pair, folder = request.getfixturevalue(family)
    texts, known = read_texts(world.mixed), read_texts(world.others)
    texts = [*texts, Text("none", "", 0)]
    files = load_statistics(folder / "reference.jsonl", folder / "target.jsonl")
    found = audit(files, texts, known, **QUICK)
    direct = audit(pair, texts, known, **QUICK)

    assert set(direct.scores) - set(found.scores) == MOMENTS | {"lowercase"}
    for name, values in found.scores.items():
        np.testing.assert_allclose(
            values, direct.scores[name], rtol=1e-5, atol=1e-5, err_msg=name
        )
    for name in ("p_values", "q_values", "n_tokens", "probability"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(direct, name), rtol=1e-5
        )
    assert (found.ids, found.flags) == (direct.ids, direct.flags)
    assert found.groups[0].words == direct.groups[0].words
    assert found.comparison == direct.comparison
    assert found.calibration == direct.calibration
    figures, expected = (
        {n: x.combinations[0].attacks[n].auc.value for n in found.scores}
        for x in (found, direct)
    )
    assert figures == pytest.approx(expected, abs=1e-5)
    labels = {row.label for row in SCORES if row.name in MOMENTS | {"lowercase"}}
    [note] = [note for note in found.notes if "left out: " in note]
    assert set(note.split("left out: ")[1].rstrip(".").split(", ")) == labels


@pytest.mark.parametrize("kind", ["chat", "bos"])
def test_context_is_seen_and_not_scored(kind, executor, tmp_path):
    """Of conversations, and of texts behind a beginning-of-text token."""
    config = gpt2_like(304, width=16, layers=1, heads=2, context=64)
    tokenizer = chat_tokenizer() if kind == "chat" else beginning_tokenizer()
    base, target = map(str, save_pair(tmp_path, config, tokenizer))
    texts = [Text(f"{n}", text) for n, text in enumerate(sentences(7, 12))]
    if kind == "chat":
        chats = [Messages(tuple(conversation(n, words=4))) for n in range(12)]
        texts = [Text(f"{n}", chat.text, chat=chat) for n, chat in enumerate(chats)]
    files, cut = [], {"length": 60, "side": "left"}
    for name, model in (("reference", base), ("target", target)):
        files.append(tmp_path / f"{name}.jsonl")
        collect_from_model(texts, model, files[-1], executor, **cut)
    found = audit(load_statistics(*files), texts, length=60, bootstraps=0)
    direct = audit(load_pair(base, target, executor), texts, bootstraps=0, **cut)
    for name, values in found.scores.items():
        np.testing.assert_allclose(
            values, direct.scores[name], rtol=1e-5, atol=1e-5, err_msg=name
        )
    assert (found.flags, found.n_tokens.tolist()) == (
        direct.flags,
        direct.n_tokens.tolist(),
    )
    assert found.groups[0].words == direct.groups[0].words
    assert any("(`scored`)" in note for note in found.notes)


def test_the_verdict_on_the_set_is_that_of_the_same_scores(world, both):
    """Dataset inference reads every score, so that fewer give another number."""
    pair, folder = both
    inputs = check_texts(read_texts(world.mixed), read_texts(world.others))
    attack = shipped_attack()
    files = load_statistics(folder / "reference.jsonl", folder / "target.jsonl")
    found = audit(files, inputs.texts, inputs.nonmembers, **QUICK)
    scored = [
        score_texts(texts, pair, attack=attack, length=24)
        for texts in (inputs.texts, inputs.nonmembers)
    ]
    kept = [
        dataclasses.replace(each, scores={n: each.scores[n] for n in found.scores})
        for each in scored
    ]
    judged = judge(*kept, primary="lt_mia", independent=inputs.independent)
    assert found.dataset.scores_used == judged.dataset.scores_used
    assert found.dataset.p_value == pytest.approx(judged.dataset.p_value, rel=1e-3)
    assert found.dataset.decision == judged.dataset.decision


def test_without_a_reference(world, both):
    pair, folder = both
    texts = read_texts(world.mixed)
    found = audit(load_statistics(None, folder / "target.jsonl"), texts, **QUICK)
    direct = audit(pair._replace(reference=None), texts, **QUICK)
    assert set(direct.scores) - set(found.scores) == (MOMENTS | {"lowercase"}) - {
        "binoculars"
    }
    assert found.primary == "min_k"
    for name, values in found.scores.items():
        np.testing.assert_allclose(values, direct.scores[name], rtol=1e-5, atol=1e-5)
    assert any("rests on Min-K% 20 %." in note for note in found.notes)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewritten(folder, destination, change):
    """Copies of both files with changed rows."""
    destination.mkdir()
    for name in ("reference", "target"):
        rows = [change(name, row) for row in rows_of(folder / f"{name}.jsonl")]
        lines = [json.dumps(row) + "\n" for row in rows if row is not None]
        (destination / f"{name}.jsonl").write_text("".join(lines))
    return destination / "reference.jsonl", destination / "target.jsonl"


def test_four_fields_and_the_vocabulary_suffice(world, both, tmp_path):
    _, folder = both
    texts = read_texts(world.mixed)

    def plain(_, row):
        names = ("id", "token_ids", "log_probs", "ranks")
        return {name: row[name] for name in names}

    paths = rewritten(folder, tmp_path / "plain", plain)
    with pytest.raises(InputError, match="--vocab-size"):
        audit(load_statistics(*paths), texts, **QUICK)
    found = audit(load_statistics(*paths, vocab_size=300), texts, **QUICK)
    whole = load_statistics(folder / "reference.jsonl", folder / "target.jsonl")
    expected = audit(whole, texts, **QUICK)
    assert set(expected.scores) - set(found.scores) == {"zlib"}
    for name, values in found.scores.items():
        np.testing.assert_array_equal(values, expected.scores[name])
    assert found.groups[0].words[0].startswith("t")
    assert any("see token ids" in note for note in found.notes)


def test_a_row_without_text_hides_all_texts(world, both, tmp_path):
    """Otherwise words would tell texts with them from those without."""
    _, folder = both

    def some(_, row):
        return {n: x for n, x in row.items() if n != "text" or row["id"] != "none"}

    pair = load_statistics(*rewritten(folder, tmp_path / "some", some))
    found = audit(pair, read_texts(world.mixed), attack=None, **QUICK)
    assert all(words.startswith("t") for words in found.groups[0].words)
    assert "zlib" not in found.scores


def test_what_attacks_and_texts_need_is_checked(world, both):
    _, folder = both
    texts = read_texts(world.mixed)
    pair = load_statistics(folder / "reference.jsonl", folder / "target.jsonl")
    shipped = shipped_attack()
    raw = dataclasses.replace(shipped.config, log_probabilities=False)
    for config, words in (
        (ClassifierConfig(), "most likely tokens, the least likely tokens, raw logits"),
        (raw, "reads raw logits, which"),
    ):
        with pytest.raises(InputError, match=words):
            audit(pair, texts, attack=shipped._replace(config=config), **QUICK)
    with pytest.raises(InputError, match="24 tokens, --length is 16; give the length"):
        audit(pair, texts, length=16)
    more = [*texts, Text("one", "one more"), Text("other", "another")]
    with pytest.raises(InputError, match=r'no row for 2 of the 56 texts \("one", "oth'):
        audit(pair, [each._replace(label=None) for each in more], **QUICK)
    clash = [Text(texts[0].id, f"{text} again") for text in sentences(7, 1)]
    known = [*read_texts(world.others), *clash]
    with pytest.raises(InputError, match="for one of the texts and for one of the non"):
        audit(pair, texts, known, **QUICK)
    # Nothing was cut off, so that the row says which text it belongs to.
    with pytest.raises(InputError, match='row "none" is not the audited text'):
        audit(pair, [Text("none", "not empty")], **QUICK)


ROW = {"token_ids": [1, 2, 3], "log_probs": [-1.0, -2.0], "ranks": [1, 5]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"id": "b"},
            r'target.jsonl: no row for 1 of the 1 texts \("a"\) of .*reference',
        ),
        ({"token_ids": [1, 2, 4]}, 'token ids of text "a" differ between'),
        ({}, "hold the same log-probabilities: no text can look trained on"),
    ],
)
def test_files_that_do_not_fit_each_other(changes, words, tmp_path):
    for name, row in (("reference", {"vocab_size": 8}), ("target", changes)):
        line = json.dumps({"id": "a", **ROW, **row})
        (tmp_path / f"{name}.jsonl").write_text(line)
    with pytest.raises(InputError, match=words):
        load_statistics(tmp_path / "reference.jsonl", tmp_path / "target.jsonl")


def test_the_size_of_the_vocabulary_is_said_once(tmp_path):
    for name, size in (("reference", 8), ("target", 9)):
        row = {"id": "a", **ROW, "log_probs": [-1.0, -size], "vocab_size": size}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    paths = tmp_path / "reference.jsonl", tmp_path / "target.jsonl"
    # The target has a row more in its embedding.
    pair = load_statistics(*paths)
    assert pair.vocab_size == 8
    found = audit(pair, [Text("a", "b")], bootstraps=0)
    assert any("has 9 token ids and the reference 8" in note for note in found.notes)
    with pytest.raises(InputError, match=r"--vocab-size 9, but .* says 8; leave"):
        load_statistics(*paths, vocab_size=9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give --target"),
        ({"target": "m", "reference_statistics": "f"}, "belong to --target-statistics"),
        ({"target": "m", "vocab_size": 9}, "belong to --target-statistics"),
        ({"target": "m", "target_statistics": "f"}, "--target with --target-stat"),
        (
            {"reference": "m", "target_statistics": "f"},
            "--reference with --target-stat",
        ),
    ],
)
def test_models_and_statistics_are_not_mixed(given, words):
    names = ("reference", "target", "reference_statistics", "target_statistics")
    flags = dict.fromkeys((*names, "vocab_size")) | given
    flags |= {name: Path(flags[name]) for name in names[2:] if flags[name]}
    with pytest.raises(InputError, match=words):
        choose_pair(**flags, executor=make_executor)
