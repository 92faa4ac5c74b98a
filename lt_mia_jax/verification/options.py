"""Flags of an evaluation; imports nothing heavy, so that `--help` is quick."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lt_mia_jax.errors import INSIDE_UNIT, between
from lt_mia_jax.outputs import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the result is compared with, and how much is measured."""

    holdout: Path | None = None
    """Texts like those to forget that no model has seen; attacks need them."""

    retrained: Source | None = None
    """The gold standard: a model trained without the texts to forget."""

    retrained_again: Source | None = None
    """A second such model, with another seed or order of texts: its distance from
    --retrained is the least that any method can be expected to reach."""

    probes: Path | None = None
    """Questions to forget with `wrong_answers` and `paraphrased_answer`,
    for truth ratio and forget quality; without it --forget is asked."""

    utility: Path | None = None
    """Folder with retain_perturbed.jsonl, real_authors_perturbed.jsonl and
    world_facts_perturbed.jsonl, as `lt-mia syntofu` writes them, for model utility."""

    reference: Source | None = None
    """The model from before any of the texts were learned, for attacks with one."""

    attack: Source = "shipped"
    """The learned attack, for which --holdout and --reference are needed: `shipped`
    with the package, a folder made by `lt-mia train`, or `none`."""

    score_end_token: bool = False
    """Min-K% and Min-K%++ also score the end token of an answer, which OpenUnlearning's
    leave out; the other attacks always score it."""

    muse: Path | None = None
    """Folder of MUSE's parts, as `lt-mia benchmark` writes them: continuations, answers
    and leakage as MUSE measures them."""

    muse_stem: bool = False
    """Compare stems of words in MUSE's measures, as OpenUnlearning does; MUSE compares
    words as they stand."""

    quantize: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--quantise"])] = ()
    """Numbers of bits, such as 8 4: round the weights and measure what comes back."""

    grid: Literal["bitsandbytes", "channel"] = "bitsandbytes"
    """How --quantize rounds. bitsandbytes: as the published attack, 4 bits are FP4 in
    blocks of 64 and 8 bits the weights of LLM.int8(). channel: whole numbers of any
    number of bits, one scale for each output channel."""

    relearn: bool = False
    """Teach half of the forgotten questions (64 at most) again: do others come back?"""

    memo: bool = False
    """Measure MEMO, which generates from many beginnings of each answer; slow."""

    risk_level: Annotated[float, INSIDE_UNIT] = 0.1
    """Fraction of forgotten texts that may remain extractable; the card has the p-value
    that there are more."""

    evaluated: Annotated[int, between(0, 10**6)] = 400
    """Maximum rows evaluated per set, --holdout included (TPR at 1 % FPR needs 1,000);
    0 skips the report."""


EvaluationFlags = Annotated[Evaluation, tyro.conf.arg(name="")]
"""As a field of a command: its flags have no prefix."""
