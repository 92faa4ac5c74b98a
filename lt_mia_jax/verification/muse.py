"""MUSE: verbatim and knowledge memorization, leakage and utility of one model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from lt_mia_jax.attacks.learned.attack import Attack
from lt_mia_jax.data.questions import Question
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.evaluate import membership
from lt_mia_jax.verification.evaluated import EvaluatedModel, generate
from lt_mia_jax.verification.items import MuseMeasured
from lt_mia_jax.verification.leakage import LEAK_SCORE, attack_results
from lt_mia_jax.verification.metrics.checks import PerItem
from lt_mia_jax.verification.metrics.intervals import estimate_mean
from lt_mia_jax.verification.metrics.muse import (
    knowledge_memorization,
    verbatim_memorization,
)
from lt_mia_jax.verification.records import MuseCard

VERBATIM_TOKENS = 128
KNOWLEDGE_TOKENS = 32


class MuseTexts(NamedTuple):
    """The rows of MUSE-News or MUSE-Books that an evaluation reads."""

    verbatim: Sequence[Question]
    """Beginnings of forgotten texts, and how they go on."""
    forget_questions: Sequence[Question]
    retain_questions: Sequence[Question]
    forget_examples: Sequence[Question]
    """Solved questions that stand in front of `forget_questions`."""
    retain_examples: Sequence[Question]
    forget: Sequence[Question]
    """Forgotten texts, for attacks."""
    holdout: Sequence[Question]
    """Texts that no model has seen."""


def read_muse(read: Callable[[str], list[Question]]) -> MuseTexts:
    """The parts of a MUSE benchmark that `measure_muse` needs.

    Args:
      read: name of a part of `data.benchmarks` in, its rows out.
    """
    return MuseTexts(
        verbatim=read("verbmem_forget"),
        forget_questions=read("knowmem_forget_qa"),
        retain_questions=read("knowmem_retain_qa"),
        forget_examples=read("knowmem_forget_qa_icl"),
        retain_examples=read("knowmem_retain_qa_icl"),
        forget=read("privleak_forget"),
        holdout=read("privleak_holdout"),
    )


def measure_muse(
    evaluated: EvaluatedModel,
    texts: MuseTexts,
    reference: EvaluatedModel | None = None,
    *,
    attack: Attack | None = None,
    stem: bool = False,
) -> MuseMeasured:
    """Run the evaluation of MUSE on one model.

    Texts are raw: of the model's template only the beginning-of-text id is used.
    Where the model's context is too short for all solved examples, the first ones are
    cut off. Of the text to be remembered as many tokens count as are generated, special
    tokens included. Words are compared as they stand; with `stem`, stems are, as in
    OpenUnlearning. The model runs in full precision; the authors load it in 8 bits.

    Raises:
      InputError: a part is empty, or has plain text where questions belong.

    Source: MUSE, arXiv 2407.06460, section 3, and its code (commit fcd6651).
    """
    template = replace(evaluated.template, end=False)
    evaluated = evaluated._replace(template=template)
    continued = generate(
        evaluated, [_question(row) for row in texts.verbatim], VERBATIM_TOKENS
    )
    true = [_cut(evaluated, row.answer, VERBATIM_TOKENS) for row in texts.verbatim]

    def known(asked: Sequence[Question], examples: Sequence[Question]) -> PerItem:
        return knowledge_memorization(
            generate(evaluated, _prompts(asked, examples), KNOWLEDGE_TOKENS),
            [row.answer for row in asked],
            stem=stem,
        )

    return MuseMeasured(
        verbatim_memorization(continued, true, stem=stem),
        known(texts.forget_questions, texts.forget_examples),
        known(texts.retain_questions, texts.retain_examples),
        membership(evaluated, reference, texts.forget, attack=attack),
        membership(evaluated, reference, texts.holdout, attack=attack),
    )


def muse_card(
    measured: MuseMeasured, retrained: MuseMeasured | None = None, *, seed: int = 0
) -> MuseCard:
    """The four numbers of MUSE, and the AUC of every attack, with 95 % intervals.

    Without the retrained model there is no PrivLeak. Scalability and sustainability are
    this card on larger forget sets and after each of several requests.
    """
    attacks, notes = attack_results(measured, retrained, leaks=[LEAK_SCORE], seed=seed)
    return MuseCard(
        verbmem=estimate_mean(measured.verbatim, seed),
        knowmem_forget=estimate_mean(measured.forget_knowledge, seed),
        knowmem_retain=estimate_mean(measured.retain_knowledge, seed),
        priv_leak=attacks[LEAK_SCORE].leak,
        attacks={name: replace(found, leak=None) for name, found in attacks.items()},
        notes=tuple(notes),
    )


def muse_cards(
    models: Mapping[str, EvaluatedModel],
    texts: MuseTexts,
    reference: EvaluatedModel | None = None,
    *,
    seed: int = 0,
    stem: bool = False,
) -> dict[str, MuseCard]:
    """`muse_card` of several models, compared with `retrained` if it is among them."""
    measured = {
        name: measure_muse(model, texts, reference, stem=stem)
        for name, model in models.items()
    }
    truth = measured.get("retrained")
    return {n: muse_card(found, truth, seed=seed) for n, found in measured.items()}


def _cut(evaluated: EvaluatedModel, text: str, tokens: int) -> str:
    """The beginning of a text, as many tokens as `generate` makes.

    The tokenizer's beginning-of-text token, where it adds one, is among them.
    """
    count = min(tokens, evaluated.model.config.context // 2)
    tokenizer = evaluated.tokenizer
    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) <= count:
        return text
    return tokenizer.decode(ids[:count], skip_special_tokens=True)


def _prompts(asked: Sequence[Question], examples: Sequence[Question]) -> list[str]:
    shown = "".join(
        f"Question: {_question(row)}\nAnswer: {row.answer}\n\n" for row in examples
    )
    # MUSE's prompt ends in a space, which makes other token ids.
    return [f"{shown}Question: {_question(row)}\nAnswer: " for row in asked]


def _question(row: Question) -> str:
    if row.question is None:
        raise InputError(f"{row.name} is plain text; expected a question or a prompt")
    return row.question
