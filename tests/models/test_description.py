import dataclasses

import pytest
from model_zoo import configs, with_block

from lt_mia_jax.configs import from_dict, to_dict
from lt_mia_jax.models.config import ModelConfig, NormPlace
from lt_mia_jax.models.description import LATER, describe


@pytest.mark.parametrize("name", configs())
def test_a_description_is_of_one_model_only(name):
    config = configs()[name]
    assert from_dict(ModelConfig, describe(config)) == config
    others = (other for key, other in configs().items() if other != config)
    assert all(describe(other) != describe(config) for other in others)


def test_what_came_later_shows_only_where_it_acts():
    config = configs()["qwen3"]
    written = set(str(describe(config)).split("'"))
    assert not written & set(LATER) - {"width"}  # the model has a width too
    changed = with_block(config, norm_place=NormPlace.SUM)
    changed = dataclasses.replace(
        changed, embedding=dataclasses.replace(config.embedding, width=5)
    )
    assert describe(changed)["pattern"][0]["norm_place"] == "sum"
    assert describe(changed)["embedding"]["width"] == 5
    masked = with_block(config, mixer={"causal": False})
    assert describe(masked)["pattern"][0]["mixer"]["causal"] is False
    assert from_dict(ModelConfig, describe(masked)) == masked
    assert to_dict(config)["pattern"][0]["norm_place"] == "input"
