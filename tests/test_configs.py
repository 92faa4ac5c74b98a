import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest

from lt_mia_jax.configs import (
    Count,
    Source,
    check_flags,
    from_dict,
    read_record,
    to_dict,
)
from lt_mia_jax.errors import POSITIVE, InputError, between
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    beta: Annotated[float | None, POSITIVE] = None
    layers: tuple[Annotated[int, between(0, 9)], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    out: Path = Path("a")
    model: Source = "hub/name"
    files: tuple[Path, ...] = ()
    rate: float = 0.5
    batch_size: Annotated[int, between(1, 64)] = 1
    offset: int = 0
    inner: Inner = Inner()
    text: str = "x" * 4000


LONG = "y" * 300
WRONG = {
    "--rate is nan, expected a finite number": Command(rate=math.nan),
    "--rate is -inf, expected a finite number": Command(rate=-math.inf),
    "--batch-size is 0, expected 1 to 64": Command(batch_size=0),
    f"--batch-size is {'9' * 40}, expected 1 to 64": Command(batch_size=int("9" * 99)),
    "--offset is 2147483648, expected an integer of 32 bits": Command(offset=2**31),
    "--inner.beta is nan, expected more than 0": Command(inner=Inner(beta=math.nan)),
    "--inner.layers is 10, expected 0 to 9": Command(inner=Inner(layers=(1, 10))),
    f"--out: {LONG[:40]}... is too long for a path; expected a shorter one": Command(
        out=Path(LONG)
    ),
    f"--model: {LONG[:40]}... is too long for a path; expected a shorter one": Command(
        model=LONG
    ),
    "--files: 5000 characters, expected at most 4096": Command(
        files=(Path("a"), Path("/b" * 2500))
    ),
    "--text: '\\udcff' is not UTF-8; rename it": Command(text="\udcff"),
    "--model: a null character, expected text": Command(model="a\0b"),
}


@pytest.mark.parametrize("words", WRONG)
def test_flags_outside_their_ranges(words):
    check_flags(Command())
    with pytest.raises(InputError) as caught:
        check_flags(WRONG[words])
    assert str(caught.value) == words


def test_every_wrong_flag_is_named():
    with pytest.raises(InputError) as caught:
        check_flags(Command(rate=math.inf, batch_size=-1, text="z" * 5000))
    assert all(name in str(caught.value) for name in ("--rate", "--batch", "--text"))


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**400])
def test_integers_beyond_64_bits_and_floats_beyond_their_range(value):
    with pytest.raises(InputError, match="instead of an integer of 64 bits"):
        from_dict(Recipe, {"rate": 1.0, "seed": value})
    with pytest.raises(InputError, match=r"instead of a finite number \(float\)"):
        from_dict(Recipe, {"rate": value * 10**400})
    assert from_dict(Recipe, {"rate": 1.0, "seed": 2**63 - 1}).seed == 2**63 - 1


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_floats_of_configs_are_finite(value):
    with pytest.raises(InputError, match=r"rate is -?(inf|nan) instead of a finite"):
        from_dict(Recipe, {"rate": value})
