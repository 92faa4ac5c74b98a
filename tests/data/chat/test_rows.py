import json

import pytest
from chat_tokenizer import conversation

from lt_mia_jax.data.chat.rows import Completion, Messages
from lt_mia_jax.data.texts import (
    Text,
    check_one_kind,
    read_texts,
    text_id,
    write_texts,
)
from lt_mia_jax.errors import InputError

ASKED = [{"role": "user", "content": "Who?"}]
ANSWERED = [{"role": "assistant", "content": "Ann."}]


def read_one(tmp_path, row, **options):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return read_texts(path, **options)[0]


@pytest.mark.parametrize(
    ("row", "chat"),
    [
        ({"messages": ASKED + ANSWERED}, Messages((*ASKED, *ANSWERED))),
        ({"prompt": ASKED, "completion": ANSWERED}, Messages((*ASKED, *ANSWERED), 1)),
        ({"prompt": "a", "completion": " b"}, Completion("a", " b")),
        ({"text": "a", "messages": 3, "prompt": "b"}, None),
    ],
)
def test_rows_become_conversations_and_are_written_back(row, chat, tmp_path):
    found = read_one(tmp_path, {"id": "x", "label": 1, **row})
    where = f"{tmp_path}/t.jsonl:1"
    assert found.chat == (None if chat is None else chat._replace(where=where))
    write_texts(tmp_path / "again.jsonl", [found])
    again = read_texts(tmp_path / "again.jsonl")[0]
    assert again.content == found.content or again.chat.fields == found.chat.fields
    assert (again.id, again.label, again.text) == ("x", 1, found.text)


def test_conversations_have_ids_of_their_words_and_roles(tmp_path):
    row = {"messages": ASKED + ANSWERED}
    assert read_one(tmp_path, row).id == text_id("user: Who?\nassistant: Ann.")
    swapped = {"messages": [{**ASKED[0], "role": "system"}, *ANSWERED]}
    assert read_one(tmp_path, swapped).id != read_one(tmp_path, row).id


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": ASKED}, "no message with the role 'assistant'"),
        ({"messages": []}, "'messages' is an empty list"),
        ({"messages": "Who?"}, "'messages' is a string"),
        ({"messages": [*ANSWERED, {"role": "user"}]}, "message 2 of 'messages' is"),
        ({"messages": [{**ANSWERED[0], "content": ["a"]}]}, "message 1 of 'messages'"),
        ({"messages": ASKED + ANSWERED, "tools": [{}]}, "'tools' are not rendered"),
        ({"prompt": "a"}, "no 'completion' field beside 'prompt'"),
        ({"prompt": ASKED, "completion": "b"}, "'completion' is a string"),
        ({"prompt": "a", "completion": ANSWERED}, "'completion' is a list"),
        ({"conversations": ASKED}, "no 'text' field; the fields are"),
    ],
)
def test_wrong_rows_name_line_and_field(row, words, tmp_path):
    with pytest.raises(InputError) as caught:
        read_one(tmp_path, row)
    assert words in str(caught.value)
    assert "t.jsonl:1: " in str(caught.value)


def test_a_column_makes_plain_texts(tmp_path):
    row = {"prompt": "a", "completion": "b"}
    assert read_one(tmp_path, row, column="completion").content == "b"


def test_lone_surrogates_in_messages_are_mended(tmp_path):
    path = tmp_path / "t.jsonl"
    content = '{"role": "assistant", "content": "a\\ud800b"}'
    path.write_text('{"messages": [' + content + "]}\n")
    (found,) = read_texts(path)
    assert found.chat.messages[0]["content"] == "a\ufffdb"


def test_a_table_holds_conversations(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"messages": conversation(seed), "label": 1} for seed in range(3)]
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = read_texts(path)
    assert [list(row.chat.messages) for row in found] == [x["messages"] for x in rows]
    (tmp_path / "t.csv").write_text("prompt,completion\na, b\n")
    assert read_texts(tmp_path / "t.csv")[0].chat.fields == {
        "prompt": "a",
        "completion": " b",
    }


def test_one_form_in_all_sets():
    plain, chat = Text("1", "a"), Text("2", "ab", chat=Completion("a", "b"))
    check_one_kind([plain], [plain])
    check_one_kind([chat], [chat])
    with pytest.raises(InputError, match="1 rows are conversations and 2 are plain"):
        check_one_kind([plain, plain], [chat])
