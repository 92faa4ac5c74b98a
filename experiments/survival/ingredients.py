"""Texts, base and experts of the survival study: one resumable job each.

OUT/corpora, OUT/tokenizer         distinct documents; the vocabulary
OUT/bases/early, OUT/bases/late    one pretraining run after a fifth, and at its end
OUT/experts/a-strong, ...          the late base fine-tuned on the members of a
OUT/experts/early-a-strong, ...    the early base fine-tuned on the same texts
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.survival.config import (
    CORPORA,
    KNOWN,
    RATE,
    STRENGTHS,
    VOCABULARY,
    Study,
)
from lt_mia_jax.arrays import Params
from lt_mia_jax.checkpoints import Pretrained, load_pretrained, save_pretrained
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.corpora import Corpus, load_corpus
from lt_mia_jax.data.splits import Split, split_corpus
from lt_mia_jax.data.tokenize import Encoded, encode
from lt_mia_jax.executor import make_executor
from lt_mia_jax.files import fingerprint
from lt_mia_jax.finetune import PretrainConfig, pack
from lt_mia_jax.finetune.config import ADAMW
from lt_mia_jax.finetune.step import fit_texts, float32
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.description import describe
from lt_mia_jax.study import stages
from lt_mia_jax.study.stages import Combination

EARLY = 5
"""The early base is the one after 1 / EARLY of the updates."""


class Parts(NamedTuple):
    """Texts of one corpus by what they are for; no text is in two of them."""

    members: tuple[str, ...]
    """What its expert learns."""
    controls: tuple[str, ...]
    """Half as many that no model learns, and that stand where members stand."""
    nonmembers: tuple[str, ...]
    validation: tuple[str, ...]
    code: bool


def make_data(config: Study) -> None:
    """Read the corpora, and make the tokenizer."""
    folder, names = config.out / "corpora", (*KNOWN, *CORPORA.values())
    stages.make_corpora(
        folder,
        {"corpora": names},
        lambda: [load_corpus(name, cache=folder / "read") for name in names],
    )
    _tokenizer(config)


@functools.lru_cache(maxsize=8)
def corpus_of(out: Path, name: str) -> Corpus:
    """A corpus that `make_data` wrote."""
    return stages.read_corpus(out / "corpora", name)


def pretraining_texts(config: Study) -> list[str]:
    """What the base learns."""
    known = [corpus_of(config.out, name) for name in KNOWN]
    return stages.pretraining_texts(known, seed=config.seed, most=6000)


def split(config: Study, name: str) -> Split:
    """Rows of corpus a or b; its non-members include the controls."""
    corpus = corpus_of(config.out, CORPORA[name])
    return split_corpus(
        corpus.ids,
        seed=config.seed,
        model="survival",
        corpus=corpus.name,
        n_members=config.members,
        n_nonmembers=config.members // 2 + config.nonmembers,
        n_validation=config.validation,
        pool=None,
    )


def parts(config: Study, name: str) -> Parts:
    """The texts of corpus a or b."""
    corpus, found = corpus_of(config.out, CORPORA[name]), split(config, name)
    mixed = np.random.default_rng(config.seed).permutation(found.nonmembers)

    def of(rows: np.ndarray) -> tuple[str, ...]:
        return tuple(corpus.texts[row] for row in rows)

    return Parts(
        of(found.members),
        of(mixed[: config.members // 2]),
        of(mixed[config.members // 2 :]),
        of(found.validation),
        corpus.code,
    )


def encoded(texts: Sequence[str], code: bool, base: Pretrained) -> Encoded:
    """Token ids as the study cuts them."""
    side = "left" if code else "right"
    return encode(texts, base.tokenizer, length=base.config.context, side=side)


def make_early(config: Study) -> None:
    """The base after a fifth of its pretraining."""
    tokenizer = _tokenizer(config)
    stages.make_base(
        config.out / "bases" / "early",
        config.model,
        pretraining_texts(config),
        tokenizer,
        PretrainConfig(steps=config.steps // EARLY, optimizer=ADAMW, seed=config.seed),
        length=config.length,
    )


def make_late(config: Study) -> None:
    """The early base after the rest of its pretraining."""
    directory = config.out / "bases" / "late"
    recipe = PretrainConfig(
        steps=config.steps - config.steps // EARLY,
        optimizer=ADAMW,
        seed=config.seed + 1,
    )
    texts = pretraining_texts(config)

    def make() -> list[str]:
        base = load_pretrained(config.out / "bases" / "early")
        result = fit_texts(
            LanguageModel(base.config),
            float32(base.params),
            pack(encode(texts, base.tokenizer, length=base.config.context)),
            None,
            recipe,
            steps=recipe.steps,
            directory=directory / "training",
            executor=make_executor(),
            label="pretraining",
        )
        params = result.state.params
        save_pretrained(directory, base.config, params, base.tokenizer)
        return ["config.json", "model.safetensors"]

    settings = {
        "model": describe(config.model),
        "recipe": to_dict(recipe),
        "texts": fingerprint("\0".join(texts)),
    }
    stages.stage(directory, settings, make)


def make_expert(config: Study, start: str, name: str, strength: str) -> None:
    """A base, `early` or `late`, fine-tuned on the members of a or b."""
    corpus = corpus_of(config.out, CORPORA[name])
    stages.make_target(
        expert_folder(config, start, name, strength),
        load_pretrained(config.out / "bases" / start),
        corpus,
        split(config, name),
        Combination(
            base=start,
            corpus=corpus.name,
            members=config.members,
            validation=config.validation,
            epochs=STRENGTHS[strength],
            learning_rate=RATE,
        ),
        seed=config.seed,
        length=config.length,
    )


def expert_folder(config: Study, start: str, name: str, strength: str) -> Path:
    """Where an expert is."""
    prefix = "" if start == "late" else f"{start}-"
    return config.out / "experts" / f"{prefix}{name}-{strength}"


@dataclasses.dataclass(frozen=True)
class World:
    """What operations find: the models of one strength, and texts to train on."""

    config: Study
    strength: str

    @functools.cached_property
    def base(self) -> Pretrained:
        """The reference of auditors, and what experts start from."""
        return load_pretrained(self.config.out / "bases" / "late")

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The architecture of base and experts."""
        return LanguageModel(self.base.config)

    @functools.cached_property
    def early(self) -> Params:
        """The base after a fifth of its pretraining."""
        return load_pretrained(self.config.out / "bases" / "early").params

    def expert(self, name: str, start: str = "late") -> Params:
        """A fine-tuned model: `a` or `b`."""
        folder = expert_folder(self.config, start, name, self.strength)
        return load_pretrained(folder).params

    def members(self, name: str) -> Encoded:
        """What an expert learned."""
        texts = parts(self.config, name)
        return encoded(texts.members, texts.code, self.base)

    def general(self, count: int = 480) -> Encoded:
        """Texts of the pretraining, which are members of no expert."""
        texts = pretraining_texts(self.config)
        rng = np.random.default_rng(self.config.seed)
        chosen = rng.choice(len(texts), count, replace=False)
        return encoded([texts[int(row)] for row in chosen], False, self.base)

    @property
    def epochs(self) -> int:
        """Passes over the members at this strength."""
        return STRENGTHS[self.strength]


def _tokenizer(config: Study):
    texts = pretraining_texts(config)
    return stages.make_tokenizer(config.out / "tokenizer", texts, vocab_size=VOCABULARY)
