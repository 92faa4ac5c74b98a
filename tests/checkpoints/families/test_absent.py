import pytest

from lt_mia_jax.checkpoints import read_config
from lt_mia_jax.checkpoints.families import FAMILIES
from lt_mia_jax.checkpoints.families.absent import ABSENT
from lt_mia_jax.errors import InputError


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("phi3", "close to llama, but .*qkv_proj, gate_up_proj.*longrope is missing"),
        ("mixtral", "close to mistral, but layers of experts are missing"),
        ("novel", "a causal language model, whose layers and tensor names are missing"),
    ],
)
def test_a_causal_model_that_is_not_supported_is_told_what_is_missing(kind, words):
    data = {"model_type": kind, "architectures": ["NovelForCausalLM"]}
    with pytest.raises(InputError, match=rf"{kind}.*{words}.*supported are \['bloom'"):
        read_config(data, "config.json")


def test_a_type_counts_as_absent_until_it_has_a_family():
    assert not set(ABSENT) & set(FAMILIES)
    assert {near for near, _ in ABSENT.values()} <= set(FAMILIES)
