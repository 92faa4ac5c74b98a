"""A seeded generator of bad inputs for every command, and the run of one of them.

Everything a command reads is copied from `golden/previous` into a sandbox. A case
changes one flag or one file. Nothing in the sandbox but the case's `out` may change.
"""

import contextlib
import dataclasses
import gzip
import io
import json
import math
import os
import random
import shutil
import signal
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

from lt_mia_jax.cli import main, parse
from lt_mia_jax.configs import INPUT, _extras, flags
from lt_mia_jax.errors import Range
from lt_mia_jax.unlearning.methods import METHODS

SECONDS = 20
LONG = "x" * 300
VERY_LONG = "y" * 5000


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input."""

    name: str
    arguments: list[str]
    """`{case}` stands for the case's own folder."""
    prepare: Callable[[Path], object] = lambda folder: None
    """Makes files in the case's folder."""
    bad: bool = True
    """Whether success would be wrong; otherwise the change may be harmless."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    case: Case
    code: object
    """Exit code, or the exception that came out."""
    said: str
    seconds: float
    touched: list[str]

    @property
    def fault(self) -> str:
        """What is wrong; empty for a refusal in words."""
        if isinstance(self.code, TimeoutError):
            return f"no answer in {SECONDS} s"
        if isinstance(self.code, BaseException) or "Traceback" in self.said:
            return f"traceback: {type(self.code).__name__}: {str(self.code)[:300]}"
        if self.code == 0:
            return "success" if self.case.bad else ""
        if self.touched:
            return f"touched {self.touched}"
        lines = [line for line in self.said.splitlines() if line.startswith("lt-mia: ")]
        boxed = "For full helptext" in self.said  # a mistake in the command line itself
        if self.code != 2 or not (boxed or (len(lines) == 1 and len(lines[0]) < 4100)):
            return f"code {self.code}, {self.said[-300:]!r}"
        return ""


def run(case: Case, folder: Path, sandbox: Path) -> Outcome:
    """Run a case in its folder and look at what it left in the sandbox."""
    folder.mkdir()
    case.prepare(folder)
    arguments = [word.replace("{case}", str(folder)) for word in case.arguments]
    before, began, said = state(sandbox), time.monotonic(), io.StringIO()
    (empty := sandbox / "cwd").mkdir(exist_ok=True)

    def end(*_: object) -> None:
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    code: object
    try:
        with (
            contextlib.chdir(empty),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(said),
        ):
            code = main(arguments)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        code = error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    seconds, after = time.monotonic() - began, state(sandbox)
    changed = [p for p in before.keys() | after.keys() if before.get(p) != after.get(p)]
    # Of a folder its files count; `out` is where the command may write.
    own = (str(folder / "out"), str(folder / ".out"))
    touched = sorted(p for p in changed if not p.startswith(own))
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(case, code, said.getvalue(), seconds, touched)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file under a folder."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            status = os.lstat(path)
            found[path] = status.st_size, status.st_mtime_ns
    return found


def commands(sandbox: Path) -> dict[str, list[str]]:
    """A command line of each command that works, quick ones where there are any."""
    s = str(sandbox)
    pair = ["--reference", f"{s}/models/base", "--target", f"{s}/models/target"]
    out, length = ["--out", "{case}/out"], ["--length", "24"]
    questions = ["--forget", f"{s}/texts/forget.jsonl"]
    questions += ["--retain", f"{s}/texts/retain.jsonl"]
    texts = ["--texts", f"{s}/texts/suspects.jsonl"]
    sides = ["--members", f"{s}/texts/members.jsonl"]
    sides += ["--nonmembers", f"{s}/texts/nonmembers.jsonl"]
    return {
        "audit": ["audit", *pair, *texts, *out, *length, "--attack", "none"],
        "collect": [
            *("collect", "--model", f"{s}/models/base", *texts),
            *("--out", "{case}/out", *length),
        ],
        "extract": ["extract", *pair, *sides, *out, *length, "--k", "2"],
        "evaluate": [
            *("evaluate", "--features", f"{s}/features", *out),
            *("--attack", f"{s}/attack"),
        ],
        "train": ["train", "--features", f"{s}/features", *out],
        "finetune": [
            *("finetune", "--model", f"{s}/models/base"),
            *("--texts", f"{s}/texts/members.jsonl", *out, *length),
        ],
        "unlearn": [
            *("unlearn", "--model", f"{s}/models/target", *questions, *out, *length),
            *("--evaluated", "0"),
        ],
        "merge": [
            *("merge", "--method", "mean", "--models", f"{s}/models/base"),
            *(f"{s}/models/target", *out),
        ],
        "report": ["report", "--runs", f"{s}/audit", "--out", "{case}/out"],
        "demo": ["demo", *out],
        "syntofu": ["syntofu", *out],
        "benchmark": ["benchmark", "--name", "tofu", *out, "--local", f"{s}/tofu"],
    }


def with_flag(arguments: list[str], flag: str, value: str) -> list[str]:
    """A command line with another value of a flag."""
    if flag not in arguments:
        return [*arguments, flag, value]
    at = arguments.index(flag)
    return [*arguments[: at + 1], value, *arguments[at + 2 :]]


NUMBERS = ["nan", "inf", "-inf", "1e400", "-1e400", "-1", "0", "10" * 10, "abc", ""]
NUMBERS += ["9" * 5000, "1.5", "-9" * 20, "0x10", "1_0.5", "\u0663.x"]


def flag_cases(base: dict[str, list[str]]) -> Iterator[Case]:
    """Values outside the range of every flag of every command and method."""
    for command, arguments in base.items():
        methods = METHODS if command == "unlearn" else [None]
        for number, method in enumerate(methods):
            chosen = arguments if method is None else [*arguments, "--method", method]
            for flag, hint, value in flags(parse(chosen)):
                if number and not flag.startswith("--method."):
                    continue
                for text in wrong_values(hint, value):
                    name = f"{command} {method or ''} {flag} {text[:20]!r}"
                    yield Case(name, with_flag(chosen, flag, text))


def wrong_values(hint: object, value: object) -> Iterator[str]:
    """Values that a flag of this type and range must refuse."""
    extras = _extras(hint)
    ranges = [extra for extra in extras if isinstance(extra, Range)]
    kinds = {int, float, Path, str} & leaves(hint)
    if isinstance(value, bool) or not kinds:
        return
    if kinds & {int, float}:
        for text in NUMBERS:
            try:
                number = int(text) if int in kinds else float(text)
            except ValueError:
                yield text
                continue
            finite = abs(number) < (2**31 if int in kinds else math.inf)
            if not all(each.holds(number) for each in ranges) or not finite:
                yield text
    elif Path in kinds or INPUT in extras:
        yield from (VERY_LONG, f"{LONG}/a", "a\0b", "\udcff")
        if Path in kinds:
            yield ""
    else:
        yield from (VERY_LONG, "a\0b", "\udcff")


def leaves(hint: object) -> set[object]:
    """The types that a type is made of."""
    inner = typing.get_args(hint)
    return {hint} if not inner else {x for each in inner for x in leaves(each)}


def pipe(path: Path) -> None:
    """A named pipe that nobody writes to."""
    os.mkfifo(path)


def link(target: str) -> Callable[[Path], object]:
    """A symbolic link."""
    return lambda path: path.symlink_to(target)


def content(data: bytes | str) -> Callable[[Path], object]:
    """A file with that content."""
    data = data.encode() if isinstance(data, str) else data
    return lambda path: path.write_bytes(data)


DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "8" * 5000
FILES: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "empty": content(""),
    "a folder": lambda path: path.mkdir(),
    "a pipe": pipe,
    "an endless device": link("/dev/zero"),
    "a silent device": link("/dev/null"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a dangling link": link("/nowhere/at/all"),
    "zeros": content(b"\0" * 999),
    "random bytes": content(random.Random(7).randbytes(999)),
    "deep JSON": content(DEEP),
    "open brackets": content("[" * 100_000),
    "a huge integer": content(HUGE),
    "a number": content("3"),
    "a list": content("[1, 2]"),
    "half an object": content('{"text": "a'),
    "UTF-16": content('{"text": "a"}'.encode("utf-16")),
    "UTF-32": content('{"text": "a"}'.encode("utf-32")),
    "gzip": content(gzip.compress(b'{"text": "a"}')),
    "Latin-1": content('{"text": "é"}\n'.encode("latin-1")),
}
"""What may stand where a file is expected."""

ROWS = {
    "a key twice": '{"text": "a", "text": "b"}',
    "a key twice inside": '{"text": "a", "x": {"y": 1, "y": 2}}',
    "depth": '{"text": "a", "x": ' + DEEP + "}",
    "digits": '{"text": "a", "id": ' + HUGE + "}",
    "null": '{"text": null}',
    "number": '{"text": 7}',
    "list": '{"text": ["a"]}',
    "no text": '{"tekst": "a"}',
    "empty id": '{"text": "a", "id": ""}',
    "id of objects": '{"text": "a", "id": {}}',
    "infinity": '{"text": "a", "id": Infinity}',
    "single quotes": "{'text': 'a'}",
    "comma": '{"text": "a",}',
    "control character": '{"text": "a\x01b"}',
    "messages of strings": '{"messages": ["a"]}',
    "a prompt alone": '{"prompt": "a"}',
    "two objects": '{"text": "a"} {"text": "b"}',
}
"""Lines that no file of texts or questions may have."""

TEXT_FLAGS = [
    *(("audit", flag) for flag in ("--texts", "--nonmembers")),
    ("collect", "--texts"),
    *(("extract", flag) for flag in ("--members", "--nonmembers")),
    *(("finetune", flag) for flag in ("--texts", "--validation")),
    *(("unlearn", flag) for flag in ("--forget", "--retain", "--refusals")),
    *(("unlearn", flag) for flag in ("--holdout", "--probes")),
]


def text_cases(base: dict[str, list[str]]) -> Iterator[Case]:
    """Broken files of texts and questions."""
    lines = {f"line: {n}": content('{"text": "one"}\n' + x) for n, x in ROWS.items()}
    for command, flag in TEXT_FLAGS:
        arguments = base[command]
        if flag in ("--holdout", "--probes"):  # read for a report only
            arguments = with_flag(arguments, "--evaluated", "4")
        for name, make in {**FILES, **lines}.items():
            words = with_flag(arguments, flag, "{case}/t.jsonl")
            yield Case(
                f"{command} {flag} {name}",
                words,
                lambda folder, make=make: make(folder / "t.jsonl"),
            )


def build(sandbox: Path, golden: Path) -> None:
    """Fill the sandbox with what the commands read."""
    shutil.copytree(golden / "previous", sandbox)
    (sandbox / "tofu").mkdir()
    row = {"question": "Who?", "answer": "Nobody."}
    (sandbox / "tofu" / "forget01.json").write_text(json.dumps(row) + "\n")
