"""What the page on merging, adapting and streaming names exists; its example runs."""

import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np

import lt_mia_jax.transfer
from experiments.survival.demos import DEMOS

PAGE = Path(__file__).parents[2] / "docs" / "transfer.md"


def named() -> dict[str, set[str]]:
    """Functions that the table of systems names, by module."""
    found: dict[str, set[str]] = {}
    module = ""
    for line in PAGE.read_text().splitlines():
        cells = line.split("|")
        if not line.startswith("| ") or len(cells) != 5:
            continue
        for name in re.findall(r"`([\w.]+)`", cells[3]):
            parts = name.split(".")
            if len(parts) > 1:
                module = ".".join(parts[:2])
                found.setdefault(module, set()).update(parts[2:])
            else:
                found[module].add(name)
    return found


def test_every_function_of_the_table_exists():
    table = named()
    assert sum(map(len, table.values())) > 40
    for module, names in table.items():
        home = importlib.import_module(f"lt_mia_jax.transfer.{module}")
        missing = {name for name in names if not callable(getattr(home, name, None))}
        assert not missing, (module, missing)


def test_every_module_is_in_the_table():
    root = lt_mia_jax.transfer
    modules = {
        info.name.removeprefix(f"{root.__name__}.")
        for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
        if not info.ispkg
    }
    helpers = {
        "adapt.features",
        "selection.gaussian_process",
        "weightspace.merge",
        "weightspace.quantization",
        "weightspace.roles",
    }
    assert modules - helpers == set(named())


def test_the_example_merges():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    names: dict = {}
    exec(code, names)
    base, merged = names["base"], names["merged"]
    moved = np.asarray(merged["embedding"]["tokens"] != base["embedding"]["tokens"])
    assert 0.1 < moved.mean() < 0.6  # two task vectors, each trimmed to a fifth


def test_every_demonstration_is_of_a_system_in_a_table():
    pages = PAGE, PAGE.with_name("policy.md")
    lines = [line for page in pages for line in page.read_text().splitlines()]
    rows = [line.split("|")[1] for line in lines if line.startswith("| ")]
    systems = " ".join(rows).lower()
    lost = [
        demo.system
        for demo in DEMOS.values()
        if not any(word in systems for word in re.findall(r"\w+", demo.system.lower()))
    ]
    assert not lost
