"""Answer-style diversification: some questions of a task, asked for other answers.

Source: "SEFE: Superficial and Essential Forgetting Eliminator for Multimodal Continual
Instruction Tuning". Kept: a share of a task's items is spread evenly over the other
four of five answer styles, each with its instruction. Not kept: data and models; a
fixed formatter writes the answers, for tasks whose own answers are short.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lt_mia_jax.errors import UNIT, InputError, check_ranges

Style = Literal["yes/no", "choice", "short", "brief", "detailed"]

INSTRUCTIONS: dict[Style, str] = {
    "yes/no": "Answer yes or no.",
    "choice": "Answer with the letter of the right option.",
    "short": "Answer with a word or a short phrase.",
    "brief": "Answer with a brief explanation.",
    "detailed": "Answer with a detailed explanation.",
}
"""The sentence that ends a question of each style."""

LETTERS = "ABCD"


class Item(NamedTuple):
    """A question and its answer."""

    question: str
    """Without an instruction."""
    answer: str


def restyled(item: Item, style: Style, wrong: Sequence[str], number: int) -> Item:
    """An item with a short answer, in another style, with its instruction.

    `wrong` are other answers, at least one, of which options take three. An even
    `number` asks for the right answer in yes/no, an odd one for a wrong one; the right
    option is the number modulo their count.
    """
    question, answer = item
    match style:
        case "yes/no":
            right = number % 2 == 0
            shown = answer if right else wrong[number // 2 % len(wrong)]
            question = f"{question} Is the answer {shown}?"
            answer = "yes" if right else "no"
        case "choice":
            options = list(wrong[: len(LETTERS) - 1])
            place = number % (len(options) + 1)
            options.insert(place, answer)
            listed = [f"{x}: {y}" for x, y in zip(LETTERS, options, strict=False)]
            question, answer = f"{question} {', '.join(listed)}.", LETTERS[place]
        case "brief":
            answer = f"The answer is {answer}."
        case "detailed":
            answer = f'The question is "{question}" Its answer is {answer}.'
        case "short":
            pass
    return Item(f"{question} {INSTRUCTIONS[style]}", answer)


def diversify(
    items: Sequence[Item], style: Style, *, share: float = 0.2, seed: int = 0
) -> list[Item]:
    """A task with `round(share * n)` of its items spread over the other four styles.

    Each style has equally many of them, or one more; the order of the items stays. The
    other items get the instruction of `style`, the task's own. Wrong answers are those
    of other items. A share of 0 changes nothing; one outside [0, 1], or a task with one
    answer only, raises an `InputError`.

    Example:
      >>> task = [Item(f"{n} + 1?", str(n + 1)) for n in range(10)]
      >>> changed = diversify(task, "short", share=0.4)
      >>> sum(INSTRUCTIONS["short"] in item.question for item in changed)
      6
    """
    check_ranges("diversify", share=(share, UNIT))
    if share == 0:
        return list(items)
    answers = sorted({item.answer for item in items})
    if len(answers) < 2:
        raise InputError(
            f"diversify: the {len(items)} items have {len(answers)} different answers, "
            "expected at least 2, for questions with a wrong answer"
        )
    rng = np.random.default_rng(seed)
    others: list[Style] = [other for other in INSTRUCTIONS if other != style]
    found = [Item(f"{q} {INSTRUCTIONS[style]}", answer) for q, answer in items]
    picked = rng.permutation(len(items))[: round(share * len(items))]
    for number, index in enumerate(picked.tolist()):
        wrong = [answer for answer in answers if answer != items[index].answer]
        wrong = [wrong[i] for i in rng.permutation(len(wrong))[: len(LETTERS) - 1]]
        other = others[number % len(others)]
        found[index] = restyled(items[index], other, wrong, number // len(others))
    return found
