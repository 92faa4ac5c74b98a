"""Hours and memory of the paper's grid on a TPU slice and on GPUs, by a roofline.

JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m experiments.speed.scaling

Programs are compiled for v5e chips, in about 15 minutes on two cores; `--costs` names a
file that keeps what they cost, so that a second run compiles nothing. A step takes the
longest of its products, its memory traffic and its messages, each at a share of the
peak, and the attack's also of the host's reading.
"""

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.speed.aot_compile import Compile, described_mesh, lower
from experiments.speed.compiled import Figures, describe

CHIPS = 16
"""Of v5e-16, for which programs are compiled."""
HOSTS = 4
"""Of v5e-16. Extraction is one process a host, on a quarter of the texts each."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Peaks of one chip, and how many there are."""

    name: str
    chips: int
    tflops: float
    """Dense bfloat16 products."""
    memory_gb: float
    bandwidth: float
    """GB/s of main memory."""
    link: float
    """GB/s that one chip can send to the others."""


# https://cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, 1,600 Gbit/s
# between chips, both directions and all links together.
# https://www.nvidia.com/en-us/data-center/h100/, SXM: 989 TFLOP/s without sparsity,
# 80 GB, 3.35 TB/s, NVLink 900 GB/s, both directions together.
MACHINES = (
    Machine("v5e-16", 16, 197, 16, 819, 100),
    Machine("8 x H100", 8, 989, 80, 3350, 450),
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Models of one size that are trained alike."""

    name: str
    program: Compile
    models: int
    """Of the paper's 25; each meets four corpora."""

    @property
    def label(self) -> str:
        """What its rows are called."""
        return f"{self.name}, {self.program.step}"


def _group(name: Any, step: Any, models: int) -> Group:
    # The smallest model has a copy on every chip; larger ones are shared by all.
    fsdp = 1 if name == "124m-gpt2" else CHIPS
    program = Compile(
        step=step, model=name, batch_size=16, data=CHIPS // fsdp, fsdp=fsdp
    )
    return Group(name, program, models)


GROUPS = (
    _group("124m-gpt2", "full", 2),
    _group("1.4b-pythia", "full", 6),
    _group("2.8b-pythia", "full", 1),
    _group("2.8b-pythia", "lora", 8),
    _group("2.8b-mamba", "full", 2),
    _group("7b-llama", "full", 2),
    _group("7b-llama", "lora", 4),
)
"""The grid: 15 models to train the attack on and 10 to judge it, by nearest size.

Three of the 1.4b are trained by LoRA, which takes less than `full`.
"""

CORPORA = 4
ATTACK_BATCH = 16_384
ATTACK = Compile(step="attack", batch_size=ATTACK_BATCH, data=CHIPS, fsdp=1)

FINETUNE_STEPS = 3 * 10_000 // 16
EXTRACT_TEXTS = 20_000
EXTRACT_BATCH = 256
ATTACK_ROWS = 60 * 18_000
ATTACK_STEPS = 80 * -(-ATTACK_ROWS // ATTACK_BATCH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """Predict the grid."""

    costs: Path | None = None
    """File that keeps the costs of compiled programs."""

    efficiency: float = 0.4
    """Share of each peak that a step reaches."""

    host_rows: tuple[float, float] = (2_500.0, 50_000.0)
    """Rows a second that a host hands to the attack: assembled from the stores again,
    and kept in memory."""


class Costs:
    """What programs cost, compiled when first asked for."""

    def __init__(self, file: Path | None):
        self.file = file
        kept = file is not None and file.exists()
        self.known: dict[str, Any] = json.loads(file.read_text()) if kept else {}  # type: ignore[reportOptionalMemberAccess]

    def of(self, program: Compile) -> Figures:
        """The cost of one step on each of the chips it was compiled for."""
        key = repr(program)
        if key not in self.known:
            logging.info("compiling %s of %s", program.step, program.model)
            mesh = described_mesh(program.topology, program.data, program.fsdp)
            figures = describe(lower(program, mesh).compile())
            self.known[key] = dataclasses.asdict(figures)
            jax.clear_caches()
            if self.file is not None:
                self.file.write_text(json.dumps(self.known, indent=1))
        return Figures(**self.known[key])


def extraction(group: Group) -> Compile:
    """The extraction of a group's models on one host, which takes its own texts."""
    fsdp = 1 if group.program.fsdp == 1 else CHIPS // HOSTS
    return dataclasses.replace(
        group.program,
        step="extract",
        topology="v5e:2x2",
        batch_size=EXTRACT_BATCH // HOSTS,
        data=CHIPS // HOSTS // fsdp,
        fsdp=fsdp,
    )


def times(cost: Figures, machine: Machine, efficiency: float) -> dict[str, float]:
    """Seconds of a step, by what would bound it.

    On another number of chips than the program was compiled for, products and traffic
    are shared by all, and each chip sends what it sends here: every chip gathers the
    whole of the weights.
    """
    more = CHIPS / machine.chips
    return {
        "products": more * cost.products / (machine.tflops * 1e12 * efficiency),
        "memory": more * cost.bytes_accessed / (machine.bandwidth * 1e9 * efficiency),
        "links": sum(cost.sent.values()) / (machine.link * 1e9 * efficiency),
    }


def bound(parts: dict[str, float]) -> tuple[str, float]:
    """The longest part and its seconds."""
    name = max(parts, key=lambda part: parts[part])
    return name, parts[name]


def rows(config: Scaling, costs: Costs, machine: Machine) -> list[list[str]]:
    """One row a group, two for the attack and the sum."""
    found, total, attacking, more = [], 0.0, 0.0, CHIPS / machine.chips
    for group in GROUPS:
        tuned, read = costs.of(group.program), costs.of(extraction(group))
        # Training keeps the best parameters beside those and two moments.
        kept = tuned.arguments / 3 if group.program.step == "full" else 0
        why, seconds = bound(times(tuned, machine, config.efficiency))
        tune = FINETUNE_STEPS * seconds / 60
        reason, seconds = bound(times(read, machine, config.efficiency))
        extract = EXTRACT_TEXTS / EXTRACT_BATCH * seconds / 60
        hours = group.models * CORPORA * (tune + extract) / 60
        total += hours
        found.append(
            [
                group.label,
                str(group.models * CORPORA),
                f"{more * (tuned.peak + kept) / 1e9:.1f}",
                f"{tune:.1f} ({why})",
                f"{more * read.peak / 1e9:.1f}",
                f"{extract:.2f} ({reason})",
                f"{hours:.1f}",
            ]
        )
    attack = costs.of(ATTACK)
    parts = times(attack, machine, config.efficiency)
    memory = f"{more * attack.peak / 1e9:.1f}"
    for name, rate in zip(("read again", "in memory"), config.host_rows, strict=True):
        parts["host"] = ATTACK_BATCH / rate
        why, seconds = bound(parts)
        attacking = ATTACK_STEPS * seconds / 3600
        minutes = f"{attacking * 60:.0f} ({why})"
        found.append(
            [f"attack, rows {name}", "1", memory, minutes, "", "", f"{attacking:.1f}"]
        )
    whole = f"**{total + attacking:.1f}**"
    found.append(["**all, rows in memory**", "", "", "", "", "", whole])
    return found


def main() -> None:
    """Print one Markdown table a machine."""
    config = tyro.cli(Scaling, description=__doc__)
    costs = Costs(config.costs)
    for machine in MACHINES:
        head = [
            machine.name,
            "combinations",
            "fine-tuning, GB a chip",
            "minutes each (bound)",
            "extraction, GB a chip",
            "minutes each (bound)",
            "hours in all",
        ]
        lines = [head, ["---"] * len(head), *rows(config, costs, machine)]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        sys.stdout.write(text + "\n\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    main()
