"""The typed card and its file: whole circles, old files, and what is refused."""

import dataclasses
import json

import pytest
from oracle_cards import card, document, interval

from lt_mia_jax.attacks.estimate import Estimate
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.records import (
    AttackResult,
    Card,
    Equivalence,
    GroupLeakage,
    MuseCard,
    Risk,
    Share,
    TprAtRate,
    TraceAccuracy,
)
from lt_mia_jax.verification.storage import (
    card_from_json,
    card_to_json,
    read_run,
    run_from_json,
    run_to_json,
    write_run,
)


def one(value):
    return Estimate(value, value - 1, value + 1)


ATTACKED = AttackResult(
    auc=one(0.7), tpr=TprAtRate(rate=0.01, refused=True, n_holdout=9)
)
FULL = Card(
    n_forget=4,
    forget_probability=one(0.5),
    forget_exact_memorization=one(0.25),
    utility_parts={"retain/probability": one(0.9)},
    attacks={
        "loss": dataclasses.replace(ATTACKED, leak=Estimate(3.0)),
        "min_k_plus_plus": AttackResult(
            auc=one(0.6),
            tpr=TprAtRate(rate=0.01, refused=False, n_holdout=9, value=0.2),
        ),
    },
    equivalence=Equivalence(
        decision="too few to tell",
        margin=0.25,
        shares={"probability": Share(0.1, -0.2, 0.4)},
        n=4,
    ),
    trace_accuracy=TraceAccuracy(value=0.75, p_value=0.01, n=12),
    worst_group=GroupLeakage(attack="loss", group="city", n=3, value=-0.5),
    group_leakage=(GroupLeakage(attack="loss", group="city", n=3, value=-0.5),),
    risk=Risk(value=0.25, level=0.3, p_value=0.2, n=4),
    muse=MuseCard(
        verbmem=one(0.1),
        knowmem_forget=one(0.2),
        knowmem_retain=one(0.3),
        attacks={"zlib": ATTACKED},
    ),
)


def test_a_card_comes_back_from_its_file():
    flat = json.loads(json.dumps(card_to_json(FULL)))
    assert card_from_json(flat) == FULL
    # The layout that earlier versions read.
    assert flat["auc_min_k_plus_plus"] == {"value": 0.6, "low": -0.4, "high": 1.6}
    assert flat["tpr_loss"] == {"rate": 0.01, "refused": True, "n_holdout": 9}
    assert flat["leak_loss"] == {"value": 3.0, "low": None, "high": None}
    assert flat["muse_verbmem"]["value"] == 0.1
    assert flat["muse_auc_zlib"]["value"] == 0.7
    assert flat["forget_exact_memorisation"]["value"] == 0.25
    assert "forget_rouge" not in flat
    assert "completeness_gap" not in flat


def test_a_file_of_an_earlier_version_is_read_and_written_alike(tmp_path):
    old = document()
    run = run_from_json(old)
    before = run.verification.models["before"]
    assert before.attacks["loss"].leak == Estimate(-99.0)
    assert before.forget_quality.n == (90, 90)
    assert run.verification.rounded[0].recovered == Estimate(0.8, 0.78, 0.8 + 0.02)
    assert run.about.forget.file == "data/forget10.jsonl"
    assert before.risk is None
    again = run_to_json(run)
    again["about"] = old["about"]  # older files have less of it
    assert again["rounded"][0].pop("grid") == "channel"  # and know no other one
    assert again == json.loads(json.dumps(old))
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run


def test_entries_that_no_card_has_are_left_out():
    assert card_from_json(card() | {"rate": 1e-4, "epochs": 40}) == card_from_json(
        card()
    )


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda d: d.pop("method"), r"method is missing"),
        (
            lambda d: d["models"]["after"].pop("n_forget"),
            r"models\.after\.n_forget is missing",
        ),
        (
            lambda d: d["models"]["after"]["forget_quality"].pop("distance"),
            r"models\.after\.forget_quality\.distance is missing",
        ),
        *(
            (lambda d, key=key: d.pop(key), f"{key} is missing")
            for key in (
                *("title", "settings", "forget", "models", "examples", "scores"),
                *("layers", "map", "rounded", "relearning", "notes", "about"),
                *("config", "versions", "command"),
            )
        ),
        *(
            (lambda d, key=key: d["examples"][1].pop(key), rf"\[1\]\.{key} is missing")
            for key in ("id", "topic", "question", "answer", "said")
        ),
        *(
            (
                lambda d, key=key: d["examples"][0]["said"]["before"].pop(key),
                rf"examples\[0\]\.said\.before\.{key} is missing",
            )
            for key in ("answer", "probability", "rouge", "extraction")
        ),
        (
            lambda d: d["rounded"][0].pop("recovered"),
            r"rounded\[0\]\.recovered is missing",
        ),
        (lambda d: d["relearning"].pop("area"), r"relearning\.area is missing"),
        (
            lambda d: d["models"]["after"]["forget_quality"].pop("note"),
            r"models\.after\.forget_quality\.note is missing",
        ),
        (
            lambda d: d["models"]["after"]["forget_probability"].pop("value"),
            r"models\.after\.forget_probability\.value is missing",
        ),
        (
            lambda d: d["models"]["after"]["priv_leak"].update(value=None),
            r"models\.after\.priv_leak\.value is null instead of a number",
        ),
        (
            lambda d: d["scores"]["after"]["forget"].update(loss=[]),
            r"scores\.after\.forget\.loss is empty",
        ),
        (
            lambda d: d["layers"]["forget"]["models"].update(after=[]),
            r"layers\.forget\.models\.after is empty",
        ),
        (lambda d: d["relearning"].update(steps=[]), r"relearning\.steps is empty"),
        (
            lambda d: d["models"]["retrained"]["auc_loss"].update(value=None),
            r"models\.retrained\.auc_loss\.value is null instead of a number",
        ),
        (
            lambda d: d["examples"][1]["said"]["after"].update(probability="high"),
            r"examples\[1\]\.said\.after\.probability is 'high'",
        ),
        (lambda d: d.update(models=[]), r"models is \[\] instead of an object"),
        (lambda d: d["models"].update(after=3), r"models\.after is 3 instead of"),
        (lambda d: d.update(kind="membership"), "expected the card"),
    ],
)
def test_what_is_broken_is_named(break_it, words):
    content = document()
    break_it(content)
    with pytest.raises(InputError, match=words):
        run_from_json(content)


def test_intervals_of_bare_cards():
    found = card_from_json({"n_forget": 1, "forget_probability": interval(0.5)})
    assert found == Card(n_forget=1, forget_probability=Estimate(0.5, 0.48, 0.52))
