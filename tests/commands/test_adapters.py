"""Adapters in PEFT's format through the commands, from files to files."""

import json

import pytest
import tiny_world
from adapter_files import modules_of, write_adapter
from tiny_world import read_rows

from lt_mia_jax.cli import main
from lt_mia_jax.features.store import FeatureStore

QUICK = ["--length", "32", "--bootstraps", "50"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def tuned(request, world, tmp_path_factory):
    """A base, and a model fine-tuned from it with adapters."""
    base = tiny_world.base_of(world, request.param)
    out = tmp_path_factory.mktemp("tuned") / request.param
    arguments = ["--model", str(base), "--texts", str(world.members), "--out", str(out)]
    arguments += ["--length", "32", "--epochs", "2", "--batch-size", "4"]
    lora = ["--lora.rank", "2", "--learning-rate", "0.02"]
    assert main(["finetune", *arguments, *lora]) == 0
    return base, out


def test_an_adapter_is_audited_as_the_merged_model(tuned, world, tmp_path):
    base, out = tuned
    rows = {}
    for name, target in (("merged", out), ("adapter", out / "adapter")):
        given = ["--target", str(target), "--texts", str(world.mixed)]
        # The reference of an adapter is its base, unless another one is given.
        given += ["--reference", str(base)] if name == "merged" else []
        assert main(["audit", *given, *QUICK, "--out", str(tmp_path / name)]) == 0
        rows[name] = read_rows(tmp_path / name / "scores.jsonl")
    for merged, adapted in zip(rows["merged"], rows["adapter"], strict=True):
        assert adapted["scores"] == pytest.approx(merged["scores"], rel=1e-3, abs=1e-4)
    summary = json.loads((tmp_path / "adapter" / "summary.json").read_text())
    title = f"Audit of {out.name}/adapter, an adapter of {base.name}"
    assert summary["title"] == title
    assert title in (tmp_path / "adapter" / "report.html").read_text()
    named = {name.rsplit(": ")[-1] for name in summary["fingerprints"]}
    assert named >= {"adapter_config.json", "adapter_model.safetensors"}
    record = json.loads((tmp_path / "adapter" / "run.json").read_text())
    assert {str(out / "adapter"), str(base)} <= record["reads"].keys()


def test_an_adapter_of_a_lost_base_needs_the_reference(world, tmp_path, capsys):
    def lose(config, tensors):
        config["base_model_name_or_path"] = "somewhere/else"

    adapter = tmp_path / "adapter"
    write_adapter(adapter, world.base, modules_of(world.base, "c_attn"), change=lose)
    members, others = ("--members", world.members), ("--nonmembers", world.nonmembers)
    given = [str(x) for x in (*members, *others, "--target", adapter, "--k", "4")]
    reference = ["--reference", str(world.base), "--out", str(tmp_path / "store")]
    assert main(["extract", *given, *reference, "--length", "16"]) == 0
    assert FeatureStore.open(tmp_path / "store").n == 54
    texts = ["--texts", str(world.mixed), "--out", str(tmp_path / "audit")]
    capsys.readouterr()
    assert main(["audit", "--target", str(adapter), *texts]) == 2
    said = capsys.readouterr().err
    assert "--reference" in said
    assert "no config.json" not in said


def test_training_goes_on_from_an_adapter(world, tmp_path):
    adapter, out = tmp_path / "first", tmp_path / "out"
    write_adapter(adapter, world.base, modules_of(world.base, "c_attn"))
    arguments = ["--model", str(adapter), "--texts", str(world.members)]
    arguments += ["--length", "16", "--epochs", "1", "--out", str(out)]
    assert main(["finetune", *arguments]) == 0
    assert (out / "config.json").is_file()
    assert not (out / "adapter").exists()


def test_the_base_of_an_adapter_is_not_written_to(world, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    write_adapter(adapter, world.base, modules_of(world.base, "c_attn"))
    arguments = ["--model", str(adapter), "--texts", str(world.members)]
    out = ["--out", str(world.base), "--overwrite"]
    assert main(["finetune", *arguments, *out]) == 2
    assert "which would be overwritten" in capsys.readouterr().err
