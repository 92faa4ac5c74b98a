import json

import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.training import MetricsWriter


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_read_back(tmp_path):
    path = tmp_path / "deep" / "history.jsonl"
    expected = [{"step": s, "loss": 1 / s} for s in (1, 2, 3)]
    with MetricsWriter(path) as writer:
        for row in expected:
            writer.write(row)
    assert rows(path) == expected


def test_rewind_drops_a_torn_line_and_later_rows(tmp_path):
    path = tmp_path / "history.jsonl"
    lines = [json.dumps({"step": s, "loss": 0.5}) for s in range(1, 6)]
    path.write_text("\n".join(lines) + '\n{"step": 3, "lo')
    writer = MetricsWriter(path)
    writer.rewind(3)
    assert [row["step"] for row in rows(path)] == [1, 2, 3]
    writer.write({"step": 4, "loss": 0.1})
    writer.close()
    assert rows(path)[-1] == {"step": 4, "loss": 0.1}


def test_rewind_to_nothing(tmp_path):
    path = tmp_path / "history.jsonl"
    MetricsWriter(path).rewind(0)
    assert not path.exists()
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n')
    MetricsWriter(path).rewind(0)
    assert path.read_bytes() == b""


def test_a_full_disk_is_an_input_error():
    writer = MetricsWriter("/dev/full")
    writer.write({"step": 1})
    with pytest.raises(InputError, match="free space"):
        writer.flush()
    with pytest.raises(InputError, match="free space"):
        writer.close()


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        MetricsWriter(tmp_path / "h.jsonl").write({"step": 1, "loss": float("nan")})
