"""SynTOFU: fictitious people to learn and to forget, for models trained from scratch.

A tiny model trained from scratch knows no paraphrases. So it learns the *language*
from background people, whose facts occur in every phrasing and are never forgotten. It
learns the *facts* about fictitious authors from the canonical phrasing only, as TOFU's
models do in fine-tuning.

Names, facts and falsehoods are hashes of the seed and of names. So the same seed gives
the same rows everywhere, and adding people does not change the facts of others.

Source: TOFU: A Task of Fictitious Unlearning for LLMs, arXiv 2401.06121 (splits and
their purpose; perturbed and paraphrased answers come from templates instead of a
language model); MEOW: MEMOry Supervised LLM Unlearning Via Inverted Facts, arXiv
2409.11844 (inverted facts).
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NamedTuple

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
from lt_mia_jax.errors import SEED, InputError
from lt_mia_jax.files import MANIFEST, write_atomic, write_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_LENGTH = 28
"""At least the number of tokens of the longest row under `TEMPLATE`."""
TEMPLATE = AnswerTemplate(prompt="{question}", begin=True)
"""`<bos> question answer <eos>`; every answer is a complete sentence."""
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
"""Ids 0 to 3. No word of SynTOFU is unknown."""

_SMALLEST_POOL = min(len(attribute.pool) for attribute in ATTRIBUTES)


@dataclass(frozen=True, kw_only=True)
class SynTofuConfig:
    """Numbers of people of each kind and of statements about them."""

    seed: Annotated[int, SEED] = 0
    """Decides names, facts and falsehoods."""
    background: int = 60
    """Number of people whose facts teach the language."""
    fictitious: int = 100
    """Number of authors to be learned in fine-tuning; some are to be forgotten."""
    forget_percent: tuple[int, ...] = (1, 5, 10)
    """Sizes of the forget sets in percent of the fictitious authors, ascending. Each
    contains the smaller ones. As many authors as the largest has are held out."""
    retain_evaluated: int = 20
    """Number of retained authors with perturbed answers, for every forget set."""
    wrong_answers: int = 5
    """Perturbed answers per question."""
    inverted: int = 4
    """Inverted facts per question."""
    skewed: str = "genre"
    """Attribute whose values are not equally likely."""
    zipf: float = 1.0
    """Probability of the skewed attribute's n-th value is proportional to n ** -zipf;
    the less likely half of its values is flagged "rare". 0: all are equally likely."""

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
        """Number of authors in the forget set of that size."""
        return self.fictitious * percent // 100

    @property
    def people(self) -> int:
        """Number of people: background, fictitious and held out."""
        held_out = self.forgotten(self.forget_percent[-1])
        return self.background + self.fictitious + held_out


class _Fact(NamedTuple):
    """One attribute of one person: the true value and false ones."""

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
    """All splits by name; they share authors only where it says so.

    `NN` is a forget percentage and `MM` is 100 - `NN`:

    - `pretrain`: background people, each fact in two questions times two answers.
    - `full`: fictitious authors in the canonical phrasing, with `value`, `refusal` and
      `inverted`; the union of `forgetNN` and `retainMM`, for each `NN`.
    - `forgetNN`, `retainMM`: `forget05` contains `forget01`, and so on, as in TOFU.
    - `holdoutNN`: as many authors as in `forgetNN`, in the same phrasing, on which no
      model is trained: non-members.
    - `forgetNN_perturbed`, `retain_perturbed`: rows of `forgetNN` and of authors in
      every `retainMM`, with a paraphrased question, a paraphrased answer, and wrong
      answers in the paraphrased phrasing.
    - `forgetNN_adversarial`: other questions about the same facts, named by a flag:
      "paraphrase" (the other question), "cloze" (the canonical answer up to its value
      is the prompt), "first_name" (no last name; also flagged "ambiguous" if another
      person in the training data has the same first name).
    - `real_authors_perturbed`, `world_facts_perturbed`: halves of the background
      people, with wrong answers in the canonical phrasing and no paraphrase. They
      replace the sets of that name in TOFU, known from pretraining.
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
    """The tokenizer: one id per word, for any configuration."""
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
    """Write each split as `<name>.jsonl`, the tokenizer, and finally a manifest.

    Returns:
      Paths by name of the split, with `tokenizer` (a folder for `load_tokenizer`) and
      `manifest`.

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
    """All facts about one person."""
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
