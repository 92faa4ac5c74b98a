"""A run that is killed at any byte loses one row, and nobody else's file."""

import os

import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.features.statistics_file import TextRow, as_json
from lt_mia_jax.features.statistics_writer import appending, present_rows

COMMON = {"model": "m", "weights": None, "vocab_size": 9}
ROWS = [
    TextRow(name, [1, 2], [-1.5], [3], [0, 1], text, False, **COMMON)
    for name, text in (("a", 'He said "}".'), ('b\\"', "\N{SNOWMAN} {}"), ("c", ""))
]
WANTED = {row.id: row for row in ROWS}


def write(path):
    done = present_rows(path, WANTED, COMMON)
    with appending(path) as append:
        for row in ROWS:
            if row.id not in done:
                append(row)
    return len(ROWS) - len(done)


def test_a_file_cut_at_any_byte_becomes_whole_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert write(path) == 3
    whole = path.read_bytes()
    assert whole == "".join(as_json(row) + "\n" for row in ROWS).encode()
    assert path.stat().st_mode & 0o777 == 0o600
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # A row without its newline is complete.
        missing = sum(end - 1 > cut for end in ends)
        assert write(path) == missing, whole[:cut]
        assert path.read_bytes() == whole


FOREIGN = {
    "words": b"hello",
    "lines": b"hello\nworld",
    "texts": b'{"id": "a", "text": "b"}\n',
    "texts without an end": b'{"id": "a", "text": "b"}\n{"id": "c", "text": "d',
    "a list": b"[1, 2",
    "bytes": bytes(range(256)),
    "another order": b'{"text": "a", "id": "b", "token_ids": [1], "log_probs": [',
}


@pytest.mark.parametrize("case", FOREIGN)
def test_the_files_of_others_are_not_touched(case, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(FOREIGN[case])
    with pytest.raises(InputError, match=r"rows\.jsonl"):
        write(path)
    assert path.read_bytes() == FOREIGN[case]


def test_rows_of_something_else_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path)
    for common, changes, words in (
        ({"model": "other"}, {}, 'model "m", expected "other"'),
        ({"weights": "0"}, {}, 'weights null, expected "0"'),
        ({"vocab_size": None}, {}, "vocab_size 9, expected null"),
        ({}, {"token_ids": [1, 3]}, 'other tokens for text "a"'),
        ({}, {"scored": None}, 'other tokens for text "a"'),
    ):
        changed = WANTED | {"a": WANTED["a"]._replace(**changes)}
        with pytest.raises(InputError, match=words):
            present_rows(path, changed, COMMON | common)
    # Rows of texts that are not asked for stay.
    assert present_rows(path, {}, COMMON) == frozenset(WANTED)


def test_a_run_that_writes_nothing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), appending(tmp_path / "rows.jsonl"):
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot write .*another --out"),
        appending(tmp_path / "file" / "rows.jsonl"),
    ):
        pass
