"""What a run of unlearning has done, in sentences."""

from collections.abc import Iterator

from lt_mia_jax.report.forgetting.likeness import FAR, QUANTITIES, leak_of, outside
from lt_mia_jax.report.forgetting.metrics import REJECTED, metric_of
from lt_mia_jax.report.wording import NBSP, percent, percentage, plural, signed, unit
from lt_mia_jax.verification.records import (
    DIFFERENT,
    EQUIVALENT,
    Card,
    Equivalence,
    UnlearningRun,
)

_KEPT = {
    "model_utility": ("utility", "Model utility is {new}; it was {old} before."),
    "retain_probability": (
        "the probability of kept answers",
        "Answers that were to be kept have a mean probability of {new}; it was {old}.",
    ),
}
"""Measures of what was kept, best first: a noun and a sentence."""


def verdict(run: UnlearningRun) -> list[str]:
    """The verdict, the most important sentence first."""
    models = run.verification.models
    before, after = models["before"], models["after"]
    return [
        f"{run.method} {_did(before, after)}; {_utility(before, after)}.",
        *_forgot(before, after, models.get("retrained")),
        *_leak(after),
        *_quality(after),
        *_kept(before, after),
    ]


def both(name: str, before: Card, after: Card) -> tuple[float, float] | None:
    """A measure before and after; None where it was not taken of both."""
    found = (metric_of(name).of(card) for card in (before, after))
    old, new = (each and each.value for each in found)
    return None if old is None or new is None else (old, new)


def _did(before: Card, after: Card) -> str:
    css, quality = leak_of(after).css, after.forget_quality
    if css == "over":
        return (
            "made the model forget too much: the texts look less familiar than texts "
            "that it has never seen"
        )
    if css == "leaks":
        return "left traces: the forgotten texts are still recognized"
    found = after.equivalence
    if found is not None and found.decision == DIFFERENT:
        return _differs(found)
    if quality is not None and quality.value < REJECTED:
        return "left a model that truth ratios tell from one that never saw the texts"
    if found is not None and found.decision == EQUIVALENT:
        return (
            f"left the model like one that never saw the texts: on {found.n} questions "
            f"they differ by less than {percent(found.margin)} of what was learned"
        )
    old, new = before.forget_probability.value, after.forget_probability.value
    changed = (
        f"brought the probability of the forgotten answers from {unit(old, 2)} to "
        f"{unit(new, 2)}"
    )
    if found is None:
        return changed
    are = "is" if found.n == 1 else "are"
    return (
        f"{changed}, and {plural(found.n, 'question')} {are} too few to tell whether "
        "that is as after retraining"
    )


def _differs(found: Equivalence) -> str:
    """How a model differs from the retrained one."""
    beyond = outside(found)
    for name in ("probability", "log_probability"):
        if name not in beyond:
            continue
        if beyond[name].value < 0:
            return "made the model forget more than one that never saw the texts"
        left = percentage(found.shares["probability"].value)
        return f"left {left} of what the model knew beyond one that never saw the texts"
    by = QUANTITIES[next(iter(beyond))]
    return f"left a model that {by} tells from one that never saw the texts"


def _utility(before: Card, after: Card) -> str:
    for name, (what, _) in _KEPT.items():
        found = both(name, before, after)
        if found and found[0]:
            return f"{percentage(found[1] / found[0])} of {what} is left"
    return "what it kept was not measured"


def _forgot(before: Card, after: Card, retrained: Card | None) -> Iterator[str]:
    old, new = before.forget_probability.value, after.forget_probability.value
    sentence = (
        f"The true answers to {plural(after.n_forget, 'forgotten question')} have a "
        f"mean probability of {unit(new, 2)}; it was {unit(old, 2)} before"
    )
    if retrained is not None:
        gold = unit(retrained.forget_probability.value, 2)
        sentence += f", and a model that never saw them has {gold}"
    yield sentence + "."


def _leak(after: Card) -> Iterator[str]:
    found = after.priv_leak
    if found is None:
        return
    shown = f"PrivLeak is {signed(f'{found.value:+.0f}')}{NBSP}%"
    if found.low is not None:
        ends = signed(f"{found.low:+.0f} to {found.high:+.0f}")
        shown += f" (95{NBSP}% interval {ends})"
    yield {
        "over": f"{shown}, far above 0: the forgotten texts now look less familiar to "
        "the model than texts that it has never seen. That is more than forgetting, "
        "and it tells an attacker which texts were removed.",
        "leaks": f"{shown}, far below 0: an attack still tells the forgotten texts "
        "from texts that the model has never seen.",
        "even": f"{shown}: attacks tell forgotten from unseen texts about as well as "
        "on the retrained model.",
        "": f"{shown}: there are too few texts to say whether it is more than "
        f"{FAR:g}{NBSP}% from the retrained model's.",
    }[leak_of(after).css]


def _quality(after: Card) -> Iterator[str]:
    found = after.forget_quality
    if found is None:
        return
    shown = f"log10 p = {signed(f'{found.log10:.1f}')}, D = {found.distance:.2f}"
    if found.note:
        yield (
            f"Truth ratios do not overlap those of the retrained model ({shown}): the "
            "value is the floor of the test and not a degree."
        )
    elif found.value >= REJECTED:
        yield (
            "The test of truth ratios does not tell the model from the retrained one "
            f"({shown}); that is no evidence that they are alike."
        )
    else:
        yield f"Truth ratios are not those of the retrained model ({shown})."


def _kept(before: Card, after: Card) -> Iterator[str]:
    for name, (_, sentence) in _KEPT.items():
        if found := both(name, before, after):
            old, new = (unit(value, 2) for value in found)
            yield sentence.format(old=old, new=new)
            return
