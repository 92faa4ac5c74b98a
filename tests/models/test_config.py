import dataclasses

import pytest
from model_zoo import configs

from lt_mia_jax.configs import from_dict, to_dict
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import ModelConfig
from lt_mia_jax.models.config import Attention, Dropout, Learned, Rotary


@pytest.mark.parametrize("name", configs())
def test_json_round_trip_gives_an_equal_and_hashable_config(name):
    config = configs()[name]
    again = from_dict(ModelConfig, to_dict(config))
    assert again == config
    assert hash(again) == hash(config)


def test_all_configs_differ():
    assert len(set(configs().values())) == len(configs())


def test_head_counts_must_divide():
    with pytest.raises(InputError, match="kv_heads = 3 must divide heads = 4"):
        Attention(heads=4, kv_heads=3, head_dim=8)


def test_rotated_dimensions_must_be_even():
    with pytest.raises(InputError, match="must be even"):
        Attention(heads=1, kv_heads=1, head_dim=6, position=Rotary(fraction=0.5))


def test_dropout_rate_of_one_is_refused():
    with pytest.raises(InputError, match=r"dropout.attention = 1.0"):
        Dropout(attention=1.0)


def test_position_table_must_have_the_size_of_the_context():
    config = configs()["gpt2"]
    embedding = dataclasses.replace(config.embedding, positions=Learned(size=5))
    with pytest.raises(InputError, match="position table has 5 rows"):
        dataclasses.replace(config, embedding=embedding)


@pytest.mark.parametrize("field", ["vocab_size", "width", "layers", "context"])
def test_sizes_must_be_positive(field):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(configs()["llama"], **{field: 0})


def test_layers_are_whole_periods_and_a_tail():
    config = configs()["llama"]
    a = config.pattern[0]
    b = dataclasses.replace(a, norm=dataclasses.replace(a.norm, eps=1e-3))
    config = dataclasses.replace(config, pattern=(a, a, b), layers=8)
    assert config.periods == 2
    assert config.tail == (a, a)
