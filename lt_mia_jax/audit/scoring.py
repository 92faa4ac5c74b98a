"""Every membership score of texts: from two models, or from a feature store."""

import dataclasses
import logging
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from lt_mia_jax.arrays import Params
from lt_mia_jax.attacks import scores as formulas
from lt_mia_jax.attacks.learned.attack import Attack, score_features, score_store
from lt_mia_jax.attacks.learned.storage import load_attack, shipped_attack
from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.audit.blocks import BLOCK, Measured, blocks, by_text
from lt_mia_jax.audit.records import NO_REFERENCE
from lt_mia_jax.audit.windows import Combine
from lt_mia_jax.checkpoints import Pretrained, load_pretrained, weights_sha256
from lt_mia_jax.checkpoints.gguf import is_gguf
from lt_mia_jax.checkpoints.pretrained import located
from lt_mia_jax.checkpoints.tokenizer import check_agreement, fit_vocabulary
from lt_mia_jax.data.chat.rendering import NO_RESPONSE, check_responses
from lt_mia_jax.data.texts import Text, zlib_length
from lt_mia_jax.data.tokenize import (
    Bos,
    Score,
    flag_texts,
    lower_case,
    scored_mask,
    scored_texts,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, fetch, make_executor
from lt_mia_jax.features.extract import ExtractConfig, StatisticsExtractor
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.training.progress import Progress
from lt_mia_jax.unlearning.interventions.storage import DESCRIPTION, has_intervention

log = logging.getLogger(__name__)


class ModelPair(NamedTuple):
    """Reference and target, loaded and found to fit each other.

    Without a reference only the target's own scores can be computed.

    Example:
      >>> from lt_mia_jax import ModelPair
      >>> ModelPair._fields[:3]
      ('reference', 'target', 'executor')
    """

    reference: Pretrained | None
    target: Pretrained
    executor: Executor
    """The devices that hold the parameters."""
    reference_name: str = "reference"
    """What tables call it."""
    target_name: str = "target"
    sha256: Mapping[str, str] = types.MappingProxyType({})
    """Of the files of weights, by model and name."""


def load_pair(
    reference: str | None, target: str, executor: Executor | None = None
) -> ModelPair:
    """Load both models and check that they can be compared token by token.

    Args:
      reference: directory or hub id of the model before fine-tuning; None where it is
        not at hand.
      target: the same of the model after it, or a PEFT adapter, whose base is the
        reference unless it names another one that is there.
      executor: gets the parameters as they are read; None takes all devices.

    Raises:
      InputError: a model cannot be loaded, tokenizers disagree about ids that both
        have, or weights do not differ.

    Example:
      >>> import jax
      >>> from lt_mia_jax import LanguageModel, load_pair, save_pretrained
      >>> from lt_mia_jax.data import train_bpe
      >>> from lt_mia_jax.executor import make_executor
      >>> from lt_mia_jax.models import gpt2_like
      >>> tokenizer = train_bpe(["to be or not to be"], vocab_size=257)
      >>> config = gpt2_like(257, width=16, layers=1, heads=2, context=32)
      >>> for seed, name in enumerate(["before", "after"]):
      ...     params = LanguageModel(config).init(jax.random.key(seed))
      ...     save_pretrained(name, config, params, tokenizer)
      >>> pair = load_pair("before", "after", make_executor())
      >>> pair.reference.config == pair.target.config
      True
    """
    executor = make_executor() if executor is None else executor
    for model in filter(None, (reference, target)):
        warn_of_intervention(model, reference)
    before = None
    if reference is not None:
        log.info("loading the reference %s", reference)
        before = load_pretrained(reference, mesh=executor.mesh)
    log.info("loading the target %s", target)
    after = load_pretrained(target, mesh=executor.mesh, base=reference)
    if before is not None and reference is not None:
        _check_pair(before, after, reference, target)
    sha256 = {
        f"{model}: {name}": value
        for model in dict.fromkeys(filter(None, (reference, target)))
        for name, value in weights_sha256(model, base=reference).items()
    }
    return ModelPair(before, after, executor, reference or NO_REFERENCE, target, sha256)


def _check_pair(
    before: Pretrained, after: Pretrained, reference: str, target: str
) -> None:
    """Refuse models that cannot be compared token by token, or are the same."""
    shared = min(before.config.vocab_size, after.config.vocab_size)
    names = (reference, target)
    check_agreement(before.tokenizer, after.tokenizer, names, shared)
    if (note := vocabulary_note(vocabularies(before, after))) is not None:
        log.info("%s", note)
    if _equal(before.params, after.params):
        raise InputError(
            f"the target {target} has the same weights as the reference {reference}: "
            "no text can look trained on; pass the model that the target was "
            "fine-tuned from as the reference"
        )


def vocabularies(before: Pretrained | None, after: Pretrained) -> dict[str, int]:
    """Ids that each model embeds, the target's first."""
    sizes = {"target": after.config.vocab_size}
    return sizes if before is None else {**sizes, "reference": before.config.vocab_size}


def vocabulary_note(sizes: Mapping[str, int]) -> str | None:
    """A sentence about models with different numbers of ids; None if they are equal."""
    if len(set(sizes.values())) < 2:
        return None
    return (
        f"The target has {sizes['target']} token ids and the reference "
        f"{sizes['reference']}: ranks and comparisons of the two are over the "
        f"{min(sizes.values())} that both have, each model's log-probabilities over "
        "all of its own."
    )


def _equal(one: Params, other: Params) -> bool:
    """Whether two models have the same weights, every number of them."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.shape == b.shape and bool(fetch((a == b).all())) for a, b in pairs)


def choose_attack(name: str | Path, *, reference: bool = True) -> Attack | None:
    """A learned attack by the value of an `--attack` option.

    This is `shipped`, `none`, or where `load_attack` finds one. Without a reference
    `shipped` is None, because the attack compares two models.

    Raises:
      InputError: there is no such attack, or no reference for it.
    """
    if not reference and name not in ("shipped", "none"):
        raise InputError(
            f"--attack {name}: a learned attack compares the target with the model "
            "before fine-tuning; give --reference too, or leave --attack out"
        )
    if not reference:
        return None
    if name in ("shipped", "none"):
        return shipped_attack() if name == "shipped" else None
    if not Path(name).exists():
        raise InputError(
            f"--attack {name}: no such file or folder; give a folder made by `lt-mia "
            "train`, a torch checkpoint, `shipped`, or `none`"
        )
    return load_attack(name)


def warn_of_intervention(model: str, base: str | None = None) -> None:
    """Say that a model's weights alone are read, when they come with more.

    `base` is that of an adapter whose own is not there.
    """
    whole, _ = located(model, base)
    if not is_gguf(whole) and has_intervention(whole):
        log.warning(
            "%s comes with an intervention (%s), which this command does not apply: "
            "the weights alone are read, and they have forgotten nothing",
            model,
            DESCRIPTION,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredTexts:
    """Scores of the texts of one combination; all sequences have one length N."""

    name: str
    target: str
    reference: str
    corpus: str
    ids: Sequence[str]
    n_tokens: Int[np.ndarray, " N"]
    scores: Mapping[str, Float[np.ndarray, " N"]]
    """By name, higher = more likely a member; NaN = no score."""
    flags: Sequence[Sequence[str]]
    """What a reader must know about each text, such as `truncated`."""
    labels: Int[np.ndarray, " N"] | None = None
    """1 member, 0 non-member; None when unknown."""
    words: Sequence[str] | None = None
    """What the text-only baseline sees: each text, as far as it was scored."""
    unseen: bool | None = None
    """Whether the learned attack saw neither this model variant nor this corpus."""
    ez_edge: int = 0
    """Texts to which EZ-MIA gives 0 for want of evidence."""


def _joined(blocks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Scores of all texts by name, from those of each block."""
    return {
        name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]
    }


def score_texts(
    texts: Sequence[Text],
    pair: ModelPair,
    *,
    attack: Attack | None,
    length: int = 128,
    side: Literal["right", "left"] = "right",
    bos: Bos = "auto",
    score: Score = "response",
    overlap: int | None = None,
    combine: Combine = "mean",
    batch_size: int = 16,
    name: str = "texts",
    corpus: str = "texts",
    labels: Int[np.ndarray, " N"] | None = None,
    label: str = "scoring texts",
) -> ScoredTexts:
    """Every score of every text, from one forward pass of each model.

    Texts that cannot be scored get NaN and a flag, never a number. Without an attack,
    only the published scores are computed. The other arguments are those of `audit`;
    `labels` also let the text-only baseline see the texts, and `label` stands beside
    the progress bar.
    """
    before = pair.reference
    extractor = StatisticsExtractor(
        LanguageModel(pair.target.config),
        pair.target.params,
        None if before is None else LanguageModel(before.config),
        None if before is None else before.params,
        ExtractConfig(k=20 if attack is None else attack.k, batch_size=batch_size),
        pair.executor,
    )
    tokenizer = pair.target.tokenizer
    cut: Any = {"length": length, "score": score, "side": side, "bos": bos}
    sizes = vocabularies(pair.reference, pair.target)
    scores: list[dict[str, np.ndarray]] = []
    owners: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    words: list[str] = []
    flags: list[list[str]] = []
    edge = 0
    with Progress(label, len(texts), "text") as bar:
        for given, encoded, owner in blocks(texts, tokenizer, overlap, **cut):
            block = scored_texts(given, encoded, tokenizer)
            end = side if overlap is None else "right"
            lower = lower_case(given, encoded, tokenizer, side=end, bos=bos)
            names = [texts[row].id for row in owner]
            encoded = fit_vocabulary(encoded, tokenizer, names, sizes)
            own = {"target": sizes["target"]}
            lower = fit_vocabulary(lower, tokenizer, names, own)
            statistics, features, mask = extractor(encoded)
            measured: dict[str, Any] = {}
            if attack is not None:
                assert features is not None
                measured[LEARNED] = score_features(attack, features, mask)
            measured |= formulas.all_scores(
                statistics,
                zlib_bytes=np.array([zlib_length(text) for text in block]),
                lower=extractor.statistics(lower, target_only=True),
            )
            scores.append(measured)
            words.extend(block)
            tokens.append(scored_mask(encoded).sum(axis=1).astype(np.int64))
            flags.extend(flag_texts(encoded))
            edge += formulas.count_ez_edge_cases(statistics)
            owners.append(owner)
            steps.append(statistics.valid.sum(axis=1))
            bar.update(int(owner[-1]) + 1 - bar.done)
    if not scores:  # no window has a response
        check_responses([[NO_RESPONSE]] * len(texts), length)
    found = Measured(_joined(scores), np.concatenate(tokens), words, flags)
    if overlap is not None:
        rows = np.concatenate(owners), np.concatenate(steps)
        found = by_text(len(texts), *rows, found, combine)
        edge = int(np.sum(found.scores["ez"] == 0)) if "ez" in found.scores else 0
    check_responses(found.flags, length)
    return ScoredTexts(
        name=name,
        target=pair.target_name,
        reference=pair.reference_name,
        corpus=corpus,
        ids=[text.id for text in texts],
        labels=labels,
        ez_edge=edge,
        **found._asdict(),
    )


def score_published(
    store: FeatureStore, rows: Int[np.ndarray, " B"] | None = None
) -> ScoredTexts:
    """Published scores of some rows of a feature store (all by default)."""
    rows = np.arange(store.n) if rows is None else rows
    context = bool(store.meta.get("context"))
    scores: list[dict[str, np.ndarray]] = []
    tokens: list[np.ndarray] = []
    words: list[str] = []
    edge = 0
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        statistics = store.statistics(block)
        tokens.append(statistics.valid.sum(axis=1) + (not context))
        # What is scored, that is without a context before it.
        seen = np.roll(statistics.input_ids, -context, axis=1)
        published = formulas.all_scores(
            statistics,
            zlib_bytes=store.zlib_bytes[block],
            lower_loss=store.lower_loss[block],
        )
        scores.append({name: np.asarray(x) for name, x in published.items()})
        words.extend(
            " ".join(f"t{token}" for token in ids[valid])
            for ids, valid in zip(seen, statistics.valid, strict=True)
        )
        edge += formulas.count_ez_edge_cases(statistics)
    return ScoredTexts(
        name=store.name,
        target=store.meta.get("target", ""),
        reference=store.meta.get("reference", ""),
        corpus=store.meta.get("corpus", ""),
        ids=[store.ids[row] for row in rows],
        n_tokens=np.concatenate(tokens),
        scores=_joined(scores),
        flags=[store.flags[row] for row in rows],
        labels=np.asarray(store.labels)[rows],
        words=words,
        ez_edge=edge,
    )


def score_combination(
    attack: Attack, store: FeatureStore, split: Literal["unseen", "test"] = "unseen"
) -> ScoredTexts:
    """All scores of the rows of a store on which an attack may be judged.

    These are the texts that the attack was neither trained nor selected on, or of those
    the rows marked test.

    Raises:
      InputError: no row is left.
    """
    trained_on = attack.text_ids
    fresh = np.array([text_id not in trained_on for text_id in store.ids])
    marked = (np.array(store.split) == "test") | (split == "unseen")
    rows = np.flatnonzero(fresh & marked)
    if not len(rows):
        raise InputError(
            f"{store.path}: all {store.n} texts were used to train this attack, so "
            "none is left to judge it; extract other texts or another seed"
        )
    published = score_published(store, rows)
    seen = attack.card.get("combinations", [])
    return dataclasses.replace(
        published,
        scores={LEARNED: score_store(attack, store, rows), **published.scores},
        unseen=not any(
            store.meta.get("reference") == other.get("reference")
            or store.meta.get("corpus") == other.get("corpus")
            for other in seen
        ),
    )
