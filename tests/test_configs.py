import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Literal

import pytest

from lt_mia_jax.configs import Count, from_dict, read_record, to_dict
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json, write_json


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
    write_json(tmp_path / "c.json", to_dict(recipe))
    assert from_dict(Recipe, read_json(tmp_path / "c.json")) == recipe
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
    write_json(tmp_path / "c.json", to_dict(Recipe(rate=1)))
    assert json.loads((tmp_path / "c.json").read_text())["schedule"]["type"] == "Cosine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ends:
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    name: str
    label: Literal[0, 1] | None = None
    ends: Ends
    by_name: Mapping[str, Ends] = dataclasses.field(default_factory=dict)


def test_everything_wrong_is_listed_at_once():
    data = {"label": 2, "by_name": {"a": {"low": "x"}, "b": [1]}, "more": 1}
    with pytest.raises(InputError) as caught:
        from_dict(Record, data, "")
    assert str(caught.value).split("; ") == [
        "name is missing",
        "ends is missing",
        "more is unknown",
        "known are by_name, ends, label, name",
        "label is 2 instead of one of 0, 1",
        "by_name.a.low is 'x' instead of a finite number (float)",
        "by_name.b is [1] instead of an object",
    ]
    many = {f"key{i}": {"low": "x"} for i in range(9)}
    with pytest.raises(InputError, match=r"key5.*; and more$"):
        from_dict(Record, {"name": "", "ends": {}, "by_name": many}, "")


def test_records_of_other_versions():
    data = {"name": "a", "ends": None, "by_name": {"a": {"low": 1, "new": 3}}}
    found, problems = read_record(Record, data)
    assert not problems
    assert found == Record(name="a", ends=Ends(), by_name={"a": Ends(low=1.0)})
    wrong = data | {"by_name": {"a": {"low": math.nan}}, "label": True}
    del wrong["ends"]
    assert read_record(Record, wrong, "a.b")[1] == [
        "a.b.ends is missing",
        "a.b.by_name.a.low is nan instead of a finite number (float)",
        "a.b.label is True instead of one of 0, 1",
    ]


@dataclasses.dataclass(frozen=True)
class Counted:
    texts: Count
    flagged: Count | None = None


def test_counts_are_not_negative():
    assert from_dict(Counted, {"texts": 0, "flagged": None}) == Counted(0)
    with pytest.raises(InputError, match=r"Counted\.texts is -3 instead of an integer"):
        from_dict(Counted, {"texts": -3})
    _, problems = read_record(Counted, {"texts": 1.5, "flagged": -1})
    assert problems == [
        "texts is 1.5 instead of an integer",
        "flagged is -1 instead of an integer, 0 or more",
    ]
