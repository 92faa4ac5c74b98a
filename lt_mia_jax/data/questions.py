"""Questions with answers in JSON-lines files: what is forgotten and what is kept."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lt_mia_jax.data.texts import (
    _id,
    _json_object,
    _kind,
    _lines,
    _short,
    text_id,
    well_formed,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import write_atomic

log = logging.getLogger(__name__)

SLOT = "{question}"
"""Where a template has the question."""
_STRINGS = (
    "value",
    "entity",
    "topic",
    "paraphrased_question",
    "paraphrased_answer",
    "refusal",
)
_TEXTS = ("question", "answer", "text", *_STRINGS)
_LISTS = ("wrong_answers", "inverted", "accepted", "choices", "flags")


@dataclass(frozen=True, kw_only=True)
class AnswerTemplate:
    """How a question and its answer become one text. Plain text has no prompt."""

    prompt: str = "Question: {question}\nAnswer:"
    """Holds `{question}` once; never a target."""
    separator: str = " "
    """Between prompt and answer."""
    begin: bool = False
    """Start with the beginning-of-text id; never a target."""
    end: bool = True
    """End with the end-of-text id, a target, unless the answer was cut."""

    def __post_init__(self):
        if self.prompt.count(SLOT) != 1:
            raise InputError(f"prompt {self.prompt!r}: expected {SLOT} in it, once")


class Question(NamedTuple):
    """A question with its answer and what evaluation needs to know about them.

    With `question` None the row is plain text, and `answer` is that text.
    """

    id: str
    """Explicit, or `text_id` of question and answer."""
    question: str | None
    """None for plain text."""
    answer: str
    """What is learned or forgotten."""
    value: str | None = None
    """The part of the answer that carries the fact; stands in the answer."""
    entity: str | None = None
    """Whom or what the row is about; forget sets are made of whole entities."""
    topic: str | None = None
    """Attribute asked for, or kind of probe."""
    paraphrased_question: str | None = None
    """The question in other words."""
    paraphrased_answer: str | None = None
    """The answer in other words; holds the value too."""
    wrong_answers: tuple[str, ...] = ()
    """False answers to weigh against the paraphrased answer (or, failing that, the
    answer), phrased like it."""
    refusal: str | None = None
    """A reply that gives nothing away."""
    inverted: tuple[str, ...] = ()
    """False answers phrased like the answer, to be learned in its place."""
    accepted: tuple[str, ...] = ()
    """Further right answers."""
    choices: tuple[str, ...] = ()
    """Options of a multiple-choice question, in their order."""
    choice: int | None = None
    """Which of the choices is right, from 0."""
    flags: tuple[str, ...] = ()
    """Marks for grouping rows, such as "rare"."""
    line: int = 0
    """Line in the file, from 1; 0 when the row came from no file."""

    @property
    def text(self) -> str:
        """Question and answer, or the plain text."""
        return (
            self.answer if self.question is None else f"{self.question} {self.answer}"
        )

    @property
    def name(self) -> str:
        """Id and line, for messages."""
        return f"id {_short(self.id)}" + (f" (line {self.line})" if self.line else "")


def read_questions(path: Path | str) -> list[Question]:
    """Read a JSON-lines file of questions or plain texts, in file order.

    A row has `question` and `answer`, or `text` alone; the other fields of
    `Question` are optional and further fields are ignored. Files that `read_texts`
    takes are taken here, with the same ids. Lone surrogates become U+FFFD, with a
    logged warning.

    Raises:
      InputError: naming file and line: no such file, no rows, invalid UTF-8, not a
        JSON object, a field missing or of the wrong type, a value that the answer
        does not hold, an id twice.
    """
    path = Path(path)
    questions: list[Question] = []
    lines_of_ids: dict[str, int] = {}
    repaired = []
    for line, raw in _lines(path):
        where = f"{path}:{line}"
        row = _json_object(raw, where)
        sound = _sound(row)
        if sound != row:
            repaired.append(line)
        question = _question(sound, where)._replace(line=line)
        if row.get("id") is not None:
            first = lines_of_ids.setdefault(question.id, line)
            if first != line:
                raise InputError(
                    f"{where}: id {_short(question.id)} already stands on line "
                    f"{first}; give each row its own id, or none"
                )
        questions.append(question)
    if not questions:
        raise InputError(
            f"{path}: no questions in it; expected one JSON object a line with "
            "'question' and 'answer', or with 'text'"
        )
    if repaired:
        log.warning(
            "%s: lone surrogates replaced by U+FFFD on %d line(s), first %d",
            path,
            len(repaired),
            repaired[0],
        )
    return questions


def write_questions(path: Path | str, questions: Sequence[Question]) -> None:
    """Write rows as JSON lines, atomically; empty fields are left out."""
    lines = [
        json.dumps(_as_mapping(question), ensure_ascii=False) + "\n"
        for question in questions
    ]
    write_atomic(path, well_formed("".join(lines)))


def check_disjoint(forget: Sequence[Question], retain: Sequence[Question]) -> None:
    """Refuse texts that are to be forgotten and kept at once.

    Texts are compared whatever their white space; ids are not compared, since rows of
    two files may be numbered alike.

    Raises:
      InputError: naming the first such text and how many there are.
    """
    kept: dict[str, Question] = {}
    for row in retain:
        kept.setdefault(text_id(row.text), row)
    shared = [(row, kept[key]) for row in forget if (key := text_id(row.text)) in kept]
    if shared:
        first, twin = shared[0]
        raise InputError(
            f"{len(shared)} of {len(forget)} texts to forget are among the texts to "
            f"retain, first {first.name}, which is {twin.name} there: "
            f"{_short(first.text)}; remove each from one of the two files"
        )


def value_span(answer: str, value: str, where: str) -> tuple[int, int]:
    """Characters of a value in an answer: its first place, as whole words if it can.

    Raises:
      InputError: the answer does not hold it; the message starts with `where`.
    """
    quoted = re.escape(value)
    found = re.search(rf"(?<!\w){quoted}(?!\w)", answer) or re.search(quoted, answer)
    if found is None or not value:
        raise InputError(
            f"{where}: value {_short(value)} does not stand in the answer "
            f"{_short(answer)}; expected a part of it, or no value"
        )
    return found.span()


def _as_mapping(row: Question) -> dict[str, Any]:
    if row.question is None:
        shown: dict[str, Any] = {"id": row.id, "text": row.answer}
    else:
        shown = {"id": row.id, "question": row.question, "answer": row.answer}
    for name in (*_STRINGS, *_LISTS, "choice"):
        value = getattr(row, name)
        if value is not None and value != ():
            shown[name] = value
    return shown


def _question(row: dict[str, Any], where: str) -> Question:
    if "text" in row and ("question" in row or "answer" in row):
        raise InputError(
            f"{where}: both 'text' and 'question' or 'answer'; expected a question "
            "with its answer, or plain text"
        )
    missing = [name for name in ("question", "answer") if name not in row]
    if "text" not in row and missing:
        names = ", ".join(_short(name) for name in list(row)[:8]) or "none"
        raise InputError(
            f"{where}: no {' and no '.join(map(repr, missing))} field; the fields are: "
            f"{names}; expected 'question' and 'answer', or 'text'"
        )
    if "text" in row:
        question, answer = None, _string(row, "text", where)
        default = text_id(answer)
    else:
        question = _string(row, "question", where)
        answer = _string(row, "answer", where)
        default = text_id(f"{question}\n{answer}")
    fields: dict[str, Any] = {
        name: _string(row, name, where)
        for name in _STRINGS
        if row.get(name) is not None
    }
    fields |= {name: _strings(row, name, where) for name in _LISTS}
    if "value" in fields:
        value_span(answer, fields["value"], where)
    fields["choice"] = _choice(row, len(fields["choices"]), where)
    return Question(_id(row, where) or default, question, answer, **fields)


def _string(row: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(row[name], str):
        raise InputError(
            f"{where}: {name!r} is a {_kind(row[name])}; expected a string"
        )
    return row[name]


def _strings(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InputError(
            f"{where}: {name!r} is {_short(value)}; expected strings in []"
        )
    return tuple(value)


def _choice(row: Mapping[str, Any], choices: int, where: str) -> int | None:
    value = row.get("choice")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: choice {_short(value)}; expected an integer")
    if not 0 <= value < choices:
        raise InputError(
            f"{where}: choice {value} of {choices} choices; expected 0 to {choices - 1}"
        )
    return value


def _sound(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the strings of its known fields `well_formed`."""

    def mended(value: Any) -> Any:
        return well_formed(value) if isinstance(value, str) else value

    sound = {name: mended(row[name]) for name in _TEXTS if name in row}
    for name in _LISTS:
        if isinstance(row.get(name), list):
            sound[name] = [mended(item) for item in row[name]]
    return row | sound
