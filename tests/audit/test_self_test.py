"""The self-test: its stored numbers are PyTorch's, and wrong ones are noticed."""

import json

import jax
import numpy as np
import oracle_features
import oracle_scores
import pytest

from lt_mia_jax.audit import self_test
from lt_mia_jax.checkpoints import BASE
from lt_mia_jax.cli import main

RIGHT = json.loads(self_test.RIGHT.read_text())


@pytest.mark.parity
def test_the_stored_scores_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    reference = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    target = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    with torch.no_grad():
        for weight in target.parameters():
            weight *= self_test.GROWTH
    models = (target, reference)
    for n in (0, 2, 7):  # code, prose, and a text of two tokens
        ids = [*tokenizer(self_test.TEXTS[n])["input_ids"], tokenizer.eos_token_id]
        given = torch.tensor([ids])
        with torch.no_grad():
            logits = [model(given).logits.double().numpy() for model in models]
        tokens, mask = np.array([ids]), np.ones((1, len(ids)))
        found = oracle_features.token_statistics(*logits, tokens, mask)
        row = {name: values[0, :-1].tolist() for name, values in found.items()}
        for name in ("loss", "reference", "entropy", "min_k_plus_plus", "rank", "ez"):
            right = getattr(oracle_scores, name)(row)
            assert RIGHT[name][n] == pytest.approx(right, rel=1e-3, abs=1e-4), (n, name)


def test_a_machine_that_computes_otherwise_is_found_out(capsys, monkeypatch):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "self-test      passed" in shown
    assert f"{jax.device_count()} x cpu" in shown
    assert jax.__version__ in shown
    monkeypatch.setattr(self_test, "GROWTH", 1.03)
    assert main(["doctor"]) == 2
    assert "the self-test failed" in capsys.readouterr().err


def test_a_missing_score_is_a_deviation():
    found, right = np.array([1.0, np.nan]), np.array([1.0, 2.0])
    assert self_test._deviation(found, right) == np.inf
    assert self_test._deviation(found, found) == 0
    assert self_test._deviation(np.array([104.0]), np.array([100.0])) == pytest.approx(
        0.04
    )
    assert not self_test.SelfTest({"loss": np.nan}, 1.0).passed
