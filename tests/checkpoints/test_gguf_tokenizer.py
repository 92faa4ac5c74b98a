"""The tokenizer inside a GGUF file."""

import json
import sys

import pytest
from model_zoo import configs
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lt_mia_jax.checkpoints.gguf import (
    load_gguf_tokenizer,
)
from lt_mia_jax.errors import InputError

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
