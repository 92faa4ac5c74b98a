"""Which file a message is about, and which of two tokenizers is read."""

import json

import pytest
from model_zoo import configs, random_params

from lt_mia_jax.checkpoints import load_pretrained, save_pretrained, tokenizer_of
from lt_mia_jax.data.tokenize import train_bpe
from lt_mia_jax.errors import InputError

TEXTS = ["one two three four five six seven " * 9]


@pytest.fixture
def saved(tmp_path):
    config = configs()["llama"]
    save_pretrained(tmp_path, config, random_params(config), train(TEXTS))
    return tmp_path


def train(texts):
    return train_bpe(texts, vocab_size=270)


def broken(content):
    return lambda data: content


CONFIGS = {
    "not valid JSON": broken("{"),
    "nested more than 100": broken("[" * 100_000),
    'the key "x" stands there twice': broken('{"x": 1, "x": 2}'),
    "model_type is None": broken("[]"),
    "model_type is \\['llama'\\]": lambda data: json.dumps(
        data | {"model_type": ["llama"]}
    ),
    "vocab_size = 10000": lambda data: json.dumps(data | {"vocab_size": 10**12}),
}


@pytest.mark.parametrize("match", CONFIGS)
def test_a_broken_config_is_reported_as_itself(saved, match):
    data = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(CONFIGS[match](data))
    with pytest.raises(InputError, match=rf"config\.json: .*{match}") as caught:
        load_pretrained(saved)
    assert "tokenizer" not in str(caught.value)


def test_a_tokenizer_alone_names_a_broken_config_too(saved):
    (saved / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        tokenizer_of(saved)


def test_tokenizer_json_is_read_before_older_files(saved):
    expected = tokenizer_of(saved)("one two").input_ids
    other = train(["eins zwei drei vier " * 9])
    state = json.loads(other.backend_tokenizer.to_str())["model"]
    (saved / "vocab.json").write_text(json.dumps(state["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in state["merges"])
    (saved / "merges.txt").write_text(merges)
    assert other("one two").input_ids != expected
    assert tokenizer_of(saved)("one two").input_ids == expected
