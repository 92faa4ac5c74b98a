"""Rollouts laid out and scored as they were drawn."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from model_zoo import VOCAB, configs, random_params
from quick_compile import jit

from lt_mia_jax.models import LanguageModel
from lt_mia_jax.policy.rollouts import Decoding, roll_out, token_log_probs

PROMPTS = np.random.default_rng(0).integers(1, VOCAB, (3, 4)).astype(np.int32)
LENGTHS, GROUP = np.array([4, 2, 3]), 2
KEY = jax.random.key(5)


@pytest.mark.parametrize("name", ["llama", "mamba", "rwkv", "recurrent_gemma"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_first_ratio_is_one(name, temperature):
    """Cached sampling and the scoring pass agree, so the first update is unclipped."""
    config = configs()[name]
    model, params = LanguageModel(config), random_params(config, seed=7)
    decoding = Decoding(max_new_tokens=5, temperature=temperature, end_tokens=(3, 8))
    found = roll_out(
        model, params, PROMPTS, LENGTHS, key=KEY, group=GROUP, decoding=decoding
    )
    scored = jit(lambda p, r: token_log_probs(model, p, r))(params, found)
    np.testing.assert_allclose(scored, found.log_probs, atol=1e-4)
    for row, answer in enumerate(found.answers()):
        start = LENGTHS[row // GROUP]
        prompt = PROMPTS[row // GROUP, :start]
        text = np.asarray(found.input_ids[row])
        np.testing.assert_array_equal(text[:start], prompt)
        np.testing.assert_array_equal(text[start : start + len(answer)], answer)
        assert not text[start + len(answer) :].any()
        assert len(answer) == 5 or answer[-1] in (3, 8)
        assert not {3, 8} & set(answer[:-1])


def test_the_loop_of_the_page_learns_what_it_rewards(capsys):
    page = Path(__file__).parents[2] / "docs" / "policy.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
    lines = [line for line in code.splitlines() if line.strip()]
    assert sum("import" not in line for line in lines) <= 30
    exec(code, {})
    assert float(capsys.readouterr().out.split()[0]) > 0.5  # 1 / 64 by chance
