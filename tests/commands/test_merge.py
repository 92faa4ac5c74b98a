"""`lt-mia merge` on tiny Llamas: what is written, and what is refused."""

import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_files import modules_of, write_adapter
from safetensors.numpy import load_file

from lt_mia_jax.checkpoints import load_model, load_pretrained, save_pretrained
from lt_mia_jax.checkpoints.safetensors import SINGLE, TensorReader
from lt_mia_jax.cli import main
from lt_mia_jax.data import train_bpe
from lt_mia_jax.models import LanguageModel, llama_like
from lt_mia_jax.process import BAD_INPUT
from lt_mia_jax.transfer.weightspace import difference, expand, pack, swap, ties
from lt_mia_jax.transfer.weightspace.merge import METHODS, Setting, merge
from lt_mia_jax.trees import flatten

VOCABULARY = 260


def config(layers=2, vocabulary=VOCABULARY, **changes):
    sizes = {"width": 16, "heads": 2, "context": 32, "kv_heads": 1, "tied": True}
    return llama_like(vocabulary, layers=layers, **{**sizes, **changes})


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Folders by name; `a` and `b` are near `base`."""
    folder = tmp_path_factory.mktemp("zoo")
    tokenizer = train_bpe(["to be or not to be"], vocab_size=259)
    other = train_bpe(["zu sein oder nicht zu sein"], vocab_size=259)
    start = LanguageModel(config()).init(jax.random.key(0))

    def near(seed):
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), x.dtype), start
        )

    def write(name, made, params, tokens=tokenizer):
        save_pretrained(folder / name, made, params, tokens)

    for name, params in (("base", start), ("a", near(1)), ("b", near(2))):
        write(name, config(), params)
    for name, made in (
        ("deeper", config(3)),
        ("grown", config(vocabulary=VOCABULARY + 5)),
        ("wider", config(width=24)),
    ):
        write(name, made, LanguageModel(made).init(jax.random.key(9)))
    write("foreign", config(), near(3), other)
    return folder


def params_of(path):
    return load_model(path)[1]


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def run(zoo, out, method, models, **flags):
    arguments = ["merge", "--method", method, "--out", str(out), "--models"]
    arguments += [str(zoo / name) for name in models]
    for name, value in flags.items():
        word = str(zoo / value) if name in ("base", "onto") else str(value)
        arguments += [f"--{name}", word]
    return main(arguments)


def test_every_method_writes_the_model_of_its_function(zoo, tmp_path):
    base, a, b, grown = (params_of(zoo / n) for n in ("base", "a", "b", "grown"))
    skill = pack.pack(base, a)
    expected = {
        "ties": ties.ties_merge(base, [a, b], density=0.3, lam=0.5),
        "arithmetic": ties.task_arithmetic(base, [a, b], lam=0.5),
        "mean": ties.mean([a, b]),
        "difference": difference.transfer_diff(grown, base, a, scale=0.5),
        "swap": swap.layer_swap(a, b, bottom=1, top=0),
        "pack": pack.apply(base, [skill]),
        "expand": expand.expand(expand.fit_gene(a)[0], 5),
    }
    flags = {
        "ties": {"base": "base", "density": 0.3, "scale": 0.5},
        "arithmetic": {"base": "base", "scale": 0.5},
        "difference": {"base": "base", "onto": "grown", "scale": 0.5},
        "swap": {"bottom": 1, "top": 0},
        "pack": {"base": "base"},
        "expand": {"layers": 5},
    }
    assert set(expected) == set(METHODS)
    for method, params in expected.items():
        row, out = METHODS[method], tmp_path / method
        models = ["a", "b"] if row.more or row.models == 2 else ["a"]
        assert run(zoo, out, method, models, **flags.get(method, {})) == 0
        loaded = load_pretrained(out)
        equal(loaded.params, params)
        assert loaded.tokenizer("be").input_ids
        record = json.loads((out / "merge.json").read_text())
        assert record["method"] == method
        assert record["models"] == [str(zoo / name) for name in models]
        sha256 = record["weights_sha256"]
        assert {len(x) for files in sha256.values() for x in files.values()} == {64}
        given = flags.get(method, {})
        others = [str(zoo / given[n]) for n in ("base", "onto") if n in given]
        assert set(sha256) == {*record["models"], *others}
        run_record = json.loads((out / "training" / "run.json").read_text())
        assert run_record["command"] == "merge"
    file = tmp_path / "pack" / "pack.safetensors"
    record = json.loads((tmp_path / "pack" / "merge.json").read_text())
    assert record["pack_bytes"] == file.stat().st_size
    equal(pack.unpack(pack.load(file)), pack.unpack(skill))
    # An earlier pack does not stay beside another model.
    assert run(zoo, tmp_path / "pack", "mean", ["a", "b"]) == 0
    assert not file.exists()
    equal(params_of(tmp_path / "pack"), expected["mean"])


def test_bfloat16_and_adapters(zoo, tmp_path):
    write_adapter(tmp_path / "adapter", zoo / "base", modules_of(zoo / "base"))
    models = [str(tmp_path / "adapter"), str(zoo / "a")]
    merge("mean", models, tmp_path, dtype="bfloat16")
    one, two = (load_model(m, dtype="bfloat16")[1] for m in models)
    found = load_model(tmp_path, dtype="bfloat16")[1]
    equal(found, ties.mean([one, two]))
    with TensorReader(tmp_path) as reader:
        assert {reader.dtype(name) for name in reader.names} == {"BF16"}


@pytest.mark.parametrize(
    ("method", "models", "flags", "words"),
    [
        ("ties", ["a", "b"], {}, ["--method ties", "needs --base"]),
        ("mean", ["a"], {}, ["found 1 in --models, expected 2 or more"]),
        ("swap", ["a", "b", "base"], {}, ["found 3 in --models, expected 2"]),
        ("pack", ["a", "b"], {"base": "base"}, ["found 2", "expected 1"]),
        ("difference", ["a"], {"base": "base"}, ["needs --onto"]),
        ("mean", ["a", "b"], {"onto": "base"}, ["does not use --onto; leave it out"]),
        ("mean", ["a", "b"], {"density": 0.3}, ["does not use --density; leave it"]),
        ("ties", ["a"], {"base": "base", "top": 1}, ["does not use --top"]),
        ("swap", ["a", "b"], {"scale": 1.0}, ["does not use --scale"]),
        ("mean", ["a", "deeper"], {}, ["deeper", "layers 3 (expected 2)"]),
        ("mean", ["a", "grown"], {}, ["grown", "vocab_size 265 (expected 260)"]),
        ("ties", ["wider"], {"base": "base"}, ["wider", "width 24 (expected 16)"]),
        ("mean", ["a", "foreign"], {}, ["the tokenizers of", "foreign differ"]),
        ("swap", ["a", "b"], {"bottom": 2}, ["--bottom 2 and --top 1", "has 2"]),
        ("expand", ["a"], {}, ["needs --layers"]),
        ("mean", ["a", "nowhere"], {}, ["nowhere"]),
        ("ties", ["a"], {"base": "base", "density": 1.5}, ["--density", "0 to 1"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_ends_with_one_line(
    zoo, tmp_path, capfd, method, models, flags, words
):
    assert run(zoo, tmp_path / "out", method, models, **flags) == BAD_INPUT
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("lt-mia: ") or "error" in said.lower()
    for word in words:
        assert word in said
    assert not (tmp_path / "out").exists()


def test_no_input_is_replaced(zoo, capfd):
    before = (zoo / "a" / "model.safetensors").read_bytes()
    for out in ("a", "base"):
        found = run(zoo, zoo / out, "ties", ["a", "b"], base="base")
        assert found == BAD_INPUT
        assert f"--out {zoo / out}: is also --" in capfd.readouterr().err
    assert (zoo / "a" / "model.safetensors").read_bytes() == before


def test_the_devices_of_a_mesh_give_the_same_model(zoo, tmp_path):
    for name, devices in (("one", ["--executor", "single"]), ("four", ["--fsdp", "4"])):
        models = [str(zoo / n) for n in "ab"]
        words = ["merge", "--method", "ties", "--models", *models]
        words += ["--base", str(zoo / "base"), "--out", str(tmp_path / name), *devices]
        assert main(words) == 0
    equal(params_of(tmp_path / "one"), params_of(tmp_path / "four"))


@pytest.mark.parametrize("method", ["mean", "ties"])
def test_one_tensor_of_each_model_is_in_memory(tmp_path, monkeypatch, method):
    """What is alive whenever a tensor is read, against the size of the models."""
    made = config(8, width=32, heads=2, kv_heads=2)
    params = LanguageModel(made).init(jax.random.key(0))
    tokenizer = train_bpe(["to be or not to be"], vocab_size=259)
    models = [str(tmp_path / name) for name in "ab"]
    for model in models:
        save_pretrained(model, made, params, tokenizer)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = max(x.nbytes for x in load_file(f"{models[0]}/{SINGLE}").values())
    del params
    before, peaks, alive = {id(x) for x in jax.live_arrays()}, [], []
    read = TensorReader.read

    def counted(self, name):
        found = read(self, name)
        alive.append(weakref.ref(found))
        on_host = sum(x.nbytes for ref in alive if (x := ref()) is not None)
        made = [x.nbytes for x in jax.live_arrays() if id(x) not in before]
        peaks.append(on_host + sum(made))
        return found

    monkeypatch.setattr(TensorReader, "read", counted)
    merge(
        method, models, tmp_path / "out", base=models[0] if method == "ties" else None
    )
    assert 2 * largest <= max(peaks) <= 6 * largest < size / 2
    peaks.clear()
    load_model(models[0])
    assert max(peaks) > size / 2


@pytest.mark.parity
def test_transformers_opens_a_merged_model(zoo, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    transformers = pytest.importorskip("transformers")
    models = [str(zoo / name) for name in "ab"]
    merge(
        "ties", models, tmp_path, base=str(zoo / "base"), setting=Setting(density=0.5)
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).float().eval()
    ids = np.random.default_rng(0).integers(VOCABULARY, size=(2, 9))
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits.numpy()
    made, params = load_model(tmp_path)
    ours = LanguageModel(made).apply(params, jnp.asarray(ids))
    np.testing.assert_allclose(ours, logits, atol=2e-5)
    assert flatten(params)["embedding/tokens"].shape == (VOCABULARY, 16)
