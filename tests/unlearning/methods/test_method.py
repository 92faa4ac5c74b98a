"""Settings of methods: ranges, and what they need."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import unlearning_world as world

from lt_mia_jax.errors import InputError
from lt_mia_jax.unlearning.methods import METHODS, Method
from lt_mia_jax.unlearning.methods.method import Schedule

OUT_OF_RANGE = [
    ("npo", {"beta": 0.0}, "Npo: beta = 0, expected more than 0"),
    ("wga", {"beta": -1.0, "retain_weight": float("nan")}, "retain_weight = nan.*beta"),
    ("salun", {"share": 1.5}, "SalUn: share = 1.5, expected more than 0, at most 1"),
    ("sure", {"percentile": 101.0}, "Sure: percentile = 101"),
    (
        "graceful_forgetting",
        {"every": 0},
        "GracefulForgetting: every = 0, expected at least 1",
    ),
    (
        "graceful_forgetting",
        {"retain_weight": 0.0},
        "retain_weight = 0, expected more than 0",
    ),
    ("retrain", {"retain_weight": 0.0}, "Retrain: retain_weight = 0"),
    ("causal_layer_unlearning", {"highest": 1.0}, "at least 1.2, the smallest alpha"),
    ("gu_subspace", {"size": 0}, "GeometricUnlearning: size = 0"),
    ("pdu", {"initial": -1.0}, "Pdu: initial = -1, expected 0 or more"),
    ("guard", {"temperature": 0.0}, "Guard: temperature = 0"),
]


@pytest.mark.parametrize(("name", "changes", "message"), OUT_OF_RANGE)
def test_settings_outside_their_range_are_refused(name, changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(METHODS[name], **changes)


@pytest.mark.parametrize(
    "name", ["causal_layer_unlearning", "pdu", "gu", "npo", "kl_min", "rmu"]
)
def test_retain_texts_are_read_where_something_needs_them(name):
    """A weight of 0 does without them, unless the transformation looks at them."""
    method = dataclasses.replace(METHODS[name], retain_weight=0.0)
    assert method.needs_retain == (name in ("causal_layer_unlearning", "pdu", "gu"))


def test_a_layer_outside_the_model_is_refused():
    method = dataclasses.replace(METHODS["rmu"], layer=9)
    with pytest.raises(InputError, match="rmu: layer = 9; expected 1 to 2"):
        method.fitted(world.model().config)


@pytest.mark.parametrize("retain_weight", [0.0, 1.0])
def test_forget_weight_scales_with_and_without_retain_texts(retain_weight):
    method = Method(forget_weight=0.5, retain_weight=retain_weight)
    tx = method.combine(Schedule(4, 2))
    ones, zeros = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
    found, _ = tx.update(
        ones, tx.init(ones), ones, retain_grads=zeros, retain_value=jnp.zeros(())
    )
    np.testing.assert_array_equal(found["w"], 0.5)


# Learning rate, epochs, weights of the forget and of the retain loss in
# configs/trainer of OpenUnlearning at commit d3d7cf9, a batch of 8 x 4 texts.
# SatImp's weights are swapped there; its README gives ours.
PUBLISHED = {
    "grad_ascent": (1e-5, 10, 1.0, 0.0),
    "grad_diff": (1e-5, 10, 1.0, 1.0),
    "npo": (1e-5, 10, 1.0, 1.0),
    "rmu": (1e-5, 10, 1.0, 1.0),
    "satimp": (1e-5, 5, 1.0, 0.1),
    "simnpo": (1e-5, 10, 0.125, 1.0),
    "undial": (1e-4, 10, 1.0, 0.0),
    "wga": (1e-5, 5, 1.0, 1.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name):
    method = METHODS[name]
    rate, epochs, forget, retain = PUBLISHED[name]
    assert method.recipe == (rate, epochs, 32)
    assert (method.forget_weight, method.retain_weight) == (forget, retain)
