"""From files to a model directory: read questions, unlearn, save."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lt_mia_jax.arrays import Params
from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.checkpoints.adapters.export import clear_adapter
from lt_mia_jax.checkpoints.gguf import is_gguf
from lt_mia_jax.checkpoints.pretrained import located
from lt_mia_jax.checkpoints.tokenizer import fit_vocabulary
from lt_mia_jax.data.answers import AnswerTemplate, EncodedAnswers, encode_answers
from lt_mia_jax.data.jsonl import json_rows
from lt_mia_jax.data.questions import Question, check_disjoint, read_questions
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, fetch, is_primary, wait_for_all
from lt_mia_jax.files import write_json
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.models.length import check_length
from lt_mia_jax.unlearning.interventions.storage import (
    DESCRIPTION,
    load_intervention,
    save_intervention,
)
from lt_mia_jax.unlearning.methods import name_of
from lt_mia_jax.unlearning.methods.method import Method
from lt_mia_jax.unlearning.methods.own import file_of
from lt_mia_jax.unlearning.recipe import ForgetTexts, UnlearnConfig
from lt_mia_jax.unlearning.train import WRAPPERS, unlearn

log = logging.getLogger(__name__)


class QuestionFiles(NamedTuple):
    """The rows of the files that a run reads."""

    forget: list[Question]
    retain: list[Question] | None
    refusals: list[Question]
    paths: tuple[Path, Path | None]
    """Of `forget` and of `retain`."""


def read_files(
    forget: Path,
    retain: Path | None = None,
    refusals: Path | None = None,
    *,
    column: str = "text",
) -> QuestionFiles:
    """Read the texts to forget, to retain (plain ones from `column`), and the refusals.

    Raises:
      InputError: a file cannot be used, there is nothing to forget, or a text is to be
        both forgotten and retained.
    """
    forget_rows = read_questions(forget, column=column)
    retain_rows = None
    if retain is not None:
        retain_rows = read_questions(retain, column=column)
    if not forget_rows:
        raise InputError(f"{forget}: no rows; there is nothing to forget")
    if retain_rows is not None:
        check_disjoint(forget_rows, retain_rows)
    said = [] if refusals is None else read_questions(refusals)
    return QuestionFiles(forget_rows, retain_rows, said, (forget, retain))


class KnownModel(NamedTuple):
    """A model and all that belongs to it."""

    name: str
    """Directory or hub id."""
    model: LanguageModel
    params: Params
    tokenizer: Any
    intervention: Intervention | None
    """That of an earlier unlearning run."""


def load_model(name: str, executor: Executor) -> KnownModel:
    """A model with the intervention that lies beside its weights, if any.

    Raises:
      InputError: the model or its tokenizer cannot be used.
    """
    config, params, tokenizer = load_pretrained(name, mesh=executor.mesh)
    whole, _ = located(name)
    edit = None if is_gguf(whole) else load_intervention(whole, config)
    return KnownModel(name, LanguageModel(config), params, tokenizer, edit)


def unlearn_and_save(
    known: KnownModel,
    files: QuestionFiles,
    method: Method,
    config: UnlearnConfig,
    *,
    out: Path,
    template: AnswerTemplate,
    length: int = 128,
    executor: Executor | None = None,
    save_every_seconds: float = 60.0,
) -> tuple[KnownModel, KnownModel, dict[str, Any]]:
    """Unlearn, and write the new model to `out`; its state goes to `out/training`.

    `unlearning.json` in `out` is about the run. Texts are cut to `length` tokens.

    Returns:
      The model before and after, in host memory, and the content of `unlearning.json`.

    Raises:
      InputError: see `train.unlearn`.
    """

    def encode(rows: list[Question]) -> EncodedAnswers:
        found = encode_answers(
            rows, known.tokenizer, max_length=length, template=template
        )
        # Short answers need no more positions than they have tokens.
        longest = found.attention_mask.sum(axis=1, dtype=np.int64).max(initial=0)
        check_length(int(longest), model=known.model.config)
        sizes = {"model": known.model.config.vocab_size}
        return fit_vocabulary(found, known.tokenizer, [x.name for x in rows], sizes)

    result = unlearn(
        known.model,
        known.params,
        forget_texts(files.forget, encode, files.refusals, known.tokenizer),
        None if files.retain is None else encode(files.retain),
        method,
        config,
        directory=out / "training",
        executor=executor,
        save_every_seconds=save_every_seconds,
        intervention=known.intervention,
    )
    before = known._replace(params=fetch(known.params))
    params, edit = fetch(result.params), fetch(result.intervention)
    after = known._replace(name=str(out), params=params, intervention=edit)
    made_by = file_of(method)

    def described(rows: list[Question] | None, path: Path | None) -> Any:
        return None if rows is None else {"file": str(path), "rows": len(rows)}

    about = {
        "method": name_of(result.method),
        "settings": dataclasses.asdict(result.method),
        "model": known.name,
        "forget": described(files.forget, files.paths[0]),
        "retain": described(files.retain, files.paths[1]),
        "steps": result.steps,
        "intervention": None if edit is None else DESCRIPTION,
        **sampled_tokens(out / "training" / "history.jsonl"),
        **({} if made_by is None else {"method_file": made_by}),
        **{name: x for name in WRAPPERS if (x := getattr(config, name)) is not None},
    }
    if is_primary():
        if not result.steps or result.resumed_from < result.steps:
            for name in ("unlearning.json", "card.json", "report.html"):
                (out / name).unlink(missing_ok=True)  # of the model before
        # Weights last: without what belongs to them they would have forgotten nothing.
        save_intervention(out, edit)
        clear_adapter(out / "adapter")  # of a model which is overwritten
        model = known.model.config
        save_pretrained(out, model, params, known.tokenizer, like=known.name)
        write_json(out / "unlearning.json", about)
    wait_for_all("model saved")
    log.info("wrote %s (%d steps)", out, result.steps)
    return before, after, about


def sampled_tokens(history: Path) -> dict[str, int]:
    """How many tokens a run sampled, if its method samples."""
    if not history.is_file():
        return {}
    rows = (row.values for row in json_rows(history))
    found = [row["sampled_tokens"] for row in rows if "sampled_tokens" in row]
    return {"sampled_tokens": round(sum(found))} if found else {}


def forget_texts(
    rows: list[Question],
    encode: Callable[[list[Question]], EncodedAnswers],
    refusals: Sequence[Question] = (),
    tokenizer: Any = None,
) -> ForgetTexts:
    """The texts to forget with every other answer there is for them.

    Each refusal becomes an answer to all of them; without any, each row's own does, if
    every row has one. There are as many false answers as every row has.
    """

    def versions(answers: Iterable[Sequence[str]]) -> list[EncodedAnswers]:
        return [
            encode(
                [
                    row._replace(answer=answer, value=None)
                    for row, answer in zip(rows, version, strict=True)
                ]
            )
            for version in answers
        ]

    refused = [[refusal.answer] * len(rows) for refusal in refusals]
    own = [row.refusal for row in rows if row.refusal is not None]
    if not refusals and len(own) == len(rows):
        refused = [own]
    false = zip(*(row.inverted for row in rows), strict=False)  # as the shortest
    found = encode(rows), versions(refused), versions(false)
    return ForgetTexts(*found, rows, tokenizer)
