import hashlib
import json
import math
import os
import random

import numpy as np
import pytest

from lt_mia_jax import files
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import (
    content_sha256,
    fingerprint,
    parse_json,
    read_json,
    sha256_file,
    verify_manifest,
    write_atomic,
    write_json,
    write_manifest,
)


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, "old")

    class Broken:
        def decode(self):  # pragma: no cover - never reached
            return ""

    with pytest.raises(TypeError):
        write_atomic(path, Broken())  # type: ignore[arg-type]
    assert path.read_text() == "old"


def test_write_into_a_file_as_folder_is_one_clear_line(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        write_atomic(tmp_path / "f" / "g", "y")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes instead"),
        (lambda p: p.write_bytes(b"\x01" + p.read_bytes()[1:]), "SHA-256"),
    ],
)
def test_manifest_names_what_is_damaged(tmp_path, damage, word):
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(os.urandom(64))
    written = write_manifest(tmp_path, ["a.bin", "b.bin"], kind="test")
    assert verify_manifest(tmp_path) == written
    damage(tmp_path / "b.bin")
    with pytest.raises(InputError) as caught:
        verify_manifest(tmp_path)
    assert word in str(caught.value)
    assert "b.bin" in str(caught.value)
    assert "a.bin" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"step": 3', '"step": 7'), ("a.bin", "b.bin"), ('"digest"', '"x"')],
)
def test_a_manifest_vouches_for_itself(tmp_path, old, new):
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"the same")
    write_manifest(tmp_path, ["a.bin"], step=3)
    text = (tmp_path / "manifest.json").read_text()
    assert text.count(old) == 1
    (tmp_path / "manifest.json").write_text(text.replace(old, new))
    with pytest.raises(InputError, match="its content does not have the SHA-256"):
        verify_manifest(tmp_path)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_sha256_is_the_standard_one(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f").startswith("ba7816bf8f01cfea")


def test_a_fingerprint_is_sha256_of_the_parts_in_order():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    whole = b"\x00\xffname\xc3\xa9" + b'{"a": [1, 2.5], "b": null}'
    whole += b"".join(int(n).to_bytes(4, "little") for n in (0, 3, 1, 4, 2, 5))
    found = fingerprint(b"\x00\xff", "nameé", {"b": None, "a": (1, 2.5)}, array.T)
    assert found == hashlib.sha256(whole).hexdigest()
    assert fingerprint("a", "b") == fingerprint("ab") != fingerprint("ba")
    with pytest.raises(TypeError, match="JSON serializable"):
        fingerprint({"a": object()})


TWICE = ['{"a": 1, "a": 1}', '[{"b": {"x": 0, "\\u0061": 1, "a": 2}}]']


@pytest.mark.parametrize("text", TWICE)
def test_a_key_twice_has_no_reading(text):
    assert json.loads(text)
    with pytest.raises(ValueError, match='the key "a" stands there twice'):
        parse_json(text)


@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_deep_json_is_refused_before_a_stack_ends(depth, pair):
    def nested(levels: int) -> str:
        return pair[:-1] * (levels - 1) + ("[]" if pair == "[]" else "{}")

    def closed(levels: int) -> str:
        return nested(levels) + pair[-1] * (levels - 1)

    with pytest.raises(ValueError, match="nested more than 100 levels"):
        parse_json(closed(depth))
    assert parse_json(closed(100)) == json.loads(closed(100))


def test_other_json_reads_as_in_the_standard_library():
    rng = random.Random(0)

    def value(depth: int):
        kind = rng.randrange(8 if depth else 6)
        if kind >= 6:
            inner = [value(depth - 1) for _ in range(rng.randrange(5))]
            return inner if kind == 6 else {f"k{i}[{{": x for i, x in enumerate(inner)}
        simple = (None, True, rng.randrange(-(10**30), 10**30), rng.random())
        return (*simple, "[{" * 60 + "\ud800é", math.inf)[kind]

    for _ in range(300):
        text = json.dumps(value(5), ensure_ascii=rng.random() < 0.5)
        for encoding in ("utf-8", "utf-16", "utf-8-sig"):
            data = text.encode(encoding, "surrogatepass")
            assert parse_json(data) == json.loads(data)
        assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("content", ["", "{", "[1] 2", "1" * 5000, "[" * 100_000])
def test_what_is_no_json_is_one_clear_line(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"x\.json: not valid JSON \("):
        read_json(path)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, found in (
        (tmp_path / "pipe", "found a pipe or device"),
        ("/dev/zero", "found a pipe or device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "no such file"),
        (tmp_path / ("x" * 5000), "File name too long"),
    ):
        with pytest.raises(InputError, match=found):
            read_json(path)


def test_json_has_a_largest_size(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text('"' + "x" * 98 + '"')
    monkeypatch.setattr(files, "LARGEST_JSON", 100)
    assert len(read_json(tmp_path / "x.json")) == 98
    monkeypatch.setattr(files, "LARGEST_JSON", 99)
    with pytest.raises(InputError, match="more than 99 bytes"):
        read_json(tmp_path / "x.json")


def test_content_hash_of_files_and_folders(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    expected = hashlib.sha256(b"one").hexdigest()
    assert content_sha256(tmp_path / "a") == expected
    (tmp_path / "b").write_bytes(b"two")
    second = hashlib.sha256(b"two").hexdigest()
    listed = f"a\0{expected}\nb\0{second}\n".encode()
    assert content_sha256(tmp_path) == hashlib.sha256(listed).hexdigest()
    for name in (".hidden", "run.json", "folder/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no part of it")
    assert content_sha256(tmp_path) == hashlib.sha256(listed).hexdigest()
    (tmp_path / "b").rename(tmp_path / "d")
    assert content_sha256(tmp_path) != hashlib.sha256(listed).hexdigest()
    os.mkfifo(tmp_path / "pipe")
    assert content_sha256(tmp_path / "pipe") is None
    assert content_sha256(tmp_path / "absent") is None


def test_content_hash_sees_a_changed_file_of_the_same_size(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = content_sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 10**9))
    assert content_sha256(path) == hashlib.sha256(b"two").hexdigest() != first


def test_texts_in_folders_of_a_folder_count_as_they_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / ".out").mkdir()
    seen = []
    for name in ("in/a.txt", "in/B.TXT", "in/c.csv", "in/.d.txt", ".out/e.txt"):
        (tmp_path / name).write_text("text")
        seen.append(content_sha256(tmp_path))
    assert None not in seen
    assert len({*seen[:2]}) == 2
    assert {*seen[2:]} == {seen[1]}
