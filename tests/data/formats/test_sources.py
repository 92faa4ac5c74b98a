import pytest

from lt_mia_jax.data.formats import streams
from lt_mia_jax.data.formats.sources import source_name
from lt_mia_jax.data.questions import read_questions
from lt_mia_jax.data.texts import Text, read_texts
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import content_sha256


@pytest.fixture
def folder(tmp_path):
    content = {
        "b.txt": b"one\r\ntwo\n",
        "a/z.txt": "\ufeffé".encode(),
        "a/Y.TXT": b"",
        ".hidden.txt": b"\xff",
        ".git/c.txt": b"\xff",
        "notes.md": b"no text",
    }
    for name, text in content.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return tmp_path / "texts"


def test_a_folder_gives_its_text_files_by_relative_path(folder, caplog):
    assert read_texts(folder) == [
        Text("a/Y.TXT", "", None, 0),
        Text("a/z.txt", "é", None, 0),
        Text("b.txt", "one\ntwo\n", None, 0),
    ]
    assert "1 empty files, first a/Y.TXT" in caplog.text


def test_a_folder_of_plain_texts_can_be_forgotten(folder):
    rows = read_questions(folder)
    assert [(row.id, row.question) for row in rows] == [
        ("a/Y.TXT", None),
        ("a/z.txt", None),
        ("b.txt", None),
    ]


def test_a_changed_file_inside_a_folder_is_another_input(folder):
    before = content_sha256(folder)
    (folder / ".git" / "d").write_text("x")
    assert content_sha256(folder) == before
    (folder / "a" / "z.txt").write_text("other")
    assert content_sha256(folder) != before


def test_files_of_a_folder_are_text_in_utf_8_and_not_endless(folder, monkeypatch):
    (folder / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"c\.txt: invalid UTF-8, byte 0xe9"):
        read_texts(folder)
    (folder / "c.txt").write_bytes("café".encode("utf-16"))
    with pytest.raises(InputError, match=r"c\.txt: encoded as UTF-16"):
        read_texts(folder)
    (folder / "c.txt").unlink()
    (folder / "c.txt").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="expected a regular file"):
        read_texts(folder)
    (folder / "c.txt").unlink()
    monkeypatch.setattr(streams, "LONGEST_LINE", 8)
    with pytest.raises(InputError, match=r"b\.txt: more than 8 bytes"):
        read_texts(folder)


def test_one_text_file_and_a_folder_without_any_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"give a folder of .txt files"):
        read_texts(folder / "b.txt")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"a folder without .txt files"):
        read_texts(tmp_path / "none")


def test_a_column_of_json_lines(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"body": "one", "id": 3, "label": 0}\n{"text": "two"}\n')
    with pytest.raises(InputError, match=r":2: no 'body' field; .* \"text\""):
        read_texts(path, column="body")
    path.write_text('{"body": "one", "text": "other", "id": 3, "label": 0}\n')
    assert read_texts(path, column="body") == [Text("3", "one", 0, 1)]
    assert read_questions(path, column="body")[0].answer == "one"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/texts.jsonl", "texts"),
        ("a/texts.v2.json.gz", "texts.v2"),
        ("texts.jsonl.zst", "texts"),
        ("a/folder/", "folder"),
        ("x.csv", "x"),
        ("hub:org/name:config:test", "name"),
    ],
)
def test_short_names(path, name):
    assert source_name(path) == name
