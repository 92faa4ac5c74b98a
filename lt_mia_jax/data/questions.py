"""Questions with answers: sets to forget and to retain."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lt_mia_jax.data.formats.sources import COLUMN, read_rows
from lt_mia_jax.data.jsonl import Row, short, write_jsonl
from lt_mia_jax.data.texts import text_id
from lt_mia_jax.errors import InputError

SLOT = "{question}"
"""Place of the question in a template."""
_STRINGS = (
    "value",
    "entity",
    "topic",
    "paraphrased_question",
    "paraphrased_answer",
    "refusal",
)
_LISTS = ("wrong_answers", "inverted", "accepted", "choices", "flags")


@dataclass(frozen=True, kw_only=True)
class AnswerTemplate:
    """How a question and its answer are joined. Plain text has no prompt."""

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
    """A question with its answer, or plain text, and data for evaluation."""

    id: str
    """Explicit, or `text_id` of question and answer."""
    question: str | None
    """None: the row is plain text, which is `answer`."""
    answer: str
    """The text that is learned or forgotten."""
    value: str | None = None
    """The part of the answer that states the fact."""
    entity: str | None = None
    """Subject of the row; forget sets consist of whole entities."""
    topic: str | None = None
    """Attribute asked for, or kind of probe."""
    paraphrased_question: str | None = None
    """The question in other words."""
    paraphrased_answer: str | None = None
    """The answer in other words, with the same value."""
    wrong_answers: tuple[str, ...] = ()
    """False answers phrased like the paraphrased answer (or, without one, the answer),
    which is compared with them."""
    refusal: str | None = None
    """A reply that reveals nothing."""
    inverted: tuple[str, ...] = ()
    """False answers phrased like the answer, to be learned instead."""
    accepted: tuple[str, ...] = ()
    """Further correct answers."""
    choices: tuple[str, ...] = ()
    """Options of a multiple-choice question, in their order."""
    choice: int | None = None
    """Number of the correct choice, from 0."""
    flags: tuple[str, ...] = ()
    """Marks for grouping rows, such as "rare"."""
    line: int = 0
    """Line in its file, from 1; 0 without a file."""

    @property
    def text(self) -> str:
        """Question and answer, or the plain text."""
        return " ".join(
            part for part in (self.question, self.answer) if part is not None
        )

    @property
    def name(self) -> str:
        """Id and line, for messages."""
        return f"id {short(self.id)}" + (f" (line {self.line})" if self.line else "")


def read_questions(path: Path | str, *, column: str = COLUMN) -> list[Question]:
    """Read questions or plain texts from a file or folder; see `read_rows`.

    A row has `question` and `answer`, or `text` alone; the other fields of `Question`
    are optional, further fields are ignored. Files for `read_texts` get the same ids.
    With a `column`, rows are the plain texts in it.

    Raises:
      InputError: as `read_rows`, or a field is missing or of the wrong type, or a
        value is not part of its answer.
    """
    return read_rows(
        path,
        _question,
        column=column,
        expected="questions in it; expected one JSON object a line with 'question' and "
        "'answer', or with 'text'",
    )


def write_questions(path: Path | str, questions: Sequence[Question]) -> None:
    """Write rows as JSON lines, atomically; empty fields are left out."""
    write_jsonl(path, map(_as_mapping, questions))


def check_disjoint(forget: Sequence[Question], retain: Sequence[Question]) -> None:
    """Refuse texts that are in both sets, up to white space.

    Ids are not compared, because rows of both files may be numbered from 1.

    Raises:
      InputError: naming the first such text and their number.
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
            f"{short(first.text)}; remove each from one of the two files"
        )


def value_span(answer: str, value: str, where: str) -> tuple[int, int]:
    """Start and end of a value in an answer: first as whole words, else anywhere.

    Raises:
      InputError: the answer does not contain it; the message starts with `where`.
    """
    quoted = re.escape(value)
    found = re.search(rf"(?<!\w){quoted}(?!\w)", answer) or re.search(quoted, answer)
    if found is None or not value:
        raise InputError(
            f"{where}: value {short(value)} does not stand in the answer "
            f"{short(answer)}; expected a part of it, or no value"
        )
    return found.span()


def _as_mapping(row: Question) -> dict[str, Any]:
    if row.question is None:
        shown: dict[str, Any] = {"id": row.id, "text": row.answer}
    else:
        shown = {"id": row.id, "question": row.question, "answer": row.answer}
    given = {name: getattr(row, name) for name in (*_STRINGS, *_LISTS, "choice")}
    return shown | {name: v for name, v in given.items() if v not in (None, ())}


def _question(row: Row) -> Question:
    found, where = row.values, row.where
    if "text" in found and ("question" in found or "answer" in found):
        raise InputError(
            f"{where}: both 'text' and 'question' or 'answer'; expected a question "
            "with its answer, or plain text"
        )
    missing = [name for name in ("question", "answer") if name not in found]
    if "text" not in found and missing:
        names = " and no ".join(map(repr, missing))
        raise row.lacks(
            f"no {names} field", "; expected 'question' and 'answer', or 'text'"
        )
    if "text" in found:
        question, answer = None, row.string("text")
        default = text_id(answer)
    else:
        question, answer = row.string("question"), row.string("answer")
        default = text_id(f"{question}\n{answer}")
    fields: dict[str, Any] = {
        name: row.string(name) for name in _STRINGS if found.get(name) is not None
    }
    fields |= {name: row.strings(name) for name in _LISTS}
    if "value" in fields:
        value_span(answer, fields["value"], where)
    choice, choices = found.get("choice"), len(fields["choices"])
    if choice is not None:
        if isinstance(choice, bool) or not isinstance(choice, int):
            raise InputError(f"{where}: choice {short(choice)}; expected an integer")
        if not 0 <= choice < choices:
            raise InputError(
                f"{where}: choice {choice} of {choices} choices; expected 0 to "
                f"{choices - 1}"
            )
    return Question(
        row.id or default, question, answer, **fields, choice=choice, line=row.line
    )
