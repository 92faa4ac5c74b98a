"""Results of the throughput experiment: the file, the tables and the figure."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.speed.agreement import NEAR, Agreement
from experiments.speed.compiled import Figures
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json, write_json

RESULTS, FIGURE = "results.json", "throughput.svg"

KEYS = ("vocabulary", "batch_size", "length", "k", "vocab_chunk", "executor")
"""Settings that, with the size, tell one record from another."""

NAMES = {
    "two forwards": "ours: two forwards",
    "extraction": "ours: extraction",
    "features": "ours: features in NumPy",
    "reference two forwards": "reference: two forwards",
    "reference extraction": "reference: extraction",
}
FLOOR = {name: "two forwards" for name in NAMES} | {
    "reference two forwards": "reference two forwards",
    "reference extraction": "reference two forwards",
}
"""The two forward passes that a program is compared with."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One program."""

    seconds: list[float]
    """Of each pass."""
    figures: Figures | None

    @property
    def fastest(self) -> float:
        """Of the passes: other programs on the machine can only slow one down."""
        return min(self.seconds)


@dataclasses.dataclass(frozen=True)
class Record:
    """One size."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    programs: dict[str, Measured]
    reference: dict[str, Any] | None = None
    """Settings of the reference, if it was measured."""
    agreement: Agreement | None = None

    def rate(self, name: str) -> float | None:
        """Sequences a second."""
        program = self.programs.get(name)
        return (
            None if program is None else self.settings["batch_size"] / program.fastest
        )


def settings_of(config: Any, size: str) -> dict[str, Any]:
    """What a record is found by."""
    return {"size": size, **{key: getattr(config, key) for key in KEYS}}


def find(records: Sequence[Record], settings: dict[str, Any]) -> Record | None:
    """The record of these settings."""
    return next((r for r in records if r.settings == settings), None)


def replace(records: Sequence[Record], record: Record) -> list[Record]:
    """The records with this one added, or put in the place of its predecessor."""
    old = find(records, record.settings)
    if old is None:
        return [*records, record]
    return [record if r is old else r for r in records]


def load(folder: Path | None, *, must_exist: bool = False) -> list[Record]:
    """The records kept in a folder, none if there is no such file yet.

    Raises:
      InputError: the file is missing though it must exist, or is not ours.
    """
    path = None if folder is None else folder / RESULTS
    if path is None or not (path.exists() or must_exist):
        return []
    try:
        return [_record(data) for data in read_json(path)["records"]]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} holds no results of this experiment ({error}); expected what "
            "--out writes: choose another folder or remove the file"
        ) from error


def _record(data: dict[str, Any]) -> Record:
    programs = {
        name: Measured(p["seconds"], p["figures"] and Figures(**p["figures"]))
        for name, p in data["programs"].items()
    }
    found = data["agreement"] and Agreement(**data["agreement"])
    return Record(data["settings"], data["machine"], programs, data["reference"], found)


def save(folder: Path, records: Sequence[Record]) -> None:
    """Write the file and draw the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS, {"records": [dataclasses.asdict(r) for r in records]})
    draw(records, folder / FIGURE)


def _rows(cells: Sequence[Sequence[str]]) -> str:
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tables(records: Sequence[Record]) -> str:
    """Markdown: speeds, figures of the compiled programs, and how the sides agree."""
    speed = [["size", "program", "sequences/s", "ms", "over its two forwards"]]
    cost = [["size", "program", "GFLOP", "loops once", "GB moved", "collectives run"]]
    cost[0] += ["arguments, MiB", "temporaries, MiB", "peak, MiB"]
    notes = []
    for record in records:
        size = record.settings["size"]
        for name, program in record.programs.items():
            floor = record.programs[FLOOR[name]].fastest
            cells = [f"{record.rate(name):.2f}", f"{program.fastest * 1e3:,.0f}"]
            over = f"{program.fastest / floor:.2f}"
            speed.append([size, NAMES[name], *cells, over])
            if program.figures is not None:
                row = _figures(program.figures, record.machine["devices"])
                cost.append([size, NAMES[name], *row])
        notes.append(f"- {size}: {_note(record)}\n")
    return "\n".join([_rows(speed), _rows(cost), "".join(notes)])


def _figures(x: Figures, devices: int) -> list[str]:
    once = x.flops_loops_once
    run = ", ".join(f"{n} {kind}" for kind, n in x.collectives_run.items())
    memory = (x.arguments, x.temporaries, x.peak)
    return [
        f"{x.flops * devices / 1e9:,.1f}",
        "?" if once is None else f"{once * devices / 1e9:,.1f}",
        f"{x.bytes_accessed * devices / 1e9:,.2f}",
        run or "none",
        *(f"{n / 2**20:,.0f}" for n in memory),
    ]


def _note(record: Record) -> str:
    ours, theirs = record.machine, record.reference
    batch = f"{record.settings['batch_size']} x {record.settings['length']} tokens"
    text = (
        f"{batch}, vocabulary {record.settings['vocabulary']:,}, k = "
        f"{record.settings['k']}; ours JAX {ours['jax']}, {ours['dtype']}, "
        f"{ours['devices']} x {ours['device']} (GFLOP and GB of all devices, memory of "
        f"one), weights of both models {ours['weights'] / 2**20:,.0f} MiB"
    )
    if theirs is not None:
        text += (
            f"; reference PyTorch {theirs['torch']}, {theirs['dtype']}, "
            f"{theirs['device']}, {theirs['threads']} threads, batch "
            f"{theirs['batch_size']}, {theirs['attention']} attention"
        )
    found = record.agreement
    if found is not None:
        text += (
            f"; features differ by at most {found.logits:.1g} in logits, "
            f"{found.losses:.1g} nats in losses and by tokens {found.ranks:.1g} logits "
            f"apart in ranks ({found.left_out:,} of {found.slots:,} list slots closer "
            f"than {NEAR:.0e} to a neighbor left out)"
        )
    return text


def draw(records: Sequence[Record], path: Path) -> None:
    """Bars of both sides, and the two forwards of each as a line over its bar."""
    import matplotlib

    # Words stay words: smaller, and read with the page's own font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "throughput"}):
        _draw(records, path)


def _draw(records: Sequence[Record], path: Path) -> None:
    from matplotlib.figure import Figure

    # On a transparent ground: these are readable on white and on GitHub's dark gray.
    ink, limit = "#7d8590", "#d29922"
    sides = {
        "reference (PyTorch)": ("reference extraction", "#8c959f"),
        "lt_mia_jax": ("extraction", "#388bfd"),
    }
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for side, (label, (name, color)) in enumerate(sides.items()):
        for place, record in enumerate(records):
            rate, floor = record.rate(name), record.rate(FLOOR[name])
            if rate is None or floor is None:
                continue
            x = place + (side - 0.5) * 0.4
            axes.bar(x, rate, 0.36, color=color, label=label)
            axes.hlines(
                floor, x - 0.18, x + 0.18, colors=limit, label="its two forwards alone"
            )
            # Below the bar: on it or above it the number would meet the line.
            axes.annotate(
                f"{rate:.2f}",
                (x, 0),
                (0, -3),
                textcoords="offset points",
                ha="center",
                va="top",
                color=ink,
                fontsize=9,
            )
    axes.set_xticks(range(len(records)), [_label(r) for r in records])
    axes.set_ylabel("sequences a second", color=ink)
    axes.tick_params(colors=ink, length=0)
    axes.tick_params(axis="x", pad=16)
    for edge, spine in axes.spines.items():
        spine.set_visible(edge == "bottom")
        spine.set_color(ink)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=ink, alpha=0.25, linewidth=0.6)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(
        list(unique.values()), list(unique), frameon=False, labelcolor=ink, fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, transparent=True, metadata=metadata)


def _label(record: Record) -> str:
    """The size, with the vocabulary where it is not GPT-2's."""
    vocabulary = record.settings["vocabulary"]
    size = record.settings["size"]
    return size if vocabulary == 50257 else f"{size}\n{vocabulary:,} tokens"
