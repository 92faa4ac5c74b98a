"""The table of objectives: complete, and what a new one takes."""

import jax
import numpy as np
from objective_zoo import CASES, apply_fn, device_case

from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.methods.method import LossTerm
from lt_mia_jax.unlearning.objectives import OBJECTIVES
from lt_mia_jax.unlearning.objectives.batch import shifted, token_average
from lt_mia_jax.unlearning.objectives.likelihood import target_nll

ELSEWHERE = {"grpo"}
"""Tested in test_policy.py: it needs advantages."""


def test_every_objective_has_a_case():
    cases = {name.partition("-")[0] for name in CASES}
    known = {"kl": "kl_to_reference"}
    assert {known.get(name, name) for name in cases} | ELSEWHERE == set(OBJECTIVES)
    for name, objective in OBJECTIVES.items():
        assert getattr(objectives, name) is objective
        assert "Source: " in (objective.__doc__ or ""), name
        assert ">>> " in objective.__doc__, name


def test_a_new_objective_takes_a_function_and_a_row():
    def inverse(params, batch, *, apply_fn, key=None, power=1.0):
        """Mean over target tokens of `nll ** -power`. Source: this test."""
        values, mask = target_nll(params, batch, apply_fn, batch.weight)
        return token_average((values + ~mask) ** -power, mask, batch.weight)

    OBJECTIVES["inverse"] = inverse
    try:
        params, batch = device_case()
        term = LossTerm(OBJECTIVES["inverse"], {"power": 2.0})
        value, aux = jax.jit(lambda p: term(p, batch, apply_fn=apply_fn))(params)
    finally:
        del OBJECTIVES["inverse"]
    logits = np.asarray(params["logits"], np.float64)
    ids, mask = (np.asarray(x) for x in shifted(batch))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, ids[..., None], -1)[..., 0]
    weight = np.asarray(batch.weight)[:, None] * mask
    np.testing.assert_allclose(value, (weight / nll**2).sum() / mask.sum(), rtol=1e-5)
    np.testing.assert_array_equal(aux.tokens, mask.sum(1))
