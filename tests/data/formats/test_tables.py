import csv
import json

import pytest

from lt_mia_jax.data.formats import streams, tables
from lt_mia_jax.data.questions import read_questions
from lt_mia_jax.data.texts import Text, read_texts
from lt_mia_jax.errors import InputError

ROWS = [
    {"id": "a", "text": 'one, "two"\nthree', "label": 1},
    {"id": "b", "text": "é 漢 😀", "label": 0},
    {"id": "c", "text": "", "label": 0},
]


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows, **options):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


WRITERS = {"csv": write_csv, "parquet": write_parquet}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_table_holds_the_texts_of_the_same_json_lines(kind, tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(x) + "\n" for x in ROWS))
    expected = [row._replace(line=0) for row in read_texts(tmp_path / "t.jsonl")]
    found = read_texts(WRITERS[kind](tmp_path / f"t.{kind}", ROWS))
    assert [row._replace(line=0) for row in found] == expected
    # Columns by another name, and without ids and labels.
    other = [{"x": 1, "body": row["text"] + "."} for row in ROWS]
    path = WRITERS[kind](tmp_path / f"o.{kind}", other)
    assert [row.text for row in read_texts(path, column="body")] == [
        row["text"] + "." for row in ROWS
    ]
    with pytest.raises(InputError, match="no column 'text'; the columns are: 'x', 'bo"):
        read_texts(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_tables_are_checked_as_json_lines_are(kind, tmp_path):
    write = WRITERS[kind]
    path = tmp_path / f"t.{kind}"
    for rows, words in [
        ([{"text": "a", "label": 7}], "label"),
        ([{"text": "a", "id": "1"}, {"text": "b", "id": "1"}], 'id "1" already stands'),
    ]:
        with pytest.raises(InputError, match=words):
            read_texts(write(path, rows))
    write(path, ROWS)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no texts|not a readable Parquet"):
        read_texts(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_questions_of_a_table(kind, tmp_path):
    rows = [
        {"question": "Who?", "answer": "Ann, now.", "value": "Ann"},
        {
            "question": "When?",
            "answer": "Then.",
            "value": "" if kind == "csv" else None,
        },
    ]
    found = read_questions(WRITERS[kind](tmp_path / f"q.{kind}", rows))
    assert [(x.question, x.answer, x.value) for x in found] == [
        ("Who?", "Ann, now.", "Ann"),
        ("When?", "Then.", None),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\na,1\nb\n", r"t\.csv:3: 1 fields, expected 2"),
        ("text\na,b\n", r"t\.csv:2: 2 fields, expected 1"),
        ('text\n"a\nb', "not CSV"),
        ('text\n"a"b\n', r"t\.csv:2: not CSV"),
        ("text,text\na,b\n", "the column 'text' stands there twice"),
        ("text;label\na;1\n", "no column 'text'; the columns are: 'text;label'"),
        ("text,label\na,yes\n", r't\.csv:2: label "yes"'),
    ],
)
def test_broken_csv_names_line_and_cause(content, words, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_texts(path)
    path.write_bytes("text\ncafé\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.csv:2: invalid UTF-8"):
        read_texts(path)


@pytest.mark.parametrize("separator", ["", "\n"])
def test_a_field_without_end_is_refused_before_it_is_held(
    separator, tmp_path, monkeypatch
):
    path = tmp_path / "t.csv"
    path.write_text('text\n"' + ("a" * 60 + separator) * 300)
    before = csv.field_size_limit()
    monkeypatch.setattr(streams, "LONGEST_LINE", 2**12)
    with pytest.raises(InputError, match=r"larger than field limit|a line of more"):
        read_texts(path)
    assert csv.field_size_limit() == before


def test_a_table_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LONGEST_LINE", 2**16)
    path = write_parquet(tmp_path / "t.parquet", [{"text": "a" * 2**12}] * 2**12)
    assert path.stat().st_size < 2**15
    with pytest.raises(InputError, match="more than 100 times its size"):
        read_texts(path)


def test_repeated_values_count_as_often_as_they_stand_there(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(streams, "LONGEST_LINE", 2**16)
    column = pyarrow.DictionaryArray.from_arrays([0] * 2**12, ["a" * 2**12])
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(InputError, match="more than 100 times its size"):
        read_texts(path)


@pytest.fixture
def published(tmp_path):
    """A folder in the layout of a data set of the hub, which its library opens."""
    write_parquet(tmp_path / "train.parquet", [{"text": "a", "label": 3, "id": 1}] * 2)
    write_parquet(tmp_path / "test.parquet", [{"body": "b"}])
    return tmp_path


def test_data_sets_of_the_hub_by_name(published, monkeypatch):
    monkeypatch.chdir(published)
    (published / "set" / "data").mkdir(parents=True)
    (published / "train.parquet").rename("set/data/train-0.parquet")
    found = read_texts("hub:./set")
    assert [row.text for row in found] == ["a", "a"]
    # Classes are no membership, numbers of rows no ids.
    assert {row.label for row in found} == {None}
    assert found[0].id == Text(found[0].id, "a").id != "1"
    (published / "test.parquet").rename("set/data/train-0.parquet")
    with pytest.raises(InputError, match="no column 'text'; the columns are: 'body'"):
        read_texts("hub:./set")
    assert [x.text for x in read_texts("hub:./set::train", column="body")] == ["b"]
    with pytest.raises(InputError, match=r"cannot be loaded from the hub .*Unknown sp"):
        read_texts("hub:./set::validation")


def test_names_on_the_hub():
    assert tables.hub_parts("hub:a/b") == ("a/b", None, "train")
    assert tables.hub_parts("hub:a/b:en") == ("a/b", "en", "train")
    assert tables.hub_parts("hub:a/b:en:test[:9]") == ("a/b", "en", "test[:9]")
    assert not tables.is_hub("a/hub:b")
    with pytest.raises(InputError, match="no data set named"):
        read_texts("hub:")
