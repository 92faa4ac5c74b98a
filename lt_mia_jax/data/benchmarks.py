"""Published unlearning benchmarks as questions, from the hub or from files."""

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
    """Names of a data set's columns. Either `text` or `question` is given."""

    text: str | None = None
    """Plain text."""
    question: str | None = None
    """Question, or prompt to continue."""
    answer: str | None = None
    """A string, a list of correct answers (the first is the answer), or, with
    `choices`, the number of the correct choice. None: no answer."""
    choices: str | None = None
    """A list, or `{"choices": [...], "labels": [...]}` with a 1 at the correct one."""
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    wrong_answers: str | None = None
    """A list, or one string."""
    entity: str | None = None
    topic: str | None = None


@dataclass(frozen=True)
class Part:
    """One set of a benchmark's rows, and its location."""

    name: str
    columns: Columns
    config: str | None = None
    """Configuration on the hub; None is the default one."""
    split: str = "train"
    path: str | None = None
    """Repository on the hub; None is the benchmark's."""
    files: tuple[str, ...] = ()
    """Alternative paths of its files in a copy of the repository, without ending and
    shard number."""


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
          InputError: there is none; known names are listed.
        """
        parts = {part.name: part for part in self.parts}
        if name not in parts:
            known = ", ".join(parts)
            raise InputError(
                f"benchmark {self.name}: no part {name!r}; expected {known}"
            )
        return parts[name]


def write_benchmark(
    benchmark: Benchmark,
    out: Path,
    *,
    parts: Sequence[str] = (),
    local: Path | None = None,
    limit: int | None = None,
) -> None:
    """Write each part as `<part>.jsonl` for `read_questions`, replacing old files.

    Without `parts`, all parts are written. See `load_benchmark` for the rest.

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

    Ids are `text_id` of question and answer, so a row has the same id in every part;
    repetitions within a part get the suffix "-2", "-3" and so on.

    Args:
      benchmark: one of `BENCHMARKS`, or your own.
      part: name of the part.
      local: a copy of the repository, or one Parquet, JSON or JSON-lines file with
        the part's rows; None reads the hub.
      limit: maximum number of rows.

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
      InputError: a column is missing or has another type; starts with `where`.
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
    """The answer, further correct answers, the choices, number of the correct one."""
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
    """The files of a part in a folder, sorted, or the given file."""
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
    """Whether a path ends with a stem, perhaps a shard number, and a known ending."""
    *folders, name = Path(stem).parts
    if kind_of(path) is None or not path.is_file():
        return False
    if folders and path.parts[-1 - len(folders) : -1] != tuple(folders):
        return False
    return path.name.startswith((f"{name}.", f"{name}-0"))
