"""The whole study in miniature: tiny models, real text, no network."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lt_mia_jax.attacks.learned.attack import Attack
from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.attacks.learned.recipe import TrainConfig
from lt_mia_jax.attacks.learned.storage import shipped_attack
from lt_mia_jax.attacks.learned.train import train_attack
from lt_mia_jax.checkpoints import BASE, Pretrained, load_pretrained
from lt_mia_jax.data.corpora import Corpus, deduplicate, load_corpus
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.files import sha256_file
from lt_mia_jax.finetune import PretrainConfig
from lt_mia_jax.finetune.config import ADAMW
from lt_mia_jax.models import ModelConfig, gpt2_like, mamba_like
from lt_mia_jax.study import stages as study
from lt_mia_jax.study.stages import Combination

log = logging.getLogger(__name__)

VOCABULARY = 2048

SEEN = "gpt2"
UNSEEN = "mamba"


def bases() -> dict[str, ModelConfig]:
    """A transformer, on which an attack may be trained, and what all are judged on."""
    return {
        SEEN: gpt2_like(VOCABULARY, width=128, layers=2, heads=4, context=128),
        UNSEEN: mamba_like(VOCABULARY, width=112, layers=3),
    }


PRETRAINING = ("py_code", "speeches")
"""Corpora whose pretraining texts make the bases."""

# Two corpora that the bases know and two that they do not: an attack that only ever
# saw familiar text would take the jump in likelihood that every text of a new corpus
# makes for membership.
TRAINING = tuple(
    Combination(base=SEEN, corpus=corpus)
    for corpus in (*PRETRAINING, "sci_docs", "cpp_headers")
)
# A thousand non-members: the fewest for which a TPR at 1 % FPR is not refused.
JUDGED = tuple(
    Combination(base=UNSEEN, corpus=corpus, nonmembers=1000)
    for corpus in ("ml_docs", "ml_code")
)
"""Of the whole demo; the quick one judges the first."""


CLASSIFIER = ClassifierConfig(
    width=64, heads=4, layers=2, feed_forward=192, standardise=True
)
"""A tenth of the published size; see docs/decisions.md on standardizing."""

RECIPE = dataclasses.replace(ADAMW, learning_rate=2e-3)
"""Tiny models tolerate, and need, a higher learning rate than the default."""


class DemoStudy(NamedTuple):
    """What the demo judges."""

    attack: Attack
    stores: tuple[FeatureStore, ...]
    """Of the judged combinations."""
    corpora: Mapping[str, Corpus]


def prepare(
    out: Path,
    stage: "Stages",
    *,
    seed: int = 0,
    full: bool = False,
    learn: bool = False,
    pretrain_steps: int = 300,
    attack_epochs: int = 8,
) -> DemoStudy:
    """Run every stage before the judgment that is not finished yet; see `Demo`.

    Without `full` (which `learn` implies) the base is the package's, and one corpus is
    judged.

    Raises:
      InputError: a text source is missing, or the folder holds another demo.
    """
    full, judged = full or learn, judged_combinations(full or learn)
    with stage("collecting real text from installed packages"):
        corpora = load_corpora(out, full=full)

    if full:
        with stage("pretraining tiny models"):
            models = _pretrain(out, corpora, seed, pretrain_steps, learn=learn)
    else:
        models = {UNSEEN: _shipped_base(out / "bases" / UNSEEN)}

    with stage("fine-tuning targets and reading their token statistics"):
        chosen = (*(TRAINING if learn else ()), *judged)
        stores = {
            each: _store(each, models[each.base], corpora[each.corpus], out, seed)
            for each in chosen
        }

    attack = shipped_attack()
    if learn:
        with stage("training the learned attack"):
            recipe = TrainConfig(
                epochs=attack_epochs,
                batch_size=64,
                learning_rate=1e-3,
                warmup_epochs=1.0,
                balance="plain",
                seed=seed,
            )
            training = [stores[each] for each in TRAINING]
            attack = train_attack(training, CLASSIFIER, recipe, out / "attack").attack
    return DemoStudy(attack, tuple(stores[each] for each in judged), corpora)


def judged_combinations(full: bool) -> tuple[Combination, ...]:
    """What the attack is judged on, in the whole demo and in the quick one."""
    return JUDGED if full else JUDGED[:1]


def load_corpora(out: Path, *, full: bool) -> dict[str, Corpus]:
    """Corpora by name, without texts that nearly repeat one of another of them.

    The whole demo reads those of the bases and of the attack too.
    """
    used = (*(TRAINING if full else ()), *judged_combinations(full))
    names = [combination.corpus for combination in used]
    loaded = [load_corpus(name, cache=out / "corpora") for name in names]
    kept = dict(zip(names, deduplicate(loaded), strict=True))
    for name, corpus in kept.items():
        log.info("  %-12s %6d documents", name, len(corpus.ids))
    return kept


def _shipped_base(directory: Path) -> Pretrained:
    """The base of the package, copied to where the others stand."""

    def make() -> list[str]:
        directory.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in BASE.iterdir() if path.is_file())
        for name in names:
            shutil.copyfile(BASE / name, directory / name)
        return names

    settings = {"shipped": sha256_file(BASE / "model.safetensors")}
    study.stage(directory, settings, make)
    return load_pretrained(directory)


def _pretrain(
    out: Path, corpora: Mapping[str, Corpus], seed: int, steps: int, *, learn: bool
) -> dict[str, Pretrained]:
    """Bases by name; the one that is only learned from where it is needed."""
    known = [corpora[name] for name in PRETRAINING]
    texts = study.pretraining_texts(known, seed=seed, most=6000)
    tokenizer = study.make_tokenizer(out / "tokenizer", texts, vocab_size=VOCABULARY)
    recipe = PretrainConfig(steps=steps, optimizer=RECIPE, seed=seed)
    return {
        name: study.make_base(out / "bases" / name, model, texts, tokenizer, recipe)
        for name, model in bases().items()
        if learn or name == UNSEEN
    }


def _store(
    combination: Combination, base: Pretrained, corpus: Corpus, out: Path, seed: int
) -> FeatureStore:
    rows = study.split(corpus, combination, seed=seed)
    target = study.make_target(
        out / "targets" / combination.name, base, corpus, rows, combination, seed=seed
    )
    return study.make_store(
        out / "features" / combination.name,
        base,
        target,
        corpus,
        rows,
        combination,
        names=(combination.base, combination.name),
        seed=seed,
    )


def write_examples(corpora: Mapping[str, Corpus], out: Path, seed: int) -> None:
    """Files for `lt-mia audit`: suspects (half members) and known non-members."""
    for combination in (each for each in JUDGED if each.corpus in corpora):
        corpus = corpora[combination.corpus]
        rows = study.split(corpus, combination, seed=seed)
        # Rows stand in corpus order; the first hundred of each would differ in source.
        rng = np.random.default_rng(seed)
        members = rng.permutation(rows.members)
        nonmembers = rng.permutation(rows.nonmembers)
        labeled = [(row, {"label": 1}) for row in members[:100]]
        labeled += [(row, {"label": 0}) for row in nonmembers[:100]]
        unlabeled = [(row, {}) for row in nonmembers[100:600]]
        for name, chosen in (("texts", labeled), ("nonmembers", unlabeled)):
            lines = [
                {"id": corpus.ids[row], "text": corpus.texts[row], **label}
                for row, label in chosen
            ]
            write_texts(out / "example" / combination.corpus / f"{name}.jsonl", lines)


class Stages:
    """Says which stage of how many runs, and how long it took."""

    def __init__(self, total: int) -> None:
        self._total, self._begun = total, 0

    @contextmanager
    def __call__(self, title: str) -> Iterator[None]:
        """Announce a stage, and its seconds at the end."""
        self._begun += 1
        log.info("[%d/%d %s]", self._begun, self._total, title)
        began = time.monotonic()
        yield
        log.info("  %.0f s", time.monotonic() - began)
