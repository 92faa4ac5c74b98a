"""Windows of long texts, against a plain loop over token lists."""

import numpy as np
import pytest
from chat_tokenizer import beginning_tokenizer, conversation
from tiny_world import sentences

from lt_mia_jax.audit.windows import combined, windows
from lt_mia_jax.data.chat.rows import Messages
from lt_mia_jax.data.tokenize import encode, train_bpe
from lt_mia_jax.errors import InputError

TEXTS = ["", "be", *sentences(3, 4), " ".join(sentences(4, 9))]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(sentences(5, 40), vocab_size=300)


def rows(found):
    """Text, tokens and scored tokens of each window."""
    for part in found:
        encoded = part.encoded
        scored = encoded.attention_mask != 0
        scored = scored if encoded.scored is None else encoded.scored
        for owner, ids, mask, new in zip(
            part.owner, encoded.input_ids, encoded.attention_mask, scored, strict=True
        ):
            count = int(mask.sum())
            yield int(owner), ids[:count].tolist(), new[:count].tolist()


@pytest.mark.parametrize(("length", "overlap"), [(16, 4), (16, 1), (9, 6), (40, 20)])
def test_every_token_is_scored_once_behind_its_context(tokenizer, length, overlap):
    found = list(rows(windows(TEXTS, tokenizer, length=length, overlap=overlap)))
    for number, text in enumerate(TEXTS):
        whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        mine = [(ids, new) for owner, ids, new in found if owner == number]
        scored = [x for ids, new in mine for x, s in zip(ids, new, strict=True) if s]
        assert scored == whole
        end = 0
        for position, (ids, new) in enumerate(mine):
            assert new == sorted(new)  # context first
            end += sum(new)
            assert ids == whole[end - len(ids) : end]
            if len(whole) > length:
                assert len(ids) == length
            if position:
                assert new.count(False) >= overlap
        assert (len(mine) == 1) == (len(whole) <= length)


def test_short_texts_are_rows_of_encode(tokenizer):
    plain = encode(TEXTS[:6], tokenizer, length=400)
    (found,) = windows(TEXTS[:6], tokenizer, length=400, overlap=30)
    assert found.owner.tolist() == list(range(6))
    for one, other in zip(plain, found.encoded, strict=True):
        np.testing.assert_array_equal(one, other)


def test_elements_hold_at_most_so_many_windows(tokenizer):
    options = {"length": 16, "overlap": 4}
    parts = list(windows(TEXTS, tokenizer, most=3, **options))
    assert len(parts) > 2
    assert all(len(part.owner) == 3 for part in parts[:-1])
    assert list(rows(parts)) == list(rows(windows(TEXTS, tokenizer, **options)))


def test_a_window_without_new_tokens_is_refused(tokenizer):
    with pytest.raises(InputError, match="--overlap 15: expected 1 to 13"):
        list(windows(TEXTS, tokenizer, length=16, overlap=15))
    with pytest.raises(InputError, match="--overlap -1"):
        list(windows(TEXTS, tokenizer, length=16, overlap=-1))


def test_every_window_begins_as_its_text_does():
    """Plain texts and a template that writes the token itself."""
    tokenizer = beginning_tokenizer()
    tokenizer.chat_template = (
        "<s>{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
    )
    chat = Messages(tuple(conversation(1, turns=3)))
    start = [tokenizer.bos_token_id]
    for text in (TEXTS[-1], chat):
        options = {"length": 16, "overlap": 4, "score": "all"}
        found = list(rows(windows([text], tokenizer, **options)))
        assert len(found) > 3
        tokens = []
        for _, ids, new in found:
            assert ids[:1] == start
            assert not new[0]
            assert len(ids) == 16
            tokens += [x for x, s in zip(ids, new, strict=True) if s]
        whole = encode([text], tokenizer, length=2000, score="all")
        count = int(whole.attention_mask[0].sum())
        assert [*start, *tokens] == whole.input_ids[0, :count].tolist()
        bare = list(rows(windows([text], tokenizer, bos="no", **options)))
        assert not any(start[0] in ids for _, ids, _ in bare)


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_combined_by_a_loop(rule):
    rng = np.random.default_rng(0)
    owner = np.sort(rng.integers(0, 12, 40))
    weights, scores = rng.integers(0, 9, 40), rng.normal(size=40)
    scores[(weights == 0) | (owner == 5)] = np.nan
    found = combined(scores, owner, weights, 13, rule)
    for text in range(13):
        mine = [
            (float(s), int(w))
            for s, w, o in zip(scores, weights, owner, strict=True)
            if o == text and not np.isnan(s)
        ]
        if not mine:
            assert np.isnan(found[text])
        elif rule == "max":
            assert found[text] == max(s for s, _ in mine)
        else:
            mean = sum(s * w for s, w in mine) / sum(w for _, w in mine)
            assert found[text] == pytest.approx(mean, rel=1e-12)
