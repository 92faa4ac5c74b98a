import json
import math
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import oracle_models as oracle
import pytest
from family_zoo import config_json
from model_zoo import configs, forward, random_ids, random_params
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lt_mia_jax.checkpoints import (
    load_model,
    load_pretrained,
    rules,
    save_pretrained,
)
from lt_mia_jax.checkpoints.families import FAMILIES
from lt_mia_jax.checkpoints.safetensors import TensorReader
from lt_mia_jax.data.tokenize import train_bpe
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_manifest
from lt_mia_jax.models import ExecutionConfig, LanguageModel, gpt2_like
from lt_mia_jax.sharding import make_mesh
from lt_mia_jax.trees import flatten

WEIGHTS = "model.safetensors"
KINDS = {
    "gpt2": "gpt2",
    "llama": "llama",
    "neox": "gpt_neox",
    "falcon-new": "falcon",
    "stablelm-all": "stablelm",
    "mamba": "mamba",
    "rwkv": "rwkv",
    "recurrent_gemma": "recurrent_gemma",
}
"""Families whose files are broken below, and their model_type."""

EMBEDDING = {
    name: FAMILIES[kind].table(configs()[name]).token_embedding
    for name, kind in KINDS.items()
}


def tiny_tokenizer():
    words = {word: i for i, word in enumerate(["<eos>", "a", "b", "c"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def edit(directory, change):
    """Rewrite the weights after `change` has edited their dict."""
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def same_bits(one, other):
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        found = np.asarray(other[name])
        assert found.dtype == np.asarray(leaf).dtype
        assert found.tobytes() == np.asarray(leaf).tobytes(), name


@pytest.fixture(params=KINDS)
def family(request):
    return request.param


@pytest.fixture
def saved(family, tmp_path):
    config = configs()[family]
    save_pretrained(tmp_path / "model", config, random_params(config))
    return tmp_path / "model"


@pytest.mark.parametrize("name", configs())
def test_save_load_save_is_exact(name, tmp_path):
    config, params = configs()[name], random_params(configs()[name])
    save_pretrained(tmp_path / "one", config, params)
    again, loaded = load_model(tmp_path / "one")
    assert again == config
    same_bits(params, loaded)
    save_pretrained(tmp_path / "two", again, loaded)
    for file in ("config.json", WEIGHTS):
        one, two = ((tmp_path / d / file).read_bytes() for d in ("one", "two"))
        assert one == two


def test_loaded_model_computes_the_same_function(saved, family):
    config, params = load_model(saved)
    expected = oracle.logits(config, random_params(configs()[family]), random_ids())
    found = forward(LanguageModel(config), params, random_ids())
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_stored_dtypes_become_float32(saved, dtype):
    import ml_dtypes

    kinds = {"bfloat16": ml_dtypes.bfloat16}
    kind = np.dtype(kinds.get(dtype, dtype))
    _, exact = load_model(saved)
    edit(saved, lambda t: t.update({k: v.astype(kind) for k, v in t.items()}))
    _, params = load_model(saved)
    rounded = jax.tree.map(
        lambda x: np.asarray(x).astype(kind).astype("float32"), exact
    )
    same_bits(rounded, params)


def test_bfloat16_parameters_on_request(saved, tmp_path):
    config, params = load_model(saved, dtype="bfloat16")
    shapes = LanguageModel(config, ExecutionConfig(param_dtype="bfloat16")).shapes()
    assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(
        lambda x: x.dtype, shapes
    )
    assert params["embedding"]["tokens"].dtype == jnp.bfloat16
    save_pretrained(tmp_path / "low", config, params)
    assert json.loads((tmp_path / "low/config.json").read_text())["dtype"] == "bfloat16"
    same_bits(params, load_model(tmp_path / "low", dtype="bfloat16")[1])


def test_unknown_dtype_is_refused(saved):
    with pytest.raises(InputError, match="float8"):
        load_model(saved, dtype="float8")


def test_parameters_are_born_sharded(tmp_path):
    import dataclasses

    config = dataclasses.replace(configs()["gpt2"], vocab_size=2048)
    params = random_params(config)
    save_pretrained(tmp_path, config, params)
    _, placed = load_model(tmp_path, mesh=make_mesh(data=2, fsdp=2))
    same_bits(params, placed)
    shards = placed["embedding"]["tokens"].addressable_shards
    assert {shard.data.shape for shard in shards} == {(1024, 16)}


def test_tied_head_may_be_stored_too(tmp_path):
    config = configs()["gpt2"]
    save_pretrained(tmp_path, config, random_params(config))
    name = EMBEDDING["gpt2"]
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t[name].copy()}))
    same_bits(random_params(config), load_model(tmp_path)[1])
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t[name] + 1}))
    with pytest.raises(
        InputError, match=r"lm_head\.weight differs.*tie_word_embeddings"
    ):
        load_model(tmp_path)


def test_bare_decoder_names_and_buffers(tmp_path):
    """The original GPT-2 files: no prefix, masks stored beside the weights."""
    config = configs()["gpt2"]
    save_pretrained(tmp_path, config, random_params(config))

    def change(tensors):
        bare = {k.removeprefix("transformer."): tensors.pop(k) for k in list(tensors)}
        for layer in range(2):
            bare[f"h.{layer}.attn.bias"] = np.ones((1, 1, 12, 12), np.uint8)
            bare[f"h.{layer}.attn.masked_bias"] = np.float32(-1e4)
        tensors.update({k: np.asarray(v) for k, v in bare.items()})

    edit(tmp_path, change)
    same_bits(random_params(config), load_model(tmp_path)[1])


def test_newer_head_name_of_gpt_neox(tmp_path):
    config = configs()["neox"]
    save_pretrained(tmp_path, config, random_params(config))
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("embed_out.weight")}))
    same_bits(random_params(config), load_model(tmp_path)[1])


def test_missing_unexpected_and_misshaped_in_one_line(saved, family):
    names = list(load_file(saved / WEIGHTS))
    gone = next(name for name in names if ".1." in name)

    def change(tensors):
        del tensors[gone]
        tensors["novel.weight"] = np.zeros(3, np.float32)
        embedding = EMBEDDING[family]
        tensors[embedding] = tensors[embedding][:-1]

    edit(saved, change)
    with pytest.raises(InputError) as caught:
        load_model(saved)
    text = str(caught.value)
    assert f"missing ['{gone}']" in text
    assert "unexpected ['novel.weight']" in text
    width = configs()[family].width
    assert f"{EMBEDDING[family]} is [22, {width}] instead of [23, {width}]" in text
    assert "\n" not in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_all_tensors_that_are_not_finite_are_named(saved, value):
    names = list(load_file(saved / WEIGHTS))
    broken, whole = names[:2], names[2:]

    def change(tensors):
        for name in broken:
            tensors[name].flat[-1] = value

    edit(saved, change)
    with pytest.raises(
        InputError, match="NaN or infinite values in 2 tensors"
    ) as caught:
        load_model(saved)
    assert all(name in str(caught.value) for name in broken)
    assert not any(f"{name}," in str(caught.value) for name in whole)


def test_quantized_tensors_are_refused(saved, family):
    name = EMBEDDING[family]
    edit(saved, lambda t: t.update({name: t[name].astype(np.int8)}))
    with pytest.raises(InputError, match=r"\(I8\).*quantized"):
        load_model(saved)


@pytest.mark.parametrize("kept", [0, 7, 100, -100])
def test_truncated_weights(saved, kept):
    path = saved / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors.*truncated"):
        load_model(saved)


def test_renamed_tensor_is_missing_and_unexpected(saved, family):
    name = EMBEDDING[family]
    edit(saved, lambda t: t.update({"novel.weight": t.pop(name)}))
    with pytest.raises(InputError) as caught:
        load_model(saved)
    assert f"missing ['{name}']" in str(caught.value)
    assert "unexpected ['novel.weight']" in str(caught.value)


def test_the_config_of_another_family_fits_nothing(saved, family):
    other = "opt" if family == "gpt2" else "gpt2"
    (saved / "config.json").write_text(json.dumps(config_json(other)))
    with pytest.raises(InputError, match=r"missing \[.*unexpected \[") as caught:
        load_model(saved)
    expected = FAMILIES[other].table(configs()[other]).token_embedding
    assert expected in str(caught.value)
    assert any(name in str(caught.value) for name in load_file(saved / WEIGHTS))


def test_decays_stay_float32_beside_bfloat16(tmp_path):
    config = configs()["mamba"]
    save_pretrained(tmp_path / "one", config, random_params(config))
    _, params = load_model(tmp_path / "one", dtype="bfloat16")
    flat = flatten(params)
    wide = {name for name, leaf in flat.items() if leaf.dtype == jnp.float32}
    assert {name.rsplit("mixer/")[1] for name in wide} == {
        "log_decay",
        "skip",
        "step/bias",
    }
    save_pretrained(tmp_path / "two", config, params)
    same_bits(params, load_model(tmp_path / "two", dtype="bfloat16")[1])


def test_host_memory_holds_the_leaves_of_one_rule(tmp_path):
    config = gpt2_like(256, 128, 8, 2, 16)
    params = random_params(config)
    save_pretrained(tmp_path, config, params)
    shapes = flatten(LanguageModel(config).shapes())
    table = FAMILIES["gpt2"].table(config)
    largest = max(
        sum(4 * math.prod(shapes[path].shape) for path in {p.path for p in places})
        for places in (
            [p for assignment in group for p in assignment.places]
            for group in rules.expand(table, config, shapes)
        )
    )
    with TensorReader(tmp_path) as reader:
        tracemalloc.start()
        rules.load(reader, table, config, shapes, put=lambda name, leaf: None)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # The stacked leaves of a rule, and one stored tensor with its copy.
    assert peak < 1.4 * largest
    assert peak < sum(x.nbytes for x in jax.tree.leaves(params)) / 2


def test_missing_files_are_named(saved):
    (saved / WEIGHTS).rename(saved / "elsewhere")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        load_model(saved)
    (saved / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(saved)


def test_broken_json_is_named(saved):
    (saved / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        load_model(saved)


def test_config_of_another_size(saved):
    data = json.loads((saved / "config.json").read_text())
    data["vocab_size"] = 99
    (saved / "config.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"mis-shaped.*instead of \[99, "):
        load_model(saved)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a b", "", "x/y/z"])
def test_path_that_does_not_exist(name):
    with pytest.raises(InputError, match="no such directory"):
        load_model(name)


def test_hub_id_without_network():
    with pytest.raises(InputError, match=r"nobody/nothing.*pass a directory") as caught:
        load_model("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_file_instead_of_directory(saved):
    with pytest.raises(InputError, match="is a file"):
        load_model(saved / WEIGHTS)


def test_pretrained_with_tokenizer(saved, family, tmp_path):
    config, params = load_model(saved)
    save_pretrained(tmp_path / "out", config, params, tiny_tokenizer())
    loaded = load_pretrained(str(tmp_path / "out"))
    assert loaded.config == config
    assert loaded.tokenizer.encode("b c a") == [2, 3, 1]
    data = json.loads((tmp_path / "out/config.json").read_text())
    assert data["eos_token_id"] == 0
    assert data["bos_token_id"] is None


def test_missing_and_broken_tokenizer(tmp_path):
    config = configs()["llama"]
    save_pretrained(tmp_path, config, random_params(config))
    with pytest.raises(InputError, match="no tokenizer"):
        load_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match="tokenizer files cannot be read") as caught:
        load_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_like_lends_neutral_fields_only(saved, tmp_path):
    data = json.loads((saved / "config.json").read_text())
    data.update(bos_token_id=7, task_specific_params={"a": 1}, novel=1, vocab_size=999)
    shutil.copytree(saved, tmp_path / "base")
    (tmp_path / "base/config.json").write_text(json.dumps(data))
    config, params = load_model(saved)
    save_pretrained(tmp_path / "out", config, params, like=tmp_path / "base")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["bos_token_id"] == 7
    assert written["task_specific_params"] == {"a": 1}
    assert "novel" not in written
    assert load_model(tmp_path / "out")[0] == config


def test_parameters_of_another_config_are_refused(tmp_path):
    params = random_params(configs()["gpt2"])
    with pytest.raises(InputError, match="do not fit the config"):
        save_pretrained(tmp_path, configs()["llama"], params)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].astype(np.float16)
    with pytest.raises(InputError, match="mixed dtypes"):
        save_pretrained(tmp_path, configs()["gpt2"], params)
    assert not list(tmp_path.iterdir())


def test_a_manifest_beside_a_model_is_verified(tmp_path):
    config = gpt2_like(300, width=16, layers=1, heads=2, context=16)
    params = LanguageModel(config).init(jax.random.key(0))
    tokenizer = train_bpe(["to be or not to be"], vocab_size=300)
    save_pretrained(tmp_path, config, params, tokenizer)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    load_pretrained(tmp_path)  # without a manifest nobody can tell
    weights.write_bytes(whole)
    write_manifest(tmp_path, ["config.json", "model.safetensors"])
    load_pretrained(tmp_path)
    weights.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    with pytest.raises(InputError, match=r"model.safetensors has changed content"):
        load_pretrained(tmp_path)
    (tmp_path / "manifest.json").write_text('{"files": ["somebody else\'s"]}')
    load_pretrained(tmp_path)
