"""Bad inputs in folders: models, runs, attacks, stores, interventions; other files."""

import contextlib
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from bad_inputs import DEEP, FILES, HUGE, LONG, ROWS, VERY_LONG, Case, with_flag
from safetensors.numpy import load_file, save_file

from lt_mia_jax.files import MANIFEST, fingerprint, write_manifest

VALUES = ["Infinity", "-Infinity", "NaN", "1e300", "-1", "1e999", str(10**12), HUGE]
VALUES += [DEEP, '"x"', "[]", "{}", '{"a": 1, "a": 2}', str(2**63), "[[]]", "true"]


def copied(source: Path, change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A copy of a folder as `copy`, with a change."""

    def prepare(folder: Path) -> None:
        shutil.copytree(source, folder / "copy")
        change(folder / "copy")

    return prepare


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Put something in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def edited(name: str, path: tuple, value: str | None) -> Callable[[Path], object]:
    """Put JSON text in the place of an entry; None removes it."""

    def change(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        if value is None:
            del inner[path[-1]]
        else:
            inner[path[-1]] = "@@@"
        text = json.dumps(data).replace('"@@@"', value or "")
        (folder / name).write_text(text)

    return change


def paths_of(data: object, path: tuple = ()) -> Iterator[tuple]:
    """Places of all entries of JSON values."""
    items = data.items() if isinstance(data, dict) else ()
    items = enumerate(data) if isinstance(data, list) else items
    for key, value in items:
        yield (*path, key)
        yield from paths_of(value, (*path, key))


FLAG_OF_MODEL = {
    "audit": "--target",
    "extract": "--reference",
    "finetune": "--model",
    "merge": "--models",
    "unlearn": "--model",
}


def model_cases(
    base: dict[str, list[str]], sandbox: Path, rng: random.Random
) -> Iterator[Case]:
    """Broken folders of models."""
    model = sandbox / "models" / "base"
    named = [(c, f) for c, f in FLAG_OF_MODEL.items()]
    read = json.loads((model / "config.json").read_text())
    sizes = [n for n, x in read.items() if type(x) is int and not n.endswith("_id")]
    reals = [n for n, x in read.items() if type(x) is float and "initializer" not in n]

    def case(name: str, change: Callable[[Path], object], bad: bool = True) -> Case:
        command, flag = rng.choice(named)
        words = with_flag(base[command], flag, "{case}/copy")
        return Case(f"{command} model {name}", words, copied(model, change), bad)

    for field in [*sizes, *reals, "model_type", "activation_function"]:
        for value in VALUES:
            change = edited("config.json", (field,), value)
            yield case(f"{field} = {value[:20]}", change)
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        for name, make in FILES.items():
            yield case(f"{file} is {name}", replaced(file, make))
    for name, make in FILES.items():

        def only_index(folder: Path, make: Callable = make) -> None:
            (folder / "model.safetensors").unlink()
            make(folder / "model.safetensors.index.json")

        yield case(f"index alone is {name}", only_index)
    for text in ('{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x"}}'):
        yield case(
            f"index {text}",
            lambda folder, text=text: (
                (folder / "model.safetensors").unlink(),
                (folder / "model.safetensors.index.json").write_text(text),
            ),
        )
    for number in range(24):
        yield case(f"weights {number}", damaged_weights(number))
    for number in range(12):
        for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
            yield case(f"flipped {name} {number}", flipped(name, number), False)
    for name, value in (
        ("none", "{case}/nowhere"),
        ("empty", ""),
        ("long", LONG),
        ("very long", VERY_LONG),
        ("a file", str(sandbox / "texts" / "known.jsonl")),
        ("a device", "/dev/zero"),
        ("a space", "a b"),
        ("a hub id", "nobody/nothing"),
    ):
        for command, flag in named:
            yield Case(f"{command} model {name}", with_flag(base[command], flag, value))


def damaged_weights(number: int) -> Callable[[Path], object]:
    """One of many ways to break a safetensors file."""
    rng = random.Random(number)

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        data, kind = path.read_bytes(), number % 6
        if kind == 0:
            path.write_bytes(data[: rng.randrange(len(data))])
        elif kind == 1:
            path.write_bytes(struct.pack("<Q", rng.getrandbits(62)) + data[8:])
        elif kind == 2:
            path.write_bytes(data[:8] + rng.randbytes(200) + data[208:])
        else:
            tensors = load_file(path)
            name = rng.choice(sorted(tensors))
            if kind == 3:
                broken = rng.choice([np.nan, np.inf])
                tensors[name] = np.full_like(tensors[name], broken)
            elif kind == 4:
                tensors[name] = tensors[name][..., :-1].copy()
            else:
                tensors[f"{name}.more"] = tensors.pop(name)
            save_file(tensors, path)

    return change


def flipped(name: str, seed: int) -> Callable[[Path], object]:
    """A file with some bytes changed, which may leave it good."""

    def change(folder: Path) -> None:
        rng = random.Random(f"{name} {seed}")
        data = bytearray((folder / name).read_bytes())
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.choice(b'"{}[]:,0\xff\x00a')
        (folder / name).write_bytes(data)

    return change


def vouched(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A change of a folder whose manifest then vouches for it."""

    def both(folder: Path) -> None:
        change(folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        names = [n for n in manifest["files"] if (folder / n).is_file()]
        extra = {k: x for k, x in manifest.items() if k not in ("files", "digest")}
        with contextlib.suppress(UnicodeDecodeError, OSError):
            write_manifest(folder, names, **extra)

    return both


def signed(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A change of an intervention with the hash of its tensors set right."""

    def both(folder: Path) -> None:
        change(folder)
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            path = folder / "intervention.json"
            data = json.loads(path.read_text())
            tensors = folder / "intervention.safetensors"
            data["sha256"] = fingerprint(tensors.read_bytes())
            path.write_text(json.dumps(data))

    return both


FOLDERS = {
    "audit": ("report", "--runs", ("summary.json", "scores.jsonl")),
    "unlearned": ("report", "--runs", ("card.json",)),
    "attack": ("evaluate", "--attack", ("classifier.json", "card.json", MANIFEST)),
    "features": ("evaluate", "--features", ("store.json", "texts.json", MANIFEST)),
    "projected": ("unlearn", "--model", ("intervention.json",)),
}
"""Of `golden/previous`: who reads it, and which of its files are broken."""


def folder_cases(
    base: dict[str, list[str]], sandbox: Path, rng: random.Random
) -> Iterator[Case]:
    """Broken folders of runs, attacks, stores and interventions."""
    for source, (command, flag, names) in FOLDERS.items():
        words = with_flag(base[command], flag, "{case}/copy")
        if source == "projected":  # only this method extends a projection
            words = [*words, "--method", "mrp", "--epochs", "1"]
        after = {"attack": vouched, "features": vouched, "projected": signed}
        for name in names:
            for kind, make in FILES.items():
                if name == "card.json" and kind == "absent" and source == "unlearned":
                    continue
                change = replaced(name, make)
                yield Case(
                    f"{command} {source}/{name} is {kind}",
                    words,
                    copied(sandbox / source, change),
                )
            if name.endswith(".jsonl"):
                for kind, line in ROWS.items():
                    change = _appended(name, line)
                    yield Case(
                        f"{command} {source}/{name} ends with {kind}",
                        words,
                        copied(sandbox / source, change),
                        bad=kind not in ("empty id",),
                    )
                continue
            places = sorted(
                paths_of(json.loads((sandbox / source / name).read_text())), key=repr
            )
            for place in rng.sample(places, min(len(places), 14)):
                for value in rng.sample([*VALUES, None], 3):
                    shown = "gone" if value is None else value[:20]
                    change = edited(name, place, value)
                    if name != MANIFEST and source in after:
                        change = after[source](change)
                    yield Case(
                        f"{command} {source}/{name} {place} {shown}",
                        words,
                        copied(sandbox / source, change),
                        bad=value in (DEEP, HUGE, '{"a": 1, "a": 2}'),
                    )


def _appended(name: str, line: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(path.read_text() + line + "\n")

    return change


def other_cases(base: dict[str, list[str]], sandbox: Path) -> Iterator[Case]:
    """Methods from files, benchmarks, GGUF files, torch checkpoints."""
    for kind, make in FILES.items():
        if kind in ("empty", "a number", "a list", "a huge integer"):
            continue  # they are Python
        yield Case(
            f"unlearn --method FILE.py:M is {kind}",
            [*base["unlearn"], "--method", "{case}/m.py:M"],
            lambda folder, make=make: make(folder / "m.py"),
        )
    for text in ("x = 1", "M = 3", "1/0", "def f(:", "class M: pass", "M = M"):
        yield Case(
            f"unlearn --method FILE.py:M with {text}",
            [*base["unlearn"], "--method", "{case}/m.py:M"],
            lambda folder, text=text: (folder / "m.py").write_text(text),
        )
    for name in (f"{LONG}.py:M", f"{VERY_LONG}/m.py:M", f"{LONG}", "", "a/b", "npo:"):
        words = [*base["unlearn"], "--method", name]
        yield Case(f"unlearn --method {name[:20]!r}", words)
    for kind, make in FILES.items():
        for name, command, flag in (
            ("m.gguf", "audit", "--target"),
            ("a.pt", "evaluate", "--attack"),
        ):
            yield Case(
                f"{command} {name} is {kind}",
                with_flag(base[command], flag, f"{{case}}/{name}"),
                lambda folder, make=make, name=name: make(folder / name),
            )
        for name in ("forget01.json", "forget01.jsonl"):
            yield Case(
                f"benchmark {name} is {kind}",
                [
                    *with_flag(base["benchmark"], "--local", f"{{case}}/{name}"),
                    *("--parts", "forget01"),
                ],
                lambda folder, make=make, name=name: make(folder / name),
            )
    for number in range(16):
        rng = random.Random(number)
        counts = [rng.choice([0, 1, 2**20, 2**40, 2**63]) for _ in range(3)]
        kind = rng.choice([0, 4, 8, 9, 12, 77])
        head = struct.pack("<4sIQQ", b"GGUF", 3, counts[0] % 9, max(1, counts[1] % 99))
        body = struct.pack("<Q", 3) + b"key" + struct.pack("<IIQ", 9, kind, counts[2])
        yield Case(
            f"audit GGUF header {number}",
            with_flag(base["audit"], "--target", "{case}/m.gguf"),
            lambda folder, data=head + body * 4: (folder / "m.gguf").write_bytes(data),
        )
    for command, words in base.items():
        for name, out in (
            ("a file", "{case}/taken"),
            ("below a file", "{case}/taken/x"),
            ("a device", "/dev/null"),
            ("an address", "gs://bucket/x"),
        ):
            yield Case(
                f"{command} --out {name}",
                with_flag(words, "--out", out),
                lambda folder: (folder / "taken").write_text("mine"),
            )
