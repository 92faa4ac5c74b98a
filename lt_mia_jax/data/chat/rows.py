"""Rows of conversations, and of prompts with completions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lt_mia_jax.data.jsonl import Row, kind, short
from lt_mia_jax.errors import InputError


class Messages(NamedTuple):
    """A conversation, which the model's chat template makes a text of."""

    messages: tuple[Mapping[str, Any], ...]
    """Each with `role` and `content`."""
    prompt: int | None = None
    """The response is what follows so many messages; None: every assistant turn is."""
    where: str = ""
    """File and line, for messages."""

    @property
    def text(self) -> str:
        """Roles and contents, by which conversations are told apart."""
        turns = (f"{each['role']}: {each['content']}" for each in self.messages)
        return "\n".join(turns)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a row that reads as this."""
        rows = [dict(each) for each in self.messages]
        if self.prompt is None:
            return {"messages": rows}
        return {"prompt": rows[: self.prompt], "completion": rows[self.prompt :]}


class Completion(NamedTuple):
    """A prompt and its completion, whose concatenation is the text."""

    prompt: str
    completion: str
    where: str = ""
    """File and line, for messages."""

    @property
    def text(self) -> str:
        """Both, one after the other."""
        return self.prompt + self.completion

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a row that reads as this."""
        return {"prompt": self.prompt, "completion": self.completion}


Chat = Messages | Completion


def parse_chat(row: Row) -> Chat | None:
    """The conversation in a row; None where there is none.

    A row has `messages`, a list of objects with `role` and `content`, or `prompt` and
    `completion`, both strings or both such lists.

    Raises:
      InputError: a field is missing or of the wrong type, or nobody responds.

    Source: the formats of data sets of the TRL library for supervised fine-tuning,
    https://huggingface.co/docs/trl/dataset_formats (conversational, prompt-completion).
    """
    if row.values.get("tools"):
        raise InputError(
            f"{row.where}: 'tools' are not rendered; leave the field out, or give the "
            "rendered conversation as 'text'"
        )
    if row.values.get("messages") is not None:
        messages = _messages(row, "messages")
        if not any(each["role"] == "assistant" for each in messages):
            raise InputError(
                f"{row.where}: no message with the role 'assistant'; expected a "
                "response in 'messages'"
            )
        return Messages(messages, where=row.where)
    if row.values.get("prompt") is None:
        return None
    if row.values.get("completion") is None:
        raise row.lacks("no 'completion' field beside 'prompt'")
    if isinstance(row.values["prompt"], list):
        asked, answered = _messages(row, "prompt"), _messages(row, "completion")
        return Messages((*asked, *answered), len(asked), row.where)
    return Completion(row.string("prompt"), row.string("completion"), row.where)


def _messages(row: Row, name: str) -> tuple[Mapping[str, Any], ...]:
    """A list of messages."""
    found = row.values[name]
    if not isinstance(found, list) or not found:
        what = "an empty list" if found == [] else f"a {kind(found)}"
        raise InputError(
            f"{row.where}: {name!r} is {what}; expected a list of objects with 'role' "
            "and 'content'"
        )
    for number, each in enumerate(found, 1):
        values = each if isinstance(each, dict) else {}
        if not all(isinstance(values.get(key), str) for key in ("role", "content")):
            raise InputError(
                f"{row.where}: message {number} of {name!r} is {short(each)}; expected "
                "an object with the strings 'role' and 'content'"
            )
    return tuple(found)
