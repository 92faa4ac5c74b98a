import logging

from family_zoo import config_json

from lt_mia_jax.checkpoints import read_config
from lt_mia_jax.models.config import LinearScaling, Rotary

OLDER_GEMMA3 = {
    "sliding_window_pattern": 2,
    "num_hidden_layers": 3,
    "rope_theta": 5e5,
    "rope_local_base_freq": 100.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "cache_implementation": "hybrid",
}


def test_rotary_bases_of_gemma_3_in_old_and_new_files(caplog):
    local = {"rope_type": "default", "rope_theta": 100.0}
    wide = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    newer = {
        "num_hidden_layers": 3,
        "layer_types": types,
        "rope_parameters": {"sliding_attention": local, "full_attention": wide},
    }
    with caplog.at_level(logging.WARNING):
        found = [
            read_config({**config_json("gemma3_text"), **each}, "config.json")
            for each in (OLDER_GEMMA3, newer)
        ]
    assert not caplog.records
    assert found[0] == found[1]
    near, far = (block.mixer for block in found[0].pattern)
    assert near.position == Rotary(theta=100.0)
    assert near.window == 4
    assert far.position == Rotary(theta=5e5, scaling=LinearScaling(factor=8.0))
    assert far.window is None


def test_defaults_of_gemma_2():
    """As in the files of gemma-2-2b, which say little more than sizes."""
    config = read_config({"model_type": "gemma2", "num_hidden_layers": 4}, "x")
    local, wide = (block.mixer for block in config.pattern)
    assert (local.window, wide.window) == (4096, None)
    assert local.scale == wide.scale == 1 / 16
    assert (local.score_softcap, config.logit_softcap) == (50.0, 30.0)
