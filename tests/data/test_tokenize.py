import numpy as np
import pytest
from chat_tokenizer import beginning_tokenizer, real

from lt_mia_jax.data.tokenize import (
    SHORT,
    Encoded,
    beginning,
    describe_beginning,
    encode,
    flag_texts,
    lower_case,
    scored_texts,
    train_bpe,
)
from lt_mia_jax.errors import InputError

TRAINING = [
    "the quick brown fox jumps over the lazy dog",
    "def add(a, b):\n    return a + b\n",
    "members and non-members of the training data, the training data",
] * 5
TEXTS = [
    "",
    "a",
    "the dog",
    "the quick brown fox " * 40,
    "def f(x):\n\treturn x\n\n" * 20,
    "émigré 漢字 😀👨‍👩‍👧",
    "half a pair \ud800 and another \udc01",
    "\x00\x01 \x7f",
    " \n\n  ",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TRAINING, vocab_size=300)


def encode_one(text, tokenizer, length, side):
    """The specification, word for word, for one text: ids and mask."""
    eos = tokenizer.eos_token_id
    max_len = max(1, length - 1) if eos is not None else length
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids = ids[:max_len] if side == "right" else ids[max(0, len(ids) - max_len) :]
    if eos is not None and len(ids) < length:
        ids = [*ids, eos]
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else (eos if eos is not None else 0)
    padding = length - len(ids)
    return ids + [pad] * padding, [1] * len(ids) + [0] * padding


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [1, 2, 16, 128])
@pytest.mark.parametrize("special", ["eos", "eos and pad", "none"])
def test_encode_follows_the_specification(tokenizer, side, length, special):
    from transformers import PreTrainedTokenizerFast

    tokens = {
        "eos": {"eos_token": "<|endoftext|>"},
        "eos and pad": {"eos_token": "<|endoftext|>", "pad_token": "a"},
        "none": {},
    }[special]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, **tokens
    )
    encoded = encode(TEXTS, tokenizer, length=length, side=side)
    for row, text in enumerate(TEXTS):
        ids, mask = encode_one(text, tokenizer, length, side)
        np.testing.assert_array_equal(encoded.input_ids[row], ids)
        np.testing.assert_array_equal(encoded.attention_mask[row], mask)
    assert encoded.input_ids.dtype == np.int32
    assert encoded.attention_mask.dtype == np.uint8


def test_flags(tokenizer):
    encoded = encode(["", "a", "the dog " * 50], tokenizer, length=8)
    assert encoded.truncated.tolist() == [False, False, True]
    # An empty string is end-of-text alone; one token and end-of-text have a step.
    assert encoded.empty.tolist() == [True, False, False]
    assert encoded.attention_mask.sum(1).tolist() == [1, 2, 8]
    assert flag_texts(encoded) == [
        ["empty: no score"],
        ["short: 1 scored tokens"],
        ["short: 7 scored tokens", "truncated"],
    ]


def test_only_texts_below_the_limit_are_flagged_as_short(tokenizer):
    encoded = encode(["the dog " * 50] * 2, tokenizer, length=SHORT + 1)
    shorter = encoded._replace(attention_mask=encoded.attention_mask.copy())
    shorter.attention_mask[1, -1] = 0
    assert flag_texts(shorter) == [
        ["truncated"],
        [f"short: {SHORT - 1} scored tokens", "truncated"],
    ]


def test_a_text_that_just_fits_is_not_truncated(tokenizer):
    text = "the quick brown fox"
    tokens = len(tokenizer.encode(text, add_special_tokens=False))
    for length, cut in [(tokens, True), (tokens + 1, False), (tokens + 2, False)]:
        encoded = encode([text], tokenizer, length=length)
        assert encoded.truncated[0] == cut
        assert encoded.input_ids[0, -1] == tokenizer.eos_token_id


def test_rows_do_not_depend_on_their_neighbors(tokenizer):
    together = encode(TEXTS * 200, tokenizer, length=32)
    alone = [encode([text], tokenizer, length=32) for text in TEXTS]
    for row, text in enumerate(alone):
        same = together.take(np.array([row + len(TEXTS) * 130]))
        for a, b in zip(same, text, strict=True):
            np.testing.assert_array_equal(a, b)


def test_truncation_settings_of_a_tokenizer_do_not_leak_in(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path, truncation_side="left")
    other("the dog " * 50, truncation=True, max_length=4)
    expected = encode(TEXTS, tokenizer, length=16)
    for a, b in zip(encode(TEXTS, other, length=16), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_texts(tokenizer):
    encoded = encode([], tokenizer, length=16)
    assert encoded.scored is None
    assert [field.shape for field in encoded[:4]] == [(0, 16), (0, 16), (0,), (0,)]


def test_a_megabyte(tokenizer):
    text = "the quick brown fox jumps " * 40_000
    left = encode([text], tokenizer, side="left")
    tail = encode([text[-2_000:]], tokenizer, side="left")
    np.testing.assert_array_equal(left.input_ids, tail.input_ids)
    assert left.truncated.all()


def test_take(tokenizer):
    encoded = encode(TEXTS, tokenizer, length=16)
    rows = np.array([3, 0])
    taken = encoded.take(rows)
    assert isinstance(taken, Encoded)
    np.testing.assert_array_equal(taken.input_ids, encoded.input_ids[rows])
    np.testing.assert_array_equal(taken.empty, encoded.empty[rows])


def test_length_must_be_positive(tokenizer):
    with pytest.raises(InputError, match="length 0"):
        encode(["a"], tokenizer, length=0)


def test_bpe_is_deterministic_and_spells_anything(tokenizer):
    again = train_bpe(iter(TRAINING), vocab_size=300)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == 300
    for text in TEXTS:
        sound = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = tokenizer.encode(sound, add_special_tokens=False)
        assert tokenizer.decode(ids) == sound


def test_bpe_compresses_what_it_was_trained_on(tokenizer):
    text = TRAINING[0]
    assert len(tokenizer.encode(text)) < len(text.encode()) * 0.7


def test_saved_bpe_opens_with_auto_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    trained = train_bpe(TRAINING, vocab_size=280, out_dir=tmp_path / "tokenizer")
    opened = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert opened.eos_token_id == trained.eos_token_id
    expected = encode(TEXTS, trained, length=32)
    for a, b in zip(encode(TEXTS, opened, length=32), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_bpe_of_too_little_text_warns(caplog):
    assert len(train_bpe(["ab ab"], vocab_size=500)) < 500
    assert "of 500 BPE tokens" in caplog.text
    with pytest.raises(InputError, match="at least 257"):
        train_bpe(TRAINING, vocab_size=256)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [1, 2, 8, 200])
def test_scored_texts_are_what_is_left(tokenizer, side, length):
    encoded = encode(TEXTS, tokenizer, length=length, side=side)
    found = scored_texts(TEXTS, encoded, tokenizer)
    assert encoded.truncated.any()
    for text, cut, scored in zip(TEXTS, encoded.truncated, found, strict=True):
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if not cut:
            assert scored == whole
            continue
        # Half a character stands for none.
        if side == "right":
            assert whole.startswith(scored.rstrip("\ufffd"))
        else:
            assert whole.endswith(scored.lstrip("\ufffd"))
        tokens = tokenizer.encode(whole, add_special_tokens=False)
        expected = max(1, length - 1)
        tokens = tokens[:expected] if side == "right" else tokens[-expected:]
        assert scored == tokenizer.decode(tokens)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [2, 3, 16, 400])
def test_a_beginning_stays_in_front_and_is_not_scored(side, length):
    tokenizer = beginning_tokenizer()
    encoded = encode(TEXTS, tokenizer, length=length, side=side)
    plain = encode(TEXTS, tokenizer, length=length, side=side, bos="no")
    for row, text in enumerate(TEXTS[:6]):
        whole = tokenizer(text)["input_ids"]  # as models are trained: <s> and the text
        assert whole[0] == tokenizer.bos_token_id
        keep = max(1, length - 2)
        cut = (
            slice(1, keep + 1)
            if side == "right"
            else slice(max(1, len(whole) - keep), None)
        )
        ids = [whole[0], *whole[cut], tokenizer.eos_token_id][:length]
        if not text:
            ids = [tokenizer.eos_token_id]
        marks = [False] * (ids[0] == whole[0]) + [True] * (len(ids) - bool(text))
        assert real(encoded, row) == (ids, marks)
    assert plain.scored is None
    assert not (plain.input_ids == tokenizer.bos_token_id).any()
    assert encoded.empty.tolist() == [not text for text in TEXTS]
    # The first token has a score now.
    assert flag_texts(encoded)[1] == [f"short: {min(2, length - 1)} scored tokens"]
    assert scored_texts(TEXTS, plain, tokenizer)[:3] == TEXTS[:3] or length < 16
    if length == 400:
        assert scored_texts(TEXTS, encoded, tokenizer)[:3] == TEXTS[:3]


def test_lower_case_begins_as_the_text_does():
    tokenizer = beginning_tokenizer()
    texts = ["The DOG", "ÉMIGRÉ " * 9]
    encoded = encode(texts, tokenizer, length=12)
    lower = lower_case(texts, encoded, tokenizer)
    left = scored_texts(texts, encoded, tokenizer)
    again = encode([text.lower() for text in left], tokenizer, length=12)
    for a, b in zip(lower, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (lower.input_ids[:, 0] == tokenizer.bos_token_id).all()


def test_the_choice_of_a_beginning(tokenizer):
    adds, has = beginning_tokenizer(), beginning_tokenizer(adds=False)
    token = [adds.bos_token_id]
    for tokens, choice, expected in [
        (adds, "auto", token),
        (adds, "no", []),
        (has, "auto", []),
        (has, "yes", token),
        (tokenizer, "auto", []),
        (tokenizer, "no", []),
    ]:
        assert beginning(tokens, choice) == expected
        said = describe_beginning(tokens, choice)
        assert ("the token <s>" in said) == bool(expected)
        assert f"--bos {choice}" in said
    with pytest.raises(InputError, match="no beginning-of-text token"):
        encode(["a"], tokenizer, bos="yes")


def test_a_beginning_survives_on_disk(tmp_path):
    from transformers import AutoTokenizer

    beginning_tokenizer().save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert beginning(opened) == [opened.bos_token_id]
