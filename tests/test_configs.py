import dataclasses
import json

import pytest

from lt_mia_jax.configs import from_dict, load_json, save_json, to_dict
from lt_mia_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine:
    warmup: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    end: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    rate: float
    seed: int = 0
    names: tuple[str, ...] = ()
    schedule: Cosine | Linear = Cosine()
    limit: int | None = None


@pytest.mark.parametrize("schedule", [Cosine(warmup=7), Linear(end=0.5)])
def test_config_round_trip(tmp_path, schedule):
    recipe = Recipe(rate=1e-3, names=("a", "b"), schedule=schedule)
    save_json(tmp_path / "c.json", recipe)
    assert load_json(tmp_path / "c.json", Recipe) == recipe
    assert hash(from_dict(Recipe, to_dict(recipe))) == hash(recipe)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"rate": 1.0, "sede": 1}, ["sede", "seed"]),
        ({}, ["missing", "rate"]),
        ({"rate": "fast"}, ["Recipe.rate", "fast", "float"]),
        ({"rate": 1.0, "seed": True}, ["Recipe.seed", "int"]),
        ({"rate": 1.0, "schedule": {"type": "Step"}}, ["Step", "Cosine"]),
        ({"rate": 1.0, "names": "a"}, ["Recipe.names", "list"]),
    ],
)
def test_config_refuses(data, words):
    with pytest.raises(InputError) as caught:
        from_dict(Recipe, data)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_config_json_is_plain(tmp_path):
    save_json(tmp_path / "c.json", Recipe(rate=1))
    assert json.loads((tmp_path / "c.json").read_text())["schedule"]["type"] == "Cosine"
