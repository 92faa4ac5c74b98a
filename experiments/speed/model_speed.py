"""Tokens per second of a forward pass and of a training step, beside PyTorch.

python -m experiments.speed.model_speed --families gpt2 llama gpt_neox

Both sides hold the same random weights: transformers makes them, `load_model` reads
them. Each side runs in a process of its own, as its users run it, and waits while the
other measures; rounds alternate, and the fastest pass of each side counts, since
other programs on the machine can only slow a pass down. Training is forward,
backward and AdamW on the mean next-token loss. Dropout is off.
"""

import dataclasses
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

VOCABULARY = 8192

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 512,
        "n_layer": 8,
        "n_head": 8,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1408,
    },
    "gpt_neox": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
    },
    "mamba": {"hidden_size": 512, "num_hidden_layers": 12, "state_size": 16},
    "rwkv": {"hidden_size": 512, "num_hidden_layers": 8, "context_length": 1024},
    "recurrent_gemma": {
        "hidden_size": 512,
        "lru_width": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "intermediate_size": 3072,
        "attention_window_size": 512,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
}
"""Arguments of each family's transformers config, for 20 to 50 million parameters."""

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
"""Ids inside the small vocabulary; they do not change the logits."""

Side = Literal["ours", "torch"]
Pass = Literal["forward", "training"]


@dataclasses.dataclass(frozen=True)
class Speed:
    """Measure model families against transformers on PyTorch."""

    families: tuple[str, ...] = ("gpt2", "llama", "gpt_neox")
    """Names in the table of models."""

    batch_size: int = 16
    """Texts in a batch."""

    length: int = 128
    """Tokens a text."""

    threads: int = 2
    """Threads of PyTorch; our side takes every core that the process may use."""

    rounds: int = 6
    """How often the two sides take turns."""

    repeats: int = 4
    """Timed passes a turn."""

    child: Side | None = None
    """Be the process of this side, for one family."""

    folder: Path = Path()
    """Where that process finds the model, or puts it."""


def tokens(config: Speed) -> np.ndarray:
    """The batch that both sides read."""
    shape = (config.batch_size, config.length)
    return np.random.default_rng(0).integers(0, VOCABULARY, shape, dtype=np.int32)


def torch_passes(config: Speed) -> dict[str, Callable[[], Any]]:
    """Make the model, save it for the other side, and return the two passes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    (family,) = config.families
    settings = {"vocab_size": VOCABULARY, "use_cache": False, **SPECIAL}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **settings, **MODELS[family])
    )
    model.save_pretrained(config.folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    ids = torch.from_numpy(tokens(config)).long()

    def forward() -> np.ndarray:
        model.eval()
        with torch.no_grad():
            return model(ids).logits.numpy()

    def train() -> float:
        model.train()
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"forward": forward, "training": train}


def our_passes(config: Speed) -> dict[str, Callable[[], Any]]:
    """Load the model that the other side saved and return the two passes."""
    import jax

    from lt_mia_jax.checkpoints import load_model
    from lt_mia_jax.executor import make_executor
    from lt_mia_jax.finetune.step import TokenBatch, TokenStep
    from lt_mia_jax.models import LanguageModel
    from lt_mia_jax.process import use_machine
    from lt_mia_jax.training.config import OptimizerConfig
    from lt_mia_jax.training.loop import step_program
    from lt_mia_jax.training.optimizer import make_optimizer
    from lt_mia_jax.training.state import init_state

    use_machine()
    executor = make_executor()
    model_config, params = load_model(config.folder, mesh=executor.mesh)
    model, optimizer = LanguageModel(model_config), OptimizerConfig()
    ids = tokens(config)
    host: Any = (ids, np.ones_like(ids), np.ones(len(ids), np.float32))
    batch = TokenBatch(*executor.place_batch(host))
    apply, key = jax.jit(model.apply), jax.random.key(0)
    step = jax.tree_util.Partial(TokenStep(model, optimizer, 0), None)
    advance = step_program(step, executor)
    # Made at the first training step: the forward pass has the memory to itself.
    state = None

    def forward() -> np.ndarray:
        return apply(params, batch.input_ids).block_until_ready()

    def train() -> float:
        nonlocal state
        if state is None:
            state = executor.copy(init_state(params, make_optimizer(optimizer, 0)))
        state, metrics = advance(state, batch, key)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return {"forward": forward, "training": train}


def serve(config: Speed) -> None:
    """Answer each name of a pass on stdin with the seconds of some such passes."""
    passes = (torch_passes if config.child == "torch" else our_passes)(config)
    logits = np.asarray(passes["forward"]())
    np.save(config.folder / f"{config.child}.npy", logits)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        run, seconds = passes[line.strip()], []
        for _ in range(config.repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        sys.stdout.write(json.dumps(seconds) + "\n")
        sys.stdout.flush()


class Child:
    """The process of one side."""

    def __init__(self, config: Speed, family: str, side: Side, folder: str):
        words = [sys.executable, __file__, "--child", side, "--folder", folder]
        words += ["--families", family]
        for name in ("batch_size", "length", "threads", "repeats"):
            words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while self._read() != "ready":
            pass

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a measuring process ended early; see its messages above")
        return line.strip()

    def measure(self, name: Pass) -> list[float]:
        """Seconds of each of some passes."""
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return json.loads(self._read())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def parameter_count(folder: str) -> int:
    """Parameters in the saved model; a tied head counts once."""
    from safetensors import safe_open

    with safe_open(Path(folder) / "model.safetensors", "numpy") as file:
        return sum(
            int(np.prod(file.get_slice(name).get_shape())) for name in file.keys()
        )


def compare(config: Speed, family: str) -> str:
    """The row of one family."""
    with tempfile.TemporaryDirectory() as folder:
        # In this order: the first process writes the model that the second reads.
        sides: tuple[Side, ...] = ("torch", "ours")
        children = {side: Child(config, family, side, folder) for side in sides}
        logits = [np.load(Path(folder) / f"{side}.npy") for side in sides]
        difference = np.abs(logits[0] - logits[1]).max()
        logging.info("%s: logits differ by at most %.2g", family, difference)
        cells = [family, f"{parameter_count(folder) / 1e6:.1f} M"]
        passes: tuple[Pass, ...] = ("forward", "training")
        for name in passes:
            fastest = dict.fromkeys(sides, np.inf)
            for side in sides:
                children[side].measure(name)  # compiles and warms up
            for _ in range(config.rounds):
                turn = {side: min(children[side].measure(name)) for side in sides}
                fastest = {side: min(fastest[side], turn[side]) for side in sides}
                logging.info(
                    "%s %s: ours %.0f ms, torch %.0f ms, ratio %.2f",
                    *(family, name, turn["ours"] * 1e3, turn["torch"] * 1e3),
                    turn["torch"] / turn["ours"],
                )
            n = config.batch_size * config.length
            cells += [f"{n / fastest[side]:,.0f}" for side in ("ours", "torch")]
            cells.append(f"**{fastest['torch'] / fastest['ours']:.2f}**")
        for child in children.values():
            child.close()
    return "| " + " | ".join(cells) + " |\n"


def main() -> None:
    """Print a Markdown table with one row a family."""
    config = tyro.cli(Speed)
    if config.child is not None:
        serve(config)
        return
    rows = [compare(config, family) for family in config.families]
    sys.stdout.write(
        "| family | parameters | forward, ours | torch | ratio "
        "| training, ours | torch | ratio |\n" + "|---" * 8 + "|\n" + "".join(rows)
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
