"""`lt-mia demo`: the whole study in miniature, on real text, without a network."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lt_mia_jax.attacks import (
    ClassifierConfig,
    TrainConfig,
    shipped_attack,
    train_attack,
)
from lt_mia_jax.checkpoints import Pretrained
from lt_mia_jax.commands.evaluate import evaluate_stores
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.corpora import Corpus, deduplicate, load_corpus
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.finetune import PretrainConfig
from lt_mia_jax.finetune.pretraining import ADAMW
from lt_mia_jax.models import ModelConfig, gpt2_like, mamba_like
from lt_mia_jax.provenance import write_run_record
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


CLASSIFIER = ClassifierConfig(
    width=64, heads=4, layers=2, feed_forward=192, standardise=True
)
"""A tenth of the published size; see docs/decisions.md on standardizing."""

RECIPE = dataclasses.replace(ADAMW, learning_rate=2e-3)
"""Tiny models stand, and need, a higher rate than the default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Find what a tiny Mamba was fine-tuned on, with an attack trained on transformers.

    Pretrains the model on text that ships with Python and our dependencies, fine-tunes
    it on two corpora and judges the learned attack of the package there, beside every
    published score; it never saw such a model or these texts. Writes report.html.
    Minutes on 2 cores, no network; an interrupted run continues.
    """

    out: Path = Path("runs/demo")
    """Folder for everything the demo makes."""

    seed: int = 0
    """Decides membership, splits, initial weights and order."""

    learn: bool = False
    """Train an attack here as well, on a GPT-2-like model and four other corpora, and
    judge that one instead; it is kept in OUT/attack."""

    pretrain_steps: int = 300
    """Updates of each base, 32 sequences of 128 tokens each."""

    attack_epochs: int = 8
    """Passes over the attack's training rows, with --learn."""

    bootstraps: int = 1000
    """Resamples behind each 95 % interval."""


def run(config: Demo) -> None:
    """Run every stage that is not finished yet, and write the report.

    Raises:
      InputError: a text source is missing, or the folder holds another demo.
    """
    began = time.monotonic()
    out, seed = config.out, config.seed
    write_run_record(out, "demo", config)

    learned_from = TRAINING if config.learn else ()
    stage = _Stages(6 if config.learn else 5)

    with stage("collecting real text from installed packages"):
        corpora = load_corpora(out)

    with stage("pretraining tiny models"):
        known = [corpora[name] for name in PRETRAINING]
        texts = study.pretraining_texts(known, seed=seed, most=6000)
        tokenizer = study.make_tokenizer(
            out / "tokenizer", texts, vocab_size=VOCABULARY
        )
        models = {
            name: study.make_base(
                out / "bases" / name,
                model,
                texts,
                tokenizer,
                PretrainConfig(
                    steps=config.pretrain_steps, optimizer=RECIPE, seed=seed
                ),
            )
            for name, model in bases().items()
            if config.learn or name == UNSEEN
        }

    with stage("fine-tuning targets and reading their token statistics"):
        stores = {
            combination: _combination(
                combination,
                models[combination.base],
                corpora[combination.corpus],
                out,
                seed,
            )
            for combination in (*learned_from, *JUDGED)
        }

    attack = shipped_attack()
    if config.learn:
        with stage("training the learned attack"):
            recipe = TrainConfig(
                epochs=config.attack_epochs,
                batch_size=64,
                learning_rate=1e-3,
                warmup_epochs=1.0,
                balance="plain",
                seed=seed,
            )
            chosen = [stores[c] for c in TRAINING]
            attack = train_attack(chosen, CLASSIFIER, recipe, out / "attack").attack

    with stage("judging the attack on models and corpora that it never saw"):
        evaluate_stores(
            attack,
            [stores[c] for c in JUDGED],
            out,
            kind="demo",
            title="Demo: one signature of memorization, tiny models, real text",
            split="unseen",
            bootstraps=config.bootstraps,
            seed=seed,
            config=to_dict(config),
            notes=[
                "Tiny models (about a million parameters) on code, technical text and "
                "speeches: figures show the mechanism, not the size of the effect on "
                "production models.",
            ],
        )

    with stage("writing example files for `lt-mia audit`"):
        for combination in JUDGED:
            _example(combination, corpora[combination.corpus], out, seed)
    log.info(
        "done in %.1f minutes; open %s",
        (time.monotonic() - began) / 60,
        out / "report.html",
    )


def load_corpora(out: Path) -> dict[str, Corpus]:
    """All corpora by name, without texts that nearly repeat one of another corpus."""
    names = [combination.corpus for combination in (*TRAINING, *JUDGED)]
    loaded = [load_corpus(name, cache=out / "corpora") for name in names]
    kept = dict(zip(names, deduplicate(loaded), strict=True))
    for name, corpus in kept.items():
        log.info("  %-12s %6d documents", name, len(corpus.ids))
    return kept


def _combination(
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


def _example(combination: Combination, corpus: Corpus, out: Path, seed: int) -> None:
    """Suspects (half members) and known non-members of a judged combination."""
    rows = study.split(corpus, combination, seed=seed)
    # Rows stand in corpus order; the first hundred of each would differ in source.
    rng = np.random.default_rng(seed)
    members, nonmembers = (
        rng.permutation(rows.members),
        rng.permutation(rows.nonmembers),
    )
    suspects = np.concatenate([members[:100], nonmembers[:100]])
    labels = np.repeat([1, 0], [100, 100])
    folder = out / "example" / combination.corpus
    write_texts(
        folder / "texts.jsonl",
        [
            {"id": corpus.ids[row], "text": corpus.texts[row], "label": int(label)}
            for row, label in zip(suspects, labels, strict=True)
        ],
    )
    write_texts(
        folder / "nonmembers.jsonl",
        [
            {"id": corpus.ids[row], "text": corpus.texts[row]}
            for row in nonmembers[100:600]
        ],
    )


class _Stages:
    """Says which stage of how many runs, and how long it took."""

    def __init__(self, total: int) -> None:
        self._total, self._begun = total, 0

    @contextmanager
    def __call__(self, title: str) -> Iterator[None]:
        self._begun += 1
        log.info("[%d/%d %s]", self._begun, self._total, title)
        began = time.monotonic()
        yield
        log.info("  %.0f s", time.monotonic() - began)
