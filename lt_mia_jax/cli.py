"""The command line: parse, run one command, explain a mistake in one line."""

import ast
import contextlib
import dataclasses
import functools
import importlib
import logging
import operator
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from lt_mia_jax.configs import check_flags, flags
from lt_mia_jax.errors import InputError, Unavailable
from lt_mia_jax.outputs import writing
from lt_mia_jax.process import (
    UNAVAILABLE,
    check_devices,
    exit_code,
    log_progress,
    use_machine,
)
from lt_mia_jax.version import __version__

DESCRIPTION = f"""lt-mia {__version__}: was this text in the fine-tuning data?

Try it first without any model of your own: lt-mia demo --out runs/demo"""


COMMANDS = {
    "demo": "Demo",
    "audit": "Audit",
    "collect": "Collect",
    "finetune": "Finetune",
    "extract": "Extract",
    "train": "Train",
    "evaluate": "Evaluate",
    "unlearn": "Unlearn",
    "merge": "Merge",
    "syntofu": "SynTofu",
    "benchmark": "Benchmark",
    "report": "Report",
    "doctor": "Doctor",
}
"""Modules of `lt_mia_jax.commands`, each with a `run`, and their classes of flags."""

WITHOUT_DEVICE = {"report", "benchmark"}
"""Commands that compute nothing, and leave an accelerator to others."""


def about(name: str) -> str:
    """First line of a command's flags, from the source: --help imports no command."""
    source = (Path(__file__).parent / "commands" / f"{name}.py").read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == COMMANDS[name]:
            return (ast.get_docstring(node) or "").splitlines()[0]
    raise LookupError(f"commands/{name}.py has no class {COMMANDS[name]}")


def command_module(name: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"lt_mia_jax.commands.{name}")


def parse(arguments: list[str]) -> Any:
    """The configuration that the arguments describe.

    Exits with code 2 on a misspelt command or flag, and 0 after `--help`.

    Raises:
      InputError: `unlearn` with an unknown method.
    """
    chosen = arguments[0] if arguments else ""
    classes: dict[str, Any] = {
        # Commands that were not chosen only have to show their names.
        name: dataclasses.make_dataclass(config, [])
        for name, config in COMMANDS.items()
    }
    if chosen in COMMANDS:
        module = command_module(chosen)
        classes[chosen] = getattr(module, COMMANDS[chosen])
        if hasattr(module, "choose"):
            classes[chosen], arguments = module.choose(arguments)
    subcommands: list[Any] = [
        Annotated[
            cls,
            tyro.conf.subcommand(
                name,
                prefix_name=False,
                description=None if name == chosen else about(name),
            ),
        ]
        for name, cls in classes.items()
    ]
    return tyro.cli(
        functools.reduce(operator.or_, subcommands),
        args=arguments,
        prog="lt-mia",
        description=DESCRIPTION,
    )


def _check_folder(out: Path) -> None:
    found = re.match(r"(\w+):/", str(out))  # `Path` has made one slash of two
    if found:
        raise InputError(
            f"--out {out}: found an address, expected a folder; mount the {found[1]} "
            "address (for a bucket: gcsfuse) and give the folder"
        )


def _check_empty(arguments: list[str], config: Any) -> None:
    """Refuse an empty path: `Path` has made the current folder of it."""
    paths = {
        name for name, _, value in flags(config) if isinstance(value, Path | tuple)
    }
    flag = ""
    for word in arguments:
        found = word.startswith("--")
        given, _, value = word.partition("=") if found else (flag, "", word)
        flag = given.replace("_", "-")
        if flag in paths and not value and (not found or "=" in word):
            raise InputError(
                f"{flag}: found an empty name; give one, or . for this folder"
            )


def join(distributed: str) -> None:
    """Join the other processes of the run; only the first one reports progress."""
    from lt_mia_jax.executor import initialize, is_primary

    try:
        initialize(distributed)
    except Unavailable as error:
        # A thread of JAX still waits, and would end an orderly exit with a crash.
        sys.stderr.write(f"lt-mia: {error}\n")
        sys.stderr.flush()
        os._exit(UNAVAILABLE)
    check_devices()
    if not is_primary():
        logging.getLogger("lt_mia_jax").setLevel(logging.WARNING)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns:
      The exit code, see `process.exit_code`.
    """
    # Parallel tokenizer threads deadlock in forked workers and help little here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("MPLBACKEND", "agg")
    log_progress()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        sys.stdout.write(f"lt-mia {__version__}\n")
        return 0
    return exit_code(lambda: _run(arguments), "lt-mia")


def _run(arguments: list[str]) -> None:
    config = parse(arguments)
    check_flags(config)
    _check_empty(arguments, config)
    out = getattr(config, "out", None)  # doctor writes none
    if out is not None:
        _check_folder(out)
    use_machine()
    name, module = arguments[0], command_module(arguments[0])
    devices = getattr(config, "devices", None)
    if devices is not None:
        join(devices.distributed)
    elif name not in WITHOUT_DEVICE:
        check_devices()
    with contextlib.ExitStack() as stack:
        if hasattr(module, "WRITES"):  # others write one file, or none
            overwrite = config.writing.overwrite
            claim = writing(
                config.out, module.WRITES, name, config, overwrite=overwrite
            )
            stack.enter_context(claim)
            if devices is not None and out is not None:
                from lt_mia_jax.executor import check_shared

                check_shared(out)
        module.run(config)


if __name__ == "__main__":
    sys.exit(main())
