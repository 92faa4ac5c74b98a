import pytest
from chat_tokenizer import (
    MARKED,
    TEMPLATE,
    beginning_tokenizer,
    by_offsets,
    chat_tokenizer,
    conversation,
    real,
)

from lt_mia_jax.data.chat.rendering import NO_RESPONSE, check_responses, render
from lt_mia_jax.data.chat.rows import Completion, Messages
from lt_mia_jax.data.tokenize import encode, flag_texts, lower_case, scored_texts
from lt_mia_jax.errors import InputError


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


def chat(seed: int, **options) -> Messages:
    return Messages(tuple(conversation(seed, **options)))


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
@pytest.mark.parametrize("turns", [1, 3])
def test_every_assistant_turn_is_the_response(template, turns):
    tokenizer = chat_tokenizer(template)
    for seed in range(5):
        found = render(chat(seed, turns=turns), tokenizer)
        assert (found.ids, found.response) == by_offsets(
            tokenizer, conversation(seed, turns=turns)
        )
        assert not found.ends


def test_tokens_are_those_that_transformers_gives(tokenizer):
    messages = conversation(3)
    expected = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    encoded = encode([Messages(tuple(messages))], tokenizer, length=len(expected))
    assert real(encoded, 0)[0] == expected  # no end-of-text token after it
    whole = encode([Messages(tuple(messages))], tokenizer, length=200, score="all")
    assert real(whole, 0) == (expected, [True] * len(expected))
    assert whole.scored is None


def test_a_prompt_of_messages_is_context_whoever_speaks(tokenizer):
    messages = conversation(4, turns=2)
    found = render(Messages(tuple(messages), prompt=4), tokenizer)
    ids, marks = by_offsets(tokenizer, messages)
    first = len(ids) - marks[::-1].index(False)  # of the last turn alone
    assert found.ids == ids
    assert found.response == [n >= first for n in range(len(ids))]


def test_a_completion_follows_its_prompt_and_ends(tokenizer):
    rows = [("the model said", " the small cloud"), ("", "the river"), ("a text", "")]
    encoded = encode([Completion(*row) for row in rows], tokenizer, length=24)
    end = tokenizer.eos_token_id
    for row, (prompt, completion) in enumerate(rows):
        parts = [tokenizer(x, add_special_tokens=False) for x in (prompt, completion)]
        before, after = (part["input_ids"] for part in parts)
        marks = [False] * len(before) + [True] * len(after) + [bool(after)]
        assert real(encoded, row) == ([*before, *after, end], marks)
    assert encoded.empty.tolist() == [False, False, True]
    assert flag_texts(encoded)[2] == [NO_RESPONSE]


def test_a_border_inside_a_token_is_flagged_and_not_guessed(tokenizer, caplog):
    whole = tokenizer("the model", add_special_tokens=False)["input_ids"]
    before = tokenizer("the ", add_special_tokens=False)["input_ids"]
    assert whole[: len(before)] != before  # the space belongs to the next word
    encoded = encode([Completion("the ", "model")], tokenizer, length=16)
    assert not encoded.scored.any()
    flags = flag_texts(encoded)
    assert flags == [[NO_RESPONSE]]
    with pytest.raises(InputError, match=r"all 1 texts have no token of the response"):
        check_responses(flags, 16)
    check_responses([*flags, []], 16)
    assert "1 of 2 texts have no token" in caplog.text


def test_a_template_that_rewrites_earlier_turns_is_flagged():
    """As those do that take the thoughts out of all turns but the last."""
    tokenizer = chat_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last else m.content[:3] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = render(chat(0, turns=2), tokenizer)
    assert not any(found.response)
    assert render(Messages(tuple(conversation(0, turns=2)), 4), tokenizer).ids


def test_without_a_template_and_with_one_that_refuses(tokenizer):
    with pytest.raises(InputError, match=r"no chat template.*chat_template\.jinja"):
        render(chat(0), chat_tokenizer(None))
    strict = chat_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match=r"^t\.jsonl:3: .*roles must alternate"):
        render(chat(0)._replace(where="t.jsonl:3"), strict)
    # Templates are data of the model: they run in a sandbox.
    evil = chat_tokenizer("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InputError, match="SecurityError"):
        render(chat(0), evil)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_cut_on_the_left_keeps_the_response(side, tokenizer):
    ids, marks = by_offsets(tokenizer, conversation(5, turns=1, words=12))
    length = sum(marks) + 3
    chats = [Messages(tuple(conversation(5, turns=1, words=12)))]
    encoded = encode(chats, tokenizer, length=length, side=side)
    cut = slice(-length, None) if side == "left" else slice(length)
    assert real(encoded, 0) == (ids[cut], marks[cut])
    assert encoded.truncated.all()
    assert encoded.empty[0] == (side == "right")


def test_a_cut_context_does_not_end_as_a_response(tokenizer):
    encoded = encode([Completion("the text " * 30, " said")], tokenizer, length=8)
    assert real(encoded, 0)[0][-1] == tokenizer.eos_token_id
    assert not encoded.scored.any()


@pytest.mark.parametrize("side", ["right", "left"])
def test_scored_texts_and_lower_case_see_the_response_alone(side, tokenizer):
    shouted = [
        Messages(
            tuple({**m, "content": m["content"].upper()} for m in conversation(seed))
        )
        for seed in range(3)
    ]
    texts = [*shouted, Completion("The Prompt", " The Completion é")]
    encoded = encode(texts, tokenizer, length=400, side=side)
    words = scored_texts(texts, encoded, tokenizer)
    for text, each in zip(shouted, words, strict=False):
        turns = [m["content"] for m in text.messages if m["role"] == "assistant"]
        assert each == "\n".join([*turns, ""])
    assert words[3] == " The Completion é"
    lower = lower_case(texts, encoded, tokenizer, side=side)
    assert scored_texts(texts, lower, tokenizer) == [each.lower() for each in words]
    for row in range(4):
        context = [
            [x for x, mark in zip(*real(some, row), strict=True) if not mark]
            for some in (encoded, lower)
        ]
        assert context[0] == context[1]
        ends = [real(some, row)[0][-1] for some in (encoded, lower)]
        assert ends[0] == ends[1]


def test_a_template_writes_the_beginning():
    tokenizer = beginning_tokenizer(adds=False)
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    messages = conversation(2)
    ids, marks = by_offsets(tokenizer, messages)
    chats, begin = [Messages(tuple(messages))], [tokenizer.bos_token_id]
    for score, expected in [("response", marks), ("all", [True] * len(ids))]:
        for length, side in [(400, "right"), (sum(marks) + 1, "left")]:
            encoded = encode(chats, tokenizer, length=length, side=side, score=score)
            kept = slice(-(length - 1), None) if side == "left" else slice(None)
            assert real(encoded, 0) == ([*begin, *ids[kept]], [False, *expected[kept]])
    assert real(encode(chats, tokenizer, length=400, bos="no"), 0) == (ids, marks)
    tokenizer.chat_template = TEMPLATE
    assert real(encode(chats, tokenizer, length=400), 0) == (ids, marks)
    asked = encode(chats, tokenizer, length=400, bos="yes")
    assert real(asked, 0) == ([*begin, *ids], [False, *marks])
