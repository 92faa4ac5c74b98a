"""Interventions on disk: what is read acts as what was written, or it is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import unlearning_world as world
from safetensors.numpy import load_file, save_file

from lt_mia_jax.errors import InputError
from lt_mia_jax.files import sha256_file
from lt_mia_jax.models import placement
from lt_mia_jax.unlearning.interventions import edits
from lt_mia_jax.unlearning.interventions.gates import GatedRotation
from lt_mia_jax.unlearning.interventions.storage import (
    DESCRIPTION,
    TENSORS,
    has_intervention,
    load_intervention,
    save_intervention,
)

MODEL = world.model()
D = MODEL.config.width


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def everything():
    """All kinds there are, one in the other."""
    gate = GatedRotation(
        numbers(2, D), numbers(2, D, seed=1), -1.0, 0.4, weighting="similarity"
    )
    rows = np.linalg.qr(numbers(D, 2, seed=2))[0].T
    return placement.compose(
        placement.at_layers(gate, [1]),
        placement.by_layer({n: edits.Projection(rows) for n in (0, 2)}),
        placement.on_prompt(
            edits.Steering(numbers(D, seed=3), np.array(0.5, np.float32)),
            np.ones(4, np.int32),
        ),
        placement.at_layers(edits.InputAware(numbers(D), numbers(D, seed=4)), [2]),
    )


def test_saved_and_loaded_it_gives_the_same_logits(tmp_path):
    texts, lengths = world.answers(3, 4), np.array([3, 2, 1, 4])
    save_intervention(tmp_path, everything())
    loaded = load_intervention(tmp_path, MODEL.config)

    def logits(edit):
        return world.logits(MODEL, world.start(), texts.input_ids, edit)

    found, expected = (
        logits(placement.prompted(edit, lengths)) for edit in (loaded, everything())
    )
    np.testing.assert_array_equal(found, expected)
    assert (found != logits(None)).any()
    assert not {path.name for path in tmp_path.iterdir()} - {DESCRIPTION, TENSORS}
    save_intervention(tmp_path, None)
    assert not has_intervention(tmp_path)


def test_a_model_without_one(tmp_path):
    assert load_intervention(tmp_path) is None
    assert load_intervention(tmp_path / "openai" / "gpt2") is None


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (lambda stream, layer: stream, "function"),
        (edits.Rotation(numbers(2, D), jnp.zeros((3, 2))), "Rotation"),
        (edits.Steering(numbers(D), float("nan")), "float"),
    ],
)
def test_what_is_of_one_batch_or_code_is_not_saved(edit, kind, tmp_path):
    with pytest.raises(InputError, match=f"a {kind} cannot be stored"):
        save_intervention(tmp_path, placement.compose(edit))
    assert not list(tmp_path.iterdir())


def rewrite(folder, change):
    """Edit the description, its hash still that of the tensors."""
    content = json.loads((folder / DESCRIPTION).read_text())
    change(content)
    content.setdefault("sha256", sha256_file(folder / TENSORS))
    (folder / DESCRIPTION).write_text(json.dumps(content))


def retensor(folder, change):
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)
    rewrite(folder, lambda content: content.pop("sha256"))


def cut(folder):
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-4])


DAMAGE = {
    r"\.safetensors: no such file": lambda f: (f / TENSORS).unlink(),
    r"\.json: no such file": lambda f: (f / DESCRIPTION).unlink(),
    "not valid JSON": lambda f: (f / DESCRIPTION).write_text("{"),
    "expected an object with format 1": lambda f: (f / DESCRIPTION).write_text("[]"),
    "not readable": cut,
    "SHA-256 differs": lambda f: rewrite(f, lambda c: c.update(sha256="0")),
    "it describes no intervention": lambda f: rewrite(
        f, lambda c: c.update(intervention=[1.0])
    ),
    "found kind 'os.system'": lambda f: rewrite(
        f, lambda c: c["intervention"].update(kind="os.system")
    ),
    "Steering has fields": lambda f: rewrite(
        f, lambda c: c["intervention"].update(more=1)
    ),
    "no tensor 'vector'": lambda f: retensor(f, lambda t: t.update(x=t.pop("vector"))),
    "is not finite": lambda f: retensor(
        f, lambda t: t.update(vector=np.full(D, np.nan, np.float32))
    ),
    "it fits another model": lambda f: retensor(
        f, lambda t: t.update(vector=np.ones(D + 1, np.float32))
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_files_are_one_line(message, tmp_path):
    save_intervention(tmp_path, edits.Steering(numbers(D)))
    DAMAGE[message](tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_intervention(tmp_path, MODEL.config)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_layers_of_another_model(tmp_path):
    save_intervention(tmp_path, placement.at_layers(edits.Steering(numbers(D)), [3]))
    with pytest.raises(InputError, match=r"layers are \[3\], the model has 2"):
        load_intervention(tmp_path, MODEL.config)
