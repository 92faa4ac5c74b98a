import logging

import pytest
from model_zoo import CONTEXT, configs

from lt_mia_jax.errors import InputError
from lt_mia_jax.models.length import check_length


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_position_table_ends(name, caplog):
    config = configs()[name]
    check_length(config.context, target=config)
    with pytest.raises(InputError, match=rf"--length {config.context + 1}: the target"):
        check_length(config.context + 1, reference=None, target=config)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("llama", True),
        ("gemma3_text", True),  # every second layer sees everything
        ("mistral", False),  # its window is as long as in training
        ("recurrent_gemma", False),
        ("mamba", False),
        ("mpt", False),  # biases by distance are made for longer texts
    ],
)
def test_rotary_positions_beyond_training_are_a_warning(name, warned, caplog):
    config = configs()[name]
    with caplog.at_level(logging.WARNING):
        check_length(config.context, model=config)
        assert not caplog.records
        check_length(config.context + 1, model=config)
    said = f"trained on texts of at most {config.context} tokens" in caplog.text
    assert said == warned == ("--length" in caplog.text)


def test_the_refusal_names_the_largest_length():
    with pytest.raises(InputError, match=rf"give --length {CONTEXT} or less"):
        check_length(10**4, model=configs()["gpt2"])
