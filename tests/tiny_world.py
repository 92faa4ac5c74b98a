"""A tiny language, two tiny models and files on disk: enough to run every command."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.data.tokenize import train_bpe
from lt_mia_jax.models import (
    LanguageModel,
    gpt2_like,
    griffin_like,
    llama_like,
    mamba_like,
    rwkv_like,
)

WORDS = (
    "the a small large red green model text token learns reads keeps forgets said "
    "was in of and with house river stone cloud paper train test member data set"
).split()


def sentence(rng: random.Random, words: int = 30) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def sentences(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [f"{sentence(rng)} {seed}-{i}" for i in range(count)]


@dataclasses.dataclass(frozen=True)
class World:
    """Paths of a base, a target that differs from it, and text files."""

    root: Path
    base: Path
    target: Path
    members: Path
    nonmembers: Path
    mixed: Path
    """Members and non-members with labels."""

    others: Path
    """Non-members that stand in no other file."""

    def arguments(self) -> list[str]:
        """`--reference` and `--target`."""
        return ["--reference", str(self.base), "--target", str(self.target)]


def rows(texts: list[str], label: int | None = None) -> list[dict]:
    extra = {} if label is None else {"label": label}
    return [{"text": text, **extra} for text in texts]


def save_pair(root: Path, config: Any, tokenizer: Any) -> tuple[Path, Path]:
    """Folders of a base and of a target that differs from it."""
    base = LanguageModel(config).init(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(base)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    save_pretrained(root / "base", config, base, tokenizer)
    save_pretrained(root / "target", config, treedef.unflatten(moved), tokenizer)
    return root / "base", root / "target"


def build(root: Path, *, members: int = 24, nonmembers: int = 30) -> World:
    inside, outside = sentences(1, members), sentences(2, nonmembers)
    rest = sentences(3, 40)
    tokenizer = train_bpe(sentences(0, 200), vocab_size=300)
    config = gpt2_like(300, width=16, layers=2, heads=2, context=64)
    base, target = save_pair(root, config, tokenizer)
    files = {
        "members": rows(inside),
        "nonmembers": rows(outside),
        "mixed": rows(inside, 1) + rows(outside, 0),
        "others": rows(rest),
    }
    for name, content in files.items():
        write_texts(root / f"{name}.jsonl", content)
    return World(
        root,
        base,
        target,
        *(root / f"{name}.jsonl" for name in files),
    )


BASES = {
    "llama": llama_like(300, 16, 2, 2, 64),
    "mamba": mamba_like(300, 16, 2, state=4),
    "rwkv": rwkv_like(300, 16, 2),
    "recurrent_gemma": griffin_like(300, 16, 3, 2, window=8),
}
"""One of other families."""


def base_of(world: World, family: str) -> Path:
    """The world's base, or one of another family beside it, with its tokenizer."""
    if family not in BASES:
        return world.base
    directory = world.root / family
    if not directory.exists():
        tokenizer = load_pretrained(world.base).tokenizer
        params = LanguageModel(BASES[family]).init(jax.random.key(0))
        save_pretrained(directory, BASES[family], params, tokenizer)
    return directory


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def poison(source: Path, destination: Path) -> None:
    """A copy of a model directory with one NaN among its weights."""
    config, params, tokenizer = load_pretrained(source)
    leaves, treedef = jax.tree.flatten(params)
    leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].set(jnp.nan)
    save_pretrained(destination, config, treedef.unflatten(leaves), tokenizer)
