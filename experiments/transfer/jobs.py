"""What the transfer study computes, one resumable job at a time.

Every job is a function of the study and a name. It returns at once when its folder is
finished, and it can run in any process that sees the study's folder:

    OUT/corpora             distinct documents of every corpus
    OUT/tokenizers/SIZE     one for each vocabulary
    OUT/bases/NAME          a base model
    OUT/combinations/NAME   target/, features/ and, if judged, scores.npz
    OUT/controls/NAME       text_only.npz of a judged combination
    OUT/attacks/NAME        attack/, and logits.npz of every judged combination
"""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.transfer import attacks as transfer_attacks
from experiments.transfer import plan as transfer_plan
from experiments.transfer.attacks import AttackSpec
from experiments.transfer.config import Study
from experiments.transfer.plan import Base
from experiments.transfer.statistics import permuted_labels_of
from lt_mia_jax.attacks import controls, score_store, train_attack
from lt_mia_jax.attacks.metrics import auc
from lt_mia_jax.audit.scoring import score_published
from lt_mia_jax.checkpoints import Pretrained, load_pretrained
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.corpora import Corpus, load_corpus
from lt_mia_jax.data.hub import HUB_DATASETS
from lt_mia_jax.data.texts import text_id
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor
from lt_mia_jax.features.extract import ExtractConfig
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.files import MANIFEST, read_json, write_json
from lt_mia_jax.study import stages as study
from lt_mia_jax.study.stages import Combination

log = logging.getLogger("lt_mia_jax.transfer")

SCORES, LOGITS = "scores.npz", "logits.npz"
CONTROL = "text_only.npz"
ATTACK = "attack"
"""Folder of a learned attack beside its scores."""


def make_corpora(config: Study) -> None:
    """Documents of all corpora, no near-copies across them, and the tokenizers."""
    plan = config.plan()
    source = None if config.data_from is None else str(config.data_from.absolute())
    study.make_corpora(
        config.out / "corpora",
        {"corpora": plan.corpora, "from": source},
        lambda: [_load(config, name) for name in plan.corpora],
    )
    if plan.vocabularies:
        known = [
            name for name in transfer_plan.TRAINING_CORPORA if name in plan.corpora
        ]
        texts = _pretraining_texts(
            [read_corpus(config, name) for name in known], config.seed
        )
        for size in plan.vocabularies:
            study.make_tokenizer(
                config.out / "tokenizers" / str(size), texts, vocab_size=size
            )


def read_corpus(config: Study, name: str) -> Corpus:
    """A corpus that `make_corpora` wrote."""
    return study.read_corpus(config.out / "corpora", name)


def make_base(config: Study, name: str) -> None:
    """Pretrain a base, unless it is one that exists."""
    plan = config.plan()
    base = plan.base(name)
    if base.model is None:
        return
    directory = config.out / "bases" / name
    texts = _pretraining_texts(
        [read_corpus(config, corpus) for corpus in base.corpora], config.seed
    )
    study.make_base(
        directory,
        base.model,
        texts,
        _tokenizer(config, base),
        dataclasses.replace(plan.pretrain, seed=config.seed),
        executor=config.devices.make(),
    )
    shutil.rmtree(directory / "training" / "state", ignore_errors=True)


def make_combination(config: Study, combination: Combination, judged: bool) -> None:
    """Target and features of a combination, and if judged all published scores."""
    folder = config.folder(combination)
    corpora = read_json(config.out / "corpora" / study.CORPORA)
    plan = config.plan()
    base = plan.base(combination.base)

    def make() -> list[str]:
        executor = config.devices.make()
        before = _base(config, base, executor)
        corpus = read_corpus(config, combination.corpus)
        rows = study.split(corpus, combination, seed=config.seed)
        target = study.make_target(
            folder / "target",
            before,
            corpus,
            rows,
            combination,
            seed=config.seed,
            executor=executor,
        )
        store = study.make_store(
            folder / "features",
            before,
            target,
            corpus,
            rows,
            combination,
            names=(combination.base, combination.name),
            seed=config.seed,
            config=ExtractConfig(batch_size=config.batch_size),
            executor=executor,
            lowercase=judged,
        )
        if judged:
            _save_scores(folder / SCORES, store)
        # Checkpoints of a finished run are of no more use, and the largest part of it.
        shutil.rmtree(folder / "target" / "training" / "state", ignore_errors=True)
        write_json(
            folder / "combination.json",
            {"combination": to_dict(combination), "meta": store.meta, "texts": store.n},
        )
        return ["combination.json", *([SCORES] if judged else [])]

    settings = {
        "combination": to_dict(combination),
        "judged": judged,
        "seed": config.seed,
        "corpus": corpora[combination.corpus]["fingerprint"],
        "base": to_dict(base),
        "pretrain": to_dict(plan.pretrain),
    }
    if base.source is not None and config.models_from is not None:
        settings["models_from"] = str(config.models_from.absolute())
    study.stage(folder, settings, make)


def _save_scores(path: Path, store: FeatureStore) -> None:
    """Ids, labels, and every published score of a store."""
    scored = score_published(store, np.arange(store.n))
    arrays: dict[str, Any] = {
        "ids": np.array(store.ids),
        "labels": np.asarray(store.labels, np.int64),
        "n_tokens": scored.n_tokens,
        **{f"score_{name}": values for name, values in scored.scores.items()},
    }
    np.savez_compressed(path, **arrays)


def make_control(config: Study, combination: Combination) -> None:
    """What the words of a judged combination's texts tell of its labels.

    Writes `scores` `[N]` of the text-only control, and `permuted` `[K]`: its AUC where
    it has learned permuted labels instead. NaN where there are too few texts.
    """
    directory = config.out / "controls" / combination.name

    def make() -> list[str]:
        store = FeatureStore.open(config.folder(combination) / "features")
        words = score_published(store, np.arange(store.n)).words
        assert words is not None
        labels = np.asarray(store.labels, np.int64)

        def learn(labels: np.ndarray) -> np.ndarray:
            return controls.text_only_baseline(words, labels, seed=config.seed)

        try:
            scores = learn(labels)
            permuted = []
            for number in range(config.permutations):
                shuffled = permuted_labels_of(combination.name, labels, number)
                permuted.append(auc(shuffled, learn(shuffled)))
        except InputError:
            scores = np.full(len(labels), np.nan)
            permuted = [np.nan] * config.permutations
        directory.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(directory / CONTROL, scores=scores, permuted=permuted)
        return [CONTROL]

    settings = {
        "made": read_json(config.folder(combination) / MANIFEST)["settings"],
        "permutations": config.permutations,
        "permuted": "each combination in its own orders",
        "seed": config.seed,
    }
    study.stage(directory, settings, make)


def make_attack(config: Study, name: str) -> None:
    """Train one attack and score every judged combination with it."""
    plan = config.plan()
    spec = transfer_attacks.attacks(plan, config.seed)[name]
    judged = spec.judged(plan)
    directory = config.out / "attacks" / name

    def features(combination: Combination) -> FeatureStore:
        return FeatureStore.open(config.folder(combination) / "features")

    def make() -> list[str]:
        executor = config.devices.make()
        chosen = [features(c) for c in plan.train if c.name in spec.combinations]
        attack = train_attack(
            spec.views(chosen),
            spec.learner.classifier,
            spec.learner.recipe,
            directory / ATTACK,
            executor=executor,
        ).attack
        logits: dict[str, Any] = {}
        for combination in judged:
            store = features(combination)
            used = attack.text_ids & set(store.ids)
            if used:
                raise InputError(
                    f"{len(used)} texts of {combination.name} were used to train the "
                    "attack; judged corpora must be others than training corpora"
                )
            (view,) = spec.views([store])
            logits[combination.name] = score_store(attack, view)
        np.savez_compressed(directory / LOGITS, **logits)
        shutil.rmtree(directory / ATTACK / "state", ignore_errors=True)
        return [LOGITS]

    study.stage(directory, attack_settings(config, spec), make)


def attack_settings(config: Study, spec: AttackSpec) -> dict[str, Any]:
    """What a trained attack depends on, and what it judged.

    Raises:
      InputError: a combination is not finished.
    """
    plan = config.plan()
    judged = spec.judged(plan)
    return {
        "spec": to_dict(dataclasses.replace(spec, combinations=frozenset())),
        "train": sorted(spec.combinations),
        "judged": sorted(c.name for c in judged),
        "made": {
            c.name: read_json(config.folder(c) / MANIFEST)["settings"]
            for c in (*plan.train, *judged)
            if c.name in spec.combinations or c in judged
        },
    }


def _load(config: Study, name: str) -> Corpus:
    if config.data_from is None:
        return load_corpus(name, cache=config.out / "sources")
    single = config.data_from / f"{name}.jsonl"
    if single.exists():
        corpus = load_corpus(str(single))
        # Ids that a file brings may stand for other texts in another file.
        ids = tuple(text_id(text) for text in corpus.texts)
        code = name in HUB_DATASETS and HUB_DATASETS[name].code
        return corpus._replace(ids=ids, code=code)
    return load_corpus(name, local=config.data_from / name)


def _pretraining_texts(corpora: Sequence[Corpus], seed: int) -> list[str]:
    return study.pretraining_texts(corpora, seed=seed, most=6000)


def _tokenizer(config: Study, base: Base) -> Any:
    from transformers import AutoTokenizer

    assert base.model is not None
    return AutoTokenizer.from_pretrained(
        str(config.out / "tokenizers" / str(base.model.vocab_size)),
        trust_remote_code=False,
    )


def _base(config: Study, base: Base, executor: Executor) -> Pretrained:
    if base.source is None:
        return load_pretrained(config.out / "bases" / base.name)
    source = base.source
    if config.models_from is not None:
        source = str(config.models_from / transfer_plan.short(source))
    return load_pretrained(source, mesh=executor.mesh)
