"""Token ids of questions and answers, with masks of the targets."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Bool, Int, UInt
from lt_mia_jax.data.jsonl import well_formed
from lt_mia_jax.data.questions import SLOT, AnswerTemplate, Question, value_span
from lt_mia_jax.data.tokenize import padding_id, tokenize
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

_CHUNK = 1024


class EncodedAnswers(NamedTuple):
    """Token ids of `N` rows, padded on the right to `T` tokens, and their targets.

    The masks mark tokens before the shift: step `t` of a model predicts token `t + 1`.
    The first token of a row has no prediction and is never marked.
    """

    input_ids: Int[np.ndarray, "N T"]
    """int32; padding holds the pad id (or end-of-text, or 0)."""
    attention_mask: UInt[np.ndarray, "N T"]
    """uint8; 1 on real tokens."""
    label_mask: UInt[np.ndarray, "N T"]
    """uint8; 1 on the answer and the end token, 0 on prompt and padding."""
    value_mask: UInt[np.ndarray, "N T"]
    """uint8; 1 on the tokens of `value`, all 0 without one."""
    truncated: Bool[np.ndarray, " N"]
    """The row had more tokens than fit."""

    def take(self, rows: Int[np.ndarray, " M"]) -> "EncodedAnswers":
        """The given rows, in that order."""
        return EncodedAnswers(*(field[rows] for field in self))

    def narrowed(self, width: int) -> "EncodedAnswers":
        """The first `width` tokens of every row; the others must be padding."""
        assert not self.attention_mask[:, width:].any()
        wide = [name for name in self._fields if name != "truncated"]
        return self._replace(**{name: getattr(self, name)[:, :width] for name in wide})


def encode_answers(
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    max_length: int,
    template: AnswerTemplate | None = None,
) -> EncodedAnswers:
    """Tokenize questions with their answers and mark the targets.

    Prompt and answer are tokenized as one text. A token with a character of the answer
    is a target; of plain text, every token but the first. Only the special tokens of
    the template (None: the default one) are added; `max_length` includes them. Rows
    are cut on the right; a lone surrogate counts as U+FFFD.

    To encode other answers, replace them first:
    `row._replace(answer=row.refusal, value=None)`.

    Raises:
      InputError: a tokenizer that is not fast or lacks ids of the template, a row
        without a target within `max_length`, or a value that is not in its answer.
    """
    template = AnswerTemplate() if template is None else template
    if max_length < 2:
        raise InputError(f"max_length {max_length}: expected at least 2 tokens a row")
    begin, end = _special_ids(tokenizer, template)
    shape = (len(questions), max_length)
    input_ids = np.full(shape, padding_id(tokenizer), np.int32)
    attention, labels, values = (np.zeros(shape, np.uint8) for _ in range(3))
    truncated = np.zeros(len(questions), bool)
    unfit: list[str] = []
    unknown: list[str] = []
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        rendered = [_render(row, template) for row in chunk]
        texts = (text for text, _, _ in rendered)
        encoded = tokenize(tokenizer, texts, return_offsets_mapping=True)
        for row, (_, answer_start, span) in enumerate(rendered):
            ids = encoded["input_ids"][row]
            offsets = np.array(encoded["offset_mapping"][row], np.int64).reshape(-1, 2)
            target = offsets[:, 1] > answer_start
            inside = (offsets[:, 0] < span[1]) & (offsets[:, 1] > span[0])
            if tokenizer.unk_token_id in ids:
                unknown.append(chunk[row].name)
            ids = [*begin, *ids, *end]
            target = np.pad(target, (len(begin), len(end)), constant_values=(0, 1))
            inside = np.pad(inside, (len(begin), len(end)))
            target[:1] = inside[:1] = False
            length = min(len(ids), max_length)
            if not target[:length].any() or not chunk[row].answer.strip():
                unfit.append(f"{chunk[row].name}, {len(ids)} tokens")
                continue
            at = start + row
            input_ids[at, :length] = ids[:length]
            attention[at, :length] = 1
            labels[at, :length] = target[:length]
            values[at, :length] = inside[:length]
            truncated[at] = len(ids) > max_length
    if unfit:
        raise InputError(
            f"{len(unfit)} of {len(questions)} rows have no token of an answer among "
            f"their first {max_length}, first {unfit[0]}; raise the length or give "
            "those rows an answer"
        )
    if unknown:
        log.warning(
            "the tokenizer does not know every word of %d of %d rows, first %s",
            len(unknown),
            len(questions),
            unknown[0],
        )
    return EncodedAnswers(input_ids, attention, labels, values, truncated)


def _special_ids(tokenizer: Any, template: AnswerTemplate) -> list[list[int]]:
    """Ids before the text and ids after it."""
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer ({type(tokenizer).__name__}) is not a fast one, so answers "
            "cannot be found among its tokens; expected a model with tokenizer.json"
        )
    wanted = [("begin", tokenizer.bos_token_id), ("end", tokenizer.eos_token_id)]
    for name, token in wanted:
        if getattr(template, name) and token is None:
            raise InputError(
                f"the template has {name} = true but the tokenizer has no {name}-of-"
                f"text token; set {name} to false"
            )
    return [[token] if getattr(template, name) else [] for name, token in wanted]


def _render(
    row: Question, template: AnswerTemplate
) -> tuple[str, int, tuple[int, int]]:
    """The text, the start of its answer, and start and end of the value.

    The answer of plain text starts at -1, so that it includes empty tokens.
    """
    answer = well_formed(row.answer)
    prompt = ""
    if row.question is not None:
        prompt = template.prompt.replace(SLOT, well_formed(row.question))
        prompt += template.separator
    span = (0, 0)
    if row.value is not None:
        first, last = value_span(answer, well_formed(row.value), row.name)
        span = (len(prompt) + first, len(prompt) + last)
    return prompt + answer, -1 if row.question is None else len(prompt), span
