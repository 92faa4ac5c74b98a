"""The command line: parse, run one command, explain a mistake in one line."""

import functools
import logging
import operator
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import check_shared, initialize, is_primary
from lt_mia_jax.process import exit_code, log_progress, use_machine
from lt_mia_jax.version import __version__

DESCRIPTION = f"""lt-mia {__version__}: was this text in the fine-tuning data?

Try it first without any model of your own: lt-mia demo --out runs/demo"""


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
      The exit code, as `process.exit_code` says.
    """
    # Parallel tokenizer threads deadlock in forked workers and help little here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("MPLBACKEND", "agg")
    log_progress()
    use_machine()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        sys.stdout.write(f"lt-mia {__version__}\n")
        return 0
    return exit_code(lambda: _run(arguments), "lt-mia")


def _run(arguments: list[str]) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
