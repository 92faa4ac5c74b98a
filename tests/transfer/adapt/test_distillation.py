"""The distillation loss in float64, and what it must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compile import jit
from transfer_models import params_like, tiny_model

from lt_mia_jax.models import LanguageModel
from lt_mia_jax.transfer.adapt.distillation import (
    Outputs,
    Weights,
    distil_loss,
    outputs,
)
from lt_mia_jax.transfer.weightspace.trim import matched_layers, shrink_depth


def random_outputs(seed):
    rng = np.random.default_rng(seed)
    hidden = tuple(rng.normal(size=(2, 4, 3)).astype(np.float32) for _ in range(3))
    return Outputs(rng.normal(size=(2, 4, 5)).astype(np.float32), hidden)


def slow_loss(teacher, student, weights, mask, temperature):
    total, count = 0.0, 0
    for b in range(2):
        for t in range(4):
            if not mask[b, t]:
                continue
            count += 1
            for one, other in zip(teacher.hidden, student.hidden, strict=True):
                gap = one[b, t].astype(np.float64) - other[b, t]
                total += weights[0] * (gap**2).mean() / len(teacher.hidden)
            p, q = (
                np.exp(out.logits[b, t].astype(np.float64) / temperature)
                for out in (teacher, student)
            )
            total -= weights[1] * (p / p.sum() * np.log(q / q.sum())).sum()
    return total / count


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_its_definition_on_real_tokens(weights, temperature):
    """Also at T = 2 without a factor T^2, as released."""
    teacher, student = random_outputs(0), random_outputs(1)
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    student.logits[~mask] = 1e6
    student.hidden[1][~mask] = 1e6
    found = distil_loss(
        teacher, student, Weights(*weights), mask=mask, temperature=temperature
    )
    expected = slow_loss(teacher, student, weights, mask, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_no_mask_means_every_token_and_the_defaults_are_one_one_and_two():
    teacher, student = random_outputs(2), random_outputs(3)
    expected = slow_loss(teacher, student, (1, 1), np.ones((2, 4), bool), 2.0)
    assert float(distil_loss(teacher, student)) == pytest.approx(expected, rel=1e-5)


def test_the_teacher_gets_no_gradient_and_a_copy_of_it_is_a_minimum():
    teacher, student = random_outputs(4), random_outputs(5)
    to_teacher, to_student = jax.grad(distil_loss, argnums=(0, 1))(teacher, student)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(to_teacher))
    assert all(np.asarray(x).any() for x in jax.tree.leaves(to_student))
    at_copy = jax.grad(distil_loss, argnums=1)(teacher, teacher)
    for leaf in jax.tree.leaves(at_copy):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-6)


def test_streams_of_a_shrunk_model_are_matched_with_its_teachers():
    """Layers that add nothing: the streams of kept units equal the teacher's."""
    model = tiny_model("griffin")
    params = jax.tree.map(jnp.zeros_like, params_like(model, 0))
    params["embedding"] = params_like(model, 1)["embedding"]
    config, smaller = shrink_depth(model.config, params, 2)
    pairs = matched_layers(model.config, config, 2)
    ids = jnp.array([[3, 1, 4, 1, 5]])
    sides = (
        (model, params, [t for t, _ in pairs]),
        (LanguageModel(config, model.execution), smaller, [s for _, s in pairs]),
    )
    teacher, student = (
        jit(lambda p, m=m, layers=layers: outputs(m, p, ids, layers))(p)
        for m, p, layers in sides
    )
    assert [x.shape for x in teacher.hidden] == [(1, 5, 8)] * 4
    for one, other in zip(teacher.hidden, student.hidden, strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(distil_loss(teacher, student, Weights(soft=0.0))) == 0


def test_sides_that_do_not_match_are_refused():
    teacher, student = random_outputs(0), random_outputs(1)
    with pytest.raises(ValueError, match="differ"):
        distil_loss(teacher, student._replace(hidden=student.hidden[:2]))
    with pytest.raises(ValueError, match="differ"):
        distil_loss(teacher, student._replace(logits=student.logits[..., :4]))
