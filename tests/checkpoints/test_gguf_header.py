import contextlib
import random
import struct

import pytest
from gguf_files import refused
from model_zoo import configs

from lt_mia_jax.checkpoints import load_model
from lt_mia_jax.checkpoints.gguf_header import check_header
from lt_mia_jax.errors import InputError

U8, STRING, ARRAY = 0, 8, 9


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(*values: bytes, version: int = 3) -> bytes:
    """Values are a type and its content."""
    pairs = b"".join(text(b"key%d" % i) + value for i, value in enumerate(values))
    return struct.pack("<4sIQQ", b"GGUF", version, 0, len(values)) + pairs


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count) + content


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(array(U8, 2**40)), "an array of 1099511627776 entries"),
        (header(array(STRING, 2**40)), "an array of 1099511627776 entries"),
        (header(array(U8, 2**20, b"x")), "the header ends"),
        (header(array(STRING, 2**20, text(b"x"))), "the header ends"),
        (header(array(ARRAY, 1, array(U8, 1)[4:] * 50_000)), "an array of arrays"),
        (header(struct.pack("<I", 77)), "type 77"),
        (header(struct.pack("<IQ", STRING, 2**63) + b"abc"), "the header ends"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**60), "the header ends"),
        (header(version=99), "version 99"),
        (header(version=3 << 24), "byte order"),
        (b"GGUF", "the header ends"),
        (b"", "the file is empty"),
    ],
)
def test_counts_beyond_the_file_are_refused_at_once(tmp_path, data, words):
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=words):
        check_header(tmp_path / "m.gguf")
    refused(tmp_path / "m.gguf", r"m\.gguf: not a complete GGUF file \(ValueError: ")


def test_the_headers_of_real_files_pass(write):
    check_header(write(configs()["llama"], change=_with_arrays))


def _with_arrays(metadata, tensors):
    metadata["tokenizer.ggml.tokens"] = ["a", "bc", "é"] * 50
    metadata["tokenizer.ggml.scores"] = [0.5, 1.5]


def test_random_damage_of_a_header_gives_one_line_or_the_model(write, tmp_path):
    data = write(configs()["llama"], change=_with_arrays).read_bytes()
    rng = random.Random(0)
    for _ in range(40):
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            number = struct.pack("<Q", rng.getrandbits(rng.choice([8, 64])))
            at = rng.randrange(8, 1500)
            broken[at : at + 8] = number
        (tmp_path / "b.gguf").write_bytes(broken)
        with contextlib.suppress(InputError):
            load_model(tmp_path / "b.gguf")
