"""Numbers and names as readers see them."""

import math
from typing import Any

from lt_mia_jax.attacks.scores.table import Description, describe
from lt_mia_jax.report.schema import Number

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
CONTROLS = {
    "blind": Description(
        "Blind baseline", "bag of words and forest; never sees a model"
    ),
    "permutation": Description(
        "Label permutation", "the verdict's attack, labels shuffled"
    ),
}

FLAGS = {
    "empty": "the text has no content and no score",
    "too short": "no token could be scored",
    "short": "few scored tokens, so the score is noisy",
    "truncated": "longer than the audited length; only a part was scored",
    "duplicate": "the same text occurs more than once",
}
"""Meaning of the flags we know; a flag may add a detail after a colon."""

DECISIONS = {"member": "member", "no evidence": "no evidence of membership"}


def attack_name(name: str) -> Description:
    """Label and definition of an attack or control."""
    return CONTROLS.get(name) or describe(name)


def signed(text: str) -> str:
    """The text with typographic minus signs."""
    return text.replace("-", MINUS)


def unit(value: Number | None, digits: int = 3) -> str:
    """A number such as an AUC with fixed decimals; a dash when there is none."""
    return "\N{EM DASH}" if value is None else signed(f"{value:.{digits}f}")


def percentage(value: Number | None) -> str:
    """A rate in per cent with one decimal; a dash when there is none."""
    return "\N{EM DASH}" if value is None else signed(f"{100 * value:.1f}") + f"{NBSP}%"


def bounds(interval: dict[str, Any] | None, *, rate: bool = False) -> str:
    """An interval such as [0.91, 0.95] or [12.1, 15.0]; empty when there is none."""
    if not interval or interval["low"] is None or interval["high"] is None:
        return ""
    low, high = interval["low"], interval["high"]
    if rate:
        return signed(f"[{100 * low:.1f},{NBSP}{100 * high:.1f}]")
    return signed(f"[{low:.3f},{NBSP}{high:.3f}]")


def general(value: Number | None, digits: int = 4, *, zeros: bool = False) -> str:
    """A number with so many significant digits, in scientific form when extreme.

    Args:
      value: None and NaN become a dash.
      digits: how many are significant.
      zeros: keep trailing zeros, so that a column lines up.
    """
    if value is None or math.isnan(value):
        return "\N{EM DASH}"
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
    return "\N{EM DASH}" if value is None else f"{value:,}"


def plural(number: int, noun: str) -> str:
    """Number and noun, such as `1 text` or `1,200 texts`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: list[str], most: int = 4) -> str:
    """Names with commas, shortened to the first few."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
