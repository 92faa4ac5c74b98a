"""A launched job where it runs: its log is a file, its error one line.

What the project needs is imported with the job, after the process was given its share
of the machine.
"""

import contextlib
import dataclasses
import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LONGEST = 500
"""Characters of an error that are reported; its log has the rest."""
MANY_MAPS = 30_000
"""Memory maps of a process after which compiled programs are dropped: each keeps some,
Linux allows 65,530, and XLA dies beyond."""


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A pickled function and its arguments, to be called in another process."""

    payload: bytes
    log: Path

    def __call__(self, *needed: str | None) -> str | None:
        """Run it unless something needed failed; the error's first line, if any."""
        if any(needed):
            return f"needs a job that failed ({next(filter(None, needed))})"
        with redirected(self.log):
            return attempt(_call, (self.payload,), self.log)

    def checkpoint(self) -> Any:
        """For submitit, when time is up or the node is taken: the same once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def attempt(
    function: Callable[..., None],
    arguments: tuple,
    log: Path,
    through: tuple[type[Exception], ...] = (),
) -> str | None:
    """Call; what is raised, except `through`, goes to the log and is returned short."""
    try:
        function(*arguments)
    except through:
        raise
    except Exception as error:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        first = str(error).strip().split("\n")[0]
        name = type(error).__name__
        return f"{name}: {first}"[:LONGEST] if first else name
    finally:
        drop_programs()
    return None


def drop_programs(most: int = MANY_MAPS, maps: Path = Path("/proc/self/maps")) -> None:
    """Forget what this process compiled, if that fills its memory maps."""
    if "jax" in sys.modules and maps.exists():
        if maps.read_bytes().count(b"\n") > most:
            sys.modules["jax"].clear_caches()


@contextlib.contextmanager
def redirected(log: Path) -> Iterator[None]:
    """Append all that this process and its libraries print to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8", errors="replace", buffering=1) as file:
        kept = [(number, os.dup(number)) for number in (1, 2)]
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        for number, _ in kept:
            os.dup2(file.fileno(), number)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
            root.removeHandler(handler)
            root.setLevel(level)


def serve(lane: int, lanes: int, pipe: Connection) -> None:
    """Main of a spawned process; `lane` says which share of the GPUs is its own.

    Answers each `Recorded` with its error or None, until the other end is closed.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if len(devices := visible.split(",")) > 1:
        own = devices[lane::lanes] or [devices[lane % len(devices)]]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(pipe.recv()())


def call(work: Recorded, *needed: str | None) -> str | None:
    """`work(*needed)`, as a function that Ray can name."""
    return work(*needed)


def _call(payload: bytes) -> None:
    function, arguments = pickle.loads(payload)
    if "jax" in sys.modules:
        # As the script's own `main` does, which has not run in this process.
        from lt_mia_jax.process import use_machine

        use_machine()
    function(*arguments)
