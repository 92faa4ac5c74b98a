"""The published implementation of the features, run from a checkout of it.

It runs in a process of its own, where PyTorch has the cores to itself while our side
waits, at the settings its own command line uses: transformers' defaults for a model
from disk, its choice of device. It gets our token ids through a stand-in for a
tokenizer. No code of it is in this project.
"""

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lt_mia_jax.errors import InputError

REPOSITORY = "https://github.com/JetBrains-Research/learned-mia"
MODULE = "features/extraction.py"
FUNCTION = "extract_per_token_features_both"
PACKAGE = "ltmia"
"""The name under which the checkout imports itself."""

DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
"""What to install for modules that are named differently."""

BATCH, FEATURES = "batch.npz", "features.npz"
MODELS = ("target", "reference")
"""Folders of the models in Hugging Face layout, beside the batch."""


def check(path: Path) -> None:
    """Refuse a path that is no checkout of the reference.

    Raises:
      InputError: saying what stands there instead.
    """
    source = path / MODULE
    if not path.exists():
        found = "nothing"
    elif not path.is_dir():
        found = "a file"
    elif not source.is_file():
        found = f"a folder without {MODULE}"
    elif f"def {FUNCTION}(" not in source.read_text(errors="replace"):
        found = f"a {MODULE} without {FUNCTION}"
    else:
        return
    raise InputError(
        f"--peer {path}: found {found}, expected a checkout of "
        f"JetBrains-Research/learned-mia; git clone {REPOSITORY} and pass its folder"
    )


class Peer:
    """The reference's process; it waits between passes."""

    def __init__(self, path: Path, folder: Path, *, k: int, threads: int):
        """Start it and wait until both models are loaded.

        Args:
          path: the checkout.
          folder: holds both models and the batch; gets the features.
          k: length of the lists.
          threads: of PyTorch.

        Raises:
          InputError: the path is no checkout, or a package is missing.
        """
        check(path)
        words = [sys.executable, __file__, str(path.resolve()), str(folder)]
        words += ["--k", str(k), "--threads", str(threads)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._folder = folder
        self.settings: dict[str, Any] = self._read()

    def seconds(self, name: str) -> float:
        """Of one pass: "two forwards" or "extraction"."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return self._read()["seconds"]

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and mask of the last extraction."""
        with np.load(self._folder / FEATURES) as saved:
            return saved["features"], saved["mask"] != 0

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {}
        if not line:
            answer["error"] = "its process ended early; see its messages above"
        if "error" in answer:
            self.close()
            raise InputError(f"the reference cannot run: {answer['error']}")
        return answer


class Tokens:
    """A tokenizer whose texts are the row numbers of a batch."""

    eos_token_id = None
    """None, or one would be appended."""
    pad_token_id = 0

    def __init__(self, rows: np.ndarray):
        self._rows = rows.tolist()

    def encode(self, text: str, **_: Any) -> list[int]:
        """The token ids of a row."""
        return list(self._rows[int(text)])


def load(path: Path) -> tuple[Callable[..., Any], Any]:
    """The reference's function and the device that it would choose."""
    # The folder may have any name, so it is not found on `sys.path`.
    spec = importlib.util.spec_from_file_location(
        PACKAGE, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[PACKAGE] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    extraction = importlib.import_module(f"{PACKAGE}.features.extraction")
    device = importlib.import_module(f"{PACKAGE}.utils").get_device()
    return getattr(extraction, FUNCTION), device


def passes(
    path: Path, folder: Path, k: int, threads: int
) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """The settings, and the two timed passes."""
    extract, device = load(path)

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    target, reference = (
        AutoModelForCausalLM.from_pretrained(folder / name).eval().to(device)
        for name in MODELS
    )
    with np.load(folder / BATCH) as batch:
        rows = batch["input_ids"]
    texts, tokenizer = [str(i) for i in range(len(rows))], Tokens(rows)
    ids = torch.from_numpy(rows).long().to(device)
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def two_forwards() -> Any:
        return [
            model(input_ids=ids, attention_mask=mask).logits.max(-1).values.cpu()
            for model in (target, reference)
        ]

    def extraction() -> Any:
        found = extract(
            target,
            reference,
            tokenizer,
            texts,
            device,
            batch_size=len(rows),
            sequence_length=rows.shape[1],
            k=k,
        )
        return found[:2]

    settings = {
        "torch": torch.__version__,
        "device": str(device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "attention": target.config._attn_implementation,
        "threads": torch.get_num_threads(),
        "batch_size": len(rows),
    }
    return settings, {"two forwards": two_forwards, "extraction": extraction}


def main() -> None:
    """Answer each name of a pass on stdin with its seconds, as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    # What the reference prints must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        settings, runs = passes(**vars(arguments))
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        install = DISTRIBUTIONS.get(name, name)
        answer(error=f"no module {name}, which it imports; pip install {install}")
        return
    answer(**settings)
    for line in sys.stdin:
        start = time.perf_counter()
        found = runs[line.strip()]()
        taken = time.perf_counter() - start
        if line.strip() == "extraction":
            features, mask = found
            np.savez(arguments.folder / FEATURES, features=features, mask=mask)
        answer(seconds=taken)


if __name__ == "__main__":
    main()
