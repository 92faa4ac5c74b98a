"""Unlearning runs beside each other: from `card.json`, or from cards handed over."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json
from lt_mia_jax.verification.records import Card, Example, UnlearningRun
from lt_mia_jax.verification.storage import (
    CARD,
    KIND,
    card_from_json,
    card_to_json,
    read_run,
)

CONTROLS = ("before", "full", "retrained")
"""How the names of models begin that are no method's result."""
Sections = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Cards as in files, one a seed, by title of a section and name of a row."""


class Entry(NamedTuple):
    """One row of a comparison: a method, or a model to compare with."""

    name: str
    control: bool
    cards: Sequence[Card]
    """One a seed."""
    failed: str = ""
    """Why there is no card."""


class Group(NamedTuple):
    """Results on one forget set of one model."""

    title: str
    entries: list[Entry]
    """Models to compare with last."""
    layers: Mapping[str, Mapping[str, Sequence[float]]] = {}
    """Similarity to the retrained model by set and name, one number a layer."""
    examples: Sequence[Example] = ()
    """What is said by name of the entry."""

    @property
    def cards(self) -> list[Card]:
        """All cards."""
        return [card for entry in self.entries for card in entry.cards]


def is_run(directory: Path | str) -> bool:
    """Whether a folder holds a run of unlearning.

    Folders with a `summary.json` are audits: attacks have a card of their own.
    """
    card = Path(directory) / CARD
    if (Path(directory) / "summary.json").exists() or not card.exists():
        return False
    content = read_json(card)
    return isinstance(content, dict) and content.get("kind") == KIND


def group_runs(directories: Sequence[Path]) -> list[Group]:
    """Runs that forget the same texts of the same model stand side by side.

    Raises:
      InputError: as `read_run`.
    """
    gathered: dict[tuple[str, str], list[tuple[str, UnlearningRun]]] = {}
    for directory in directories:
        run = read_run(directory)
        key = (run.verification.forget, str(run.about.model))
        gathered.setdefault(key, []).append((Path(directory).name, run))
    return [_group(runs) for runs in gathered.values()]


def group_cards(groups: Sections, controls: Sequence[str] = CONTROLS) -> list[Group]:
    """Groups from bare cards; `{"failed": WHY}` is a run that gave no result.

    Names of rows that begin as one of `controls` are no method's result.

    Raises:
      InputError: no cards, or entries of the wrong type.
    """
    found = []
    for title, rows in groups.items():
        entries = []
        for name, cards in rows.items():
            where = f"{title}, {name}: card"
            failed = [str(card["failed"]) for card in cards if "failed" in card]
            good = [
                card_from_json({"n_forget": 0, **card}, where)
                for card in cards
                if "failed" not in card
            ]
            why = "" if good else next(iter(failed), "no result")
            entries.append(Entry(name, name.startswith(tuple(controls)), good, why))
        if entries:
            found.append(Group(title, sorted(entries, key=lambda each: each.control)))
    if not found:
        raise InputError("no cards to compare; give at least one")
    return found


def _names(runs: Sequence[tuple[str, UnlearningRun]]) -> Iterator[str]:
    """What each run is called: its method, or its folder where methods repeat."""
    methods = [run.method for _, run in runs]
    found: list[str] = []
    for folder, run in runs:
        name = run.method if methods.count(run.method) == 1 else folder
        same = sum(each == name or each.startswith(f"{name} (") for each in found)
        found.append(f"{name} ({same + 1})" if same else name)
        yield found[-1]


def _group(runs: Sequence[tuple[str, UnlearningRun]]) -> Group:
    named = dict(zip(_names(runs), (run for _, run in runs), strict=True))
    every = {name: run.verification for name, run in named.items()}
    entries = [Entry(name, False, [v.models["after"]]) for name, v in every.items()]
    for control in ("before", "retrained"):
        cards = [v.models[control] for v in every.values() if control in v.models]
        if cards:  # runs measure more or less of it
            fullest = max(cards, key=lambda card: len(card_to_json(card)))
            entries.append(Entry(control, True, [fullest]))
    layers: dict[str, dict[str, Sequence[float]]] = {}
    for name, verification in every.items():
        for part, found in (verification.layers or {}).items():
            row = layers.setdefault(part, {"before": found.models["before"]})
            row[name] = found.models["after"]
    answers = {
        name: {each.id: each.said["after"] for each in verification.examples}
        for name, verification in every.items()
    }
    first = runs[0][1]
    examples = []
    for each in first.verification.examples:
        said = {n: x for n, x in each.said.items() if n in ("before", "retrained")}
        said |= {n: found[each.id] for n, found in answers.items() if each.id in found}
        examples.append(replace(each, said=said))
    about = first.about
    file = Path(about.forget.file if about.forget else "texts").stem
    model = Path(about.model or "a model").name
    return Group(f"{file} forgotten by {model}", entries, layers, examples)
