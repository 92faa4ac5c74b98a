"""Two tiny models with random weights, and a small SynTOFU."""

import jax
import pytest

from lt_mia_jax.data.syntofu import (
    MAX_LENGTH,
    TEMPLATE,
    SynTofuConfig,
    build,
    make_tokenizer,
)
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.verification.evaluated import EvaluatedModel

DATA = SynTofuConfig(
    background=2, fictitious=4, forget_percent=(25,), retain_evaluated=2
)


@pytest.fixture(scope="module")
def splits():
    return build(DATA)


@pytest.fixture(scope="module")
def subjects():
    tokenizer = make_tokenizer()
    model = LanguageModel(gpt2_like(len(tokenizer), 16, 1, 2, 32))
    return [
        EvaluatedModel(
            model, model.init(jax.random.key(i)), tokenizer, TEMPLATE, MAX_LENGTH
        )
        for i in range(2)
    ]
