"""How many tokens a step commits, in which block, and how much an end token waits.

Source: "EOSER" and "ASS" are the end-of-sequence early rejection and the ascending step
size of CJ-GRPO (`yjyddq/EOSER-ASS-RL`).
"""

import math

from lt_mia_jax.errors import InputError


def uniform_counts(length: int, steps: int) -> tuple[int, ...]:
    """`length` tokens in `steps` steps that differ by one at most, larger ones first.

    Example:
      >>> uniform_counts(10, 4)
      (3, 3, 2, 2)

    Raises:
      InputError: fewer tokens than steps, or no step.
    """
    if not 1 <= steps <= length:
        raise InputError(f"steps = {steps}, expected 1 to the length, {length}")
    each, more = divmod(length, steps)
    return (each + 1,) * more + (each,) * (steps - more)


def block_counts(length: int, steps: int, block: int) -> tuple[int, ...]:
    """`uniform_counts` of each of the blocks of `block` tokens, one after the other.

    Example:
      >>> block_counts(8, 4, 4)
      (2, 2, 2, 2)

    Raises:
      InputError: blocks that do not fill the length, or steps that do not fit them.
    """
    if block < 1 or length % block or steps % (length // block):
        raise InputError(
            f"block = {block} must divide length = {length}, and their quotient "
            f"steps = {steps}"
        )
    blocks = length // block
    return uniform_counts(block, steps // blocks) * blocks


def ascending_counts(length: int) -> tuple[int, ...]:
    """ASS: 1, 2, 4, ... in floor(log2 length) steps; the last one takes the rest.

    Example:
      >>> ascending_counts(16), ascending_counts(20)
      ((1, 2, 4, 9), (1, 2, 4, 13))

    Raises:
      InputError: fewer than 2 tokens.
    """
    steps = _ascending_steps(length)
    counts = [2**step for step in range(steps)]
    counts[-1] = length - sum(counts[:-1])
    return tuple(counts)


def ascending_blocks(length: int, blocks: int) -> tuple[int, ...]:
    """Sizes of blocks, from the left, in which ASS fills a response.

    The largest steps are peeled off to the right as blocks of their own: what is left
    of them is the first block, filled by the small steps. The counts stay those of
    `ascending_counts`.

    Example:
      >>> ascending_blocks(128, 4)
      (15, 16, 32, 65)

    Raises:
      InputError: more blocks than steps, or none.
    """
    counts = ascending_counts(length)
    if not 1 <= blocks <= len(counts):
        raise InputError(f"blocks = {blocks}, expected 1 to {len(counts)}, the steps")
    first = len(counts) - blocks + 1
    return (sum(counts[:first]), *counts[first:])


def uniform_end_factors(steps: int, start: float = 0.4) -> tuple[float, ...]:
    """EOSER's factor on the confidence of an end token, linear from `start` to 1.

    Example:
      >>> uniform_end_factors(4, start=0.4)
      (0.4, 0.6, 0.8, 1.0)
    """
    if steps < 1:
        raise InputError(f"steps = {steps}, expected at least 1")
    shares = [step / (steps - 1) for step in range(steps)] if steps > 1 else [1.0]
    return tuple(round(start + (1 - start) * share, 12) for share in shares)


def ascending_end_factors(length: int, start: float = 0.01) -> tuple[float, ...]:
    """The factors of EOSER with ASS: they grow with the committed share, below 1.

    `start + (1 - start) u` with `u = (2^(s + 1) - 1) / 2^S`.

    Example:
      >>> ascending_end_factors(8, start=0.0)
      (0.125, 0.375, 0.875)
    """
    steps = _ascending_steps(length)
    shares = [(2 ** (step + 1) - 1) / 2**steps for step in range(steps)]
    return tuple(start + (1 - start) * share for share in shares)


def _ascending_steps(length: int) -> int:
    if length < 2:
        raise InputError(f"length = {length}, expected at least 2")
    return math.frexp(length)[1] - 1  # floor(log2), without rounding
