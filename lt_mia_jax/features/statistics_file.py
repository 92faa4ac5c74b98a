"""Statistics of texts in a file, where the model itself is not at hand.

JSON lines, one row a text: log-probabilities and ranks of the text's own tokens, which
is all that the attack of the package and most published scores need. The fields are
those of `TextRow`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_mia_jax.data.jsonl import Row, kind, read_jsonl, short
from lt_mia_jax.data.tokenize import Encoded, scored_mask
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.layout import FeatureLayout
from lt_mia_jax.features.statistics import TokenStatistics, without_context

_LARGEST = 2**31 - 1
_LOWEST = 3e38  # what 32 bits hold


class TextRow(NamedTuple):
    """One row: what a model says of one text. Step t is that of token t + 1.

    Example:
      >>> from lt_mia_jax.features.statistics_file import TextRow, as_json
      >>> print(as_json(TextRow("a", [5, 6, 7], [-1.5, -0.25], [4, 1])))
      {"id": "a", "token_ids": [5, 6, 7], "log_probs": [-1.5, -0.25], "ranks": [4, 1]}
    """

    id: str
    """As in the file of texts; `data.texts.text_id` where that has none."""
    token_ids: Int[np.ndarray, " T"] | Sequence[int]
    """All tokens of the text, as far as it was scored."""
    log_probs: Float[np.ndarray, " S"] | Sequence[float]
    """Natural logarithm of the probability of each token from the second one on:
    S = T - 1 (0 for a text without tokens)."""
    ranks: Int[np.ndarray, " S"] | Sequence[int]
    """1 + number of tokens that the model prefers strictly, from the second one on."""
    scored: Bool[np.ndarray, " T"] | Sequence[int] | None = None
    """1 for tokens that belong to the scored text, 0 for context, such as a
    beginning-of-text token or what a user said; absent: all belong to it."""
    text: str | None = None
    """The part of the text that the scored tokens stand for. Without it Zlib is left
    out, and the text-only controls see token ids."""
    truncated: bool | None = None
    """Whether `text` is only a part; absent: no."""
    vocab_size: int | None = None
    """Number of logits of the model, by which the learned attack scales ranks."""
    model: str | None = None
    """Name of the model in tables."""
    weights: str | None = None
    """Stands for the weights of the model: other weights, other characters."""


class StatisticsFile(NamedTuple):
    """The rows of one model."""

    path: Path
    rows: Mapping[str, TextRow]
    """By id."""
    model: str
    """Its name in tables; that of the file where no row has one."""
    vocab_size: int | None
    """Number of logits; None when unknown."""
    has_texts: bool
    """Whether every row has the text that was scored."""


def read_statistics(path: Path | str) -> StatisticsFile:
    """Read and check the statistics of one model.

    Fields that `TextRow` has not are ignored.

    Raises:
      InputError: as `read_jsonl`, a row without an id, fields of wrong type or length,
        numbers out of range, or rows of different models.

    Example:
      >>> from pathlib import Path
      >>> from lt_mia_jax.features.statistics_file import read_statistics
      >>> row = '{"id": "a", "token_ids": [5, 6], "log_probs": [-1.5], "ranks": [4]}'
      >>> _ = Path("rows.jsonl").write_text(row)
      >>> read_statistics("rows.jsonl").rows["a"].ranks
      array([4], dtype=int32)
    """
    expected = "rows in it; expected JSON lines with id, token_ids, log_probs, ranks"
    first: TextRow | None = None

    def parse(row: Row) -> TextRow:
        nonlocal first
        found = _parse(row)
        first = first or found
        for name in ("model", "weights", "vocab_size"):
            one, other = getattr(first, name), getattr(found, name)
            if one != other:
                raise InputError(
                    f"{row.where}: {name} {short(other)}, above it {short(one)}; a "
                    "file holds the statistics of one model"
                )
        return found

    rows = read_jsonl(path, parse, expected=expected)
    return StatisticsFile(
        Path(path),
        {row.id: row for row in rows},
        model=rows[0].model or Path(path).name,
        vocab_size=rows[0].vocab_size,
        has_texts=all(row.text is not None for row in rows),
    )


def as_json(row: TextRow) -> str:
    """A row as one line, without its newline; numbers survive as 32-bit floats."""
    values: dict[str, Any] = {
        "id": row.id,
        "token_ids": np.asarray(row.token_ids).tolist(),
        # The shortest digits that name each 32-bit float.
        "log_probs": [float(str(x)) for x in np.asarray(row.log_probs, np.float32)],
        "ranks": np.asarray(row.ranks).tolist(),
    }
    names = ("text", "truncated", "vocab_size", "model", "weights")
    if row.scored is not None and not all(row.scored):
        values["scored"] = [int(each) for each in row.scored]
    values |= {n: getattr(row, n) for n in names if getattr(row, n) is not None}
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def check_numbers(where: str, row: TextRow) -> TextRow:
    """The row with arrays, if lengths and ranges are right.

    `where` opens messages.

    Raises:
      InputError: lengths that do not fit, a log-probability that is not finite or
        above 0, or a token id or rank out of its range.
    """
    ids, log_probs, ranks = row.token_ids, row.log_probs, row.ranks
    steps = max(len(ids) - 1, 0)
    for name, values in (("log_probs", log_probs), ("ranks", ranks)):
        if len(values) != steps:
            raise InputError(
                f"{where}: {len(values)} {name} for {len(ids)} token_ids; expected "
                f"{steps}, one for each token from the second one on"
            )
    if row.scored is not None and len(row.scored) != len(ids):
        raise InputError(
            f"{where}: {len(row.scored)} values in 'scored' for {len(ids)} token_ids; "
            "expected as many"
        )
    wrong = next((x for x in log_probs if not -_LOWEST <= x <= 0), None)
    if wrong is not None:
        raise InputError(
            f"{where}: log-probability {str(wrong)[:40]}; expected finite natural "
            "logarithms of probabilities, at most 0"
        )
    beyond = _LARGEST if row.vocab_size is None else row.vocab_size
    for name, values, least, most in (
        ("token id", ids, 0, beyond - 1),
        ("rank", ranks, 1, beyond),
    ):
        wrong = next((x for x in values if not least <= x <= most), None)
        if wrong is not None:
            why = "" if row.vocab_size is None else " (vocab_size)"
            raise InputError(
                f"{where}: {name} {wrong}; expected {least} to {most}{why}"
            )
    return row._replace(
        token_ids=np.asarray(ids, np.int32).reshape(-1),
        log_probs=np.asarray(log_probs, np.float32).reshape(-1),
        ranks=np.asarray(ranks, np.int32).reshape(-1),
        scored=None if row.scored is None else np.asarray(row.scored, bool).reshape(-1),
    )


def encoded_rows(rows: Sequence[TextRow], length: int) -> Encoded:
    """The tokens of rows as `encode` gives them, padded to `length`."""
    counts = np.array([len(row.token_ids) for row in rows])
    mask = np.arange(length) < counts[:, None]
    scored = mask.copy()
    for marks, row in zip(scored, rows, strict=True):
        if row.scored is not None:
            marks[: len(row.scored)] = row.scored
    return Encoded(
        _padded((row.token_ids for row in rows), length, np.int32),
        mask.astype(np.uint8),
        np.array([bool(row.truncated) for row in rows]),
        scored[:, 1:].sum(axis=1) == 0,
        None if (scored == mask).all() else scored,
    )


def stack(
    target: Sequence[TextRow],
    reference: Sequence[TextRow] | None,
    *,
    length: int,
    k: int = 0,
    vocab_size: int | None = None,
) -> TokenStatistics:
    """Token statistics of texts on the host, padded to `length` tokens.

    Moments are None. With k > 0 and a reference, `columns` hold what follows from the
    rows: log-probabilities and ranks of the true token; the lists of tokens are zero.

    Args:
      target: rows of the model under audit.
      reference: those of the same texts under the reference, or None.
      length: at least the tokens of the longest text.
      k: length of the lists in `columns`; 0 leaves these out.
      vocab_size: scales ranks in `columns`; None leaves them zero.
    """
    encoded = encoded_rows(target, length)
    valid = np.pad(scored_mask(encoded)[:, 1:], ((0, 0), (0, 1)))
    log_prob, rank = _numbers_of(target, valid)
    statistics = TokenStatistics(
        input_ids=encoded.input_ids,
        valid=valid,
        target_log_prob=log_prob,
        target_mean=None,
        target_var=None,
        target_rank=rank,
        target_top1=valid & (rank == 1),
    )
    if reference is not None:
        before, before_rank = _numbers_of(reference, valid)
        columns = None
        if k:
            columns = np.zeros((*valid.shape, FeatureLayout(k).packed_width))
            columns[..., 0] = log_prob - before
            if vocab_size is not None:
                ranks = np.log1p(np.stack([rank, before_rank], axis=-1))
                columns[..., 1:3] = ranks / math.log(vocab_size + 1)
            columns = columns.astype(np.float32)
        statistics = statistics._replace(
            reference_log_prob=before, reference_rank=before_rank, columns=columns
        )
    return without_context(statistics)


def _numbers_of(
    rows: Sequence[TextRow], valid: Bool[np.ndarray, "B T"]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and ranks `"B T"`, zero at other steps."""
    length = valid.shape[1]
    log_prob = _padded((row.log_probs for row in rows), length, np.float32)
    rank = _padded((row.ranks for row in rows), length, np.int32)
    return np.where(valid, log_prob, np.float32(0)), np.where(valid, rank, 0)


def _padded(values: Iterable[Any], length: int, dtype: Any) -> np.ndarray:
    listed = list(values)
    found = np.zeros((len(listed), length), dtype)
    for row, each in zip(found, listed, strict=True):
        row[: len(each)] = each
    return found


def _parse(row: Row) -> TextRow:
    name = row.id
    if name is None:
        raise row.lacks("no 'id' field", "; an id says which text a row belongs to")
    text = None if row.values.get("text") is None else row.string("text")
    scored = None
    if row.values.get("scored") is not None:
        scored = _numbers(row, "scored", (int, bool))
        if not all(each in (0, 1) for each in scored):
            raise InputError(f"{row.where}: 'scored' holds more than 0 and 1")
    found = TextRow(
        name,
        _numbers(row, "token_ids", (int,)),
        _numbers(row, "log_probs", (int, float)),
        _numbers(row, "ranks", (int,)),
        scored,
        text,
        _optional(row, "truncated", bool, "true or false"),
        _optional(row, "vocab_size", int, "an integer"),
        _optional(row, "model", str, "a string"),
        _optional(row, "weights", str, "a string"),
    )
    if found.vocab_size is not None and found.vocab_size < 1:
        raise InputError(
            f"{row.where}: vocab_size {found.vocab_size}; expected 1 or more"
        )
    return check_numbers(row.where, found)


def _numbers(row: Row, name: str, types: tuple[type, ...]) -> list[Any]:
    if name not in row.values:
        raise row.lacks(f"no {name!r} field")
    values = row.values[name]
    if not isinstance(values, list):
        raise InputError(f"{row.where}: {name!r} is a {kind(values)}; expected a list")
    wrong = [x for x in values if type(x) not in types]
    if wrong:
        what = "numbers" if float in types else "integers"
        raise InputError(
            f"{row.where}: {name!r} holds {short(wrong[0])}; expected {what} alone"
        )
    return values


def _optional(row: Row, name: str, wanted: type, expected: str) -> Any:
    value = row.values.get(name)
    if value is not None and type(value) is not wanted:
        raise InputError(
            f"{row.where}: {name!r} is {short(value)}; expected {expected}"
        )
    return value
