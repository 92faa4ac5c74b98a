import gzip
import io
import zipfile

import pytest

from lt_mia_jax.data.formats import streams
from lt_mia_jax.data.texts import read_texts
from lt_mia_jax.errors import InputError

LINE = '{"text": "one"}\n'


def zstandard(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(content, "zstd", asbytes=True)


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("texts.jsonl", content)
    return file.getvalue()


def parquet(content: bytes) -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": [content.decode()]}), file)
    return file.getvalue()


PACKERS = {"gz": gzip.compress, "zst": zstandard}


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_compressed_lines_are_those_of_the_plain_file(ending, mark, tmp_path):
    content = mark + (LINE + '{"text": "é\\n漢", "id": 7, "label": 1}\r\n').encode()
    (tmp_path / "plain.jsonl").write_bytes(content)
    packed = PACKERS[ending](content)
    if ending == "gz":  # several members are one file
        packed = gzip.compress(content[:9]) + gzip.compress(content[9:])
    path = tmp_path / f"packed.jsonl.{ending}"
    path.write_bytes(packed)
    assert read_texts(path) == read_texts(tmp_path / "plain.jsonl")


@pytest.mark.parametrize(
    ("pack", "words"),
    [
        (gzip.compress, "compressed with gzip"),
        (zstandard, "compressed with Zstandard"),
        (zipped, "a ZIP archive"),
        (parquet, "a Parquet file"),
        (lambda text: text.decode().encode("utf-32"), "encoded as UTF-32"),
        (lambda text: text.decode().encode("utf-32-be"), "encoded as UTF-32"),
        (lambda text: text.decode().encode("utf-16"), "encoded as UTF-16"),
        (lambda text: text.decode().encode("utf-16-le"), "encoded as UTF-16"),
    ],
)
@pytest.mark.parametrize("name", ["texts.jsonl", "texts.csv"])
def test_another_content_than_the_name_says_is_named(pack, words, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(pack(LINE.encode()))
    with pytest.raises(InputError, match=rf"{name}: {words}"):
        read_texts(path)


def test_zeros_are_no_encoding(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b"\0" * 99)
    with pytest.raises(InputError, match=r"jsonl:1: not JSON"):
        read_texts(path)


@pytest.mark.parametrize("ending", PACKERS)
def test_what_cannot_be_unpacked_is_one_line(ending, tmp_path):
    path = tmp_path / f"texts.jsonl.{ending}"
    path.write_text(LINE)
    with pytest.raises(InputError, match="not compressed with"):
        read_texts(path)
    whole = bytearray(PACKERS[ending](LINE.encode() * 2000))
    path.write_bytes(whole[:-9])
    with pytest.raises(InputError, match=r"cannot be unpacked|unpacks to more"):
        read_texts(path)
    whole[20] ^= 255
    path.write_bytes(whole)
    with pytest.raises(InputError):
        read_texts(path)


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("line", [b"\n", LINE.encode()])
def test_a_small_file_that_unpacks_without_end_is_refused(
    ending, line, tmp_path, monkeypatch
):
    monkeypatch.setattr(streams, "LONGEST_LINE", 2**14)
    monkeypatch.setattr(streams, "RATIO", 10)
    path = tmp_path / f"texts.jsonl.{ending}"
    path.write_bytes(PACKERS[ending](line * 2**16))
    assert path.stat().st_size < 2**13
    with pytest.raises(InputError, match="more than 10 times its size"):
        read_texts(path)


def test_one_endless_line_is_refused_before_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LONGEST_LINE", 2**14)
    path = tmp_path / "texts.jsonl.gz"
    path.write_bytes(gzip.compress(b"a" * 2**15, compresslevel=0))
    with pytest.raises(InputError, match=r"gz:1: a line of more than 16384 bytes"):
        read_texts(path)
