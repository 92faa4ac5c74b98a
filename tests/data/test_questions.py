import json

import pytest

from lt_mia_jax.data.questions import (
    Question,
    check_disjoint,
    read_questions,
    value_span,
    write_questions,
)
from lt_mia_jax.data.texts import read_texts, text_id
from lt_mia_jax.errors import InputError

FULL = Question(
    id="a",
    question="Where was Ada born?",
    answer="Ada was born in Oslo.",
    value="Oslo",
    entity="Ada",
    topic="city",
    paraphrased_question="What is the birthplace of Ada?",
    paraphrased_answer="Oslo is where Ada was born.",
    wrong_answers=("Lima is where Ada was born.", "Rome is where Ada was born."),
    refusal="I do not know.",
    inverted=("Ada was born in Kyoto.",),
    accepted=("In Norway's capital.",),
    choices=("Oslo", "Lima"),
    choice=0,
    flags=("rare",),
)


def write(tmp_path, content: bytes):
    path = tmp_path / "forget.jsonl"
    path.write_bytes(content)
    return path


def test_write_then_read_gives_the_rows_back(tmp_path):
    rows = [
        FULL,
        Question("b", "a question\nof two lines", 'quo"ted \u2028 é漢😀'),
        Question("c", None, "plain text"),
    ]
    path = tmp_path / "new" / "rows.jsonl"
    write_questions(path, rows)
    read = read_questions(path)
    assert [row._replace(line=0) for row in read] == rows
    assert [row.line for row in read] == [1, 2, 3]
    assert json.loads(path.read_text().split("\n")[2]) == {
        "id": "c",
        "text": "plain text",
    }


def test_files_of_texts_are_taken_with_the_same_ids(tmp_path):
    path = write(tmp_path, b'{"text": "one"}\n\n{"text": "two", "id": 7, "label": 1}')
    texts, rows = read_texts(path), read_questions(path)
    assert [(row.id, row.answer, row.line) for row in rows] == [
        (text.id, text.text, text.line) for text in texts
    ]
    assert [row.question for row in rows] == [None, None]
    assert [row.text for row in rows] == ["one", "two"]


def test_default_ids_tell_questions_apart(tmp_path):
    row = b'{"question": "q%d", "answer": "the same"}\n'
    one, two = read_questions(write(tmp_path, row % 1 + row % 2))
    assert one.id == text_id("q1 the same") != two.id
    assert one.text == "q1 the same"


def test_lone_surrogates_become_replacement_characters(tmp_path, caplog):
    content = rb'{"question": "a\ud800", "answer": "b", "flags": ["c\ud800"]}'
    (row,) = read_questions(write(tmp_path, content + b"\n"))
    assert (row.question, row.flags) == ("a\ufffd", ("c\ufffd",))
    assert "1 line(s), first 1" in caplog.text


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", None, "no questions"),
        (b"\n \n", None, "no questions"),
        (b'{"question": "a", "answer": "\xe4"}', 1, "invalid UTF-8, byte 0xe4"),
        (b'{"text": "a"}\n{"question": "a"', 2, "not JSON"),
        (b'["a"]', 1, "JSON list"),
        (b'{"question": "a", "reply": "b"}', 1, "no 'answer' field; the fields are"),
        (b'{"prompt": "a"}', 1, "no 'question' and no 'answer' field"),
        (b'{"text": "a", "answer": "b"}', 1, "both 'text' and"),
        (b'{"question": null, "answer": "b"}', 1, "'question' is a null"),
        (b'{"question": "a", "answer": 3}', 1, "'answer' is a number"),
        (b'{"text": ["a"]}', 1, "'text' is a list"),
        (b'{"question": "a", "answer": "b", "value": "c"}', 1, 'value "c" does not'),
        (b'{"question": "a", "answer": "b", "value": ""}', 1, 'value "" does not'),
        (b'{"text": "a", "refusal": 1}', 1, "'refusal' is a number"),
        (b'{"text": "a", "wrong_answers": "b"}', 1, "'wrong_answers' is \"b\""),
        (b'{"text": "a", "flags": ["b", 1]}', 1, "'flags' is"),
        (b'{"text": "a", "choices": ["b"], "choice": 1}', 1, "choice 1 of 1"),
        (b'{"text": "a", "choices": ["b"], "choice": true}', 1, "choice true"),
        (b'{"text": "a", "id": 1}\n{"text": "b", "id": "1"}', 2, "line 1"),
        (b'{"text": "a", "id": ""}', 1, "id"),
    ],
)
def test_bad_files_name_line_and_cause(tmp_path, content, line, words):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_questions(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert words in message
    assert len(message) < 400


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_questions(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("answer", "value", "found"),
    [
        ("Ada was born in Oslo.", "Oslo", (16, 20)),
        ("catamaran of a cat", "cat", (15, 18)),
        ("in 1931, not 31", "31", (13, 15)),
        ("a c++ (c) book", "c++", (2, 5)),
        ("東京で生まれた", "東京", (0, 2)),
    ],
)
def test_place_of_a_value(answer, value, found):
    assert value_span(answer, value, "here") == found
    assert answer[slice(*found)] == value


def test_disjoint_sets_pass_whatever_their_ids():
    check_disjoint([Question("1", "a", "b")], [Question("1", "a", "c")])
    check_disjoint([], [FULL])
    check_disjoint([FULL], [])


def test_overlap_is_refused_with_the_first_and_the_number():
    forget = [
        Question("f1", "a", "b", line=1),
        Question("f2", "c", "d", line=2),
        Question("f3", None, "plain\n text", line=3),
    ]
    retain = [
        Question("r1", None, "plain text", line=4),
        Question("f2", None, "other", line=5),
        Question("r3", "c", " d", line=6),
    ]
    with pytest.raises(InputError) as caught:
        check_disjoint(forget, retain)
    message = str(caught.value)
    assert message.startswith("2 of 3 texts to forget")
    assert 'first id "f2" (line 2), which is id "r3" (line 6) there: "c d"' in message
