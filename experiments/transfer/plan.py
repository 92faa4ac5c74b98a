"""The combinations of the transfer study, as data: which bases, corpora and recipes."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal

from experiments.transfer.architectures import SEEN, UNSEEN, Family
from lt_mia_jax.attacks import ClassifierConfig, TrainConfig
from lt_mia_jax.errors import InputError
from lt_mia_jax.finetune import LoraConfig, PretrainConfig
from lt_mia_jax.finetune.config import ADAMW
from lt_mia_jax.models import ModelConfig
from lt_mia_jax.study.stages import Combination

Preset = Literal["tiny", "paper", "check"]

CODE = ("ml_code", "swallow_code")
"""Judged corpora of source code, reported separately."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A model before fine-tuning: made here, or found."""

    name: str
    """Short; part of folder names."""
    family: Family = "transformer"
    model: ModelConfig | None = None
    """Architecture to pretrain here; None when there is a `source`."""
    corpora: tuple[str, ...] = ()
    """Corpora whose pretraining texts it learns."""
    source: str | None = None
    """Hub id or directory of a model that exists."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A classifier and how it is trained."""

    classifier: ClassifierConfig
    recipe: TrainConfig

    def trained(self, **changes: Any) -> "Learner":
        """With another recipe; a warm-up keeps to the first quarter."""
        epochs = changes.get("epochs", self.recipe.epochs)
        warmup = min(self.recipe.warmup_epochs, epochs / 4)
        changes = {"warmup_epochs": warmup, **changes}
        return dataclasses.replace(
            self, recipe=dataclasses.replace(self.recipe, **changes)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is made, trained and judged."""

    bases: tuple[Base, ...]
    train: tuple[Combination, ...]
    """What the attack learns from: transformers and training corpora."""
    judge: tuple[Combination, ...]
    """What it is judged on: other bases and other corpora."""
    pretrain: PretrainConfig
    main: Learner
    """The attack that is reported and packaged."""
    small: Learner | None = None
    """Of ablations and scaling studies, which are many; None takes `main`."""

    def base(self, name: str) -> Base:
        """By name."""
        return next(base for base in self.bases if base.name == name)

    @property
    def corpora(self) -> tuple[str, ...]:
        """Training corpora first: of near-copies the first one stays."""
        names = [c.corpus for c in (*self.train, *self.judge)]
        names = [*itertools.chain(*(b.corpora for b in self.bases)), *names]
        return tuple(dict.fromkeys(names))

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """Sizes of the tokenizers that are made here."""
        sizes = {b.model.vocab_size for b in self.bases if b.model is not None}
        return tuple(sorted(sizes))


TRAINING_CORPORA = ("py_code", "sci_docs", "cpp_headers", "speeches")
JUDGED_CORPORA = ("ml_docs", "ref_prose", "ml_code")

_PAIRS = tuple(itertools.combinations(TRAINING_CORPORA, 2))
_ADAPTERS = LoraConfig(rank=16, alpha=32.0, dropout=0.0)

# Strengths of fine-tuning, from hardly any loss gap to a large one.
_STRENGTHS: tuple[dict[str, Any], ...] = (
    {"epochs": 4, "learning_rate": 5e-4},
    {"epochs": 6, "learning_rate": 5e-4},
    {"epochs": 3, "learning_rate": 1e-3},
    {"epochs": 6, "learning_rate": 2e-3, "lora": _ADAPTERS},
    {"epochs": 2, "learning_rate": 5e-4},
)
_USUAL = _STRENGTHS[0]


def tiny(*, draws: int = 3, repeats: int = 1) -> Plan:
    """Eight transformers x four corpora, judged on four families x three corpora.

    Args:
      draws: judged repetitions of each base and corpus, with other members.
      repeats: combinations of each training base and corpus, of different strength.
    """
    seen = [
        Base(name=name, model=make(), corpora=_PAIRS[i % len(_PAIRS)])
        for i, (name, make) in enumerate(SEEN.items())
    ]
    unseen = [
        Base(name=name, family=family, model=make(), corpora=TRAINING_CORPORA)
        for name, (family, make) in UNSEEN.items()
    ]
    cells = list(itertools.product(SEEN, TRAINING_CORPORA, range(repeats)))
    train = [
        Combination(
            base=base,
            corpus=corpus,
            draw=draw,
            # Five strengths, four corpora: each base and each corpus gets all sorts.
            **_STRENGTHS[i % len(_STRENGTHS)],
        )
        for i, (base, corpus, draw) in enumerate(cells)
    ]
    judge = [
        Combination(base=base, corpus=corpus, draw=draw, **_JUDGED, **_USUAL)
        for base, corpus, draw in itertools.product(
            UNSEEN, JUDGED_CORPORA, range(draws)
        )
    ]
    # The control, and other strengths for the figure of AUC against loss gap.
    others: list[dict[str, Any]] = [{"epochs": 0}, *_STRENGTHS[1:]]
    judge += [
        Combination(
            base=base, corpus=JUDGED_CORPORA[0], draw=draws + i, **_BESIDE, **strength
        )
        for base in UNSEEN
        for i, strength in enumerate(others)
    ]
    return Plan(
        bases=(*seen, *unseen),
        train=tuple(train),
        judge=tuple(judge),
        pretrain=PretrainConfig(
            steps=400, optimizer=dataclasses.replace(ADAMW, learning_rate=2e-3)
        ),
        main=_TINY,
        small=_TINY.trained(epochs=3),
    )


# An epoch takes two minutes of one core.
_TINY = Learner(
    classifier=ClassifierConfig(
        blocks=("truth", "loss", "text"),
        log_probabilities=True,
        width=64,
        heads=4,
        layers=2,
        feed_forward=192,
        standardise=True,
    ),
    recipe=TrainConfig(
        epochs=6,
        batch_size=128,
        learning_rate=1e-3,
        warmup_epochs=0.5,
        balance="plain",
        selection="mean",
        cache_gib=16.0,
    ),
)

# Three repetitions of three corpora are 10,000 non-members and some for each family;
# of 3,201 documents of the smallest corpus 45 % are non-members, give or take 28.
_JUDGED: dict[str, Any] = {"nonmembers": 1120, "familiar": False}
# Enough for the AUC that the figure against loss gap shows.
_BESIDE: dict[str, Any] = {"nonmembers": 480, "familiar": False}


def check() -> Plan:
    """A few minutes of the same kind, to see that everything works."""
    whole = tiny(draws=2, repeats=1)
    seen, unseen = ("gpt2", "llama"), ("phi", "mamba")
    return dataclasses.replace(
        whole,
        bases=tuple(b for b in whole.bases if b.name in (*seen, *unseen)),
        train=tuple(
            dataclasses.replace(c, epochs=3)
            for c in whole.train
            if c.base in seen and c.corpus in ("sci_docs", "speeches")
        ),
        judge=tuple(
            c
            for c in whole.judge
            if c.base in unseen and c.corpus == "ml_docs" and c.draw <= 2
        ),
        pretrain=dataclasses.replace(whole.pretrain, steps=200),
        main=whole.main.trained(epochs=4),
    )


# Model, LoRA rank (None trains everything), family. Source: grids of arXiv 2604.03199.
PAPER_TRAIN: tuple[tuple[str, int | None], ...] = (
    ("distilgpt2", None),
    ("gpt2-xl", None),
    ("Qwen/Qwen2-1.5B", None),
    ("tiiuae/falcon-rw-1b", None),
    ("EleutherAI/pythia-1.4b", 16),
    ("tiiuae/falcon-7b", 16),
    ("cerebras/Cerebras-GPT-2.7B", 16),
    ("EleutherAI/gpt-j-6B", 16),
    ("google/gemma-2b", 16),
    ("mosaicml/mpt-7b", 16),
    ("bigscience/bloom-3b", 16),
    ("togethercomputer/RedPajama-INCITE-Base-3B-v1", 16),
    ("openlm-research/open_llama_3b_v2", 16),
    ("allenai/OLMo-1B-hf", 8),
    ("stabilityai/stablelm-2-1_6b", 12),
)
PAPER_JUDGE: tuple[tuple[str, int | None, Family], ...] = (
    ("gpt2", None, "transformer"),
    ("EleutherAI/pythia-2.8b", None, "transformer"),
    ("EleutherAI/pythia-6.9b", None, "transformer"),
    ("meta-llama/Llama-2-7b-hf", None, "transformer"),
    ("mistralai/Mistral-7B-v0.1", 16, "transformer"),
    ("microsoft/phi-2", 16, "transformer"),
    ("facebook/opt-2.7b", 16, "transformer"),
    ("state-spaces/mamba-2.8b-hf", None, "mamba"),
    ("RWKV/rwkv-4-3b-pile", None, "rwkv"),
    ("google/recurrentgemma-2b", None, "griffin"),
)
PAPER_TRAINING_CORPORA = ("news_category_dataset", "wikipedia", "cnndm", "arxiv")
PAPER_JUDGED_CORPORA = ("ag_news", "wikitext103", "xsum", "swallow_code")


def paper() -> Plan:
    """The published grid: 15 models x 4 data sets, judged on 10 models x 4 data sets.

    Adapters are on every matrix of every layer; the published lists of modules name
    the same matrices. Source: arXiv 2604.03199 and the configuration files of its code.
    """

    def combine(model: str, rank: int | None, corpus: str) -> Combination:
        return Combination(
            base=short(model),
            corpus=corpus,
            members=10_000,
            nonmembers=10_000,
            validation=500,
            epochs=3,
            learning_rate=5e-5,
            familiar=False,
            lora=None if rank is None else LoraConfig(rank=rank, alpha=2.0 * rank),
        )

    seen = [Base(name=short(model), source=model) for model, _ in PAPER_TRAIN]
    unseen = [
        Base(name=short(model), family=family, source=model)
        for model, _, family in PAPER_JUDGE
    ]
    return Plan(
        bases=(*seen, *unseen),
        train=tuple(
            combine(model, rank, corpus)
            for model, rank in PAPER_TRAIN
            for corpus in PAPER_TRAINING_CORPORA
        ),
        judge=tuple(
            combine(model, rank, corpus)
            for model, rank, _ in PAPER_JUDGE
            for corpus in PAPER_JUDGED_CORPORA
        ),
        pretrain=PretrainConfig(),
        main=Learner(classifier=ClassifierConfig(), recipe=TrainConfig()),
    )


def short(model: str) -> str:
    """A hub id as a folder's name."""
    return model.replace("/", "_").lower()


def part(plan: Plan, only: tuple[str, ...], without: tuple[str, ...] = ()) -> Plan:
    """A plan with fewer bases.

    Args:
      plan: the whole.
      only: how names of bases begin that are kept; empty keeps all.
      without: how names of bases begin that are left out even so.

    Raises:
      InputError: a word names no base, or nothing is left to train or to judge.
    """
    names = [base.name for base in plan.bases]
    flags = {"--only": only, "--without": without}
    for flag, words in flags.items():
        idle = [word for word in words if not any(n.startswith(word) for n in names)]
        if idle:
            raise InputError(
                f"{flag} {' '.join(idle)}: no base begins so; there are "
                f"{', '.join(names)}"
            )

    def kept(name: str) -> bool:
        return (not only or name.startswith(only)) and not name.startswith(without)

    found = dataclasses.replace(
        plan,
        bases=tuple(b for b in plan.bases if kept(b.name)),
        train=tuple(c for c in plan.train if kept(c.base)),
        judge=tuple(c for c in plan.judge if kept(c.base)),
    )
    if not (found.train and found.judge):
        given = [" ".join((flag, *words)) for flag, words in flags.items() if words]
        raise InputError(
            f"{' '.join(given)} leaves {len(found.train)} combinations to "
            f"train on and {len(found.judge)} to judge; training bases are "
            f"{', '.join(dict.fromkeys(c.base for c in plan.train))}, judged ones "
            f"{', '.join(dict.fromkeys(c.base for c in plan.judge))}"
        )
    return found


PRESETS: dict[Preset, Callable[[], Plan]] = {
    "tiny": tiny,
    "paper": paper,
    "check": check,
}
