"""Unlearning runs as the report reads them: `card.json`, or cards handed over."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import read_json
from lt_mia_jax.report.schema import (
    Fields,
    ListOf,
    MapOf,
    Maybe,
    OneOf,
    Schema,
    problems,
)

CARD = "card.json"
KIND = "unlearning"
CONTROLS = ("before", "full", "retrained")
"""How the names of models begin that are no method's result."""

Card = Mapping[str, Any]

_ESTIMATE = Fields(
    {"value": "number"}, {"low": Maybe("number"), "high": Maybe("number")}
)
_MODEL = Fields({"n_forget": "count", "forget_probability": _ESTIMATE})
_SAID = Fields(
    {
        "answer": "text",
        "probability": "number",
        "rouge": Maybe("number"),
        "extraction": Maybe("number"),
    }
)
_CURVE = ListOf("number", empty=False)
_SIMILAR = Fields({"tokens": "count", "models": MapOf(_CURVE)})
DOCUMENT: Schema = Fields(
    {
        "kind": OneOf((KIND,)),
        "title": "text",
        "method": "text",
        "settings": MapOf("anything"),
        "forget": "text",
        "models": Fields({"before": _MODEL, "after": _MODEL}),
        "examples": ListOf(
            Fields(
                {
                    "id": "text",
                    "topic": Maybe("text"),
                    "question": Maybe("text"),
                    "answer": "text",
                    "said": MapOf(_SAID),
                }
            )
        ),
        "scores": MapOf(MapOf(MapOf(_CURVE))),
        "layers": Maybe(MapOf(_SIMILAR)),
        "map": Maybe(MapOf(MapOf(ListOf(_CURVE)))),
        "rounded": ListOf(
            Fields(
                {
                    "bits": "count",
                    "changed_codes": "number",
                    "recovered": Maybe(_ESTIMATE),
                    "models": MapOf(MapOf("anything")),
                }
            )
        ),
        "relearning": Maybe(
            Fields(
                {
                    "steps": ListOf("count", empty=False),
                    "taught": "count",
                    "asked": "count",
                    "models": MapOf(_CURVE),
                    "area": Maybe(_ESTIMATE),
                    "robustness": Maybe(_ESTIMATE),
                }
            )
        ),
        "notes": ListOf("text"),
        "about": MapOf("anything"),
        "config": MapOf("anything"),
        "versions": MapOf("text"),
        "command": "text",
    }
)
_OTHERS = {
    "n_forget": "count",
    "n_retain": "count",
    "n_holdout": "count",
    "utility_parts": MapOf(_ESTIMATE),
    "completeness_gap": MapOf(_ESTIMATE),
    "forget_quality": Fields(
        {
            "value": "number",
            "log10": "number",
            "distance": "number",
            "n": ListOf("count"),
            "note": "text",
        }
    ),
}
"""Entries of a card that are no estimate with an interval."""


class Example(NamedTuple):
    """A forgotten question and what each model of a group says to it."""

    id: str
    topic: str | None
    question: str | None
    answer: str
    said: Mapping[str, Mapping[str, Any]]
    """By name of the entry."""


class Entry(NamedTuple):
    """One row of a comparison: a method, or a model to compare with."""

    name: str
    control: bool
    cards: Sequence[Card]
    """One a seed."""
    failed: str | None = None
    """Why there is no card."""


class Group(NamedTuple):
    """Results on one forget set of one model."""

    title: str
    entries: list[Entry]
    layers: Mapping[str, Mapping[str, Sequence[float]]] = {}
    """Similarity to the retrained model by set and name, one number a layer."""
    examples: Sequence[Example] = ()


def kind_of(directory: Path | str) -> Literal["unlearning", "membership"]:
    """What kind of run a folder holds; one without `card.json` is of membership.

    Folders with both are runs of membership: attacks have a card of their own.
    """
    directory = Path(directory)
    card = directory / CARD
    if (directory / "summary.json").exists() or not card.exists():
        return "membership"
    content = read_json(card)
    if isinstance(content, dict) and content.get("kind") == KIND:
        return "unlearning"
    return "membership"


def read_document(directory: Path | str) -> Mapping[str, Any]:
    """Read and validate the card of one unlearning run.

    Raises:
      InputError: it is missing, not JSON, or breaks the contract; the message names
        the file and everything that is wrong (the first six).
    """
    path = Path(directory) / CARD
    document = read_json(path)
    found = [*problems(document, DOCUMENT)]
    if not found:
        found = [
            problem
            for name, card in document["models"].items()
            for problem in card_problems(card, f"models.{name}")
        ]
        found += [
            f"examples[{i}].said has {sorted(example['said'])} instead of the models"
            for i, example in enumerate(document["examples"])
            if example["said"].keys() != document["models"].keys()
        ]
    _raise_if(str(path), iter(found))
    return document


def card_problems(card: Any, where: str) -> Iterator[str]:
    """What is wrong with a card, as `unlearning.card.report_card` makes them."""
    if not isinstance(card, dict):
        yield f"{where} is no object"
        return
    for name, value in card.items():
        schema: Schema = _OTHERS.get(name, "anything")
        if name.startswith("tpr_"):
            schema = Fields({"rate": "number", "refused": "truth"})
        elif schema == "anything" and isinstance(value, dict) and "value" in value:
            schema = _ESTIMATE
        yield from problems(value, schema, f"{where}.{name}")


def group_runs(directories: Sequence[Path]) -> list[Group]:
    """Runs that forget the same texts of the same model stand side by side.

    Raises:
      InputError: as `read_document`.
    """
    gathered: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for directory in directories:
        document = read_document(directory)
        key = (document["forget"], str(document["about"].get("model")))
        gathered.setdefault(key, []).append((Path(directory).name, document))
    return [_group(runs) for runs in gathered.values()]


def group_cards(
    groups: Mapping[str, Mapping[str, Sequence[Card]]],
    controls: Sequence[str] = CONTROLS,
) -> list[Group]:
    """Groups from bare cards, by title and name, one card a seed.

    A card `{"failed": WHY}` is a run that gave no result.

    Args:
      groups: cards by title of the group and name of the row.
      controls: how the names of rows begin that are no method's result.

    Raises:
      InputError: no cards, or entries of the wrong type.
    """
    found = []
    for title, rows in groups.items():
        entries = []
        for name, cards in rows.items():
            good = [card for card in cards if "failed" not in card]
            failed = [str(card["failed"]) for card in cards if "failed" in card]
            for card in good:
                _raise_if(f"{title}, {name}", card_problems(card, "card"))
            control = name.startswith(tuple(controls))
            entries.append(Entry(name, control, good, failed[0] if failed else None))
        if entries:
            found.append(Group(title, entries))
    if not found:
        raise InputError("no cards to compare; give at least one")
    return found


def _group(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Group:
    methods = [document["method"] for _, document in runs]
    names = []
    for (folder, _), method in zip(runs, methods, strict=True):
        name = method if methods.count(method) == 1 else folder
        same = sum(each == name or each.startswith(f"{name} (") for each in names)
        names.append(f"{name} ({same + 1})" if same else name)
    first = runs[0][1]
    entries = []
    for control in ("before", "retrained"):
        known = [d["models"][control] for _, d in runs if control in d["models"]]
        if known:
            fullest = max(known, key=len)  # runs measure more or less of it
            entries.append(Entry(control, True, [fullest]))
    entries += [
        Entry(name, False, [document["models"]["after"]])
        for name, (_, document) in zip(names, runs, strict=True)
    ]
    layers: dict[str, dict[str, Sequence[float]]] = {}
    for name, (_, document) in zip(names, runs, strict=True):
        for part, found in (document["layers"] or {}).items():
            row = layers.setdefault(part, {"before": found["models"]["before"]})
            row[name] = found["models"]["after"]
    rows = {example["id"]: (example, {}) for example in first["examples"]}
    for name in ("before", "retrained"):
        for example, said in rows.values():
            if name in example["said"]:
                said[name] = example["said"][name]
    for name, (_, document) in zip(names, runs, strict=True):
        for example in document["examples"]:
            if example["id"] in rows:
                rows[example["id"]][1][name] = example["said"]["after"]
    examples = [
        Example(e["id"], e["topic"], e["question"], e["answer"], said)
        for e, said in rows.values()
    ]
    about = first["about"]
    file = Path(str((about.get("forget") or {}).get("file", "texts"))).stem
    model = Path(str(about.get("model", "a model"))).name
    return Group(f"{file} forgotten by {model}", entries, layers, examples)


def _raise_if(where: str, found: Iterator[str]) -> None:
    shown = list(islice(found, 7))
    if shown:
        more = "; and more" if len(shown) == 7 else ""
        raise InputError(
            f"{where}: {'; '.join(shown[:6])}{more}. Run `lt-mia unlearn` again, which "
            "writes it"
        )
