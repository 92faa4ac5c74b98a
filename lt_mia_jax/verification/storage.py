"""`card.json`, what `lt-mia unlearn` writes of its result.

The file keeps the layout of earlier versions: entries of an attack stand flat on a card
as `auc_NAME`, `tpr_NAME`, `leak_NAME`, those of MUSE as `muse_NAME`, and what was not
measured is absent. No other code knows this layout.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lt_mia_jax.configs import read_record, refuse, to_dict
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json, write_json
from lt_mia_jax.verification.records import (
    AttackResult,
    Card,
    MuseCard,
    UnlearningRun,
    Verification,
)

CARD = "card.json"
KIND = "unlearning"

_PER_ATTACK = tuple(each.name for each in fields(AttackResult))
_IN_FILE = {"forget_exact_memorization": "forget_exact_memorisation"}
_MUSE = "muse_"


def card_to_json(card: Card | MuseCard) -> dict[str, Any]:
    """A card as it stands in files."""
    flat = {
        _IN_FILE.get(name, name): value
        for name, value in to_dict(card, tagged=False).items()
        if name not in ("attacks", "muse") and value not in (None, {}, [])
    }
    for attack, result in card.attacks.items():
        for part, value in to_dict(result, tagged=False).items():
            if part == "tpr" and value and value["refused"]:
                value = {k: x for k, x in value.items() if x is not None}
            if value is not None:
                flat[f"{part}_{attack}"] = value
    if isinstance(card, Card) and card.muse is not None:
        flat |= {_MUSE + name: x for name, x in card_to_json(card.muse).items()}
    return flat


def card_from_json(content: Any, where: str = "card") -> Card:
    """The inverse of `card_to_json`, of this version or an earlier one.

    Entries that no card has are left out; `where` names the file in messages.

    Raises:
      InputError: an entry is missing or of the wrong type; the message has its path.
    """
    card, problems = read_record(Card, _grouped(content))
    refuse(where, problems or _empty(card))
    return card


def _grouped(content: Any, cls: type[Card | MuseCard] = Card) -> Any:
    """The JSON of a card in the shape of the record."""
    if not isinstance(content, Mapping):
        return content  # refused with its path
    known = {each.name for each in fields(cls)} - {"attacks", "muse"}
    stored = {_IN_FILE.get(name, name): name for name in known}
    found: dict[str, Any] = {"attacks": {}}
    muse: dict[str, Any] = {}
    for key, value in content.items():
        part, _, attack = key.partition("_")
        if key in stored:
            found[stored[key]] = value
        elif part in _PER_ATTACK and attack:
            found["attacks"].setdefault(attack, {})[part] = value
        elif key.startswith(_MUSE):
            muse[key.removeprefix(_MUSE)] = value
    if muse and cls is Card:
        found["muse"] = _grouped(muse, MuseCard)
    return found


def _empty(card: Card) -> list[str]:
    """Problems of estimates that have no number."""
    return [
        f"{name}.value is null instead of a number"
        for name, found in card_to_json(card).items()
        if isinstance(found, Mapping) and found.get("value", found) is None
    ]


def _blank(value: Any, where: str) -> list[str]:
    """Curves without a point."""
    if isinstance(value, Mapping):
        parts = (_blank(item, f"{where}.{name}") for name, item in value.items())
        return [problem for part in parts for problem in part]
    return [f"{where} is empty"] if value == [] else []


def _with_records(entry: Any) -> Any:
    """An entry with `models` of a file, whose cards get the shape of the record."""
    models = entry.get("models") if isinstance(entry, Mapping) else None
    if not isinstance(models, Mapping):
        return entry
    return {**entry, "models": {name: _grouped(card) for name, card in models.items()}}


def run_to_json(run: UnlearningRun) -> dict[str, Any]:
    """A run as it stands in `card.json`."""
    flat = {"kind": KIND, **to_dict(run, tagged=False)}
    flat |= flat.pop("verification")
    for entry, found in (
        (flat, run.verification),
        *zip(flat["rounded"], run.verification.rounded, strict=True),
    ):
        entry["models"] = {n: card_to_json(card) for n, card in found.models.items()}
    return flat


def run_from_json(content: Any, where: str = CARD) -> UnlearningRun:
    """The inverse of `run_to_json`, of this version or an earlier one.

    Raises:
      InputError: entries are missing or of the wrong type; the message has their paths.
    """
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise InputError(f"{where}: expected the card of an unlearning run")
    flat = {name: value for name, value in content.items() if name != "kind"}
    names = [each.name for each in fields(Verification) if each.name in flat]
    inner = _with_records({name: flat.pop(name) for name in names})
    if isinstance(inner.get("rounded"), list):
        inner["rounded"] = [_with_records(entry) for entry in inner["rounded"]]
    run, problems = read_record(UnlearningRun, flat | {"verification": inner})
    problems = [problem.removeprefix("verification.") for problem in problems]
    models = inner.get("models")
    if isinstance(models, Mapping):
        missing = [name for name in ("before", "after") if name not in models]
        problems += [f"models.{name} is missing" for name in missing]
    for name in ("scores", "layers", "map", "relearning"):
        problems += _blank(inner.get(name), name)
    problems.sort(key=lambda problem: not problem.endswith(" is missing"))
    if not problems:
        problems = [
            f"examples[{i}].said has {sorted(each.said)} instead of the models"
            for i, each in enumerate(run.verification.examples)
            if each.said.keys() != run.verification.models.keys()
        ]
        for name, card in run.verification.models.items():
            problems += [f"models.{name}.{problem}" for problem in _empty(card)]
    refuse(where, problems, "Run `lt-mia unlearn` again, which writes it")
    return run


def write_run(directory: Path, run: UnlearningRun) -> None:
    """Write `card.json`, for its owner alone: it shows texts and answers."""
    write_json(directory / CARD, run_to_json(run), private=True)


def read_run(directory: Path | str) -> UnlearningRun:
    """Read `card.json`.

    Raises:
      InputError: it is missing, not JSON, or no card of an unlearning run.
    """
    path = Path(directory) / CARD
    return run_from_json(read_json(path), str(path))
