"""Targets whose embedding was resized after the reference, from files to files."""

import json

import jax
import numpy as np
import pytest
import tiny_world
from resized_models import resized
from tiny_world import read_rows

from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.cli import main
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.data.tokenize import encode
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.models import LanguageModel

QUICK = ["--length", "32", "--bootstraps", "50"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, world, tmp_path_factory):
    """A base, and a model with other weights and 64 rows more, of which one is used."""
    base = tiny_world.base_of(world, request.param)
    folder = tmp_path_factory.mktemp(request.param)
    config, params, tokenizer = load_pretrained(base)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    save_pretrained(folder / "tuned", config, treedef.unflatten(moved), tokenizer)
    return base, resized(folder / "tuned", folder / "target", 64, "<pad>")


def mean_log_probs(path, texts):
    """By the definition, in float64 over all ids that the model has."""
    config, params, tokenizer = load_pretrained(path)
    encoded = encode(texts, tokenizer, length=32)
    logits = LanguageModel(config).apply(params, encoded.input_ids % config.vocab_size)
    logits = np.float64(logits)[:, :-1]
    shifted = logits - logits.max(axis=2, keepdims=True)
    lp = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
    true = np.take_along_axis(lp, encoded.input_ids[:, 1:, None] % lp.shape[2], axis=2)
    real = encoded.attention_mask[:, 1:]
    return (true[..., 0] * real).sum(axis=1) / real.sum(axis=1)


def test_audit_over_the_ids_that_both_have(pair, world, tmp_path):
    base, target = pair
    arguments = ["--reference", str(base), "--target", str(target)]
    arguments += ["--texts", str(world.mixed), "--out", str(tmp_path / "audit")]
    arguments += ["--attack", "shipped" if base == world.base else "none"]
    assert main(["audit", *arguments, *QUICK]) == 0
    texts = [row["text"] for row in read_rows(world.mixed)]
    scores = [row["scores"] for row in read_rows(tmp_path / "audit" / "scores.jsonl")]
    own, other = mean_log_probs(target, texts), mean_log_probs(base, texts)
    np.testing.assert_allclose([x["loss"] for x in scores], own, rtol=1e-4)
    np.testing.assert_allclose(
        [x["reference"] for x in scores], own - other, rtol=1e-3, atol=1e-4
    )
    notes = json.loads((tmp_path / "audit" / "summary.json").read_text())["notes"]
    assert any("364 token ids and the reference 300" in note for note in notes)
    assert "364 token ids" in (tmp_path / "audit" / "report.html").read_text()


def test_a_store_says_so_and_scores_alike(pair, world, tmp_path):
    base, target = pair
    given = [f"--reference={target}", f"--target={base}", f"--members={world.members}"]
    given += [f"--nonmembers={world.nonmembers}", "--k", "4", "--length", "32"]
    assert main(["extract", *given, "--out", str(tmp_path / "store")]) == 0
    store = FeatureStore.open(tmp_path / "store")
    assert store.meta["vocabularies"] == {"target": 300, "reference": 364}
    found = store.statistics(np.arange(3))
    texts = [row["text"] for row in read_rows(world.members)][:3]
    sums = found.reference_log_prob.sum(axis=1) / found.valid.sum(axis=1)
    np.testing.assert_allclose(sums, mean_log_probs(target, texts), rtol=1e-4)


def test_a_text_with_a_token_that_one_model_lacks_is_named(
    pair, world, tmp_path, capsys
):
    base, target = pair
    rows = [{"id": "first", "text": "the red house"}]
    rows += [{"id": "odd", "text": "the <pad> house"}]
    write_texts(tmp_path / "texts.jsonl", rows)
    arguments = ["--reference", str(base), "--target", str(target), "--attack", "none"]
    arguments += ["--texts", str(tmp_path / "texts.jsonl"), *QUICK]
    assert main(["audit", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "text odd has the token '<pad>' with id 300, but the reference" in said


def test_a_padding_token_past_the_embedding_trains_and_is_audited(world, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    config, params, tokenizer = load_pretrained(world.base)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    save_pretrained(base, config, params, tokenizer)
    texts = ["--texts", str(world.members), "--length", "16", "--epochs", "1"]
    assert main(["finetune", "--model", str(base), *texts, "--out", str(out)]) == 0
    audit = ["--reference", str(world.base), "--target", str(out), "--attack", "none"]
    audit += ["--texts", str(world.mixed), *QUICK, "--out", str(tmp_path / "audit")]
    assert main(["audit", *audit]) == 0
    scores = [row["scores"] for row in read_rows(tmp_path / "audit" / "scores.jsonl")]
    assert all(np.isfinite(row["loss"]) for row in scores)
