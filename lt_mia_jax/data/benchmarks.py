"""Published unlearning benchmarks, from the Hugging Face hub or from files, as rows."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lt_mia_jax.data.jsonl import well_formed
from lt_mia_jax.data.questions import Question, write_questions
from lt_mia_jax.data.rows import ENDINGS, file_rows, hub_rows, kind_of
from lt_mia_jax.data.texts import text_id
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of a data set holds what. Either `text`, or `question`."""

    text: str | None = None
    """Plain text."""
    question: str | None = None
    """Question, or prompt to go on from."""
    answer: str | None = None
    """A string, a list of right answers (the first is the answer), or, with `choices`,
    the number of the right choice. None: nothing to answer."""
    choices: str | None = None
    """A list, or `{"choices": [...], "labels": [...]}` with a 1 at the right one."""
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    wrong_answers: str | None = None
    """A list, or one string."""
    entity: str | None = None
    topic: str | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One set of a benchmark's rows, and where it is."""

    name: str
    columns: Columns
    config: str | None = None
    """Configuration on the hub; None is the default one."""
    split: str = "train"
    path: str | None = None
    """Repository on the hub; None is the benchmark's."""
    files: tuple[str, ...] = ()
    """Where its files are in a copy of the repository: paths without ending and without
    shard numbers, any of which will do."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark as data: one row of `BENCHMARKS`."""

    name: str
    """On the command line."""
    path: str
    """Repository on the hub."""
    parts: tuple[Part, ...]
    """Its sets of rows."""
    title: str = ""
    """Name in its paper."""
    source: str = ""
    """The paper."""

    def part(self, name: str) -> Part:
        """The part of that name.

        Raises:
          InputError: there is none; the names that there are are listed.
        """
        for part in self.parts:
            if part.name == name:
                return part
        known = ", ".join(part.name for part in self.parts)
        raise InputError(f"benchmark {self.name}: no part {name!r}; expected {known}")


def write_benchmark(
    benchmark: Benchmark,
    out: Path,
    *,
    parts: Sequence[str] = (),
    local: Path | None = None,
    limit: int | None = None,
) -> None:
    """Write each part as `<part>.jsonl` for `read_questions`.

    Args:
      benchmark: one of `BENCHMARKS`, or one of your own.
      out: folder of the files, which are overwritten.
      parts: names of the parts; empty takes all.
      local: see `load_benchmark`.
      limit: maximum rows of each part; None takes all.

    Raises:
      InputError: a limit below 1, or as `load_benchmark`.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: expected at least one row")
    wanted = parts or [part.name for part in benchmark.parts]
    for name in wanted:
        benchmark.part(name)
    for name in wanted:
        rows = load_benchmark(benchmark, name, local=local, limit=limit)
        write_questions(out / f"{name}.jsonl", rows)
        log.info("wrote %s (%d rows)", out / f"{name}.jsonl", len(rows))


def load_benchmark(
    benchmark: Benchmark,
    part: str,
    *,
    local: Path | str | None = None,
    limit: int | None = None,
) -> list[Question]:
    """Read one part of a benchmark, in its order.

    Ids are `text_id` of question and answer, so that a row has the same id in every
    part that holds it; a row that a part repeats gets "-2", "-3" and so on.

    Args:
      benchmark: one of `BENCHMARKS`, or one of your own.
      part: name of the part.
      local: a copy of the repository, or one Parquet, JSON or JSON-lines file with
        the part's rows; None asks the hub.
      limit: read at most so many rows.

    Raises:
      InputError: no such part or files, files or a hub that cannot be read, or a row
        without the columns of the part.
    """
    wanted = benchmark.part(part)
    if local is None:
        path = wanted.path or benchmark.path
        where = f"{path} ({part})"
        rows = hub_rows(path, wanted.config, what=f" ({part})", split=wanted.split)
    else:
        where = f"{local} ({part})"
        rows = file_rows(_files(Path(local), wanted))
    questions = []
    seen: Counter[str] = Counter()
    for number, row in enumerate(islice(rows, limit), 1):
        question = as_question(row, wanted.columns, where=f"{where}, row {number}")
        seen[question.id] += 1
        if seen[question.id] > 1:
            question = question._replace(id=f"{question.id}-{seen[question.id]}")
        questions.append(question)
    if not questions:
        raise InputError(f"{where}: no rows in it; download it again")
    return questions


def as_question(row: Mapping[str, Any], columns: Columns, *, where: str) -> Question:
    """One row of a data set as a question or a plain text.

    Raises:
      InputError: a column is missing or holds another type; the message starts with
        `where`.
    """
    missing = [name for name in vars(columns).values() if name and name not in row]
    if missing:
        raise InputError(
            f"{where}: no column {', '.join(missing)}; the columns are "
            f"{', '.join(map(str, row)) or 'none'}"
        )

    def string(column: str | None) -> str | None:
        return None if column is None else _string(row[column], column, where)

    entity, topic = string(columns.entity), string(columns.topic)
    text = string(columns.text)
    if text is not None:
        return Question(text_id(text), None, text, entity=entity, topic=topic)
    question = string(columns.question)
    answer, accepted, choices, choice = _answer(row, columns, where)
    wrong = [] if columns.wrong_answers is None else row[columns.wrong_answers]
    if choice is not None:
        wrong = [*choices[:choice], *choices[choice + 1 :]]
    return Question(
        id=text_id(f"{question}\n{answer}"),
        question=question,
        answer=answer,
        entity=entity,
        topic=topic,
        paraphrased_question=string(columns.paraphrased_question),
        paraphrased_answer=string(columns.paraphrased_answer),
        wrong_answers=_strings(wrong, columns.wrong_answers, where),
        accepted=accepted,
        choices=choices,
        choice=choice,
    )


def _answer(
    row: Mapping[str, Any], columns: Columns, where: str
) -> tuple[str, tuple[str, ...], tuple[str, ...], int | None]:
    """The answer, further right answers, the choices and which of them is right."""
    if columns.choices is not None:
        options = row[columns.choices]
        if isinstance(options, Mapping):
            labels: list[Any] = list(options.get("labels") or ())
            right = labels.index(1) if 1 in labels else None
            options = options.get("choices")
        else:
            right = row[columns.answer] if columns.answer else None
        choices = _strings(options, columns.choices, where)
        if isinstance(right, bool) or not isinstance(right, int):
            raise InputError(
                f"{where}: right choice {right!r}; expected its number, from 0"
            )
        if not 0 <= right < len(choices):
            raise InputError(f"{where}: right choice {right} of {len(choices)} choices")
        return choices[right], (), choices, right
    if columns.answer is None:
        return "", (), (), None
    answers = _strings(row[columns.answer], columns.answer, where)
    if not answers:
        raise InputError(f"{where}: column {columns.answer} has no answer in it")
    return answers[0], answers[1:], (), None


def _string(value: Any, column: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(
            f"{where}: column {column} holds {type(value).__name__}; expected a string"
        )
    return well_formed(str(value))


def _strings(value: Any, column: str | None, where: str) -> tuple[str, ...]:
    """A list of strings, or one string, as a tuple."""
    values = [value] if isinstance(value, str | int) else value
    if not isinstance(values, Sequence):
        raise InputError(
            f"{where}: column {column} holds {type(value).__name__}; expected strings"
        )
    return tuple(_string(one, str(column), where) for one in values)


def _files(local: Path, part: Part) -> list[Path]:
    """The files of a part in a folder, sorted; or the one file that was given."""
    if local.is_file():
        if kind_of(local) is None:
            known = ", ".join(chain(*ENDINGS.values()))
            raise InputError(f"{local}: expected a file ending in {known}")
        return [local]
    if not local.is_dir():
        raise InputError(f"{local}: no such file or folder")
    for stem in part.files:
        found = sorted(path for path in local.resolve().rglob("*") if _is(path, stem))
        if found:
            return [path for path in found if kind_of(path) == kind_of(found[0])]
    expected = " or ".join(f"{stem}.json or .parquet" for stem in part.files)
    raise InputError(f"{local}: no files of part {part.name}; expected {expected}")


def _is(path: Path, stem: str) -> bool:
    """Whether a path ends in a stem, a shard number at most, and a known ending."""
    *folders, name = Path(stem).parts
    if kind_of(path) is None or not path.is_file():
        return False
    if folders and path.parts[-1 - len(folders) : -1] != tuple(folders):
        return False
    return path.name.startswith((f"{name}.", f"{name}-0"))
