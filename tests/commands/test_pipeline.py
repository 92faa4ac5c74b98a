"""finetune, extract, train, evaluate, report: each reads what the one before wrote."""

import json

import jax
import numpy as np
import pytest
import tiny_world
from tiny_world import read_rows

from lt_mia_jax.checkpoints import load_pretrained
from lt_mia_jax.cli import main
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.features.store import FeatureStore

SMALL_ATTACK = [
    *("--classifier.width", "16", "--classifier.heads", "2"),
    *("--classifier.layers", "1", "--classifier.feed-forward", "16"),
    *("--recipe.epochs", "3", "--recipe.warmup-epochs", "1"),
    *("--recipe.batch-size", "16", "--recipe.learning-rate", "3e-3"),
]


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "a"
    code = main(
        [
            "extract",
            *world.arguments(),
            *("--members", str(world.members), "--nonmembers", str(world.nonmembers)),
            *("--out", str(out), "--length", "32", "--k", "4", "--seed", "1"),
        ]
    )
    assert code == 0
    return out


@pytest.fixture(scope="module")
def attack(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("attack")
    assert (
        main(["train", "--features", str(store), "--out", str(out), *SMALL_ATTACK]) == 0
    )
    return out


def test_store_knows_every_text(world, store):
    opened = FeatureStore.open(store)
    members, nonmembers = read_rows(world.members), read_rows(world.nonmembers)
    assert opened.n == len(members) + len(nonmembers)
    assert list(opened.labels) == [1] * len(members) + [0] * len(nonmembers)
    assert set(opened.split) == {"train", "validation", "test"}
    features, mask = opened.features(np.arange(3))
    assert features.shape == (3, 32, 7 * 4 + 14)
    assert mask.sum() == 3 * 31


def test_evaluation_leaves_out_what_the_attack_saw(store, attack, tmp_path):
    arguments = ["--attack", str(attack), "--features", str(store)]
    code = main(["evaluate", *arguments, "--out", str(tmp_path), "--bootstraps", "50"])
    assert code == 0
    seen = set(json.loads((attack / "card.json").read_text())["text_ids"])
    opened = FeatureStore.open(store)
    judged = {row["id"] for row in read_rows(tmp_path / "scores.jsonl")}
    assert judged == set(opened.ids) - seen
    assert judged == {
        text_id
        for text_id, part in zip(opened.ids, opened.split, strict=True)
        if part == "test"
    }
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_audit_with_the_attack_agrees_with_evaluate(world, store, attack, tmp_path):
    """One text, two ways: stored 16-bit columns, and straight from the models."""
    both = ["--attack", str(attack), "--out"]
    features = ["--features", str(store), "--bootstraps", "50"]
    assert main(["evaluate", *both, str(tmp_path / "e"), *features]) == 0
    texts = ["--texts", str(world.mixed), "--length", "32", "--bootstraps", "50"]
    arguments = ["audit", *world.arguments(), *both, str(tmp_path / "a"), *texts]
    assert main(arguments) == 0
    audited = {row["id"]: row for row in read_rows(tmp_path / "a" / "scores.jsonl")}
    evaluated = read_rows(tmp_path / "e" / "scores.jsonl")
    assert evaluated
    for row in evaluated:
        for name, value in row["scores"].items():
            other = audited[row["id"]]["scores"][name]
            assert other == pytest.approx(value, rel=5e-3, abs=5e-3), name


def test_report_joins_runs(world, tmp_path):
    texts = ["--texts", str(world.mixed), "--length", "32", "--bootstraps", "50"]
    for name in "ab":
        out = ["--out", str(tmp_path / name)]
        assert main(["audit", *world.arguments(), *texts, *out]) == 0
    page = tmp_path / "both.html"
    runs = ["--runs", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["report", *runs, "--out", str(page)]) == 0
    assert page.read_text().count("Audit of target") >= 2


LORA = ["--lora.rank", "2", "--learning-rate", "0.02"]


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("gpt2", []),
        ("gpt2", LORA),
        ("mamba", []),
        ("mamba", LORA),
        ("rwkv", []),
        ("recurrent_gemma", []),
    ],
)
def test_finetuning_lowers_the_members_loss(world, tmp_path, family, lora):
    out, base = tmp_path / "tuned", tiny_world.base_of(world, family)
    arguments = [
        "finetune",
        *("--model", str(base), "--texts", str(world.members)),
        *("--out", str(out), "--length", "32", "--epochs", "2"),
        *("--batch-size", "4", "--learning-rate", "3e-3"),
    ]
    assert main([*arguments, *lora]) == 0
    before, after = load_pretrained(base), load_pretrained(out)
    assert after.config == before.config
    assert json.loads((out / "config.json").read_text())["model_type"] == family
    changed = jax.tree.map(
        lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))),
        before.params,
        after.params,
    )
    assert any(jax.tree.leaves(changed))
    audit = ["--reference", str(base), "--target", str(out), "--length", "32"]
    texts = ["--texts", str(world.mixed), "--bootstraps", "50"]
    assert main(["audit", *audit, *texts, "--out", str(tmp_path / "audit")]) == 0
    members = [r for r in read_rows(tmp_path / "audit/scores.jsonl") if r["label"]]
    assert np.mean([row["scores"]["reference"] for row in members]) > 0
    kept = read_rows(out / "training" / "members.jsonl")
    held = read_rows(out / "training" / "validation.jsonl")
    assert len(kept) + len(held) == len(read_rows(world.members))
    assert not {row["id"] for row in kept} & {row["id"] for row in held}


def test_copies_of_the_texts_do_not_validate(world, tmp_path, capsys):
    rows = [{"text": f"# {row['text'].upper()}"} for row in read_rows(world.members)]
    write_texts(tmp_path / "copies.jsonl", rows)
    given = ["--model", str(world.base), "--texts", str(world.members)]
    given += ["--validation", str(tmp_path / "copies.jsonl")]
    assert main(["finetune", *given, "--out", str(tmp_path / "out")]) == 2
    assert "every text is a near copy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_commands_teach(capsys):
    for command in ("audit", "finetune", "extract", "train", "evaluate", "report"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert "--out" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["audit", "--txts", "x"])
    assert stopped.value.code == 2
    assert "--texts" in capsys.readouterr().err
