"""A method of one's own, from a file: in a run, in a plain loop, and its mistakes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import unlearning_world as world
from unlearning_world import answer_loss, start

from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.methods import METHODS
from lt_mia_jax.unlearning.methods.method import Schedule
from lt_mia_jax.unlearning.methods.own import choose_method, load_method
from lt_mia_jax.unlearning.objectives.batch import TextBatch
from lt_mia_jax.unlearning.recipe import UnlearnConfig
from lt_mia_jax.unlearning.train import unlearn

SOURCE = '''
"""Ascent up to a loss that is enough, then nothing."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from lt_mia_jax.unlearning import Method, objectives
from lt_mia_jax.unlearning.methods.method import LossTerm
from lt_mia_jax.unlearning.methods.setting import Prepared


def bounded(params, batch, *, apply_fn, key=None, enough, scale):
    value, aux = objectives.nll(params, batch, apply_fn=apply_fn)
    return -scale * jnp.minimum(value, enough), aux


@dataclass(frozen=True, kw_only=True)
class Bounded(Method):
    """Gradient ascent up to a loss.

    Source: this test.
    """

    enough: float = 9.0
    """Loss beyond which nothing is forgotten."""

    def prepare(self, setting):
        weight = np.ones(setting.forget_texts, np.float32)
        return Prepared(data={"scale": jnp.float32(0.5)}, row_weight=weight)

    def forget(self):
        return LossTerm(bounded, {"enough": self.enough}, ("scale",))


VALUE = Bounded(enough=1.0)
'''
CONFIG = UnlearnConfig(learning_rate=3e-3, epochs=2, batch_size=3, warmup_epochs=0.0)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


def run(folder, method):
    return unlearn(
        world.model(),
        start(),
        world.forget_texts(),
        world.RETAIN,
        method,
        CONFIG,
        directory=folder,
        executor=make_executor("single"),
    )


def test_a_method_in_a_file_runs_and_goes_on(file, tmp_path):
    method = load_method(f"{file}:Bounded")
    assert method.enough == 9.0
    assert load_method(f"{file}:VALUE").enough == 1.0
    texts = world.forget_texts().answers
    result = run(tmp_path / "run", method)
    assert answer_loss(result.params, texts) > answer_loss(start(), texts) + 0.005
    # The same file, loaded anew, is the same run; another one is not.
    again = run(tmp_path / "run", load_method(f"{file}:Bounded"))
    assert again.resumed_from == result.steps
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)
    file.write_text(SOURCE.replace("-scale *", "-2 * scale *"))
    with pytest.raises(InputError, match="another"):
        run(tmp_path / "run", load_method(f"{file}:Bounded"))


@pytest.mark.parametrize("name", ["file", "npo", "causal_layer_unlearning"])
def test_a_method_in_a_plain_loop(name, file):
    method = load_method(f"{file}:Bounded") if name == "file" else METHODS[name]
    apply_fn, params = world.model().apply, start()
    forget, retain = (
        TextBatch(*map(jnp.asarray, texts[:3]), jnp.ones(4))
        for texts in (world.answers(0, 4), world.answers(2, 4))
    )
    reference = objectives.cached_reference_nll(params, forget, apply_fn=apply_fn)
    forget = forget._replace(reference_nll=reference)
    mask = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    schedule, data = Schedule(total=2, epoch=1), {"scale": jnp.float32(0.5)}
    tx = method.transform(optax.sgd(1.0), schedule, {"mask": mask})

    def gradient(term, texts):
        def loss(params):
            return term(params, texts, apply_fn=apply_fn, data=data)[0]

        return jax.value_and_grad(loss)(params)

    value, forget_gradient = gradient(method.forget(), forget)
    kept, retain_gradient = gradient(method.retain(), retain)
    further = {"retain_grads": retain_gradient, "retain_value": kept}
    updates, _ = tx.update(forget_gradient, tx.init(params), params, **further)
    after = optax.apply_updates(params, updates)
    expected = jax.tree.map(
        lambda p, f, r: p - f - (1.2 if "causal" in name else 1.0) * r,
        params,
        forget_gradient,
        retain_gradient,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after,
        expected,
    )
    if name == "file":
        loss, _ = objectives.nll(params, forget, apply_fn=apply_fn)
        np.testing.assert_allclose(value, -0.5 * loss, rtol=1e-6)


MISTAKES = {
    "no/such.py:Bounded": "no such file; expected FILE.py:Name",
    "own.py:Other": "has no 'Other'; expected .*own.py:Name with Bounded or VALUE",
    "own.py": "names no method; expected .*own.py:Name with Bounded or VALUE",
    "own.py:bounded": "is a function; expected a subclass of",
    "own.py:Method": None,
    "broken.py:X": "fails: ZeroDivisionError: division by zero",
    "syntax.py:X": "fails: SyntaxError",
    "plain.py:Plain": r"extra would be no settings; put @dataclass\(frozen=True",
    "needy.py:Needy": "every field needs a default",
    "rpo": "no method 'rpo'; expected one of .*FILE.py:Name; did you mean npo",
}
OTHER = {
    "broken": "1 / 0",
    "syntax": "def f(:",
    "plain": "class Plain(Method):\n    extra: int = 1",
    "needy": "@dataclass(frozen=True, kw_only=True)\nclass Needy(Method):\n    n: int",
}
HEAD = "from dataclasses import dataclass\nfrom lt_mia_jax.unlearning import Method\n"


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, file):
    for other, source in OTHER.items():
        (file.parent / f"{other}.py").write_text(HEAD + source)
    where = str(file.parent / name) if ".py" in name else name
    if MISTAKES[name] is None:  # what a file imports is a name of it too
        assert dataclasses.asdict(choose_method(where))
        return
    with pytest.raises(InputError, match=MISTAKES[name]) as raised:
        choose_method(where)
    assert "\n" not in str(raised.value)


def test_earlier_names_still_work():
    assert choose_method("lwf") is METHODS["graceful_forgetting"]
    assert choose_method("sha256") is METHODS["causal_layer_unlearning"]
    assert json.dumps(dataclasses.asdict(choose_method("LWF")))
