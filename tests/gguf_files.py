"""GGUF files written by hand from models of the tests."""

import json

import numpy as np
import pytest
from model_zoo import configs, random_params
from safetensors.numpy import load_file

from lt_mia_jax.checkpoints import load_model, save_pretrained
from lt_mia_jax.errors import InputError
from lt_mia_jax.trees import flatten

gguf = pytest.importorskip("gguf", reason="needs the extra 'gguf'")


LLAMAS = [
    name for name in configs() if name.startswith("llama") and name != "llama-llama3"
]


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
