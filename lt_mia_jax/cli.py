"""The command line: parse, run one command, explain a mistake in one line."""

import ctypes
import functools
import logging
import operator
import os
import platform
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from lt_mia_jax.errors import InputError, Stopped, Unavailable
from lt_mia_jax.executor import check_shared, initialize, is_primary
from lt_mia_jax.version import __version__

DESCRIPTION = f"""lt-mia {__version__}: was this text in the fine-tuning data?

Try it first without any model of your own: lt-mia demo --out runs/demo"""

BAD_INPUT = 2
UNAVAILABLE = 75
INTERRUPTED = 130
TERMINATED = 143


def _commands(unlearning: Any = None) -> dict[Any, Any]:
    """Configuration class of each command, with the function that runs it.

    Args:
      unlearning: the class of `unlearn`, whose flags depend on the method.
    """
    # Imported here so that environment variables set by `main` come first.
    from lt_mia_jax.commands import (
        audit,
        benchmark,
        demo,
        evaluate,
        extract,
        finetune,
        report,
        syntofu,
        train,
        unlearn,
    )

    return {
        demo.Demo: demo.run,
        audit.Audit: audit.run,
        finetune.Finetune: finetune.run,
        extract.Extract: extract.run,
        train.Train: train.run,
        evaluate.Evaluate: evaluate.run,
        unlearning or unlearn.Unlearn: unlearn.run,
        syntofu.SynTofu: syntofu.run,
        benchmark.Benchmark: benchmark.run,
        report.Report: report.run,
    }


def parse(arguments: list[str], commands: dict[Any, Any]) -> Any:
    """The configuration that the arguments describe; exits 2 on a misspelt flag."""
    subcommands: list[Any] = [
        Annotated[cls, tyro.conf.subcommand(cls.__name__.lower(), prefix_name=False)]
        for cls in commands
    ]
    choice: Any = functools.reduce(operator.or_, subcommands)
    return tyro.cli(
        choice,
        args=arguments,
        prog="lt-mia",
        description=DESCRIPTION,
    )


def use_all_cores() -> None:
    """One JAX device a CPU core (at most eight), unless the user chose a number.

    Much of a small model's work on CPU runs on one thread a device, so splitting the
    batch is about twice as fast on two cores. Accelerators are not touched.
    """
    chosen = os.environ.get("JAX_NUM_CPU_DEVICES") or os.environ.get("XLA_FLAGS", "")
    if not chosen:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        jax.config.update("jax_num_cpu_devices", min(cores, 8))


def keep_freed_memory() -> None:
    """Keep what is freed for the next use rather than give it back to the system.

    A training step on CPU frees and takes gigabytes, and glibc would unmap and map
    them each time (16 x 128 tokens, 30 M parameters: 5.2 s a step become 4.1). The
    peak stays what it is. The same for other programs, in their environment:
    MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1. No effect, and no
    harm, where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    # Threads of XLA free what others took: one arena finds it again.
    arena_max, mmap_max, trim_threshold = -8, -4, -1
    for parameter, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1)):
        ctypes.CDLL(None).mallopt(parameter, value)


def _check_folder(out: Path) -> None:
    found = re.match(r"(\w+):/", str(out))  # `Path` has made one slash of two
    if found:
        raise InputError(
            f"--out {out}: results go to a folder; mount the {found[1]} address (for a "
            "bucket: gcsfuse) and give the folder"
        )


def join(distributed: str) -> None:
    """Meet the other processes of the run; only the first one reports progress."""
    initialize(distributed)
    if not is_primary():
        logging.getLogger("lt_mia_jax").setLevel(logging.WARNING)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
      0 on success, 2 on bad input (one line on stderr), 75 when other processes of the
      run did not come, 130 when interrupted, 143 when stopped by SIGTERM with the state
      saved.
    """
    # Parallel tokenizer threads deadlock in forked workers and help little here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("MPLBACKEND", "agg")
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("lt_mia_jax").setLevel(logging.INFO)
    use_all_cores()
    keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        sys.stdout.write(f"lt-mia {__version__}\n")
        return 0
    try:
        unlearning = None
        if arguments[:1] == ["unlearn"]:
            from lt_mia_jax.commands.unlearn import choose

            unlearning, arguments = choose(arguments)
        commands = _commands(unlearning)
        config = parse(arguments, commands)
        _check_folder(config.out)
        devices = getattr(config, "devices", None)
        if devices is not None:
            join(devices.distributed)
            check_shared(config.out)
        commands[type(config)](config)
    except InputError as error:
        sys.stderr.write(f"lt-mia: error: {error}\n")
        return BAD_INPUT
    except Unavailable as error:
        sys.stderr.write(f"lt-mia: {error}\n")
        return UNAVAILABLE
    except Stopped as stop:
        sys.stderr.write(f"lt-mia: {stop}\n")
        return TERMINATED
    except KeyboardInterrupt:
        sys.stderr.write(
            "lt-mia: stopped; the same command continues where it was interrupted\n"
        )
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
