"""`lt-mia unlearn`: a model that has forgotten some texts."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.checkpoints.gguf import is_gguf
from lt_mia_jax.checkpoints.hub import resolve
from lt_mia_jax.commands.unlearn_report import (
    Evaluation,
    EvaluationFlags,
    check_evaluation,
    check_models,
    write_evaluation,
)
from lt_mia_jax.data.answers import AnswerTemplate, EncodedAnswers, encode_answers
from lt_mia_jax.data.questions import Question, check_disjoint, read_questions
from lt_mia_jax.data.tokenize import check_vocabulary
from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import fetch, is_primary, wait_for_all
from lt_mia_jax.files import write_json
from lt_mia_jax.finetune.flags import LowRank
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.provenance import recorded
from lt_mia_jax.unlearning.interventions.storage import (
    DESCRIPTION,
    load_intervention,
    save_intervention,
)
from lt_mia_jax.unlearning.methods import METHODS, Method, find_method, name_of
from lt_mia_jax.unlearning.methods.own import is_file, load_method
from lt_mia_jax.unlearning.recipe import ForgetTexts, UnlearnConfig
from lt_mia_jax.unlearning.train import unlearn
from lt_mia_jax.verification.evaluate import EvaluatedModel

log = logging.getLogger(__name__)

DEFAULT = "npo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlearn:
    """Make a model forget texts; write a Hugging Face directory and a report.

    --method NAME chooses how (--help then shows that method's own settings); the run
    continues where it was interrupted, with the same result.
    """

    model: str
    """The model that knows the texts: a Hugging Face directory or hub id. The
    projection of an earlier run of mrp is extended by another one."""

    forget: Path
    """JSONL of what to forget: `question` and `answer`, or `text`."""

    out: Path
    """Folder of the new model; training state goes to its `training` folder."""

    retain: Path | None = None
    """JSONL of what to keep, in the same format."""

    refusals: Path | None = None
    """JSONL of refusals (`text`) for the methods that teach them; without it the rows
    of --forget must have the field `refusal`."""

    method: Method = METHODS[DEFAULT]
    """How."""

    epochs: int = 10
    """Passes over the texts to forget."""

    batch_size: int = 32
    """Texts to forget in one step, and as many to keep."""

    learning_rate: float = 1e-5
    """Highest rate of AdamW (mrp: of gradient descent); it rises over the first epoch
    and then falls to 0."""

    weight_decay: float = 0.01
    """Decoupled weight decay, on all parameters."""

    length: int = 128
    """Tokens a text is cut to."""

    template: AnswerTemplate = dataclasses.field(default_factory=AnswerTemplate)
    """How question and answer become one text."""

    lora: LowRank = dataclasses.field(default_factory=LowRank)
    """Adapters instead of all parameters."""

    save_seconds: float = 60.0
    """Least time between checkpoints; 0 saves after every step."""

    seed: int = 0
    """Seed of the order of texts, and of all draws."""

    evaluation: EvaluationFlags = dataclasses.field(default_factory=Evaluation)
    """What the result is compared with."""

    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def choose(arguments: list[str]) -> tuple[type[Unlearn], list[str]]:
    """The command with the flags of the method that `--method NAME` names.

    Returns:
      A subclass of `Unlearn` whose default method it is, and the other arguments.

    Raises:
      InputError: there is no such method.
    """
    name, rest = DEFAULT, []
    words = iter(arguments)
    for word in words:
        if word == "--method":
            name = next(words, "")
        elif word.startswith("--method="):
            name = word.removeprefix("--method=")
        else:
            rest.append(word)
    method = load_method(name) if is_file(name) else find_method(name)
    return with_method(method), rest


def with_method(method: Method) -> type[Unlearn]:
    """`Unlearn` with that method and its recipe for defaults, its settings as flags."""
    recipe = method.recipe._asdict()
    types = {name: type(value) for name, value in recipe.items()}
    made: Any = type(
        "Unlearn",
        (Unlearn,),
        {
            "__annotations__": {"method": type(method), **types},
            "__doc__": Unlearn.__doc__,
            "__module__": __name__,
            "method": method,
            **recipe,
        },
    )
    return dataclasses.dataclass(frozen=True, kw_only=True)(made)


def run(config: Unlearn) -> None:
    """Unlearn and save.

    Raises:
      InputError: files or the model cannot be used, texts overlap, or the run diverged.
    """
    forget = read_questions(config.forget)
    retain = None if config.retain is None else read_questions(config.retain)
    if not forget:
        raise InputError(f"{config.forget}: no rows; there is nothing to forget")
    if retain is not None:
        check_disjoint(forget, retain)
    check_evaluation(config.evaluation, forget, retain)
    refusals = () if config.refusals is None else read_questions(config.refusals)
    executor = config.devices.make()
    model, params, tokenizer = load_pretrained(config.model, mesh=executor.mesh)
    check_vocabulary(tokenizer, model.vocab_size)
    check_models(config.evaluation, tokenizer)
    earlier = None
    if not is_gguf(config.model):
        earlier = load_intervention(resolve(config.model), model)
    state = config.out / "training"

    def encode(rows: list[Question]) -> EncodedAnswers:
        return encode_answers(
            rows, tokenizer, max_length=config.length, template=config.template
        )

    with recorded(state, "unlearn", config):
        result = unlearn(
            LanguageModel(model),
            params,
            ForgetTexts(
                encode(forget),
                [encode(rows) for rows in refused(forget, refusals)],
                [encode(rows) for rows in inverted(forget)],
            ),
            None if retain is None else encode(retain),
            config.method,
            UnlearnConfig(
                learning_rate=config.learning_rate,
                epochs=config.epochs,
                batch_size=config.batch_size,
                weight_decay=config.weight_decay,
                warmup_epochs=min(1.0, config.epochs / 2),
                lora=config.lora.config,
                seed=config.seed,
            ),
            directory=state,
            executor=executor,
            save_every_seconds=config.save_seconds,
            intervention=earlier,
        )
    before, params = fetch(params), fetch(result.params)
    made = fetch(result.intervention)
    card = {
        "method": name_of(result.method),
        "settings": dataclasses.asdict(result.method),
        "model": config.model,
        "forget": {"file": str(config.forget), "rows": len(forget)},
        "retain": None
        if retain is None
        else {"file": str(config.retain), "rows": len(retain)},
        "steps": result.steps,
        "intervention": None if made is None else DESCRIPTION,
    }
    if is_primary():
        # Weights last: without what belongs to them they would have forgotten nothing.
        save_intervention(config.out, made)
        save_pretrained(config.out, model, params, tokenizer, like=config.model)
        write_json(config.out / "unlearning.json", card)
    wait_for_all("model saved")
    log.info("wrote %s (%d steps)", config.out, result.steps)
    subject = EvaluatedModel(
        LanguageModel(model),
        before,
        tokenizer,
        config.template,
        config.length,
        earlier,
    )
    write_evaluation(
        config.out,
        config.evaluation,
        forget,
        retain,
        subject,
        subject._replace(params=params, intervention=made),
        card,
    )


def refused(
    rows: list[Question], refusals: list[Question] | tuple[()]
) -> list[list[Question]]:
    """The rows with refusals for answers: each of `refusals`, or their own."""
    if refusals:
        return [
            [row._replace(answer=refusal.answer, value=None) for row in rows]
            for refusal in refusals
        ]
    own = [row.refusal for row in rows]
    if any(refusal is None for refusal in own):
        return []
    return [
        [
            row._replace(answer=refusal or "", value=None)
            for row, refusal in zip(rows, own, strict=True)
        ]
    ]


def inverted(rows: list[Question]) -> list[list[Question]]:
    """The rows with false answers: as many versions as every row has."""
    count = min((len(row.inverted) for row in rows), default=0)
    return [
        [row._replace(answer=row.inverted[k], value=None) for row in rows]
        for k in range(count)
    ]
