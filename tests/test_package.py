"""What a wheel holds: every file that the package reads."""

import tomllib
from pathlib import Path

import lt_mia_jax

ROOT = Path(lt_mia_jax.__file__).parent
REPOSITORY = ROOT.parent
SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_the_wheel_has_every_data_file_of_the_package():
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["lt_mia_jax"]
    packed = {path for pattern in patterns for path in ROOT.glob(pattern)}
    found = {
        path
        for path in ROOT.rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".pyc")
        and "__pycache__" not in path.parts
    }
    assert len(found) > 15
    assert found - packed == set()


def test_scripts_start_the_command_line():
    scripts = SETTINGS["project"]["scripts"]
    assert set(scripts) == {"lt-mia", SETTINGS["project"]["name"]}
    assert set(scripts.values()) == {"lt_mia_jax.cli:main"}
