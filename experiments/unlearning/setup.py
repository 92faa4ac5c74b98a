"""Data, models and runs of the unlearning table: SynTOFU, or TOFU."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lt_mia_jax.checkpoints import load_pretrained
from lt_mia_jax.data.answers import EncodedAnswers
from lt_mia_jax.data.benchmark_catalog import BENCHMARKS
from lt_mia_jax.data.benchmarks import load_benchmark
from lt_mia_jax.data.questions import AnswerTemplate, Question, read_questions
from lt_mia_jax.data.syntofu import MAX_LENGTH, TEMPLATE, SynTofuConfig, build
from lt_mia_jax.data.texts import hash_unit
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.study.syntofu import Family, SynTofu
from lt_mia_jax.unlearning.methods import METHODS, Method
from lt_mia_jax.unlearning.recipe import UnlearnConfig
from lt_mia_jax.unlearning.run import forget_texts
from lt_mia_jax.unlearning.train import unlearn
from lt_mia_jax.verification.card import report_card
from lt_mia_jax.verification.evaluate import examine, membership, retrain_distances
from lt_mia_jax.verification.evaluated import EvaluatedModel
from lt_mia_jax.verification.items import Measured
from lt_mia_jax.verification.metrics.tofu import UTILITY_SETS
from lt_mia_jax.verification.storage import card_to_json

VALIDATION = 0.3
"""Share of the forget questions that choose the setting, and are not reported on."""
USEFUL = 0.95
"""Share of the retrained model's utility that a model is to keep."""
CHOSEN = "chosen.json"
"""Beside a method's runs: which of them are reported."""
RATE_FACTORS = {"mrp": 1000.0}
"""MRP trains directions by plain SGD, whose rates are of another size."""
RETAIN_FIELDS = {"pdu": "initial", "causal_layer_unlearning": "highest"}
"""What weighs the retain term where that is not `retain_weight`."""


@dataclasses.dataclass(frozen=True)
class Tofu:
    """Data and models of TOFU, from the hub or from folders."""

    data: Path | None = None
    """A copy of the data set locuslab/TOFU; the hub by default."""

    models: str = "open-unlearning/tofu_Llama-3.2-1B-Instruct_{}"
    """Directory or hub id of the models, {} standing for full, retain90 and so on."""

    base: str = "meta-llama/Llama-3.2-1B-Instruct"
    """The model before it learned TOFU."""

    refusals: Path | None = None
    """JSONL of refusals (`text`), for the methods that teach them; these are left out
    without it."""

    inverted: Path | None = None
    """JSONL of questions with `inverted`, false answers to learn in place of the true
    ones, for alt_po and meow, which are left out without it. Not the wrong answers of
    TOFU, by which forget quality is measured."""

    template: AnswerTemplate = dataclasses.field(default_factory=AnswerTemplate)
    """How question and answer become one text; as in the models' own fine-tuning."""

    length: int = 256
    """Tokens a text is cut to."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Data, models and what is tried on them."""

    preset: Literal["syntofu", "tofu"] = "syntofu"
    """Data and models. syntofu: made here. tofu: those of TOFU, see --tofu.*."""

    tofu: Tofu = dataclasses.field(default_factory=Tofu)
    """What the preset tofu reads."""

    out: Path = Path("runs/unlearning")
    """Models, and one result a run."""

    family: Family = "gpt2"
    """Architecture of the models."""

    methods: tuple[str, ...] = tuple(m for m in METHODS if m != "retrain")
    """Which ones."""

    percents: tuple[int, ...] = (1, 5, 10)
    """Sizes of the forget set."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the reported runs."""

    rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4, 8e-4)
    """Learning rates that are tried."""

    epochs: tuple[int, ...] = (40,)
    """Numbers of passes over the forget set that are tried."""

    retain: tuple[float, ...] = (1.0, 5.0, 20.0)
    """Factors of a method's own weight of its retain term that are tried."""


class Trial(NamedTuple):
    """What is tuned of a method."""

    rate: float
    """As `Settings.rates` has it; see `actual_rate`."""
    epochs: int
    retain: float
    """Factor of the weight of the retain term."""

    def named(self, seed: int) -> str:
        """Name of a run with it."""
        return f"{self.rate:g}-{self.epochs}-{self.retain:g}-{seed}"


def method_of(name: str, retain: float = 1.0) -> Method:
    """A method with another weight of its retain term; the same if it has none."""
    method, field = METHODS[name], RETAIN_FIELDS.get(name, "retain_weight")
    return dataclasses.replace(method, **{field: getattr(method, field) * retain})


def trials_of(config: Settings, name: str) -> list[Trial]:
    """The grid, without trials that would repeat another one."""
    method, retain = METHODS[name], {}
    for factor in config.retain:
        retain.setdefault(method_of(name, factor), factor)
    rates, epochs = config.rates, config.epochs
    if method.forget() is None and method.retain() is None:  # takes no steps
        rates, epochs, retain = rates[:1], epochs[:1], {method: config.retain[0]}
    return list(
        itertools.starmap(Trial, itertools.product(rates, epochs, retain.values()))
    )


def lacking(config: Settings) -> dict[str, str]:
    """Methods that cannot run on the data, and the flag that they need."""
    if config.preset == "syntofu":
        return {}
    flags = {"refusal": "refusals", "inverted": "inverted"}
    return {
        name: f"--tofu.{flag}"
        for name in config.methods
        if (flag := flags.get(str(METHODS[name].alternative)))
        and getattr(config.tofu, flag) is None
    }


def with_inverted(rows: list[Question], path: Path) -> list[Question]:
    """The rows with the false answers of the file's rows of the same questions.

    Raises:
      InputError: a question has none there.
    """
    known = {row.question: row.inverted for row in read_questions(path)}
    missing = [row for row in rows if not known.get(row.question)]
    if missing:
        raise InputError(
            f"{path}: no `inverted` for {len(missing)} of {len(rows)} questions to "
            f"forget, first {missing[0].question!r}"
        )
    return [row._replace(inverted=known[row.question]) for row in rows]


def models_of(config: Settings) -> SynTofu:
    """The command that writes SynTOFU's data and trains its models."""
    out = config.out / config.family
    return SynTofu(out=out, family=config.family, data=SynTofuConfig())


class Setup(NamedTuple):
    """Where questions and models of a preset are."""

    split: Callable[[str], list[Question]]
    """Rows of a part of the data, by TOFU's names."""
    extra: tuple[str, ...]
    """Parts that are kept beside the retain set."""
    base: str
    full: str
    retrained: dict[str, str]
    """Directories or hub ids; several retrained ones show the noise between equals."""
    template: AnswerTemplate
    length: int


def setup(config: Settings, percent: int) -> Setup:
    """The preset with one size of the forget set.

    Raises:
      InputError: the preset needs settings that are missing.
    """
    kept = f"retain{100 - percent:02d}"
    if config.preset == "syntofu":
        command = models_of(config)
        splits, models = build(command.data), command.out / "models"
        return Setup(
            split=lambda name: list(splits[name]),
            extra=("pretrain",),
            base=str(models / "base"),
            full=str(models / "full"),
            retrained={
                f"retrained-{seed}": str(models / f"{kept}-seed{seed}")
                for seed in command.seeds
            },
            template=TEMPLATE,
            length=MAX_LENGTH,
        )
    tofu = config.tofu

    def read(name: str) -> list[Question]:
        if name == "idk":
            if tofu.refusals is None:
                return []
            return read_questions(tofu.refusals)
        rows = load_benchmark(BENCHMARKS["tofu"], name, local=tofu.data)
        if tofu.inverted is not None and name == f"forget{percent:02d}":
            return with_inverted(rows, tofu.inverted)
        return rows

    return Setup(
        split=read,
        extra=(),
        base=tofu.base,
        full=tofu.models.format("full"),
        retrained={"retrained": tofu.models.format(kept)},
        template=tofu.template,
        length=tofu.length,
    )


class World:
    """One size of the forget set, its models and its files."""

    def __init__(self, config: Settings, percent: int) -> None:
        """Open what the jobs before have made, or what exists."""
        self.setup = made = setup(config, percent)
        forget = f"forget{percent:02d}"
        self.forget = made.split(forget)
        self.perturbed = made.split(f"{forget}_perturbed")
        self.holdout = made.split(f"holdout{percent:02d}")
        self.utility = {name: made.split(f"{name}_perturbed") for name in UTILITY_SETS}
        self.results = results_of(config, percent)
        self.base, self.full = self.load(made.base), self.load(made.full)
        self.retrained = {
            name: self.load(path) for name, path in made.retrained.items()
        }
        refusals = made.split("idk")
        words = self.full.tokenizer
        self.texts = forget_texts(self.forget, self.encode, refusals, words)
        kept = [f"retain{100 - percent:02d}", *made.extra]
        self.keep = self.encode([row for name in kept for row in made.split(name)])
        first = next(iter(self.retrained.values()))
        self.truth = {part: self.measure(first, part) for part in (True, False)}
        self.start = {part: self.measure(self.full, part) for part in (True, False)}

    def load(self, path: str) -> EvaluatedModel:
        """One of the models."""
        config, params, tokenizer = load_pretrained(path)
        model, made = LanguageModel(config), self.setup
        return EvaluatedModel(model, params, tokenizer, made.template, made.length)

    def encode(self, rows: list[Question]) -> EncodedAnswers:
        """What training reads."""
        return self.full.encode(rows)

    def measure(self, subject: EvaluatedModel, validation: bool) -> Measured:
        """All that a card needs, on one part of the forget set."""

        def part(rows: list[Question]) -> list[Question]:
            return [
                row
                for row in rows
                if (hash_unit("validation", row.id) < VALIDATION) == validation
            ]

        sets = {"forget": part(self.perturbed), **self.utility}
        first, texts = next(iter(self.retrained.values())), part(self.forget)
        return Measured(
            {name: examine(subject, rows) for name, rows in sets.items()},
            membership(subject, self.base, texts),
            membership(subject, self.base, self.holdout),
            topics=tuple(row.topic for row in texts),
            distance=None
            if subject is first
            else retrain_distances(subject, first, sets["forget"]),
        )

    def card(self, subject: EvaluatedModel, validation: bool) -> dict[str, Any]:
        """The report card of one model."""
        found = report_card(
            self.measure(subject, validation),
            self.truth[validation],
            original=self.start[validation],
        )
        return card_to_json(found)

    def attempt(self, name: str, trial: Trial, seed: int) -> EvaluatedModel:
        """`full` after unlearning."""
        recipe = UnlearnConfig(
            learning_rate=actual_rate(name, trial.rate),
            epochs=trial.epochs,
            batch_size=32,
            weight_decay=0.0,
            clip_norm=1.0,
            seed=seed,
        )
        result = unlearn(
            self.full.model,
            self.full.params,
            self.texts,
            self.keep,
            method_of(name, trial.retain),
            recipe,
            directory=self.results / name / trial.named(seed),
            save_every_seconds=1e9,
        )
        return self.full._replace(
            params=result.params, intervention=result.intervention
        )


def actual_rate(name: str, rate: float) -> float:
    """The learning rate that a method is run with where `rate` is tried."""
    return rate * RATE_FACTORS.get(name, 1.0)


def results_of(config: Settings, percent: int) -> Path:
    """Folder of one size of the forget set."""
    if config.preset == "syntofu":
        name = config.family
    else:  # results of other models or data must not be taken for these
        described = repr(config.tofu).encode()
        name = f"tofu-{hashlib.sha256(described).hexdigest()[:8]}"
    return config.out / "results" / name / f"{percent:02d}"
