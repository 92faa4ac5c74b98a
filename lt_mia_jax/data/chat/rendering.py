"""Conversations to token ids, and which of them belong to a response."""

import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lt_mia_jax.data.chat.rows import Chat, Completion, Messages
from lt_mia_jax.errors import InputError

log = logging.getLogger(__name__)

NO_RESPONSE = "no response found: no score"
"""Flag of a text without a token of its response."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Piece(NamedTuple):
    """Tokens of one text before it is cut."""

    ids: list[int]
    response: list[bool] | None
    """Tokens that belong to a response; all False where it cannot be told. None: all
    tokens are scored."""
    ends: bool = True
    """The end-of-text token follows, which a chat template writes itself."""


def render(chat: Chat, tokenizer: Any) -> Piece:
    """The tokens of a conversation.

    A prompt and its completion are tokenized as one text. Of a conversation, the
    template's own marks of generated text say what the response is, where it has
    them. Elsewhere a context is a prefix of the whole, as text and as tokens; where it
    is not, because a token reaches across the border or the template writes earlier
    turns in another way, the response cannot be told.

    Raises:
      InputError: no chat template, or one that refuses the conversation.

    Source: `apply_chat_template` of the transformers library; prompt and completion as
    in the SFT trainer of TRL, https://huggingface.co/docs/trl/sft_trainer.
    """
    if isinstance(chat, Completion):
        text = chat.prompt + chat.completion
        return _by_prefixes(tokenizer, text, [(chat.prompt, text)])
    template = _template(tokenizer)
    if chat.prompt is None and tokenizer.is_fast and _GENERATION.search(template):
        found = _rendered(
            *(chat, tokenizer, chat.messages),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        mask = [bool(each) for each in found["assistant_masks"]]
        return Piece(list(found["input_ids"]), mask, ends=False)
    whole = _rendered(chat, tokenizer, chat.messages)
    turns = [
        (_context(chat, tokenizer, start), _upto(chat, tokenizer, stop, whole))
        for start, stop in _turns(chat)
    ]
    return _by_prefixes(tokenizer, whole, turns)._replace(ends=False)


def check_responses(flags: Sequence[Sequence[str]], length: int) -> None:
    """Say how many texts have the flag `NO_RESPONSE`; refuse if all have it.

    Raises:
      InputError: there is nothing to score.
    """
    lost = sum(NO_RESPONSE in each for each in flags)
    why = (
        f"no token of the response among the {length} that are kept, or none that "
        "begins where the prompt ends (leave spaces to the completion)"
    )
    if lost and lost == len(flags):
        raise InputError(
            f"all {lost} texts have {why}; raise --length, cut on the --side left, or "
            "give --score all"
        )
    if lost:
        log.warning("%d of %d texts have %s: no score", lost, len(flags), why)


def _turns(chat: Messages) -> list[tuple[int, int]]:
    """First message of each response, and the one after its last."""
    if chat.prompt is not None:
        return [(chat.prompt, len(chat.messages))]
    roles = enumerate(each["role"] for each in chat.messages)
    return [(n, n + 1) for n, role in roles if role == "assistant"]


def _context(chat: Messages, tokenizer: Any, start: int) -> str | None:
    """What the model sees before a response."""
    before = chat.messages[:start]
    if not before:
        return None
    if before[-1]["role"] == "assistant":
        return _rendered(chat, tokenizer, before, continue_final_message=True)
    return _rendered(chat, tokenizer, before, add_generation_prompt=True)


def _upto(chat: Messages, tokenizer: Any, stop: int, whole: str) -> str:
    if stop == len(chat.messages):
        return whole
    return _rendered(chat, tokenizer, chat.messages[:stop])


def _by_prefixes(
    tokenizer: Any, whole: str, turns: Sequence[tuple[str | None, str]]
) -> Piece:
    """Tokens of `whole`; each response begins and ends where two prefixes of it do."""
    ids = _ids(tokenizer, whole)
    response = [False] * len(ids)
    for parts in turns:
        lengths = []
        for part in parts:
            tokens = None if part is None else _ids(tokenizer, part)
            fits = part is not None and whole.startswith(part)
            if tokens is None or not fits or ids[: len(tokens)] != tokens:
                return Piece(ids, [False] * len(ids))
            lengths.append(len(tokens))
        start, stop = lengths
        response[start:stop] = [True] * (stop - start)
    return Piece(ids, response)


def _ids(tokenizer: Any, text: str) -> list[int]:
    from lt_mia_jax.data.tokenize import tokenize

    return list(tokenize(tokenizer, [text])["input_ids"][0])


def _template(tokenizer: Any) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise InputError(
            "the tokenizer has no chat template, so that messages cannot be rendered; "
            "put the chat_template.jinja that the model was trained with beside its "
            "weights, or give rows with 'prompt' and 'completion' as strings"
        ) from error


def _rendered(
    chat: Messages, tokenizer: Any, messages: Sequence[Any], **options: Any
) -> Any:
    from jinja2 import TemplateError

    options = {"tokenize": False, **options}
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        where = f"{chat.where}: " if chat.where else ""
        raise InputError(
            f"{where}the chat template refuses the conversation "
            f"({type(error).__name__}: {error}); mend it, or give its text as 'text'"
        ) from error
