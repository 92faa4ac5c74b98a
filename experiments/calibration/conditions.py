"""Audits to draw: which texts stand where, and how they are scored."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

SUSPECTS, KNOWN = 100, 200
"""Texts and known non-members of an audit, where the condition says nothing else."""
LENGTH, SHORT = 128, 32
"""Tokens a text is cut to; the second in the condition of other tokenizer settings."""

Pools = Mapping[str, Sequence[str]]
"""Texts by name: `members`; `texts` and `known`, non-members of the same corpus; and
non-members of other kinds."""


def pools(
    members: Sequence[str],
    nonmembers: Sequence[str],
    code: Sequence[str],
    speeches: Sequence[str],
) -> Pools:
    """All texts that audits are drawn from.

    Args:
      members: texts of the corpus that the target was fine-tuned on.
      nonmembers: other texts of the same corpus.
      code: texts of another domain.
      speeches: texts of two and a half centuries, in order.
    """
    half, most = len(nonmembers) // 2, 600
    texts, known = nonmembers[:half], nonmembers[half:]
    return {
        "members": members,
        "texts": texts,
        "known": known,
        "shorter": [_half(text) for text in texts[:most]],
        "early": speeches[:most],
        "late": speeches[-most:],
        "coded": [_coded(text) for text in texts[:most]],
        "code": code[:most],
        "indented": [textwrap.indent(text, "    ") for text in texts[:most]],
        "copied": [copy for text in texts[:most] for copy in _near_copies(text)],
        "repeated": [copy for text in known[:most] for copy in _near_copies(text)],
    }


def _half(text: str) -> str:
    words = text.split()
    return " ".join(words[: max(8, len(words) // 2)])


def _coded(text: str) -> str:
    """Every letter 13 on in the alphabet: another language, as far as tokens show."""
    shift = {65 + n: 65 + (n + 13) % 26 for n in range(26)}
    return text.translate(shift | {32 + n: 32 + m for n, m in shift.items()})


def _near_copies(text: str, count: int = 5) -> list[str]:
    return [f"{'# ' * (n % 2)}{text} See note {n + 1}." for n in range(count)]


class Condition(NamedTuple):
    """One kind of audit."""

    name: str
    about: str
    draw: Callable[[Pools, np.random.Generator], tuple[list[str], list[str]]]
    """Texts under audit and known non-members."""
    length: int = LENGTH
    members: bool = False
    """Whether members are among the texts, so that finding them is right."""


def _sample(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    return [texts[int(row)] for row in rng.choice(len(texts), count, replace=False)]


def _from(
    suspects: str, known: str = "known", n: int = SUSPECTS, m: int = KNOWN
) -> Callable[[Pools, np.random.Generator], tuple[list[str], list[str]]]:
    return lambda pools, rng: (
        _sample(pools[suspects], n, rng),
        _sample(pools[known], m, rng),
    )


def _families(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Near copies of `count` texts; five stand together in the pool."""
    chosen = rng.choice(len(texts) // 5, count, replace=False)
    return [texts[5 * int(row) + n] for row in chosen for n in range(5)]


def _near_copies_audited(
    pools: Pools, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    return _families(pools["copied"], 20, rng), _sample(pools["known"], KNOWN, rng)


def _repeats_known(
    pools: Pools, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    return _sample(pools["texts"], SUSPECTS, rng), _families(pools["repeated"], 40, rng)


def _mixture(
    other: str, share: float
) -> Callable[[Pools, np.random.Generator], tuple[list[str], list[str]]]:
    def draw(pools: Pools, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        moved = round(share * SUSPECTS)
        texts = _sample(pools["texts"], SUSPECTS - moved, rng)
        texts += _sample(pools[other], moved, rng)
        return texts, _sample(pools["known"], KNOWN, rng)

    return draw


CONDITIONS = (
    Condition("alike", "100 texts, 200 non-members of the same corpus", _from("texts")),
    Condition("length", "texts cut to half their words", _from("shorter")),
    Condition("period", "speeches, the last against the first", _from("late", "early")),
    Condition("language", "every letter 13 on in the alphabet", _from("coded")),
    Condition("domain", "source code against documentation", _from("code")),
    Condition("layout", "every line indented", _from("indented")),
    Condition("mixture", "a fifth of the texts is source code", _mixture("code", 0.2)),
    Condition("near copies", "20 texts, 5 near copies of each", _near_copies_audited),
    Condition("repeats", "40 non-members, 5 near copies of each", _repeats_known),
    Condition("20 non-members", "alike", _from("texts", m=20)),
    Condition("100 non-members", "alike", _from("texts", m=100)),
    Condition("1,000 non-members", "alike", _from("texts", m=1000)),
    Condition("other settings", "texts cut to 32 tokens", _from("texts"), SHORT),
    Condition("members", "100 members", _from("members"), members=True),
    Condition(
        "members, 20 non-members", "100 members", _from("members", m=20), members=True
    ),
    Condition("a fifth", "20 members", _mixture("members", 0.2), members=True),
)
"""Thirteen in which no text is a member, then three that show what is found."""
