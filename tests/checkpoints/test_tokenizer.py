"""Which file a message is about, and which of two tokenizers is read."""

import io
import json

import numpy as np
import pytest
from model_zoo import configs, random_params

from lt_mia_jax.checkpoints import load_pretrained, save_pretrained, tokenizer_of
from lt_mia_jax.checkpoints.tokenizer import check_agreement, fit_vocabulary
from lt_mia_jax.data.tokenize import encode, train_bpe
from lt_mia_jax.errors import InputError

MANY = ["the quick brown fox jumps over the lazy dog, members and non-members"] * 9
MANY += ["of the training data, the training data, or not to be found there"] * 9
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


def sentencepiece_model():
    """Byte-pair merges that keep spaces as they are, as in Llama."""
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=written,
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return written.getvalue()


@pytest.fixture
def bare(saved):
    """A directory with `tokenizer.model` instead of `tokenizer.json`."""
    (saved / "tokenizer.json").unlink()
    named = {"tokenizer_class": "LlamaTokenizer", "legacy": False}
    (saved / "tokenizer_config.json").write_text(json.dumps(named))
    (saved / "tokenizer.model").write_bytes(sentencepiece_model())
    return saved


def test_a_sentencepiece_model_alone_is_read(bare):
    from sentencepiece import SentencePieceProcessor

    tokenizer = load_pretrained(bare).tokenizer
    model = SentencePieceProcessor(model_file=str(bare / "tokenizer.model"))
    for text in ("one two", "one  two seven\n", "naïve ∑ 42"):
        found = tokenizer(text, add_special_tokens=False).input_ids
        assert found == model.encode(text)
        assert tokenizer.decode(found) == text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"SGVsbG8= 0\nd29ybGQ= 1\n", "found a tiktoken file"),
        (b"\x00\x01garbage" * 9, "found other content"),
        (b"", "found other content"),
    ],
)
def test_another_tokenizer_model_is_named_with_what_is_missing(bare, content, words):
    (bare / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=rf"model: {words}.*put the tokenizer\.json"):
        load_pretrained(bare)


def test_tokenizer_json_is_read_before_older_files(saved):
    expected = tokenizer_of(saved)("one two").input_ids
    other = train(["eins zwei drei vier " * 9])
    state = json.loads(other.backend_tokenizer.to_str())["model"]
    (saved / "vocab.json").write_text(json.dumps(state["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in state["merges"])
    (saved / "merges.txt").write_text(merges)
    assert other("one two").input_ids != expected
    assert tokenizer_of(saved)("one two").input_ids == expected


def padded(vocab_size=300):
    tokenizer = train_bpe(MANY, vocab_size=vocab_size)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def test_tokens_beyond_a_model_are_refused_in_texts_alone():
    tokenizer = padded()
    encoded = encode([MANY[0], "short"], tokenizer, length=8)
    assert encoded.input_ids.max() == 300
    sizes = {"target": 301, "reference": 300}
    found = fit_vocabulary(encoded, tokenizer, ["a", "b"], sizes)
    real = encoded.attention_mask != 0
    np.testing.assert_array_equal(found.input_ids[real], encoded.input_ids[real])
    assert (found.input_ids[~real] == 0).all()
    assert fit_vocabulary(encoded, tokenizer, ["a", "b"], {"target": 301}) is encoded
    encoded = encode(["short", "with <pad>"], tokenizer, length=8)
    expected = r"text b has the token '<pad>' with id 300, but the reference .* 300 ids"
    with pytest.raises(InputError, match=expected):
        fit_vocabulary(encoded, tokenizer, ["a", "b"], sizes)


def test_tokenizers_agree_on_the_ids_that_both_have():
    plain, more = train_bpe(MANY, vocab_size=300), padded()
    for one, other in ((plain, more), (more, plain), (plain, plain)):
        check_agreement(one, other, ("m", "n"), 300)
    other = train_bpe(["quite another language " * 9], vocab_size=290)
    with pytest.raises(InputError, match=r"of m and n differ: id \d+ is '.*' in one"):
        check_agreement(plain, other, ("m", "n"), 290)
