"""Small jobs for the launchers; they import nothing heavy."""

import os
import signal
import sys
import time
from pathlib import Path


def write(done: Path, *needed: Path) -> None:
    """Finish once, and only when what is needed is there."""
    if done.exists():
        return
    assert all(path.exists() for path in needed)
    print(f"writing {done.name}")
    os.system(f"echo a child writes {done.name} >&2")
    cores = len(os.sched_getaffinity(0))
    done.write_text(f"{os.getpid()} {cores} {'jax' in sys.modules}")


def write_if(condition: Path, done: Path) -> None:
    if not condition.exists():
        raise LookupError(f"{condition.name} is missing\nand more is said here")
    write(done)


def die_unless(condition: Path, done: Path) -> None:
    if not condition.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    write(done)


def interrupted_once(first: Path, done: Path) -> None:
    """As by a cluster that takes the node away."""
    if not first.exists():
        write(first)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(30)
    write(done)


def stop_once(first: Path, done: Path) -> None:
    """Wait for SIGTERM the first time, and note that it came."""
    if first.exists():
        return write(done)

    def note(*_: object) -> None:
        first.write_text("stopped")
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, note)
    done.with_suffix(".ready").touch()
    time.sleep(30)
