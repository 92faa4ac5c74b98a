import json
import os

import pytest

from lt_mia_jax.data.formats import streams
from lt_mia_jax.data.jsonl import read_jsonl
from lt_mia_jax.errors import InputError

GOOD = '{"text": "a"}\n'


def read(path):
    return read_jsonl(path, lambda row: row.values, expected="rows")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a", "text": "b"}', 'the key "text" stands there twice'),
        ('{"text": "a", "te\\u0078t": "b"}', 'the key "text" stands there twice'),
        ('{"text": "a", "more": {"x": 1, "x": 1}}', 'the key "x" stands there twice'),
        ('{"text": "a", "x": ' + "[" * 200 + "]" * 200 + "}", "more than 100 levels"),
        ('{"text": "a", "x": ' + "[" * 100_000, "more than 100 levels"),
        ('{"text": "a", "x": ' + "7" * 5000 + "}", "5000 digits"),
    ],
)
def test_what_has_two_readings_or_none_is_refused_with_its_line(tmp_path, line, words):
    path = tmp_path / "t.jsonl"
    path.write_text(GOOD + line + "\n")
    with pytest.raises(InputError, match=r"t\.jsonl:2: .*" + words):
        read(path)


def test_brackets_in_a_text_are_no_depth(tmp_path):
    row = {"text": "[{(" * 2000, "flags": [["a"], {"b": []}]}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert read(path) == [row]


def test_a_line_has_a_longest_length(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    path.write_text(GOOD * 3 + '{"text": "' + "a" * 50 + '"}\n')
    monkeypatch.setattr(streams, "LONGEST_LINE", 63)
    assert len(read(path)) == 4
    monkeypatch.setattr(streams, "LONGEST_LINE", 62)
    with pytest.raises(InputError, match=r"t\.jsonl:4: a line of more than 62 bytes"):
        read(path)
    assert streams.LONGEST_LINE < len(path.read_bytes())


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(InputError, match="expected a regular file"):
            read(path)
