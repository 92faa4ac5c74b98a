"""`lt-mia unlearn`: a model that has forgotten some texts."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from lt_mia_jax.data.questions import AnswerTemplate
from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import (
    BATCH,
    COUNT,
    FRACTION,
    LENGTH,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
)
from lt_mia_jax.finetune.flags import LowRank
from lt_mia_jax.outputs import MODEL, Output, Source, Writing, WritingFlags
from lt_mia_jax.verification.options import Evaluation, EvaluationFlags

DEFAULT = "npo"
WRITES = Output(
    (*MODEL, "unlearning.json", "card.json", "report.html"), record="training"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlearn:
    """Make a model forget texts; write a Hugging Face directory and a report.

    --method NAME selects the method, and --help after it lists that method's settings.
    --method FILE.py:Name loads the class or value Name from a file of yours; only the
    file that you name is executed. An interrupted run continues where it stopped, with
    the same result.
    """

    model: Source
    """The model that knows the texts: a Hugging Face directory, a PEFT adapter, or a
    hub id. If it already carries an MRP projection, another `--method mrp` run extends
    it."""
    forget: Path
    """Texts to forget, `question` and `answer`, or `text`: a .jsonl, .jsonl.gz, .csv
    or .parquet file, a folder of .txt files, or hub:NAME:CONFIG:SPLIT."""
    out: Path
    """Folder of the new model; checkpoints go to its `training` folder."""
    retain: Path | None = None
    """Texts to retain, in the same format."""
    refusals: Path | None = None
    """Refusals (`text`) for the methods that teach them; without it, the rows of
    --forget need the field `refusal`."""
    column: str = "text"
    """Field or column that holds the plain texts of --forget and --retain."""
    method: Any = None
    """Settings of the method."""
    epochs: Annotated[int, COUNT] = 10
    """Epochs over the forget texts."""
    batch_size: Annotated[int, BATCH] = 32
    """Forget texts per step, and as many retain texts."""
    learning_rate: Annotated[float, POSITIVE] = 1e-5
    """Peak learning rate of AdamW (mrp: of gradient descent). It rises over the first
    epoch, then falls to 0."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """Decoupled weight decay, on all parameters."""
    sharpness: Annotated[float | None, POSITIVE] = None
    """Take each forget gradient at the worst point within this distance of the weights
    (sharpness-aware minimization), so that relearning is harder; try 0.05. One more
    forward and backward pass per step."""
    fisher_share: Annotated[float | None, FRACTION] = None
    """Let each step move only this fraction of the weights, those with the largest
    squared gradient (Fisher masking); such as 0.1."""
    length: Annotated[int, LENGTH] = 128
    """Maximum length of a text in tokens; longer ones are cut."""
    template: AnswerTemplate = dataclasses.field(default_factory=AnswerTemplate)
    """How question and answer become one text."""
    lora: LowRank = dataclasses.field(default_factory=LowRank)
    """Low-rank adapters instead of all parameters."""
    save_seconds: Annotated[float, NOT_NEGATIVE] = 60.0
    """Minimum time between checkpoints; 0 saves after every step."""
    seed: Annotated[int, SEED] = 0
    """Seed of the order of texts, and of all draws."""
    evaluation: EvaluationFlags = dataclasses.field(default_factory=Evaluation)
    """What the result is compared with."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""
    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def choose(arguments: list[str]) -> tuple[type[Unlearn], list[str]]:
    """A subclass of `Unlearn` for the `--method` given, and the other arguments."""
    from lt_mia_jax.unlearning.methods.own import choose_method

    name, rest = DEFAULT, []
    words = iter(arguments)
    for word in words:
        if word == "--method":
            name = next(words, "")
        elif word.startswith("--method="):
            name = word.removeprefix("--method=")
        else:
            rest.append(word)
    return with_method(choose_method(name)), rest


def with_method(method: Any) -> type[Unlearn]:
    """`Unlearn` with a method's settings as flags, and its recipe as defaults."""
    recipe = method.recipe._asdict()
    types = {name: Unlearn.__annotations__[name] for name in recipe}
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
    """Unlearn, save, and evaluate."""
    from lt_mia_jax.audit.scoring import choose_attack
    from lt_mia_jax.unlearning.recipe import UnlearnConfig
    from lt_mia_jax.unlearning.run import load_model, read_files, unlearn_and_save
    from lt_mia_jax.verification.verify import check_models, read_material

    options, material = config.evaluation, None
    files = read_files(
        config.forget, config.retain, config.refusals, column=config.column
    )
    if options.evaluated:
        material = read_material(options, files.forget, files.retain, choose_attack)
    executor = config.devices.make()
    known = load_model(config.model, executor)
    if material is not None:
        check_models(options, known.tokenizer)
    recipe = UnlearnConfig(
        learning_rate=config.learning_rate,
        epochs=config.epochs,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        warmup_epochs=min(1.0, config.epochs / 2),
        lora=config.lora.config,
        sharpness=config.sharpness,
        fisher_share=config.fisher_share,
        seed=config.seed,
    )
    before, after, about = unlearn_and_save(
        known,
        files,
        config.method,
        recipe,
        out=config.out,
        template=config.template,
        length=config.length,
        executor=executor,
        save_every_seconds=config.save_seconds,
    )
    if material is not None:
        _report(config, material, before, after, about)


def _report(
    config: Unlearn, material: Any, before: Any, after: Any, about: dict[str, Any]
) -> None:
    """Measure both models; write `card.json` and `report.html`."""
    import logging

    import jax

    from lt_mia_jax.audit.results import command_line
    from lt_mia_jax.configs import from_dict, to_dict
    from lt_mia_jax.data.formats.sources import source_name
    from lt_mia_jax.provenance import versions
    from lt_mia_jax.report import write_report
    from lt_mia_jax.unlearning.interventions.storage import load_intervention
    from lt_mia_jax.verification.evaluated import EvaluatedModel
    from lt_mia_jax.verification.records import About, UnlearningRun
    from lt_mia_jax.verification.storage import write_run
    from lt_mia_jax.verification.verify import verify

    log = logging.getLogger(__name__)
    if jax.process_count() > 1:
        log.warning(
            "no report from several processes; the same command in one writes it"
        )
        return
    evaluated = EvaluatedModel(
        before.model,
        before.params,
        before.tokenizer,
        config.template,
        config.length,
        before.intervention,
    )
    found = verify(
        config.evaluation,
        material,
        evaluated,
        evaluated._replace(params=after.params, intervention=after.intervention),
        load_intervention,
    )
    run = UnlearningRun(
        title=f"{about['method']}: {Path(config.model).name} forgets "
        f"{source_name(config.forget)}",
        method=about["method"],
        settings=about["settings"],
        verification=found,
        about=from_dict(About, about),
        config=to_dict(config.evaluation),
        versions=versions(),
        command=command_line(),
    )
    page = config.out / "report.html"
    page.unlink(missing_ok=True)  # it would show the card before
    write_run(config.out, run)
    write_report([config.out], page)
    log.info("wrote %s", page)
