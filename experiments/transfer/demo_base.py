"""The pretrained Mamba that `lt-mia demo` starts from, with its card.

lt-mia demo --full --out runs/full
python -m experiments.transfer.demo_base --demo runs/full

Takes the base of a finished whole demo. The card names what it was trained on: texts
change with package versions, so that another machine makes another base of the kind.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import tyro

from lt_mia_jax.data.corpora import load_corpus
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json, sha256_file, write_atomic
from lt_mia_jax.process import exit_code
from lt_mia_jax.study.demo import PRETRAINING, UNSEEN, bases

TITLE = "# The base of `lt-mia demo`"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
    """Copy the base of a whole demo into the package, and write its card."""

    demo: Path = Path("runs/full")
    """Folder of a finished `lt-mia demo --full`."""

    out: Path = Path("lt_mia_jax/checkpoints/base")
    """Folder of the package."""


def run(config: Pack) -> None:
    """Copy the files and write the card.

    Raises:
      InputError: the folder is not that of a finished whole demo.
    """
    base = config.demo / "bases" / UNSEEN
    if not (config.demo / "tokenizer").exists() or not (base / FILES[0]).exists():
        raise InputError(f"{config.demo}: no finished `lt-mia demo --full`")
    old = config.out / "README.md"
    if any(config.out.glob("*")) and not (
        old.is_file() and old.read_text().startswith(TITLE)
    ):
        raise InputError(f"{config.out}: holds something else; choose another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(base / name, config.out / name)
    write_atomic(config.out / "README.md", card(config.demo))


def card(demo: Path) -> str:
    """What the base is, what it was trained on, and how it is made again."""
    model = bases()[UNSEEN]
    made = read_json(demo / "run.json")
    versions = ", ".join(f"{k} {v}" for k, v in sorted(made["versions"].items()))
    sources = "\n".join(
        f"| `{name}` | `{corpus.fingerprint[:16]}` | {of} |"
        for name in PRETRAINING
        for corpus in [load_corpus(name, cache=demo / "corpora")]
        for of in [", ".join(f"{k} {v}" for k, v in corpus.versions.items())]
    )
    flags = read_json(demo / "config.json")
    return f"""{TITLE}

A Mamba of {model.layers} layers and width {model.width} with a byte-level BPE
tokenizer of {model.vocab_size} entries, pretrained from nothing. It shows a mechanism;
it is of no use otherwise.

```bash
lt-mia demo --full --out runs/full
python -m experiments.transfer.demo_base --demo runs/full
```

{flags["pretrain_steps"]} updates of 32 sequences of 128 tokens, AdamW, seed
{flags["seed"]}, on up to 6,000 texts of the pretraining role of each of two corpora.
The texts are read from installed packages and change with their versions; licenses are
those of the packages.

| corpus | fingerprint | from |
| --- | --- | --- |
{sources}

SHA-256 of `model.safetensors`: `{sha256_file(demo / "bases" / UNSEEN / FILES[1])}`.

Made with {versions}.
"""


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(tyro.cli(Pack, description=__doc__)), "demo_base"))
