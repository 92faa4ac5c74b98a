"""Asking a server over HTTP, which fails in every way that passes."""

import json
import logging
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
from served_model import WIDTH, Served, serving
from tiny_world import read_rows

from lt_mia_jax.audit import completions
from lt_mia_jax.audit.collect import collect_from_model, collect_from_server
from lt_mia_jax.audit.completions import KEY, Server, read_answer
from lt_mia_jax.data.texts import Text, read_texts
from lt_mia_jax.errors import InputError, Unavailable
from lt_mia_jax.executor import make_executor


@pytest.fixture(scope="module")
def models(world):
    return Served(tuned=world.target)


@pytest.fixture
def served(models):
    with serving(models.fresh()) as found:
        yield found


def server(served, **changes):
    settings = {"url": served.url, "model": "tuned", "first_wait": 0.01} | changes
    return Server(**settings)


def some(world, count):
    texts = [text._replace(label=None) for text in read_texts(world.members)]
    return [*texts[:count], Text("none", ""), Text("short", "a")]


def collected(world, served, out, texts, **changes):
    asked = server(served, **changes)
    return collect_from_server(texts, asked, str(world.base), out, length=WIDTH)


def test_rows_are_those_of_the_model_itself(world, served, tmp_path):
    texts = some(world, 8)
    assert collected(world, served, tmp_path / "far.jsonl", texts) == 10
    # A text of one token has nothing to ask for.
    assert len(served.asked) == 9
    near = tmp_path / "near.jsonl"
    collect_from_model(texts, str(world.target), near, make_executor(), length=WIDTH)
    for far, own in zip(
        read_rows(tmp_path / "far.jsonl"), read_rows(near), strict=True
    ):
        np.testing.assert_allclose(
            far.pop("log_probs"), own.pop("log_probs"), rtol=1e-5, atol=1e-5
        )
        assert far.pop("model") == "tuned"
        assert (own.pop("model"), len(own.pop("weights"))) == (str(world.target), 16)
        assert far == own


PASSING = [
    (429, {"Retry-After": "0"}),
    (500, {}),
    (503, {"Retry-After": "soon"}),
    "slow",
    "truncated",
    "dropped",
    "garbage",
]


def test_failures_that_pass_cost_nothing_but_time(world, served, tmp_path, caplog):
    served.faults.extend([*PASSING, None, None, *PASSING])
    texts = some(world, 8)
    changes = {"timeout": 1.5, "concurrency": 3, "retries": 20}
    with caplog.at_level(logging.WARNING):
        assert collected(world, served, tmp_path / "a.jsonl", texts, **changes) == 10
    rows = read_rows(tmp_path / "a.jsonl")
    assert [row["id"] for row in rows] == [text.id for text in texts]
    whole = server(served).ask([row["token_ids"] for row in rows if row["log_probs"]])
    for row in rows:
        if row["log_probs"]:
            log_probs, ranks = next(whole)
            np.testing.assert_allclose(row["log_probs"], log_probs, rtol=1e-6)
            assert row["ranks"] == ranks
    said = caplog.text
    for words in ("HTTP 429 (fault 429)", "HTTP 500", "timed out", "Disconnected"):
        assert words in said
    # Two that are none, and two that were cut.
    assert said.count("not JSON") == 4


def test_a_server_that_stays_away(world, served, tmp_path):
    texts, out = some(world, 8), tmp_path / "a.jsonl"
    served.faults.extend([None, None, None, *[(503, {})] * 9])
    with pytest.raises(
        Unavailable, match=r"HTTP 503 \(fault 503\), 3 times; rows that"
    ):
        collected(world, served, out, texts, retries=2, concurrency=1)
    kept = read_rows(out)
    assert len(kept) == 3
    served.faults.clear()
    assert collected(world, served, out, texts) == 7
    assert read_rows(out)[:3] == kept
    # What was there is not asked for again.
    prompts = [prompt for _, prompt in served.asked]
    assert [prompts.count(row["token_ids"]) for row in kept] == [1, 1, 1]
    assert collected(world, served, out, texts) == 0


def test_no_more_requests_than_the_rate(world, served, tmp_path):
    collected(world, served, tmp_path / "a.jsonl", some(world, 8), rate=40.0)
    gaps = np.diff(sorted(served.times))
    assert len(gaps) == 8
    assert served.times[-1] - served.times[0] >= 8 / 40 * 0.9


def test_all_threads_wait_as_long_as_the_server_wants(world, served, tmp_path):
    served.faults.append((429, {"Retry-After": "1"}))
    texts = some(world, 8)
    collected(world, served, tmp_path / "a.jsonl", texts, concurrency=2)
    # Two were under way; the others came a second later.
    early = [x for x in served.times if x - served.times[0] < 0.9]
    assert len(early) <= 3
    assert len(served.times) == 10


def test_a_refusal_is_one_line(world, served, tmp_path, monkeypatch):
    texts, out = some(world, 2), tmp_path / "a.jsonl"
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(InputError, match="HTTP 404: no model base"):
        collected(world, served, out, texts, model="base")
    served.key = "secret-of-mine"
    with pytest.raises(InputError, match=f"401: no such key.*set {KEY}"):
        collected(world, served, out, texts)
    assert not out.exists()
    monkeypatch.setenv(KEY, served.key)
    assert collected(world, served, out, texts) == 4
    assert served.key not in out.read_text()
    served.faults.append((307, {"Location": "http://elsewhere/"}))
    with pytest.raises(InputError, match=r"307.*new address, http://elsewhere/"):
        collected(world, served, tmp_path / "b.jsonl", texts)


def test_a_server_that_is_not_there(world, served, tmp_path):
    gone = {"url": "http://127.0.0.1:9", "retries": 1}
    with pytest.raises(Unavailable, match=r"ConnectionRefusedError.*2 times"):
        collected(world, served, tmp_path / "a.jsonl", some(world, 2), **gone)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000", "expected an address such as"),
        ("ftp://host/v1", "expected an address such as"),
        ("http://", "expected an address such as"),
        ("http://host:port/v1", "expected an address such as"),
        ("http://host/\N{LATIN SMALL LETTER E WITH ACUTE}/v1", "expected an address"),
        ("http://.host.com/v1", "expected an address such as"),
        ("http://me:secret@host/v1", "found a user, a query or a fragment"),
        ("https://host/v1?key=secret", "found a user, a query or a fragment"),
    ],
)
def test_addresses_that_are_refused(url, words):
    with pytest.raises(InputError, match=words) as refused:
        Server(url=url, model="m")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["se\ncret", "s\N{RIGHT SINGLE QUOTATION MARK}cret"])
def test_keys_that_no_header_holds_are_not_shown(key, monkeypatch):
    monkeypatch.setenv(KEY, key)
    with pytest.raises(InputError, match=KEY) as refused:
        list(Server(url="http://localhost:1", model="m").ask([[1, 2]]))
    assert "cret" not in str(refused.value)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/completions"])
def test_addresses(end):
    assert Server(url=f"http://h:1/a{end}", model="m").endpoint == (
        "http://h:1/a/v1/completions"
    )


def listed(**changes):
    """An answer for the prompt 7 8 9."""
    entry = {"8": {"logprob": -1.5, "rank": 3}, "5": {"logprob": -0.5, "rank": 1}}
    last = {"9": {"logprob": -0.5, "rank": 2}, "4": {"logprob": -0.5, "rank": 1}}
    found = [None, entry, last]
    return {"choices": [{"prompt_logprobs": found} | changes]}


def test_a_token_that_ties_with_the_best_has_rank_1():
    assert read_answer(listed(), [7, 8, 9], "s") == ([-1.5, -0.5], [3, 1])


def entry(**values):
    return [None, {"8": {"logprob": -1.0, "rank": 1} | values}, {"9": {}}]


ECHO = {"tokens": ["a"], "token_logprobs": [None]}
ANSWERS = {
    "nothing": ({}, "has no prompt_logprobs .*Serve the model with vLLM"),
    "a list": ([], "has no prompt_logprobs"),
    "no choice": ({"choices": []}, "has no prompt_logprobs"),
    "echo": (
        {"choices": [{"logprobs": ECHO}]},
        "`logprobs` with `echo` has no ids and no ranks",
    ),
    "null": (listed(prompt_logprobs=None), "has no prompt_logprobs"),
    "too few": (listed(prompt_logprobs=[None]), "1 prompt_logprobs for 3 tokens"),
    "other tokens": (
        listed(prompt_logprobs=[None, {"1": {}}, {}]),
        r"token 2 \(id 8\) is not among .*--tokenizer",
    ),
    "no rank": (
        listed(prompt_logprobs=entry(rank=None)),
        "rank None; expected numbers",
    ),
    "no number": (listed(prompt_logprobs=entry(logprob="x")), "logprob x and rank 1"),
    "NaN": (listed(prompt_logprobs=entry(logprob=math.nan)), "logprob nan and rank 1"),
    "impossible": (
        listed(prompt_logprobs=entry(logprob=-9999.0)),
        r"token 2 \(id 8\) has no probability",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_that_do_not_suffice(case):
    answer, words = ANSWERS[case]
    answer = json.loads(json.dumps(answer))
    with pytest.raises(InputError, match=words):
        read_answer(answer, [7, 8, 9], "s")


def test_how_long_a_server_wants_one_to_wait():
    later = datetime.now(UTC) + timedelta(seconds=30)
    for value, expected in (
        (None, None),
        ("soon", None),
        ("nan", None),
        ("2", 2.0),
        ("-5", 0.0),
        ("1e9", 3600.0),
        (format_datetime(later, usegmt=True), 30.0),
        (format_datetime(later - timedelta(hours=1), usegmt=True), 0.0),
    ):
        found = completions._seconds(value)
        assert found == (
            expected if expected is None else pytest.approx(expected, abs=2)
        )
