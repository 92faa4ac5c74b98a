import hashlib
import json
import random
import zlib

import pytest

from lt_mia_jax.data.texts import (
    Text,
    fingerprint,
    read_texts,
    text_id,
    well_formed,
    write_texts,
    zlib_length,
)
from lt_mia_jax.errors import InputError


def write(tmp_path, content: bytes):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(content)
    return path


def test_rows_in_file_order_with_default_ids(tmp_path):
    path = write(tmp_path, b'{"text": "one"}\n{"text": "two", "label": 1, "id": "b"}\n')
    assert read_texts(path) == [
        Text(text_id("one"), "one", None, 1),
        Text("b", "two", 1, 2),
    ]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_newlines_marks_and_blank_lines(tmp_path, newline, mark):
    rows = [b'{"text": "a"}', b"", b"  ", b'{"text": "b"}', b""]
    texts = read_texts(write(tmp_path, mark + newline.join(rows)))
    assert [(row.text, row.line) for row in texts] == [("a", 1), ("b", 4)]


@pytest.mark.parametrize(
    ("written", "read"),
    [("0", 0), ("1", 1), ("true", 1), ("false", 0), ("1.0", 1), ("null", None)],
)
def test_labels(tmp_path, written, read):
    path = write(tmp_path, b'{"text": "a", "label": %s}' % written.encode())
    assert read_texts(path)[0].label == read


def test_line_separators_inside_a_text_do_not_end_its_line(tmp_path):
    texts = ["a\u2028b", "c\x85d", "e\x0bf\x1cg", "tab\tnewline\nreturn\r"]
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    )
    assert [row.text for row in read_texts(path)] == texts


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", None, "no texts"),
        (b"\n\n", None, "no texts"),
        (b'\xff\xfe{\x00"\x00', None, "UTF-16"),
        (b'{"text": "a"}\n{"text": "b"', 2, "not JSON"),
        (b'{"text": "a"}\r\n\r\n[1]\r\n', 3, "list"),
        (b'{"txt": "a"}', 1, "no 'text' field; the fields are: \"txt\""),
        (b'{"text": 3}', 1, "number"),
        (b'{"text": null}', 1, "null"),
        (b'{"text": "a", "label": 2}', 1, "label 2"),
        (b'{"text": "a", "label": "1"}', 1, "label"),
        (b'{"text": "a", "label": NaN}', 1, "label NaN"),
        (b'{"text": "a", "id": ""}', 1, "id"),
        (b'{"text": "a", "id": 1.5}', 1, "id 1.5"),
        (b'{"text": "a", "id": true}', 1, "id true"),
        (b'{"text": "a", "id": 1}\n{"text": "b", "id": "1"}', 2, "line 1"),
        (b'\n{"text": "\xe4"}', 2, "byte 0xe4 at byte 11 of the line"),
        (b'{"text": ' + b"[" * 100_000, 1, "JSON"),
        (b'{"text": "a", "n": ' + b"9" * 5_000 + b"}", 1, "JSON"),
    ],
)
def test_bad_files_name_line_and_cause(tmp_path, content, line, words):
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_texts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 400


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_texts(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match=r"folder without .txt files"):
        read_texts(tmp_path)


def test_write_then_read_gives_the_texts_back(tmp_path):
    pick = random.Random(0)
    letters = 'ab \n\r\t"\\\u2028é漢😀\x00\x7f'
    rows = [
        Text(str(n), "".join(pick.choices(letters, k=n)), pick.choice([0, 1, None]))
        for n in range(50)
    ]
    path = tmp_path / "new" / "texts.jsonl"
    write_texts(path, rows)
    read = read_texts(path)
    assert [row._replace(line=0) for row in read] == rows
    assert [row.line for row in read] == list(range(1, 51))


def test_a_long_line_and_a_repeated_text(tmp_path):
    long = "x" * 1_000_000
    path = write(tmp_path, json.dumps({"text": long}).encode() + b'\n{"text": "a"}' * 2)
    texts = read_texts(path)
    assert len(texts[0].text) == len(long)
    assert texts[1].id == texts[2].id


def test_lone_surrogates_become_replacement_characters(tmp_path, caplog):
    path = write(tmp_path, b'{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}')
    assert [row.text for row in read_texts(path)] == ["a\ufffdb", "😀"]
    assert "1 line(s), first 1" in caplog.text
    assert well_formed("\udc00\ud83d\ude00\ud800") == "\ufffd😀\ufffd"


def test_ids_ignore_white_space_alone():
    assert text_id(" a\n\tb ") == text_id("a b") != text_id("ab")
    assert text_id("a b") == hashlib.sha256(b"a b").hexdigest()[:16]
    assert len(text_id("\ud800")) == 16


def test_fingerprint_ignores_order():
    ids = [text_id(str(n)) for n in range(20)]
    assert fingerprint(ids) == fingerprint(reversed(ids)) != fingerprint(ids[1:])
    assert fingerprint(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()


@pytest.mark.parametrize("text", ["", "é😀" * 50, "half \ud800 a pair"])
def test_zlib_length_counts_a_whole_stream(text):
    stream = zlib.compressobj(level=6)
    sound = text.replace("\ud800", "\ufffd").encode()
    assert zlib_length(text) == len(stream.compress(sound) + stream.flush())
