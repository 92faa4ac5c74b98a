"""Tokenizers with a chat template or a beginning-of-text token, and an oracle."""

import random

import numpy as np
import tiny_world

from lt_mia_jax.data.tokenize import train_bpe

HEAD = "<|im_start|>"
TAIL = "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The same text, with marks of what a model generates."""


def chat_tokenizer(template: str | None = TEMPLATE):
    """A byte-level tokenizer of 303 ids with the tokens of ChatML."""
    tokenizer = train_bpe(tiny_world.sentences(0, 200), vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": [HEAD, TAIL]})
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.chat_template = template
    return tokenizer


def beginning_tokenizer(*, adds: bool = True):
    """One with the token <s>, which a post-processor puts in front."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_bpe(tiny_world.sentences(0, 200), vocab_size=300)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    if adds:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    return tokenizer


def conversation(seed: int, turns: int = 2, words: int = 8) -> list[dict[str, str]]:
    rng = random.Random(seed)
    roles = ["system", *["user", "assistant"] * turns]
    return [
        {"role": role, "content": tiny_world.sentence(rng, words)} for role in roles
    ]


def by_offsets(tokenizer, messages) -> tuple[list[int], list[bool]]:
    """Ids of a conversation and what is an assistant's, by places of characters."""
    text, spans = "", []
    for message in messages:
        text += f"{HEAD}{message['role']}\n"
        start = len(text)
        text += f"{message['content']}{TAIL}\n"
        if message["role"] == "assistant":
            spans.append((start, len(text)))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    marks = [
        any(start <= first and last <= stop for start, stop in spans)
        for first, last in found["offset_mapping"]
    ]
    return found["input_ids"], marks


def real(encoded, row: int) -> tuple[list[int], list[bool]]:
    """Ids and marks of one row without padding."""
    count = int(encoded.attention_mask[row].sum())
    scored = encoded.scored
    marks = np.ones(count, bool) if scored is None else scored[row, :count]
    return encoded.input_ids[row, :count].tolist(), marks.tolist()
