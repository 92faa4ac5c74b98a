import json
import platform
import subprocess
import sys

import pytest

from lt_mia_jax.cli import COMMANDS, about, command_module, main
from lt_mia_jax.process import exit_code

HEAVY = ["jax", "numpy", "scipy", "sklearn", "pandas", "transformers", "matplotlib"]
LOADED = """
import json, sys
try:
    exec(sys.argv[1])
except SystemExit as end:
    assert end.code == 0, end.code
print("\\n" + json.dumps(sorted(sys.modules)))
"""


def loaded_by(code: str) -> set[str]:
    """Modules that are imported once a new process has run some lines."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, code], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy():
    found = loaded_by("import lt_mia_jax")
    assert "lt_mia_jax" in found
    assert not found & set(HEAVY)
    # and the check sees one that is imported by the first use of a name
    assert "numpy" in loaded_by("import lt_mia_jax; lt_mia_jax.lt_mia_features")


LIGHT = sorted(set(COMMANDS) - {"report", "unlearn"})
"""Commands whose flags need nothing heavy."""


@pytest.mark.parametrize("command", ["", *LIGHT])
def test_help_imports_nothing_heavy(command):
    arguments = [*command.split(), "--help"]
    found = loaded_by(f"from lt_mia_jax.cli import main; main({arguments})")
    assert "tyro" in found
    assert not found & set(HEAVY)


def test_help_shows_every_command_with_the_first_line_of_its_class(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, title in COMMANDS.items():
        config = getattr(command_module(name), title)
        assert config.__name__.lower() == name
        assert about(name) == config.__doc__.splitlines()[0]
        assert f"• {name} {about(name)}" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["reprot"],
            ["Unrecognized options: reprot", "Available subcommands", "report"],
        ),
        (
            ["report", "--runs", "a", "--out", "b", "--ruins", "c"],
            ["--ruins", "--runs"],
        ),
        (["report", "--runs", "a"], ["--out PATH", "required"]),
        ([], ["{demo, audit,", "lt-mia --help"]),
    ],
)
def test_a_misspelt_word_ends_with_code_2_and_what_there_is(arguments, words, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    for word in words:
        assert word in said


RELEASED = """
import sys
import numpy as np
from lt_mia_jax.process import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

if sys.argv[1] == "keep":
    keep_freed_memory()
x = np.ones(2**25)  # 256 MiB
held = resident()
del x
print(held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
@pytest.mark.parametrize("how", ["keep", "release"])
def test_freed_memory_is_kept_for_the_next_use(how):
    done = subprocess.run(
        [sys.executable, "-c", RELEASED, how],
        capture_output=True,
        text=True,
        check=True,
    )
    released = float(done.stdout)
    assert released < 10 if how == "keep" else released > 200


AUDIT = ["audit", "--reference", "a", "--target", "b", "--texts", "c", "--out"]
FINETUNE = ["finetune", "--model", "a", "--texts", "c", "--out", "d"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*AUDIT, ""], "--out: found an empty name"),
        ([*AUDIT[:-1], "--out="], "--out: found an empty name"),
        ([*AUDIT, "d", "--nonmembers", ""], "--nonmembers: found an empty name"),
        (["report", "--runs", "a", "", "--out", "b"], "--runs: found an empty name"),
        ([*AUDIT, "d", "--bootstraps", "0"], "--bootstraps is 0, expected 10 to"),
        ([*AUDIT, "d", "--alpha", "nan"], "--alpha is nan, expected more than 0"),
        ([*AUDIT, "d", "--seed", "-1"], "--seed is -1, expected 0 to"),
        ([*AUDIT, "d", "--fsdp", "0"], "--fsdp is 0, expected 1 to"),
        ([*FINETUNE, "--lora.rank", "99999"], "--lora.rank is 99999, expected 0 to"),
        ([*FINETUNE, "--lora.alpha", "inf"], "--lora.alpha is inf, expected more"),
        ([*FINETUNE, "--validation_fraction", "-1"], "--validation-fraction is -1.0"),
    ],
)
def test_flags_are_checked_before_anything_is_read(arguments, words, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lt-mia: error: {words}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 9")]
)
def test_a_lack_of_memory_is_said_in_one_line(error, capsys):
    def run():
        raise error

    assert exit_code(run, "lt-mia") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0, "lt-mia")
