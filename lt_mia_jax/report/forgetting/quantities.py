"""What a report card says, in names and in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lt_mia_jax.attacks.scores.table import LEARNED, SCORES
from lt_mia_jax.report.forgetting.cards import Card
from lt_mia_jax.report.wording import (
    NBSP,
    percentage,
    plural,
    signed,
    unit,
)

FAR = 25.0
"""PrivLeak beyond this, in percent, is not what retraining gives."""
PASSED = 0.05
"""Forget quality above this passes the test of TOFU."""

Want = Literal["low", "high", "retrained"]


class Metric(NamedTuple):
    """How an entry of a card is shown."""

    label: str
    definition: str
    want: Want
    """What is good: little, much, or what the retrained model has."""
    digits: int = 3


METRICS = {
    "model_utility": Metric(
        "Model utility",
        "harmonic mean of nine numbers on what was to be kept",
        "high",
    ),
    "forget_quality": Metric(
        "Forget quality",
        "log10 p that truth ratios are a retrained model's; D is their distance",
        "high",
        1,
    ),
    "priv_leak": Metric(
        "PrivLeak, %",
        "below 0 still recognized, above 0 less familiar than texts never seen",
        "retrained",
        0,
    ),
    "forget_probability": Metric(
        "Forget probability",
        "geometric mean over the tokens of the true answer",
        "retrained",
    ),
    "forget_rouge": Metric(
        "Forget ROUGE-L", "recall of the greedy answer", "retrained"
    ),
    "forget_truth_ratio": Metric(
        "Truth ratio", "1 where truth and falsehood are equally likely", "retrained"
    ),
    "forget_slot_accuracy": Metric(
        "Slot accuracy", "the fact alone is the most likely", "retrained"
    ),
    "forget_slot_log_rank": Metric(
        "Slot log-rank", "logarithm of the rank of the fact; 0 is first", "retrained"
    ),
    "forget_extraction_strength": Metric(
        "Extraction strength", "share of the answer that the rest brings back", "low"
    ),
    "forget_knowledge_left": Metric(
        "Knowledge left",
        "probability of true answers: 0 as retrained, 1 as before unlearning",
        "retrained",
    ),
    "forget_exact_memorisation": Metric(
        "Exact memorization", "share of tokens that are the most likely", "retrained"
    ),
    "forget_memo": Metric(
        "MEMO", "ROUGE-1 precision over many beginnings", "retrained"
    ),
    "retain_probability": Metric(
        "Probability, kept", "of the answers that were to be kept", "high"
    ),
    "retain_rouge": Metric("ROUGE-L, kept", "recall of the kept answers", "high"),
    "retain_extraction_strength": Metric(
        "Extraction strength, kept", "of the kept answers", "high"
    ),
    "loss_gap_nats": Metric(
        "Loss gap, nats", "unseen minus forgotten texts, a token", "retrained"
    ),
    "completeness": Metric(
        "Completeness", "1 nothing of the fit is left, 0 as before (IAM)", "high"
    ),
    "told_from_retrained": Metric(
        "Told from retrained",
        "best threshold on the probability; 0 no attack works",
        "low",
    ),
    "muse_verbmem": Metric(
        "VerbMem", "ROUGE-L F1 of how a forgotten text goes on", "retrained"
    ),
    "muse_knowmem_forget": Metric(
        "KnowMem, forgotten", "ROUGE-L F1 of answers about forgotten texts", "retrained"
    ),
    "muse_knowmem_retain": Metric(
        "KnowMem, kept", "ROUGE-L F1 of answers about kept texts: utility", "high"
    ),
    "muse_priv_leak": Metric(
        "PrivLeak of MUSE's texts, %",
        "forgotten against held-out texts, beside the retrained model",
        "retrained",
        0,
    ),
}
"""What we know of the entries of a card, in the order of the tables."""
KNOWN = tuple(n for n in METRICS if n.startswith("forget_") and n != "forget_quality")
KEPT = ("model_utility", *(n for n in METRICS if n.startswith("retain_")))
MUSE = tuple(n for n in METRICS if n.startswith("muse_"))
LEAKS = ("priv_leak", "loss_gap_nats", "completeness", "told_from_retrained")


def attacks_of(cards: Sequence[Card]) -> list[str]:
    """Names of the attacks that any card has, the learned one first."""
    names = dict.fromkeys(
        key.removeprefix("auc_") for card in cards for key in card if key[:4] == "auc_"
    )
    order = [LEARNED, *(score.name for score in SCORES), *names]
    return sorted(names, key=order.index)


def value_of(card: Card | None, name: str) -> float | None:
    """The value of an entry; None where there is none."""
    found = (card or {}).get(name)
    return None if not isinstance(found, Mapping) else found.get("value")


def leak_word(card: Card) -> tuple[str, str]:
    """What PrivLeak says, in a few words, and its CSS class.

    The words follow the interval where there is one: one that reaches into the band
    around 0 makes them careful, and they have no class.
    """
    found = card.get("priv_leak")
    if not found:
        return "", ""
    value = found["value"]
    low, high = (found.get(x) for x in ("low", "high"))
    low, high = (value if x is None else x for x in (low, high))
    if low > FAR:
        return "over-forgotten", "over"
    if high < -FAR:
        return "still recognized", "leaks"
    if low >= -FAR and high <= FAR:
        return "as retrained", "even"
    if value > FAR:
        return "rather over-forgotten", ""
    if value < -FAR:
        return "rather recognized", ""
    return "undecided", ""


def verdict(document: Mapping[str, Any]) -> list[str]:
    """What a run has done, in sentences, the most important first."""
    after, before = document["models"]["after"], document["models"]["before"]
    retrained = document["models"].get("retrained")
    return [
        _lede(document["method"], before, after),
        *_forgot(before, after, retrained),
        *_leak(after),
        *_quality(after),
        *_kept(before, after),
    ]


def _lede(method: str, before: Card, after: Card) -> str:
    word = leak_word(after)[1]
    quality = (after.get("forget_quality") or {}).get("value")
    if word == "over":
        did = (
            "made the model forget too much: the texts look less familiar than texts "
            "that it has never seen"
        )
    elif word == "leaks":
        did = "left traces: the forgotten texts are still recognized"
    elif quality is not None:
        did = (
            "left the model like one that never saw the texts, as far as the test of "
            "truth ratios can tell"
            if quality >= PASSED
            else "left a model that truth ratios tell from one that never saw the texts"
        )
    else:
        old, new = (value_of(x, "forget_probability") for x in (before, after))
        did = (
            f"brought the probability of the forgotten answers from {unit(old, 2)} to "
            f"{unit(new, 2)}"
        )
    return f"{method} {did}; {_utility_phrase(before, after)}."


def _utility_phrase(before: Card, after: Card) -> str:
    for name, what in (
        ("model_utility", "utility"),
        ("retain_probability", "the probability of kept answers"),
    ):
        old, new = (value_of(x, name) for x in (before, after))
        if old and new is not None:
            return f"{percentage(new / old)} of {what} is left"
    return "what it kept was not measured"


def _forgot(before: Card, after: Card, retrained: Card | None) -> Iterator[str]:
    old, new = (value_of(x, "forget_probability") for x in (before, after))
    sentence = (
        f"The true answers to {plural(after['n_forget'], 'forgotten question')} have a "
        f"mean probability of {unit(new, 2)}; it was {unit(old, 2)} before"
    )
    if retrained is not None:
        gold = value_of(retrained, "forget_probability")
        sentence += f", and a model that never saw them has {unit(gold, 2)}"
    yield sentence + "."


def _leak(after: Card) -> Iterator[str]:
    if "priv_leak" not in after:
        return
    found, (_, css) = after["priv_leak"], leak_word(after)
    value = signed(f"{found['value']:+.0f}")
    shown = f"PrivLeak is {value}{NBSP}%"
    if found.get("low") is not None:
        ends = signed(f"{found['low']:+.0f} to {found['high']:+.0f}")
        shown += f" (95{NBSP}% interval {ends})"
    if css == "over":
        yield (
            f"{shown}, far above 0: the forgotten texts now look less familiar to the "
            "model than texts that it has never seen. That is more than forgetting, "
            "and it tells an attacker which texts were removed."
        )
    elif css == "leaks":
        yield (
            f"{shown}, far below 0: an attack still tells the forgotten texts from "
            "texts that the model has never seen."
        )
    elif css == "even":
        yield (
            f"{shown}: attacks tell forgotten from unseen texts about as well as on "
            "the retrained model."
        )
    else:
        yield (
            f"{shown}: there are too few texts to say whether it is more than "
            f"{FAR:g}{NBSP}% from the retrained model's."
        )


def _quality(after: Card) -> Iterator[str]:
    if "forget_quality" not in after:
        return
    found = after["forget_quality"]
    log = signed(f"{found['log10']:.1f}")
    shown = f"log10 p = {log}, D = {found['distance']:.2f}"
    if found["note"]:
        yield (
            f"Truth ratios do not overlap those of the retrained model ({shown}): the "
            "value is the floor of the test and not a degree."
        )
    elif found["value"] >= PASSED:
        yield f"Truth ratios could be those of the retrained model ({shown})."
    else:
        yield f"Truth ratios are not those of the retrained model ({shown})."


def _kept(before: Card, after: Card) -> Iterator[str]:
    old, new = (value_of(x, "model_utility") for x in (before, after))
    if old is not None and new is not None:
        yield f"Model utility is {unit(new, 2)}; it was {unit(old, 2)} before."
        return
    old, new = (value_of(x, "retain_probability") for x in (before, after))
    if old is not None and new is not None:
        yield (
            f"Answers that were to be kept have a mean probability of {unit(new, 2)}; "
            f"it was {unit(old, 2)}."
        )
