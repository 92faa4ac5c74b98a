"""Rows of statistics: they survive a file, and wrong ones are named by line."""

import gzip
import json

import numpy as np
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.features.statistics_file import TextRow, as_json, read_statistics, stack

ROW = {"id": "a", "token_ids": [5, 6, 7], "log_probs": [-1.5, -0.25], "ranks": [4, 1]}


def test_numbers_survive_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    log_probs = -rng.exponential(5, 2000).astype(np.float32)
    log_probs[:2] = 0.0, np.finfo(np.float32).tiny * -1
    ids, ranks = rng.integers(0, 50_257, (2, 2001))
    scored = np.arange(2001) > 3
    rest = (scored, "\N{SNOWMAN}", True, 50_257, "m")
    row = TextRow("a", ids, log_probs, 1 + ranks[1:], *rest)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(as_json(row).encode()))
    found = read_statistics(path)
    assert (found.model, found.vocab_size, found.has_texts) == ("m", 50_257, True)
    for one, other in zip(found.rows["a"], row, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(as_json(row)) < 2000 * 30


WRONG = {
    "not JSON": ("hello", "not JSON"),
    "no id": ({"id": None}, "no 'id' field; the fields are: .*which text"),
    "id twice": ({"id": "first"}, 'id "first" already stands on line 1'),
    "no tokens": ({"token_ids": None}, "'token_ids' is a null; expected a list"),
    "text for a number": (
        {"ranks": [1, "2"]},
        "'ranks' holds \"2\"; expected integers",
    ),
    "true for a number": (
        {"ranks": [1, True]},
        "'ranks' holds true; expected integers",
    ),
    "a rank that is no integer": (
        {"ranks": [1, 2.0]},
        "'ranks' holds 2.0; expected integers",
    ),
    "null for the first": (
        {"log_probs": [None, -1.0, -2.0]},
        "'log_probs' holds null; expected numbers",
    ),
    "as many numbers as tokens": (
        {"log_probs": [-1.0] * 3},
        "3 log_probs for 3 token_ids; expected 2, one for each token from the second",
    ),
    "too few ranks": ({"ranks": [1]}, "1 ranks for 3 token_ids; expected 2"),
    "a probability": ({"log_probs": [-1.0, 0.5]}, "log-probability 0.5; expected"),
    "beyond 32 bits": ({"log_probs": [-1.0, -1e39]}, "log-probability -1e.39; exp"),
    "an integer": ({"log_probs": [-1.0, -(10**400)]}, "log-probability -1000"),
    "infinity": ({"log_probs": [-1.0, -np.inf]}, "log-probability -inf; expected fin"),
    "NaN": ({"log_probs": [np.nan, -1.0]}, "log-probability nan; expected finite"),
    "too few marks": ({"scored": [1]}, "1 values in 'scored' for 3 token_ids"),
    "marks of another kind": (
        {"scored": [1, 1, 2]},
        "'scored' holds more than 0 and 1",
    ),
    "rank 0": ({"ranks": [0, 1]}, "rank 0; expected 1 to 2147483647"),
    "a negative id": ({"token_ids": [-1, 2, 3]}, "token id -1; expected 0 to"),
    "an id of many digits": ({"token_ids": [2**40, 2, 3]}, "token id 1099511627776"),
    "no vocabulary": ({"vocab_size": 0}, "vocab_size 0; expected 1 or more"),
    "another model": ({"model": "b"}, 'model "b", above it "a"; a file holds'),
    "other weights": ({"weights": "b"}, 'weights "b", above it null'),
    "another vocabulary": ({"vocab_size": 8}, "vocab_size 8, above it null"),
    "a name that is none": ({"model": 3}, "'model' is 3; expected a string"),
    "a text that is none": ({"text": 3}, "'text' is a number; expected a string"),
    "a flag that is none": (
        {"truncated": "no"},
        "'truncated' is \"no\"; expected true",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_named_by_their_line(case, tmp_path):
    change, words = WRONG[case]
    good = json.dumps({**ROW, "id": "first", "model": "a"})
    line = (
        change if isinstance(change, str) else json.dumps(ROW | {"model": "a"} | change)
    )
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=f"rows.jsonl:2: {words}"):
        read_statistics(tmp_path / "rows.jsonl")


def test_numbers_beyond_the_vocabulary(tmp_path):
    for change, words in (
        ({"token_ids": [5, 6, 8]}, r"token id 8; expected 0 to 7 \(vocab_size\)"),
        ({"ranks": [9, 1]}, r"rank 9; expected 1 to 8 \(vocab_size\)"),
    ):
        line = json.dumps(ROW | {"vocab_size": 8} | change)
        (tmp_path / "rows.jsonl").write_text(line)
        with pytest.raises(InputError, match=words):
            read_statistics(tmp_path / "rows.jsonl")


def test_a_file_without_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows in it; expected JSON lines with id"):
        read_statistics(tmp_path / "rows.jsonl")


def test_texts_of_different_lengths_are_padded_with_zeros():
    rows = [
        TextRow("a", [5, 6, 7], [-1.5, -0.25], [4, 1]),
        TextRow("b", [5], [], []),
        TextRow("c", [], [], []),
    ]
    other = [row._replace(log_probs=[2 * x for x in row.log_probs]) for row in rows]
    found = stack(rows, other, length=4, k=2, vocab_size=9)
    assert found.valid.sum(axis=1).tolist() == [2, 0, 0]
    assert found.target_top1.tolist() == [
        [False, True, False, False],
        *[[False] * 4] * 2,
    ]
    expected = [1.5, *np.log1p([4, 4]) / np.log(10)]
    np.testing.assert_allclose(found.columns[0, 0, :3], expected, rtol=1e-6)
    assert found.columns.shape == (3, 4, 13)
    assert not found.columns[..., 3:].any()
    assert not found.columns[0, 2:].any()
    assert stack(rows, None, length=4, k=2).columns is None


def test_context_has_no_step_and_stands_nowhere():
    """A beginning-of-text token and a prompt, as if only the rest had been given."""
    log_probs, ranks = [-4.0, -3.0, -2.0, -1.0], [9, 8, 7, 1]
    row = TextRow("a", [5, 6, 7, 8, 9], log_probs, ranks, [0, 0, 0, 1, 1])
    other = row._replace(log_probs=[-1.0] * 4)
    found = stack([row], [other], length=6, k=1, vocab_size=9)
    rest = row._replace(
        token_ids=[7, 8, 9], log_probs=[-2, -1], ranks=[7, 1], scored=None
    )
    expected = stack(
        [rest],
        [
            other._replace(
                token_ids=[7, 8, 9], log_probs=[-1, -1], ranks=[7, 1], scored=None
            )
        ],
        length=6,
        k=1,
        vocab_size=9,
    )
    for name in found._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
