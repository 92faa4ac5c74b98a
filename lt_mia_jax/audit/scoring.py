"""Two models and a list of texts in, every membership score out."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from lt_mia_jax.attacks import scores as formulas
from lt_mia_jax.attacks.learned.storage import (
    Attack,
    load_attack,
    score_features,
    shipped_attack,
)
from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.checkpoints import Pretrained, load_pretrained
from lt_mia_jax.checkpoints.gguf import is_gguf
from lt_mia_jax.checkpoints.hub import resolve
from lt_mia_jax.data.texts import zlib_length
from lt_mia_jax.data.tokenize import (
    Encoded,
    check_vocabulary,
    encode,
    flag_texts,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor
from lt_mia_jax.features.extract import ExtractConfig, StatisticsExtractor
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.unlearning.interventions.storage import DESCRIPTION, has_intervention

log = logging.getLogger(__name__)

BLOCK = 512
"""Texts whose statistics are held at a time, so memory does not grow with them."""


class ModelPair(NamedTuple):
    """Reference and target, loaded and found to fit each other."""

    reference: Pretrained
    target: Pretrained
    executor: Executor
    """The devices that hold the parameters."""


class TextScores(NamedTuple):
    """Scores of N texts, in their order."""

    scores: dict[str, Float[np.ndarray, " N"]]
    n_tokens: Int[np.ndarray, " N"]
    flags: list[list[str]]
    ez_edge: int = 0
    """Texts to which EZ-MIA gives 0 for want of evidence (`ez_edge_cases`)."""


def load_pair(reference: str, target: str, executor: Executor) -> ModelPair:
    """Load both models and check that they can be compared token by token.

    Args:
      reference: directory or hub id of the model before fine-tuning.
      target: the same of the model after it.
      executor: gets the parameters as they are read.

    Raises:
      InputError: a model cannot be loaded, or vocabularies differ.
    """
    log.info("loading the reference %s", reference)
    warn_of_intervention(reference)
    warn_of_intervention(target)
    before = load_pretrained(reference, mesh=executor.mesh)
    log.info("loading the target %s", target)
    after = load_pretrained(target, mesh=executor.mesh)
    if before.config.vocab_size != after.config.vocab_size:
        raise InputError(
            f"the reference {reference} has {before.config.vocab_size} vocabulary "
            f"entries, the target {target} has {after.config.vocab_size}; both must "
            "share one vocabulary: pass the model that the target was fine-tuned from"
        )
    check_vocabulary(before.tokenizer, before.config.vocab_size)
    check_vocabulary(after.tokenizer, after.config.vocab_size)
    if before.tokenizer.get_vocab() != after.tokenizer.get_vocab():
        raise InputError(
            f"the tokenizers of {reference} and {target} differ; both models must "
            "share one tokenizer: pass the model that the target was fine-tuned from"
        )
    return ModelPair(before, after, executor)


def choose_attack(name: str) -> Attack | None:
    """A learned attack by the value of an `--attack` option.

    Args:
      name: `shipped`, `none`, or where `load_attack` finds one.

    Raises:
      InputError: there is no attack, or it is broken.
    """
    if name == "none":
        return None
    if name == "shipped":
        return shipped_attack()
    if not Path(name).exists():
        raise InputError(
            f"--attack {name}: nothing is there; give a folder made by `lt-mia train`, "
            "a torch checkpoint, `shipped`, or `none`"
        )
    return load_attack(name)


def warn_of_intervention(model: str) -> None:
    """Say that a model's weights alone are read, when they come with more."""
    if not is_gguf(model) and has_intervention(resolve(model)):
        log.warning(
            "%s comes with an intervention (%s), which this command does not apply: "
            "the weights alone are read, and they have forgotten nothing",
            model,
            DESCRIPTION,
        )


def score_texts(
    texts: Sequence[str],
    pair: ModelPair,
    *,
    attack: Attack | None,
    length: int,
    side: Literal["right", "left"],
    batch_size: int,
    label: str,
) -> TextScores:
    """Every score of every text, from one forward pass of each model.

    Texts that cannot be scored get NaN and a flag, never a number.
    """
    scorer = StatisticsExtractor(
        LanguageModel(pair.target.config),
        pair.target.params,
        LanguageModel(pair.reference.config),
        pair.reference.params,
        ExtractConfig(k=20 if attack is None else attack.k, batch_size=batch_size),
        pair.executor,
    )
    columns: dict[str, list[np.ndarray]] = {}
    tokens, flags, edge = [np.zeros(0, np.int64)], [], 0
    with tqdm(total=len(texts), desc=label, unit="text", disable=None) as bar:
        for start in range(0, len(texts), BLOCK):
            block = texts[start : start + BLOCK]
            encoded = encode(block, pair.reference.tokenizer, length=length, side=side)
            found, cases = _score_block(block, encoded, scorer, pair, attack, side)
            edge += cases
            for name, values in found.items():
                columns.setdefault(name, []).append(values)
            tokens.append(encoded.attention_mask.sum(axis=1).astype(np.int64))
            flags += flag_texts(encoded)
            bar.update(len(block))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return TextScores(joined, np.concatenate(tokens), flags, edge)


def _score_block(
    texts: Sequence[str],
    encoded: Encoded,
    scorer: StatisticsExtractor,
    pair: ModelPair,
    attack: Attack | None,
    side: Literal["right", "left"],
) -> tuple[dict[str, Float[np.ndarray, " N"]], int]:
    """Scores, and how many of them are EZ-MIA's for want of evidence."""
    statistics, features, mask = scorer(encoded)
    lower = encode(
        [text.lower() for text in texts],
        pair.reference.tokenizer,
        length=encoded.input_ids.shape[1],
        side=side,
    )
    found = formulas.all_scores(
        statistics,
        zlib_bytes=np.array([zlib_length(text) for text in texts]),
        lower=scorer.target_only(lower),
    )
    found = {name: np.asarray(values) for name, values in found.items()}
    if attack is not None:
        assert features is not None
        found = {LEARNED: score_features(attack, features, mask), **found}
    return found, formulas.count_ez_edge_cases(statistics)
