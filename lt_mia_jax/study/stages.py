"""The stages of an offline study: tokenizer, bases, targets, stores; each resumable.

A finished stage is a folder with a manifest that also names the settings it was made
with. A rerun takes finished stages as they are, continues an interrupted one from its
own checkpoints, and refuses a folder that other settings made.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lt_mia_jax import files
from lt_mia_jax.checkpoints import Pretrained, load_pretrained, save_pretrained
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.corpora import Corpus, deduplicate
from lt_mia_jax.data.splits import Split, rows_by_role, split_corpus
from lt_mia_jax.data.texts import fingerprint, read_texts, write_texts
from lt_mia_jax.data.tokenize import encode, train_bpe
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor
from lt_mia_jax.features.extract import extract_texts
from lt_mia_jax.features.program import ExtractConfig
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.finetune import (
    FinetuneConfig,
    LoraConfig,
    PretrainConfig,
    finetune,
    pack,
    pretrain,
)
from lt_mia_jax.models import LanguageModel, ModelConfig
from lt_mia_jax.models.description import describe

log = logging.getLogger(__name__)

LENGTH = 128
CORPORA = "corpora.json"
"""What `make_corpora` writes about its corpora, beside their texts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combination:
    """One base fine-tuned on one corpus: the unit of attack training and judgment."""

    base: str
    """Name of the base model."""
    corpus: str
    """Name of the corpus."""
    members: int = 480
    """Texts to fine-tune on."""
    nonmembers: int = 480
    """Texts of the same corpus that stay unseen."""
    validation: int = 100
    """Texts that choose the epoch."""
    epochs: int = 6
    """Most passes over the members; 0 leaves the base as it is, a control."""
    learning_rate: float = 5e-4
    """Constant rate of AdamW."""
    batch_size: int = 16
    """Texts in one step."""
    lora: LoraConfig | None = None
    """Train adapters instead of all parameters."""
    draw: int = 0
    """Tells repetitions apart: each draws members of its own."""
    familiar: bool = True
    """Whether bases may have been pretrained on half of the corpus; only the other
    half is used then."""

    @property
    def name(self) -> str:
        """Base, corpus and draw (unless it is the first), as tables show it."""
        return f"{self.base}-{self.corpus}" + (f"-{self.draw}" if self.draw else "")


def is_finished(directory: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder of a stage has its manifest.

    Raises:
      InputError: it was made with other settings.
    """
    manifest = directory / files.MANIFEST
    if not manifest.exists():
        return False
    found = files.read_json(manifest)
    if not isinstance(found, dict) or found.get("settings") != _digest_of(settings):
        raise InputError(
            f"{directory} was made with other settings or texts; choose another "
            "--out, or delete that folder to make it again"
        )
    return True


def stage(
    directory: Path, settings: Mapping[str, Any], make: Callable[[], Sequence[str]]
) -> None:
    """Run `make` unless the folder is finished, then vouch for the files it names.

    Raises:
      InputError: the folder was made with other settings.
    """
    if is_finished(directory, settings):
        log.info("  %s is finished, using it", directory.name)
        return
    names = make()
    files.write_manifest(directory, names, settings=_digest_of(settings))


def _digest_of(settings: Mapping[str, Any]) -> str:
    return files.fingerprint(json.dumps(settings, sort_keys=True, default=str))


def make_corpora(
    directory: Path, settings: Mapping[str, Any], load: Callable[[], Sequence[Corpus]]
) -> None:
    """Write corpora without near copies across them, each as DIRECTORY/NAME.jsonl."""

    def make() -> list[str]:
        entries = {}
        for corpus in deduplicate(load()):
            rows = zip(corpus.ids, corpus.texts, strict=True)
            write_texts(
                directory / f"{corpus.name}.jsonl",
                [{"id": id, "text": text} for id, text in rows],
            )
            log.info("  %-14s %6d documents", corpus.name, len(corpus.ids))
            entries[corpus.name] = {
                "code": corpus.code,
                "versions": corpus.versions,
                "fingerprint": corpus.fingerprint,
                "documents": len(corpus.ids),
            }
        files.write_json(directory / CORPORA, entries)
        return [CORPORA, *(f"{name}.jsonl" for name in entries)]

    stage(directory, settings, make)


def read_corpus(directory: Path, name: str) -> Corpus:
    """A corpus that `make_corpora` wrote.

    Raises:
      InputError: its file has changed since.
    """
    entry = files.read_json(directory / CORPORA)[name]
    rows = read_texts(directory / f"{name}.jsonl")
    ids, texts = tuple(row.id for row in rows), tuple(row.text for row in rows)
    if fingerprint(ids) != entry["fingerprint"]:
        raise InputError(
            f"{directory / name}.jsonl has changed; delete {directory} and run again"
        )
    return Corpus(name, ids, texts, entry["code"], entry["versions"])


def make_tokenizer(directory: Path, texts: Sequence[str], *, vocab_size: int) -> Any:
    """A byte-level BPE trained on pretraining texts."""
    from transformers import AutoTokenizer

    def make() -> list[str]:
        train_bpe(texts, vocab_size=vocab_size, out_dir=directory)
        return sorted(path.name for path in directory.iterdir() if path.is_file())

    stage(directory, {"vocab_size": vocab_size, "texts": _digest(texts)}, make)
    return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)


def make_base(
    directory: Path,
    model: ModelConfig,
    texts: Sequence[str],
    tokenizer: Any,
    config: PretrainConfig,
    *,
    length: int = LENGTH,
    executor: Executor | None = None,
) -> Pretrained:
    """A base model pretrained on texts of `length` tokens, in Hugging Face's layout."""

    def make() -> list[str]:
        log.info("  pretraining %s, %d steps", directory.name, config.steps)
        result = pretrain(
            LanguageModel(model),
            pack(encode(texts, tokenizer, length=length)),
            config,
            directory=directory / "training",
            executor=executor,
        )
        save_pretrained(directory, model, result.params, tokenizer)
        return ["config.json", "model.safetensors"]

    settings = {
        "model": describe(model),
        "recipe": to_dict(config),
        "texts": _digest(texts),
    }
    stage(directory, settings, make)
    return load_pretrained(directory)


def split(corpus: Corpus, combination: Combination, *, seed: int) -> Split:
    """Members, non-members and validation rows, by hash; pretraining texts left out."""
    drawn = f"#{combination.draw}" if combination.draw else ""
    return split_corpus(
        corpus.ids,
        seed=seed,
        model=combination.base + drawn,
        pool="attack" if combination.familiar else None,
        corpus=corpus.name,
        n_members=combination.members,
        n_nonmembers=combination.nonmembers,
        n_validation=combination.validation,
    )


def make_target(
    directory: Path,
    base: Pretrained,
    corpus: Corpus,
    rows: Split,
    combination: Combination,
    *,
    seed: int,
    length: int = LENGTH,
    executor: Executor | None = None,
) -> Pretrained:
    """The base fine-tuned on the members, best epoch by validation loss."""
    members, validation = (
        [corpus.texts[row] for row in part] for part in (rows.members, rows.validation)
    )

    def make() -> list[str]:
        if not combination.epochs:
            save_pretrained(directory, base.config, base.params, base.tokenizer)
            return ["config.json", "model.safetensors"]
        log.info("  fine-tuning %s on %d texts", combination.name, len(members))
        encoded = [
            encode(texts, base.tokenizer, length=length, side=side_of(corpus))
            for texts in (members, validation)
        ]
        result = finetune(
            LanguageModel(base.config),
            base.params,
            encoded[0],
            encoded[1],
            FinetuneConfig(
                epochs=combination.epochs,
                learning_rate=combination.learning_rate,
                batch_size=combination.batch_size,
                lora=combination.lora,
                seed=seed + combination.draw,
            ),
            directory=directory / "training",
            executor=executor,
        )
        save_pretrained(directory, base.config, result.params, base.tokenizer)
        log.info("  %s: best epoch %d", combination.name, result.best_epoch)
        return ["config.json", "model.safetensors"]

    settings = {
        "combination": to_dict(combination),
        "seed": seed,
        "members": _digest(members),
        "validation": _digest(validation),
    }
    stage(directory, settings, make)
    return load_pretrained(directory)


def make_store(
    directory: Path,
    base: Pretrained,
    target: Pretrained,
    corpus: Corpus,
    rows: Split,
    combination: Combination,
    *,
    names: tuple[str, str],
    seed: int,
    config: ExtractConfig | None = None,
    executor: Executor | None = None,
    lowercase: bool = True,
) -> FeatureStore:
    """Features of members and non-members; `names` are reference and target.

    Without `lowercase` one of the published scores, and a third forward pass, is left
    out: an attack does not learn from it.
    """
    if (directory / files.MANIFEST).exists():
        log.info("  %s is finished, using it", directory.name)
        return FeatureStore.open(directory)
    both = np.concatenate([rows.members, rows.nonmembers])
    return extract_texts(
        target,
        base,
        [corpus.texts[row] for row in both],
        ids=[corpus.ids[row] for row in both],
        labels=np.repeat([1, 0], [len(rows.members), len(rows.nonmembers)]),
        length=LENGTH,
        side=side_of(corpus),
        seed=seed,
        lowercase=lowercase,
        out_dir=directory,
        config=config,
        executor=executor,
        meta={
            "name": combination.name,
            "reference": names[0],
            "target": names[1],
            "corpus": corpus.name,
        },
    )


def side_of(corpus: Corpus) -> Literal["right", "left"]:
    """Code is cut on the left, everything else on the right."""
    return "left" if corpus.code else "right"


def pretraining_texts(corpora: Sequence[Corpus], *, seed: int, most: int) -> list[str]:
    """Up to `most` texts of each corpus whose role is pretraining, in corpus order."""
    return [
        corpus.texts[row]
        for corpus in corpora
        for row in rows_by_role(corpus.ids, seed=seed)["pretrain"][:most]
    ]


def _digest(texts: Sequence[str]) -> str:
    return files.fingerprint("\0".join(texts))
