"""Make the compatibility fixtures: files of every kind that the commands write.

Run with the version whose files are to stay readable (COMMIT is its checkout), in
any environment; the settings of the tests are made here:

    PYTHONPATH=COMMIT:COMMIT/tests python make.py

Everything goes to `files/` beside this script; move it here afterwards. Commands run in
`/previous`, a folder that is made and removed again, because Orbax writes absolute
paths into checkpoints; all other paths are relative. Stopped runs are archives, which
store once what Orbax keeps twice. Takes about two minutes.
"""

import os

# The settings of tests/conftest.py: rounding depends on both.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = os.environ.get("LT_MIA_TEST_DEVICES", "4")
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
os.environ["HF_HUB_OFFLINE"] = "1"

import json
import random
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import tiny_world
from safetensors.numpy import load_file

from lt_mia_jax import FeatureStore, LanguageModel, load_attack, load_pretrained
from lt_mia_jax.attacks import score_store
from lt_mia_jax.checkpoints import save_pretrained
from lt_mia_jax.cli import TERMINATED, main
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.data.tokenize import train_bpe
from lt_mia_jax.models import gpt2_like
from lt_mia_jax.training.metrics import MetricsWriter

FILES = Path(__file__).resolve().parent / "files"
WORK = Path("/previous")
STOPPED = ("finetune_stopped", "unlearn_stopped")
VOCABULARY, LENGTH = 280, 20

PRETRAIN = [
    *("finetune", "--model", "random", "--texts", "texts/pretrain.jsonl"),
    *("--validation", "texts/validation.jsonl", "--epochs", "8", "--batch-size", "8"),
    *("--learning-rate", "1e-2", "--length", str(LENGTH)),
]
FINETUNE = [
    *("finetune", "--model", "models/base", "--texts", "texts/members.jsonl"),
    *("--validation", "texts/validation.jsonl", "--epochs", "4", "--batch-size", "8"),
    *("--learning-rate", "2e-3", "--length", str(LENGTH)),
]
PAIR = ["--reference", "models/base", "--target", "models/target"]
EXTRACT = [
    *("extract", *PAIR, "--members", "texts/members.jsonl"),
    *("--nonmembers", "texts/nonmembers.jsonl", "--k", "2", "--block-texts", "32"),
    *("--length", str(LENGTH)),
]
TRAIN = [
    *("train", "--features", "features", "--classifier.width", "8"),
    *("--classifier.heads", "2", "--classifier.layers", "1"),
    *("--classifier.feed-forward", "8", "--recipe.epochs", "4"),
    *("--recipe.warmup-epochs", "1", "--recipe.batch-size", "16"),
    *("--recipe.learning-rate", "1e-2"),
]
AUDIT = [
    *("audit", *PAIR, "--texts", "texts/suspects.jsonl"),
    *("--nonmembers", "texts/known.jsonl", "--attack", "attack"),
    *("--length", str(LENGTH), "--bootstraps", "50"),
]
EVALUATE = [
    *("evaluate", "--features", "features", "--attack", "attack"),
    *("--bootstraps", "50"),
]
QUESTIONS = [
    *("--forget", "texts/forget.jsonl", "--retain", "texts/retain.jsonl"),
    *("--template.prompt", "{question}", "--length", "40"),
]
NPO = [
    *("unlearn", "--method", "npo", "--model", "models/target", *QUESTIONS),
    *("--epochs", "3", "--batch-size", "4", "--learning-rate", "5e-3"),
    *("--holdout", "texts/holdout.jsonl", "--reference", "models/base"),
    *("--attack", "attack"),
]
MRP = [
    *("unlearn", "--method", "mrp", "--method.rows", "1", *QUESTIONS),
    *("--learning-rate", "1", "--epochs", "2", "--batch-size", "4"),
    *("--evaluated", "0"),
]


def run(arguments: list[str], out: str, expected: int = 0) -> None:
    """One command; what it records as its arguments are these."""
    arguments = [*arguments, "--out", out]
    sys.argv = ["lt-mia", *arguments]
    code = main(arguments)
    if code != expected:
        raise RuntimeError(f"{' '.join(sys.argv)}: exit code {code}")


def run_stopped(arguments: list[str], out: str, step: int) -> None:
    """The same, stopped by SIGTERM after that step, which is saved."""
    write = MetricsWriter.write

    def writing(self: MetricsWriter, row: dict) -> None:
        write(self, row)
        # A step's row is written while the step after it runs.
        if row["step"] == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    MetricsWriter.write = writing
    try:
        run(arguments, out, TERMINATED)
    finally:
        MetricsWriter.write = write


def make_random() -> None:
    """A model with large random weights, so that none of its paths is dead."""
    tokenizer = train_bpe(tiny_world.sentences(0, 200), vocab_size=VOCABULARY)
    config = gpt2_like(VOCABULARY, width=4, layers=2, heads=2, context=48)
    leaves, treedef = jax.tree.flatten(LanguageModel(config).init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    save_pretrained("random", config, treedef.unflatten(moved), tokenizer)


def sentences(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [
        f"{tiny_world.sentence(rng, 6).capitalize()} {seed}-{i}." for i in range(count)
    ]


def questions(seed: int, count: int) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "question": f"{tiny_world.sentence(rng, 4)} {seed}-{i}?",
            "answer": tiny_world.sentence(rng, 6),
        }
        for i in range(count)
    ]


def make_texts() -> None:
    members, nonmembers = sentences(1, 24), sentences(2, 24)
    unseen = ["short", "", "Größe und 大小 " * 8]
    suspects = tiny_world.rows([*members[:10], *unseen[:1]], 1)
    suspects += tiny_world.rows([*sentences(5, 10), *unseen[1:]], 0)
    files = {
        "pretrain": tiny_world.rows(sentences(0, 160)),
        "members": tiny_world.rows(members),
        "nonmembers": tiny_world.rows(nonmembers),
        "validation": tiny_world.rows(sentences(3, 8)),
        "known": tiny_world.rows(sentences(4, 24)),
        "suspects": suspects,
        "forget": questions(6, 8),
        "retain": questions(7, 8),
        "holdout": questions(8, 8),
    }
    for name, rows in files.items():
        write_texts(f"texts/{name}.jsonl", rows)


def columns(path: str) -> dict[str, np.ndarray]:
    """Scores of a run by name; NaN where there is none."""
    rows = tiny_world.read_rows(Path(path) / "scores.jsonl")
    found = {
        name: np.array([row["scores"][name] for row in rows], np.float64)
        for name in rows[0]["scores"]
    }
    for name in ("p_value", "q_value"):
        if name in rows[0]:
            found[name] = np.array([row[name] for row in rows], np.float64)
    return found


def figures(path: str) -> dict[str, dict[str, float | None]]:
    """Main numbers of each model on a card of unlearning."""
    models = json.loads((Path(path) / "card.json").read_text())["models"]
    return {
        model: {
            name: found["value"]
            for name, found in card.items()
            if isinstance(found, dict) and "value" in found
        }
        for model, card in models.items()
    }


def subspace(path: str) -> np.ndarray:
    """Q^T Q of each layer's rows, whatever basis of the subspace is stored."""
    (rows,) = (
        rows
        for name, rows in load_file(Path(path) / "intervention.safetensors").items()
        if name.endswith("rows")
    )
    return rows.swapaxes(-1, -2) @ rows


def make_expected() -> None:
    """Numbers that this version computes from the files."""
    store, attack = FeatureStore.open("features"), load_attack("attack")
    rows = slice(0, 48, 7)
    features, mask = store.features(rows)
    statistics = store.statistics(rows)
    arrays = {"features": features, "mask": mask}
    arrays |= {
        f"statistics.{name}": x
        for name, x in statistics._asdict().items()
        if x is not None
    }
    arrays["attack_logits"] = score_store(attack, store)
    for name in ("audit", "evaluate"):
        arrays |= {f"{name}.{key}": x for key, x in columns(name).items()}
    ids = np.asarray(statistics.input_ids[:2])
    for name in ("models/base", "models/target", "unlearned"):
        config, params, tokenizer = load_pretrained(name)
        logits = LanguageModel(config).apply(params, ids)
        arrays[f"logits.{name}"] = np.asarray(logits)[:, (4, 8)]
    arrays["projected"] = subspace("projected")
    run([*MRP, "--model", "projected"], "extended")
    arrays["extended"] = subspace("extended")
    np.savez_compressed("expected.npz", **{k: _single(x) for k, x in arrays.items()})
    text = "The large red model reads ÄÖ 大."
    audited = json.loads(Path("audit/summary.json").read_text())
    evaluated = json.loads(Path("evaluate/summary.json").read_text())
    expected = {
        "text": text,
        "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
        "store": {
            "k": store.k,
            "length": store.length,
            "name": store.name,
            "fingerprint": store.fingerprint,
            "ids": list(store.ids),
            "labels": list(store.labels),
            "split": list(store.split),
            "n_steps": store.n_steps.tolist(),
        },
        "attack": {"k": attack.k, "text_ids": sorted(attack.text_ids)},
        "audit": _table(audited),
        "evaluate": _table(evaluated),
        "dataset": audited["dataset"],
        "card": figures("unlearned"),
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _single(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype == np.float64 else x


def _table(summary: dict) -> dict[str, float]:
    (entry,) = summary["combinations"]
    return {name: found["auc"]["value"] for name, found in entry["attacks"].items()}


def shrink() -> None:
    """Take out what no later command reads; pack the stopped runs."""
    for page in Path().rglob("report.html"):
        page.unlink()
    states = [Path(run) / "training" for run in ("models/target", "unlearned")]
    for run in (*states, Path("projected/training"), Path("attack")):
        shutil.rmtree(run / "state")
    shutil.rmtree("extended")
    shutil.rmtree("random")
    shutil.rmtree("models/base/training")
    Path("texts/pretrain.jsonl").unlink()
    for name in STOPPED:
        with tarfile.open(f"{name}.tar.xz", "w:xz") as archive:
            archive.add(name, filter=_anonymous)
        shutil.rmtree(name)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def make() -> None:
    WORK.mkdir()
    os.chdir(WORK)
    Path("texts").mkdir()
    make_random()
    make_texts()
    run(PRETRAIN, "models/base")
    run(FINETUNE, "models/target")
    run_stopped(FINETUNE, "finetune_stopped", 5)
    run(EXTRACT, "features")
    run(TRAIN, "attack")
    run(AUDIT, "audit")
    run(EVALUATE, "evaluate")
    run(NPO, "unlearned")
    run_stopped(NPO, "unlearn_stopped", 3)
    run([*MRP, "--model", "models/target"], "projected")
    make_expected()
    shrink()
    shutil.rmtree(FILES, ignore_errors=True)
    shutil.move(WORK, FILES)


if __name__ == "__main__":
    make()
