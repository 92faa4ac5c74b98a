import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_zoo import configs, random_ids, random_params
from quick_compile import jit

from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.training.transforms.mask import freeze
from lt_mia_jax.transfer.adapt import prompts

FAMILIES = ("gpt2", "mamba-preset", "rwkv-preset", "griffin-preset")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def world(family="gpt2"):
    config = configs()[family]
    return LanguageModel(config), random_params(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_embedded_tokens_is_those_tokens(family):
    model, params = world(family)
    ids = random_ids(shape=(2, 8))
    first = np.broadcast_to(ids[:1, :3], (2, 3))  # one prompt for all texts
    whole = np.concatenate([first, ids[:, 3:]], axis=1)
    expected, taps = jit(lambda p, x: model.apply(p, x, capture=(0,)))(params, whole)
    tuned = {"base": params, "prompt": taps[0][0, :3]}
    found = jit(prompts.PromptTuned(model).apply)(tuned, ids[:, 3:])
    np.testing.assert_allclose(found, expected[:, 3:], rtol=1e-4, atol=1e-5)


def test_a_prompt_without_rows_is_the_base():
    model, params = world()
    tuned = {"base": params, "prompt": jnp.zeros((0, model.config.width))}
    ids = random_ids()
    found = jax.jit(prompts.PromptTuned(model).apply)(tuned, ids)
    assert (found == jax.jit(model.apply)(params, ids)).all()


def test_only_the_prompt_learns():
    model, params = world()
    tuned = prompts.PromptTuned(model)
    tree = {
        "base": jax.tree.map(jnp.asarray, params),
        "prompt": jnp.asarray(numbers(2, model.config.width)),
    }
    ids, tx = random_ids(), freeze(optax.adam(0.05), ["prompt"])

    def loss(p):
        logits = tuned.apply(p, ids[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, ids[:, 1:]
        ).mean()

    @jit
    def step(p, state):
        value, gradient = jax.value_and_grad(loss)(p)
        updates, state = tx.update(gradient, state, p)
        return optax.apply_updates(p, updates), state, value

    new, state, values = tree, tx.init(tree), []
    for _ in range(20):
        new, state, value = step(new, state)
        values.append(float(value))
    assert values[-1] < values[0] - 0.1
    same = jax.tree.map(lambda a, b: (a == b).all(), new["base"], tree["base"])
    assert all(jax.tree.leaves(same))


def test_prompts_start_from_embeddings_of_tokens():
    model, params = world("llama")
    init = jit(lambda p: prompts.prompt_init(jax.random.key(0), p, 4, model=model))
    found = init(params)
    table = np.asarray(params["embedding"]["tokens"])
    gap = np.abs(np.asarray(found)[:, None] - table[None]).max(axis=2)
    assert (gap.min(axis=1) == 0).all()


def test_longer_texts_than_positions_are_refused():
    model, params = world()
    tuned = {"base": params, "prompt": jnp.zeros((4, model.config.width))}
    with pytest.raises(InputError, match="13 tokens, but the position table has 12"):
        prompts.PromptTuned(model).apply(tuned, random_ids(shape=(1, 9)))


def test_a_task_embedding_is_the_mean_shift_of_the_last_stream():
    model, params = world()
    ids, last = random_ids(shape=(3, 5)), model.config.layers
    embed = jit(lambda prompt: prompts.prompt_embed(model, params, prompt, ids))
    prompt = jnp.asarray(numbers(2, model.config.width))
    found = embed(prompt)
    edit, expected = prompts.SoftPrompt(prompt), np.zeros(model.config.width)

    @jit
    def stream(x, acts):
        """With the prompt, or of the text alone at the start."""
        hook = lambda h, n: jnp.where(acts, edit(h, n), h)  # noqa: E731
        return model.apply(params, x, capture=(last,), intervention=hook)[1][last]

    for text in ids:  # one at a time
        moved = stream(np.pad(text, (2, 0))[None], True)[0, 2:]
        plain = stream(np.pad(text, (0, 2))[None], False)[0, :5]
        expected += (np.float64(moved) - plain).mean(axis=0) / len(ids)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).max() > 0.01


def test_transferability_is_the_cosine():
    a, b = jnp.asarray(numbers(7)), jnp.asarray(numbers(7, seed=1))
    expected = np.float64(a) @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(prompts.transferability(a, b), expected, rtol=1e-5)
    assert prompts.transferability(a, 0 * b) == 0


STUDENT, TEACHER = numbers(3, 4, 5), numbers(3, 4, 5, seed=1)
LABELS = np.random.default_rng(2).integers(0, 5, (3, 4))
MASK = np.random.default_rng(3).random((3, 4)) < 0.6


def oracle(weight):
    """Token by token, in float64."""
    total, gap, count = 0.0, 0.0, 0
    for b, t in zip(*np.nonzero(MASK), strict=True):
        z = np.float64(STUDENT[b, t])
        total += np.log(np.exp(z).sum()) - z[LABELS[b, t]]
        gap += sum((z[v] - float(TEACHER[b, t, v])) ** 2 for v in range(5)) / 5
        count += 1
    return total / count + weight * gap / count


def panda(similarity, strength, **settings):
    return prompts.panda_loss(
        jnp.asarray(STUDENT),
        jnp.asarray(TEACHER),
        jnp.asarray(LABELS),
        similarity,
        strength,
        mask=jnp.asarray(MASK),
        **settings,
    )


def test_the_loss_equals_its_definition():
    np.testing.assert_allclose(panda(0.3, 2.0), oracle(0.6), rtol=1e-5)


def test_the_released_loss_ignores_the_similarity():
    """The weight by similarity is in the paper, not in its code."""
    one, other = (panda(s, 2.0, variant="released") for s in (0.1, 0.9))
    assert one == other
    np.testing.assert_allclose(one, oracle(0.1 * 2.0 / 3), rtol=1e-5)
    assert panda(0.1, 2.0) != panda(0.9, 2.0)


def test_without_strength_it_is_the_cross_entropy():
    nll = optax.softmax_cross_entropy_with_integer_labels(
        jnp.asarray(STUDENT), jnp.asarray(LABELS)
    )
    expected = nll.mean(where=jnp.asarray(MASK))
    assert panda(0.7, 0.0) == expected
    assert panda(0.0, 3.0) == expected


def test_the_teacher_gets_no_gradient():
    def loss(student, teacher):
        return prompts.panda_loss(student, teacher, jnp.asarray(LABELS), 0.5)

    of_student, of_teacher = jax.grad(loss, (0, 1))(
        jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    )
    assert np.abs(of_student).max() > 0
    assert (of_teacher == 0).all()
