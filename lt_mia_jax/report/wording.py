"""Numbers and names as readers see them."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.attacks.scores.table import Description, describe
from lt_mia_jax.audit.records import PERMUTATION, TEXT_ONLY

Number = float | int
"""A number as JSON gives it."""
NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
NONE = "\N{EM DASH}"
"""Where there is no number."""
CONTROLS = {
    TEXT_ONLY: Description(
        "Text-only baseline", "bag of words and forest; never sees a model"
    ),
    PERMUTATION: Description(
        "Label permutation", "the verdict's attack, labels shuffled"
    ),
}

FLAGS = {
    "empty": "the text has no content and no score",
    "no response found": "the response was cut off or does not begin with a token",
    "too short": "no token could be scored",
    "short": "few scored tokens, so the score is noisy",
    "truncated": "longer than the audited length; only a part was scored",
    "duplicate": "the same text occurs more than once",
}
"""Meaning of the flags we know; a flag may add a detail after a colon."""

DECISIONS = {"member": "member", "no evidence": "no evidence of membership"}


def attack_name(name: str) -> Description:
    """Label and meaning of an attack or control."""
    return CONTROLS.get(name) or describe(name)


def signed(text: str) -> str:
    """The text with typographic minus signs."""
    return text.replace("-", MINUS)


def unit(value: Number | None, digits: int = 3) -> str:
    """A number such as an AUC with fixed decimals; a dash when there is none."""
    return NONE if value is None else signed(f"{value:.{digits}f}")


def percentage(value: Number | None) -> str:
    """A rate in per cent with one decimal; a dash when there is none."""
    return NONE if value is None else signed(f"{100 * value:.1f}") + f"{NBSP}%"


def bounds(found: Estimate | None, digits: int = 3, *, rate: bool = False) -> str:
    """An interval such as [0.91, 0.95], or [12.1, 15.0] in per cent; may be empty."""
    if found is None or found.low is None or found.high is None:
        return ""
    scale, digits = (100, 1) if rate else (1, digits)
    low, high = scale * found.low, scale * found.high
    return signed(f"[{low:.{digits}f},{NBSP}{high:.{digits}f}]")


def with_bounds(text: str, note: str) -> Markup:
    """Text with a remark, such as an interval, in small print."""
    return Markup('{} <span class="bounds">{}</span>').format(text, note)


def percent(rate: Number) -> str:
    """A nominal rate, such as 0.1 %."""
    return f"{100 * rate:.4g}{NBSP}%"


def general(value: Number | None, digits: int = 4, *, zeros: bool = False) -> str:
    """A number with so many significant digits, in scientific form when extreme.

    None and NaN become a dash; `zeros` keeps trailing zeros, so that a column lines up.
    """
    if value is None or math.isnan(value):
        return NONE
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        if abs(value) >= 1e4:
            return signed(f"{value:,.0f}")
        return signed(f"{value:#.{digits}g}" if zeros else f"{value:.{digits}g}")
    mantissa, exponent = f"{value:.{max(0, digits - 2)}e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{signed(mantissa)}{NBSP}×{NBSP}10{raised}"


def p_text(value: Number | None) -> str:
    """A p-value with two significant digits."""
    return general(value, 2)


def count(value: int | None) -> str:
    """An integer with thousands separators; a dash when there is none."""
    return NONE if value is None else f"{value:,}"


def plural(number: int, noun: str) -> str:
    """Number and noun, such as `1 text` or `1,200 texts`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names with commas, shortened to the first few."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
