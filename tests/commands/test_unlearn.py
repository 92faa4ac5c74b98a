"""`lt-mia syntofu` and `lt-mia unlearn`, from files to files, and their refusals."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from lt_mia_jax.audit.scoring import load_pair
from lt_mia_jax.checkpoints import load_pretrained
from lt_mia_jax.cli import main
from lt_mia_jax.commands.unlearn import choose
from lt_mia_jax.data.questions import AnswerTemplate, read_questions, write_questions
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.process import BAD_INPUT, TERMINATED
from lt_mia_jax.trees import flatten
from lt_mia_jax.unlearning import run as unlearning_run
from lt_mia_jax.unlearning.batches import UnlearningBatches
from lt_mia_jax.unlearning.interventions.storage import load_intervention
from lt_mia_jax.unlearning.methods import METHODS, Npo, SimNpo, name_of
from lt_mia_jax.verification.evaluated import EvaluatedModel
from lt_mia_jax.verification.muse import measure_muse, muse_card, read_muse

SMALL = (
    "--data.background 2 --data.fictitious 4 --data.forget-percent 25 "
    "--data.retain-evaluated 2 --seeds 0 --width 16 --layers 1 --pretrain-epochs 1 "
    "--finetune-epochs 1 --batch-size 16 --executor single"
).split()
SETS = ("forget25", "retain75", "holdout25")
MUSE_PARTS = [("verbmem", "forget"), ("privleak", "forget"), ("privleak", "holdout")]
MUSE_PARTS += [
    ("knowmem", f"{side}_{end}")
    for side in ("forget", "retain")
    for end in ("qa", "qa_icl")
]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("syntofu")
    assert main(["syntofu", "--out", str(out), *SMALL]) == 0
    return out


def unlearn(
    world,
    out,
    *flags,
    forget="forget25",
    retain="retain75",
    model="models/full",
    report=False,
):
    def path(name):
        return str(name if "/" in str(name) else world / "data" / f"{name}.jsonl")

    arguments = ["unlearn", "--model", str(world / model)]
    arguments += ["--forget", path(forget), "--out", str(out)]
    if retain:
        arguments += ["--retain", path(retain)]
    arguments += ["--template.prompt", "{question}", "--template.begin"]
    arguments += ["--epochs", "2", "--learning-rate", "1e-3", "--length", "28"]
    arguments += ["--executor", "single", "--evaluated", "12" if report else "0"]
    return main([*arguments, *flags])


def test_method_names():
    command, rest = choose(["unlearn", "--method=simnpo", "--seed", "1"])
    assert isinstance(command.__dataclass_fields__["method"].default, SimNpo)
    assert rest == ["unlearn", "--seed", "1"]
    command, _ = choose(["unlearn"])
    assert isinstance(command.__dataclass_fields__["method"].default, Npo)
    command, _ = choose(["unlearn", "--method", "lwf"])
    assert "GracefulForgetting" in str(command.__dataclass_fields__["method"].type)
    with pytest.raises(InputError, match="did you mean grad_diff"):
        choose(["unlearn", "--method", "grad-dif"])


def test_methods_are_called_as_the_flag_calls_them():
    assert [name_of(method) for method in METHODS.values()] == list(METHODS)
    assert name_of(Npo(beta=0.7)) == "npo"
    assert name_of(dataclasses.replace(METHODS["gu_subspace"], size=3)) == "gu_subspace"

    class Own(Npo):
        """A method of one's own."""

    assert name_of(Own()) == "Own"


def test_a_model_that_differs_and_says_how(world, tmp_path):
    flags = ("--method", "npo", "--method.beta", "0.5")
    assert unlearn(world, tmp_path / "out", *flags) == 0
    card = json.loads((tmp_path / "out" / "unlearning.json").read_text())
    assert card["method"] == "npo"
    assert card["settings"]["beta"] == 0.5
    assert card["forget"]["rows"] == len(
        read_questions(world / "data" / "forget25.jsonl")
    )
    before = load_pretrained(str(world / "models" / "full"))
    after = load_pretrained(str(tmp_path / "out"))
    assert after.config == before.config
    old, new = flatten(before.params), flatten(after.params)
    assert any((old[name] != new[name]).any() for name in old)


OWN = '''
from dataclasses import dataclass

from lt_mia_jax.unlearning.methods import GradDiff


@dataclass(frozen=True, kw_only=True)
class Half(GradDiff):
    """Gradient difference with half the ascent.

    Source: this test.
    """

    forget_weight: float = 0.5
    patience: int = 1
    """A setting of its own."""
'''


def test_a_method_of_ones_own_from_a_file(world, tmp_path, capsys):
    """Its settings are flags, and wrappers of every method go around it."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    with pytest.raises(SystemExit):
        main(["unlearn", "--method", f"{file}:Half", "--help"])
    shown = capsys.readouterr().out
    assert "--method.patience INT" in shown
    assert "A setting of its own." in shown
    flags = ("--method", f"{file}:Half", "--method.patience", "2")
    flags += ("--sharpness", "0.05", "--fisher-share", "0.2")
    assert unlearn(world, tmp_path / "out", *flags, report=True) == 0
    about = json.loads((tmp_path / "out" / "unlearning.json").read_text())
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    # What a method does not have is null on the card, and absent in the other file.
    assert card["about"] == {"sampled_tokens": None} | about
    assert about["method"] == "Half"
    assert about["method_file"] == str(file)
    assert about["settings"]["patience"] == 2
    assert (about["sharpness"], about["fisher_share"]) == (0.05, 0.2)
    rows = (tmp_path / "out" / "training" / "history.jsonl").read_text().splitlines()
    assert "sharpness_aware_moved_norm" in json.loads(rows[-1])
    old = flatten(load_pretrained(str(world / "models" / "full")).params)
    new = flatten(load_pretrained(str(tmp_path / "out")).params)
    assert any((old[name] != new[name]).any() for name in old)
    capsys.readouterr()
    refused = ("--method", f"{tmp_path / 'none.py'}:Half")
    assert unlearn(world, tmp_path / "no", *refused) == BAD_INPUT
    assert "no such file" in capsys.readouterr().err.splitlines()[-1]


def test_refusals_from_a_file_and_a_report_of_little(world, tmp_path):
    refusals = str(world / "data" / "idk.jsonl")
    flags = ("--method", "idk_nll", "--refusals", refusals)
    assert unlearn(world, tmp_path / "out", *flags, report=True) == 0
    found = json.loads((tmp_path / "out" / "card.json").read_text())
    assert list(found["models"]) == ["before", "after"]
    for card in found["models"].values():
        assert {"forget_probability", "forget_rouge", "retain_probability"} <= set(card)
        assert "forget_extraction_strength" in card
        assert "forget_quality" not in card
    assert "No retrained model" in (tmp_path / "out" / "report.html").read_text()


def test_a_report_beside_the_retrained_model(world, tmp_path, capsys):
    data = world / "data"
    flags = ["--holdout", data / "holdout25.jsonl", "--utility", data]
    flags += ["--retrained", world / "models" / "retain75-seed0"]
    flags += ["--probes", data / "forget25_perturbed.jsonl"]
    flags += ["--reference", world / "models" / "base", "--quantise", "4", "--relearn"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert unlearn(world, one, *map(str, flags), report=True) == 0
    found = json.loads((one / "card.json").read_text())
    after, truth = found["models"]["after"], found["models"]["retrained"]
    expected = {"model_utility", "forget_quality", "priv_leak", "auc_ratio"}
    assert expected | {"completeness", "loss_gap_nats"} <= set(after)
    assert truth["forget_quality"]["value"] == 1
    assert truth["priv_leak"]["value"] == 0
    rows = read_questions(data / "forget25_perturbed.jsonl")
    assert {each["id"] for each in found["examples"]} <= {row.id for row in rows}
    said = [each["said"]["after"]["probability"] for each in found["examples"]]
    assert np.mean(said) == pytest.approx(after["forget_probability"]["value"])
    assert len(found["layers"]["forget"]["models"]["after"]) == 2
    assert [each["bits"] for each in found["rounded"]] == [4]
    assert [each["grid"] for each in found["rounded"]] == ["bitsandbytes"]
    assert len(found["relearning"]["models"]["retrained"]) == 5
    two.mkdir()
    (two / "card.json").write_text((one / "card.json").read_text())
    page = tmp_path / "both.html"
    assert main(["report", "--runs", str(one), str(two), "--out", str(page)]) == 0
    assert "compared" in page.read_text()
    capsys.readouterr()
    seen = ["--holdout", str(data / "retain75.jsonl")]
    assert unlearn(world, tmp_path / "seen", *seen, report=True) == BAD_INPUT
    assert "takes texts that no model has seen" in capsys.readouterr().err


def test_muse_from_a_copy_of_it_to_the_page(world, tmp_path, capsys):
    copy, files = tmp_path / "copy", tmp_path / "muse_news"
    rows = {name: read_questions(world / "data" / f"{name}.jsonl")[:9] for name in SETS}
    for side, name in zip(("forget", "retain"), SETS[:2], strict=True):
        asked = [{"question": r.question, "answer": r.answer} for r in rows[name]]
        write_rows(copy / f"knowmem/{side}_qa.json", asked)
        write_rows(copy / f"knowmem/{side}_qa_icl.json", asked[:1])
    continued = [{"prompt": r.question, "gt": r.answer} for r in rows[SETS[0]]]
    write_rows(copy / "verbmem/forget.json", continued)
    for side, name in (("forget", SETS[0]), ("holdout", SETS[2])):
        texts = [{"text": row.answer} for row in rows[name]]
        write_rows(copy / f"privleak/{side}.json", texts)
    named = ["--name", "muse_news", "--local", str(copy), "--out", str(files)]
    parts = [f"{kind}_{part}" for kind, part in MUSE_PARTS]
    assert main(["benchmark", *named, "--parts", *parts]) == 0
    assert {path.stem for path in files.glob("*.jsonl")} == {*parts}
    assert len(read_questions(files / "privleak_forget.jsonl")) == len(continued)

    flags = ["--muse", str(files), "--retrained", str(world / "models/retain75-seed0")]
    assert unlearn(world, tmp_path / "out", *flags, report=True) == 0
    cards = json.loads((tmp_path / "out" / "card.json").read_text())["models"]
    assert cards["retrained"]["muse_priv_leak"]["value"] == 0
    texts = read_muse(lambda part: read_questions(files / f"{part}.jsonl"))
    before = load_pretrained(str(world / "models" / "full"))
    template = AnswerTemplate(prompt="{question}", begin=True)
    model = LanguageModel(before.config)
    subject = EvaluatedModel(model, before.params, before.tokenizer, template, 28)
    alone = muse_card(measure_muse(subject, texts))
    for name in ("verbmem", "knowmem_forget", "knowmem_retain"):
        own = cards["before"][f"muse_{name}"]
        assert own["value"] == pytest.approx(getattr(alone, name).value)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "VerbMem" in page
    assert "KnowMem, kept" in page

    capsys.readouterr()
    (files / "privleak_holdout.jsonl").unlink()
    assert unlearn(world, tmp_path / "no", *flags, report=True) == BAD_INPUT
    assert "privleak_holdout.jsonl" in capsys.readouterr().err
    assert main(["benchmark", *named, "--parts", "nothing"]) == BAD_INPUT
    assert "expected forget, retain1" in capsys.readouterr().err
    assert main(["benchmark", *named, "--limit", "0"]) == BAD_INPUT
    assert "--limit is 0, expected 1 to" in capsys.readouterr().err


def test_adapters_of_a_stopped_run_go_on(world, tmp_path, monkeypatch):
    """A run stopped by SIGTERM, and one that was not."""
    flags = ("--lora.rank", "2", "--save-seconds", "0", "--epochs", "8")
    assert unlearn(world, tmp_path / "whole", *flags) == 0
    batches, read = [], UnlearningBatches.batch_at

    def reading(self, step):
        batches.append(step)
        if len(batches) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(UnlearningBatches, "batch_at", reading)
        assert unlearn(world, tmp_path / "out", *flags) == TERMINATED
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert unlearn(world, tmp_path / "out", *flags) == 0
    one, two = (load_pretrained(str(tmp_path / n)).params for n in ("whole", "out"))
    one, two = flatten(one), flatten(two)
    assert all((one[name] == two[name]).all() for name in one)


def test_a_refused_command_leaves_the_record(world, tmp_path, capsys):
    assert unlearn(world, tmp_path, "--seed", "3") == 0
    record = (tmp_path / "training" / "config.json").read_text()
    assert unlearn(world, tmp_path, "--seed", "4") == BAD_INPUT
    assert "another" in capsys.readouterr().err
    assert (tmp_path / "training" / "config.json").read_text() == record


def test_an_intervention_beside_the_same_weights(world, tmp_path, capsys):
    steep = ("--method", "mrp", "--learning-rate", "1")
    first, second = tmp_path / "first", tmp_path / "second"
    assert unlearn(world, first, *steep) == 0
    before = load_pretrained(str(world / "models" / "full"))
    after = load_pretrained(str(first))
    old, new = flatten(before.params), flatten(after.params)
    assert all((old[name] == new[name]).all() for name in old)
    made = load_intervention(first, after.config)
    assert made.stacked.rows.shape == (1, 2, 16)
    assert json.loads((first / "unlearning.json").read_text())["intervention"]

    # Unlearning goes on from it or is refused; to others it is not there, they say.
    assert unlearn(world, tmp_path / "npo", model=first) == BAD_INPUT
    assert "Npo would lose it" in capsys.readouterr().err
    assert unlearn(world, second, *steep, model=first, report=True) == 0
    assert load_intervention(second).stacked.rows.shape == (1, 4, 16)
    cards = json.loads((second / "card.json").read_text())["models"]
    known = [cards[name]["forget_probability"]["value"] for name in cards]
    assert known[0] != known[1]  # the weights are the same
    # The weights alone are read, and they are those of the model before.
    with pytest.raises(InputError, match="same weights as the reference"):
        load_pair(str(world / "models" / "full"), str(second), make_executor("single"))
    assert "second comes with an intervention" in capsys.readouterr().err


def test_a_gate_from_files_to_files(world, tmp_path):
    flags = ("--method", "guard_it", "--method.most-topics", "3")
    assert unlearn(world, tmp_path, *flags) == 0
    gate = load_intervention(tmp_path).inner
    assert gate.vectors.shape == gate.centroids.shape
    (tmp_path / "intervention.safetensors").unlink()
    with pytest.raises(InputError, match=r"safetensors: no such file"):
        load_intervention(tmp_path)


def test_mistakes_are_one_clear_line(world, tmp_path, capsys, monkeypatch):
    began, word = [], ""

    def unlearn_and_save(*args, **options):
        began.append(word)
        return save(*args, **options)

    save = unlearning_run.unlearn_and_save
    monkeypatch.setattr(unlearning_run, "unlearn_and_save", unlearn_and_save)
    (tmp_path / "empty.jsonl").write_text("")
    bare = tmp_path / "bare.jsonl"
    rows = read_questions(world / "data" / "forget25.jsonl")
    write_questions(bare, [row._replace(refusal=None, inverted=()) for row in rows])
    cases = {
        "are among the texts to retain": ((), {"retain": "full"}),
        "keep": (("--method", "npo"), {"retain": None}),
        "empty.jsonl": ((), {"forget": tmp_path / "empty.jsonl"}),
        "expected one of": (("--method", "nope"), {}),
        "'inverted' in every row": (("--method", "meow"), {"forget": bare}),
        "numbers of bits from 2": (("--quantise", "4", "32"), {"report": True}),
        "bitsandbytes rounds to 8 or 4": (("--quantize", "3"), {"report": True}),
        "--retrained: ": (("--retrained", str(tmp_path / "no")), {"report": True}),
        "--reference: ": (("--reference", str(tmp_path / "no")), {"report": True}),
        "diverged at step": (("--learning-rate", "1e30"), {}),
    }
    for word, (flags, files) in cases.items():
        code = unlearn(world, tmp_path / word[:4], *flags, **files)
        error = capsys.readouterr().err.strip().splitlines()
        assert code == BAD_INPUT, word
        assert word in error[-1]
        assert error[-1].startswith("lt-mia: error:")
        assert "Traceback" not in "".join(error)
    # Those of the report show before the training.
    assert "diverged at step" in began
    assert not {"numbers of bits from 2", "--retrained: ", "--reference: "} & {*began}
    assert {path.name for path in tmp_path.iterdir()} == {"empty.jsonl", "bare.jsonl"}
