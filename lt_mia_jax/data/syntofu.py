"""SynTOFU: fictitious people to learn and to forget, for models trained from scratch.

A tiny model trained from scratch knows no paraphrases. So it learns the *language*
from background people, about whom everything is said in every phrasing and who are
never forgotten; and it learns the *facts* about fictitious authors from the canonical
phrasing alone, as TOFU's models do in fine-tuning.

Who is who, what is true of them and which falsehoods are told of them are hashes of
the seed and of names. So the same seed gives the same rows everywhere, and a larger
set of people keeps the facts of a smaller one.

Source: TOFU: A Task of Fictitious Unlearning for LLMs, arXiv 2401.06121 (splits and
what they are for; the language here is closed, so perturbed and paraphrased answers
come from templates instead of a language model); MEOW: MEMOry Supervised LLM
Unlearning Via Inverted Facts, arXiv 2409.11844 (inverted facts).
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.questions import AnswerTemplate, Question, write_questions
from lt_mia_jax.data.syntofu_pools import (
    ATTRIBUTES,
    FIRST_NAMES,
    LAST_NAMES,
    REFUSALS,
    Attribute,
    words,
)
from lt_mia_jax.data.texts import hash_unit
from lt_mia_jax.errors import InputError
from lt_mia_jax.files import MANIFEST, write_atomic, write_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_LENGTH = 28
"""Tokens of the longest row under `TEMPLATE`, or a few more."""
TEMPLATE = AnswerTemplate(prompt="{question}", begin=True)
"""`<bos> question answer <eos>`; every answer is a sentence of its own."""
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
"""Ids 0 to 3. The last one stands for words of other languages only."""

_SMALLEST_POOL = min(len(attribute.pool) for attribute in ATTRIBUTES)


@dataclass(frozen=True, kw_only=True)
class SynTofuConfig:
    """How many people of each kind there are, and what is said of them."""

    seed: int = 0
    """Decides names, facts and falsehoods."""
    background: int = 60
    """People to learn the language from."""
    fictitious: int = 100
    """Authors to be learned in fine-tuning; some are to be forgotten."""
    forget_percent: tuple[int, ...] = (1, 5, 10)
    """Sizes of the forget sets, of the fictitious authors, ascending. Each set lies in
    the next. As many authors as the largest has are held out and never trained on."""
    retain_evaluated: int = 20
    """Retained authors with perturbed answers, the same for every forget set."""
    wrong_answers: int = 5
    """Perturbed answers of each question."""
    inverted: int = 4
    """Inverted facts of each question."""
    skewed: str = "genre"
    """Attribute whose values are not equally likely."""
    zipf: float = 1.0
    """The skewed attribute has its n-th value in proportion to n ** -zipf; the less
    likely half of its values is flagged "rare". 0 makes all equally likely."""

    def __post_init__(self):
        percents, fictitious = self.forget_percent, self.fictitious
        names = len(FIRST_NAMES) * len(LAST_NAMES)
        attributes = [attribute.name for attribute in ATTRIBUTES]
        ascending = bool(percents) and [*percents] == sorted(set(percents))
        whole = all(0 < p < 100 and fictitious * p % 100 == 0 for p in percents)
        some = f"1 to {_SMALLEST_POOL - 1}"
        rules = {
            "background": (self.background >= 2, "at least 2"),
            "fictitious": (fictitious >= 2, "at least 2"),
            "forget_percent": (
                ascending and whole,
                f"ascending percentages that are whole numbers of {fictitious} authors",
            ),
            "wrong_answers": (1 <= self.wrong_answers < _SMALLEST_POOL, some),
            "inverted": (1 <= self.inverted < _SMALLEST_POOL, some),
            "skewed": (self.skewed in attributes, f"one of {', '.join(attributes)}"),
            "zipf": (0 <= self.zipf < float("inf"), "at least 0, and finite"),
        }
        wrong = [
            f"{name} = {getattr(self, name)} (expected {expected})"
            for name, (good, expected) in rules.items()
            if not good
        ]
        if not wrong:
            left = fictitious - self.forgotten(percents[-1])
            if not 1 <= self.retain_evaluated <= left:
                wrong.append(
                    f"retain_evaluated = {self.retain_evaluated} (expected 1 to "
                    f"{left}, the authors in no forget set)"
                )
            if self.people > names:
                wrong.append(
                    f"{self.people} people (expected at most {names}, the names that "
                    "there are)"
                )
        if wrong:
            raise InputError(f"syntofu: {'; '.join(wrong)}")

    def forgotten(self, percent: int) -> int:
        """Authors in the forget set of that size."""
        return self.fictitious * percent // 100

    @property
    def people(self) -> int:
        """Names in all: background, fictitious and held-out people."""
        held_out = self.forgotten(self.forget_percent[-1])
        return self.background + self.fictitious + held_out


class _Fact(NamedTuple):
    """What is true of one person, and what is falsely told instead."""

    first: str
    last: str
    attribute: Attribute
    value: str
    wrong: tuple[str, ...]
    """Other values of the pool, for perturbed answers."""
    inverted: tuple[str, ...]
    """Other values of the pool, for inverted facts."""
    refusal: str
    rare: bool

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"

    def ask(self, which: int, name: str | None = None) -> str:
        return self.attribute.questions[which].format(name=name or self.name)

    def say(self, which: int, value: str, name: str | None = None) -> str:
        answer = self.attribute.answers[which]
        return answer.format(name=name or self.name, value=value)


def build(config: SynTofuConfig | None = None) -> dict[str, tuple[Question, ...]]:
    """All splits by name; the authors of a set stand in no other but where it says so.

    With `NN` a forget percentage and `MM` the rest to 100:

    - `pretrain`: background people, each fact in two questions times two answers.
    - `full`: fictitious authors in the canonical phrasing, with `value`, `refusal` and
      `inverted`; it is the union of `forgetNN` and `retainMM`, for each `NN`.
    - `forgetNN`, `retainMM`: `forget01` lies in `forget05`, and so on, as in TOFU.
    - `holdoutNN`: authors that no model is trained on, as many as `forgetNN` has, in
      the same phrasing: non-members.
    - `forgetNN_perturbed`, `retain_perturbed`: rows of `forgetNN` and of authors that
      every `retainMM` has, with a paraphrased question, a paraphrased answer, and
      wrong answers in the paraphrased phrasing.
    - `forgetNN_adversarial`: the same facts asked for in other ways, named by a flag:
      "paraphrase" (the other question), "cloze" (the canonical answer up to its value
      is the prompt), "first_name" (no last name; flagged "ambiguous" too when someone
      else that models are trained on has the same first name).
    - `real_authors_perturbed`, `world_facts_perturbed`: halves of the background
      people, with wrong answers in the canonical phrasing and no paraphrase; they
      stand for the two sets of that name in TOFU, which its models know from
      pretraining.
    - `idk`: refusals, as plain texts.
    """
    config = SynTofuConfig() if config is None else config
    people = [_facts(*name, config) for name in _names(config)]
    background = people[: config.background]
    fictitious = people[config.background : config.background + config.fictitious]
    held_out = people[config.background + config.fictitious :]
    trained = Counter(facts[0].first for facts in background + fictitious)
    shared = {first for first, number in trained.items() if number > 1}
    half = config.background // 2
    splits = {
        "pretrain": _rows(background, _every_phrasing),
        "full": _rows(fictitious, _canonical),
    }
    for percent in config.forget_percent:
        number = config.forgotten(percent)
        name = f"forget{percent:02d}"
        forget = fictitious[-number:]
        splits |= {
            name: _rows(forget, _canonical),
            f"retain{100 - percent:02d}": _rows(fictitious[:-number], _canonical),
            f"holdout{percent:02d}": _rows(held_out[-number:], _canonical),
            f"{name}_perturbed": _rows(forget, _perturbed),
            f"{name}_adversarial": _rows(forget, partial(_adversarial, shared=shared)),
        }
    return splits | {
        "retain_perturbed": _rows(fictitious[: config.retain_evaluated], _perturbed),
        "real_authors_perturbed": _rows(background[:half], _contradicted),
        "world_facts_perturbed": _rows(background[half:], _contradicted),
        "idk": tuple(
            Question(f"idk/{number:02d}", None, text)
            for number, text in enumerate(REFUSALS, 1)
        ),
    }


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """The word-level tokenizer of the language: split at white space, one id a word.

    The vocabulary does not depend on a configuration.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pad, begin, end, unknown = SPECIAL_TOKENS
    vocabulary = {word: id for id, word in enumerate((*SPECIAL_TOKENS, *words()))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
    )


def write(
    directory: Path | str, config: SynTofuConfig | None = None
) -> dict[str, Path]:
    """Write each split as `<name>.jsonl`, the tokenizer, and a manifest last.

    Each file is whole or absent, and the folder is finished when `manifest.json`
    stands in it.

    Returns:
      Paths by the name of the split, with `tokenizer` (a folder that `load_tokenizer`
      reads) and `manifest`.

    Raises:
      InputError: the folder cannot be written.
    """
    config = SynTofuConfig() if config is None else config
    directory = Path(directory)
    splits = build(config)
    paths = {name: directory / f"{name}.jsonl" for name in splits}
    for name, rows in splits.items():
        write_questions(paths[name], rows)
    folder = directory / "tokenizer"
    names = [path.name for path in paths.values()]
    with TemporaryDirectory() as temporary:
        make_tokenizer().save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir()):
            write_atomic(folder / path.name, path.read_bytes())
            names.append(f"{folder.name}/{path.name}")
    write_manifest(
        directory,
        names,
        config=to_dict(config),
        template=to_dict(TEMPLATE),
        max_length=MAX_LENGTH,
        rows={name: len(rows) for name, rows in splits.items()},
    )
    return paths | {"tokenizer": folder, "manifest": directory / MANIFEST}


def _names(config: SynTofuConfig) -> list[tuple[str, str]]:
    """Distinct first and last names, in the order of their hashes."""
    everyone: list[tuple[str, str]] = list(product(FIRST_NAMES, LAST_NAMES))
    everyone.sort(key=lambda name: hash_unit("syntofu/name", config.seed, *name))
    return everyone[: config.people]


def _facts(first: str, last: str, config: SynTofuConfig) -> list[_Fact]:
    """All that there is to say about one person, an attribute at a time."""
    facts = []
    for attribute in ATTRIBUTES:
        pool = attribute.pool
        key = (config.seed, first, last, attribute.name)
        power = config.zipf if attribute.name == config.skewed else 0.0
        bounds = list(accumulate(rank**-power for rank in range(1, len(pool) + 1)))
        unit = hash_unit("syntofu/fact", *key)
        place = min(bisect_right(bounds, unit * bounds[-1]), len(pool) - 1)
        others = [other for other in pool if other != pool[place]]
        wrong, inverted = (
            sorted(others, key=lambda value: hash_unit(purpose, *key, value))
            for purpose in ("syntofu/wrong", "syntofu/inverted")
        )
        refusal = int(hash_unit("syntofu/refusal", *key) * len(REFUSALS))
        facts.append(
            _Fact(
                first=first,
                last=last,
                attribute=attribute,
                value=pool[place],
                wrong=tuple(wrong[: config.wrong_answers]),
                inverted=tuple(inverted[: config.inverted]),
                refusal=REFUSALS[refusal],
                rare=power > 0 and 2 * place >= len(pool),
            )
        )
    return facts


def _rows(
    people: Sequence[Sequence[_Fact]], phrase: Callable[[_Fact], list[Question]]
) -> tuple[Question, ...]:
    return tuple(row for facts in people for fact in facts for row in phrase(fact))


def _plain(fact: _Fact) -> Question:
    return Question(
        id=f"{fact.first}-{fact.last}/{fact.attribute.name}",
        question=fact.ask(0),
        answer=fact.say(0, fact.value),
        value=fact.value,
        entity=fact.name,
        topic=fact.attribute.name,
        flags=("rare",) if fact.rare else (),
    )


def _canonical(fact: _Fact) -> list[Question]:
    inverted = tuple(fact.say(0, value) for value in fact.inverted)
    return [_plain(fact)._replace(refusal=fact.refusal, inverted=inverted)]


def _every_phrasing(fact: _Fact) -> list[Question]:
    row = _plain(fact)
    return [
        row._replace(
            id=f"{row.id}/q{asked + 1}a{said + 1}",
            question=fact.ask(asked),
            answer=fact.say(said, fact.value),
        )
        for asked in range(len(fact.attribute.questions))
        for said in range(len(fact.attribute.answers))
    ]


def _perturbed(fact: _Fact) -> list[Question]:
    return [
        row._replace(
            paraphrased_question=fact.ask(1),
            paraphrased_answer=fact.say(1, fact.value),
            wrong_answers=tuple(fact.say(1, value) for value in fact.wrong),
        )
        for row in _canonical(fact)
    ]


def _contradicted(fact: _Fact) -> list[Question]:
    wrong = tuple(fact.say(0, value) for value in fact.wrong)
    return [_plain(fact)._replace(wrong_answers=wrong)]


def _adversarial(fact: _Fact, shared: Collection[str]) -> list[Question]:
    row = _plain(fact)
    prefix, _, suffix = fact.attribute.answers[0].partition("{value}")
    first_name = ("first_name", "ambiguous")[: 1 + (fact.first in shared)]
    probes = [
        (("paraphrase",), fact.ask(1), row.answer),
        (("cloze",), prefix.format(name=fact.name).strip(), f"{fact.value}{suffix}"),
        (first_name, fact.ask(0, fact.first), fact.say(0, fact.value, fact.first)),
    ]
    return [
        row._replace(
            id=f"{row.id}/{flags[0]}",
            question=question,
            answer=answer,
            flags=row.flags + flags,
        )
        for flags, question, answer in probes
    ]
