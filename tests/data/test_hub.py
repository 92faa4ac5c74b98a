import gzip
import json

import pytest

from lt_mia_jax.data.hub import HUB_DATASETS, HubDataset, data_files, normalized
from lt_mia_jax.errors import InputError


def write_parquet(path, columns):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)


def long(word: str) -> str:
    return (word + " ") * 30


def test_every_data_set_of_the_paper_is_there():
    assert set(HUB_DATASETS) == {
        "ag_news",
        "xsum",
        "wikitext103",
        "wikipedia",
        "news_category_dataset",
        "cnndm",
        "arxiv",
        "swallow_code",
    }
    assert [name for name, row in HUB_DATASETS.items() if row.code] == ["swallow_code"]
    streamed = {name for name, row in HUB_DATASETS.items() if row.streamed}
    assert streamed == {"wikipedia", "arxiv", "swallow_code"}
    capped = {name for name, row in HUB_DATASETS.items() if row.row_cap == 200_000}
    assert capped == streamed | {"wikitext103"}


def test_names_are_normalized():
    assert normalized(" Swallow-Code ") == "swallow_code"
    assert all(normalized(name) == name for name in HUB_DATASETS)


@pytest.mark.parametrize(
    ("name", "row", "text"),
    [
        ("ag_news", {"text": "a", "label": 1}, "a"),
        ("xsum", {"document": "d", "summary": "s"}, "d"),
        ("news_category_dataset", {"headline": "h", "short_description": "s"}, "h s"),
        ("cnndm", {"article": None, "id": "1"}, ""),
        ("swallow_code", {"text": " \n", "code": "c", "body": "b"}, "c"),
        ("swallow_code", {"content": 3, "a": "x", "b": None, "c": "y"}, "x\ny"),
    ],
)
def test_text_of_a_row(name, row, text):
    assert HUB_DATASETS[name].text(row) == text


def test_a_missing_field_is_named():
    with pytest.raises(InputError, match=r"no field document; the fields are text, n"):
        HUB_DATASETS["xsum"].text({"text": "a", "n": 1})


def test_texts_of_parquet_files(tmp_path):
    write_parquet(tmp_path / "data" / "train-00001.parquet", {"text": [long("c")]})
    write_parquet(
        tmp_path / "data" / "train-00000.parquet",
        {"text": [long("a"), None, " " * 80, "x" * 50, "x" * 51, long("b")]},
    )
    write_parquet(tmp_path / "data" / "test-00000.parquet", {"text": [long("no")]})
    texts = list(HUB_DATASETS["ag_news"].texts(tmp_path))
    assert texts == [long("a"), "x" * 51, long("b"), long("c")]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_texts_of_json_lines(tmp_path, ending):
    rows = [{"headline": long("h"), "short_description": f"s{n}"} for n in range(5)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    opened = gzip.compress(content) if ending.endswith(".gz") else content
    (tmp_path / f"news{ending}").write_bytes(opened)
    texts = list(HUB_DATASETS["news_category_dataset"].texts(tmp_path))
    assert texts == [f"{long('h')} s{n}" for n in range(5)]


def test_a_configuration_has_its_own_folder(tmp_path):
    write_parquet(tmp_path / "3.0.0" / "train.parquet", {"article": [long("new")]})
    write_parquet(tmp_path / "1.0.0" / "train.parquet", {"article": [long("old")]})
    assert list(HUB_DATASETS["cnndm"].texts(tmp_path)) == [long("new")]


def test_the_row_cap_counts_rows_before_the_filter(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["short", long("a"), long("b")]})
    dataset = HubDataset(name="made", path="none", row_cap=2)
    assert list(dataset.texts(tmp_path)) == [long("a")]


def test_folders_without_data(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        data_files(tmp_path / "absent", None)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="no Parquet or JSON-lines files"):
        data_files(tmp_path, None)


def test_a_broken_file_is_the_users_error(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match="cannot be read"):
        list(HUB_DATASETS["ag_news"].texts(tmp_path))


def test_no_network_gives_one_line_with_a_way_out():
    with pytest.raises(InputError, match="cannot be loaded from the hub") as caught:
        list(HubDataset(name="x", path="lt-mia-jax-tests/absent").texts())
    assert "folder instead" in str(caught.value)
    assert "\n" not in str(caught.value)
