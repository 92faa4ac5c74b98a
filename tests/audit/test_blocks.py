"""Audits of long texts in windows."""

import jax
import numpy as np
import pytest
from tiny_world import read_rows, sentences

from lt_mia_jax.audit import audit
from lt_mia_jax.audit.scoring import score_texts
from lt_mia_jax.cli import main
from lt_mia_jax.data.chat.rows import Completion
from lt_mia_jax.data.texts import Text, read_texts, zlib_length
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel

LONG = [" ".join(sentences(seed, 3)) for seed in range(7, 11)]
QUICK = {"length": 32, "bootstraps": 0}


def log_probs(model, ids):
    """Float64 log-probabilities of every token but the first, by the whole context."""
    logits = jax.jit(LanguageModel(model.config).apply)(model.params, np.array([ids]))
    rows = np.asarray(jax.device_get(logits)[0, :-1], np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows[np.arange(len(rows)), ids[1:]]


def test_texts_that_fit_one_window_are_scored_as_without(world, pair):
    texts = [row._replace(text=row.text[:80]) for row in read_texts(world.mixed)[:24]]
    plain = audit(pair, texts, length=64, bootstraps=0)
    assert not any("truncated" in flags for flags in plain.flags)
    for combine in ("mean", "max"):
        found = audit(pair, texts, length=64, bootstraps=0, overlap=8, combine=combine)
        for name, values in plain.scores.items():
            np.testing.assert_array_equal(found.scores[name], values)
        assert found.flags == plain.flags
        assert found.groups[0].words == plain.groups[0].words
        np.testing.assert_array_equal(found.n_tokens, plain.n_tokens)


def test_the_mean_loss_is_that_of_all_tokens_behind_their_windows(pair):
    texts = [Text(str(n), text) for n, text in enumerate(LONG)]
    options = {"attack": None, "length": 32, "overlap": 10}
    found = score_texts(texts, pair, **options)
    highest = score_texts(texts, pair, combine="max", **options)
    tokenizer = pair.target.tokenizer
    for number, text in enumerate(LONG):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert found.n_tokens[number] == len(ids) > 64
        lines, windows, done = [], [], 1
        while done < len(ids):
            first = max(0, min(done - 10, len(ids) - 32)) if done > 1 else 0
            tokens = ids[first : first + 32]
            values = log_probs(pair.target, tokens)[done - first - 1 :]
            lines += values.tolist()
            windows.append(np.mean(values))
            done = first + 32
        assert len(lines) == len(ids) - 1
        assert found.scores["loss"][number] == pytest.approx(np.mean(lines), rel=1e-4)
        right = pytest.approx(max(windows), rel=1e-4)
        assert highest.scores["loss"][number] == right
        assert found.words is not None
        assert found.words[number] == text
        assert found.flags[number] == []


def test_zlib_sees_the_bytes_of_its_window(pair):
    """A window of bytes that compress well does not profit from another one's."""
    text = Text("a", "the " * 60 + sentences(3, 1)[0])
    found = score_texts([text], pair, attack=None, length=32, overlap=1)
    whole = found.scores["loss"][0] / zlib_length(text.text)
    assert found.scores["zlib"][0] < whole < 0


def test_the_command_takes_windows(world, pair, tmp_path):
    arguments = ["--texts", str(world.mixed), "--nonmembers", str(world.others)]
    arguments += ["--length", "24", "--bootstraps", "10", "--overlap", "8"]
    out = tmp_path / "out"
    assert main(["audit", *world.arguments(), *arguments, "--out", str(out)]) == 0
    rows = read_rows(out / "scores.jsonl")
    cut = audit(pair, read_texts(world.mixed), length=24, bootstraps=0)
    assert max(cut.n_tokens) == 24 < max(row["n_tokens"] for row in rows)
    assert "windows of 24 tokens of which 8 are" in (out / "report.html").read_text()
    for wrong in ([*arguments[:-1], "23"], [*arguments[:-2], "--combine", "max"]):
        wrong += ["--out", str(tmp_path / "wrong")]
        assert main(["audit", *world.arguments(), *wrong]) == 2
    assert not (tmp_path / "wrong").exists()


def test_conversations_without_a_response_are_refused_as_without_windows(pair):
    # The border is inside of the token " re".
    assert len(pair.target.tokenizer(" re")["input_ids"]) == 1
    chats = [Completion(f"{text} r", "e") for text in LONG]
    texts = [Text(str(n), x.text, chat=x) for n, x in enumerate(chats)]
    for overlap in (None, 8):
        with pytest.raises(InputError, match="all 4 texts have no token of the resp"):
            score_texts(texts, pair, attack=None, length=32, overlap=overlap)


def test_a_text_is_short_if_all_its_windows_together_are(pair):
    chat = Completion(LONG[0], " the red model")
    text = Text("a", chat.text, chat=chat)
    options = {"attack": None, "length": 32, "overlap": 24}
    found = score_texts([text], pair, **options)
    steps = int(found.n_tokens[0])
    assert 0 < steps < 16
    assert found.flags == [[f"short: {steps} scored tokens"]]
