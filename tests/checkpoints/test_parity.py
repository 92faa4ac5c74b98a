"""Against transformers on PyTorch: logits, loss and gradients, both directions."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_zoo import PLAIN, VARIANTS, config_json
from model_zoo import configs, forward, random_ids, random_params

from lt_mia_jax.checkpoints import load_model, save_pretrained
from lt_mia_jax.checkpoints.families.absent import ABSENT
from lt_mia_jax.models import LanguageModel

torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

pytestmark = pytest.mark.parity

LENGTHS = (9, 4)
"""Real tokens of the two rows when they are padded on the right."""


def attention_of(kind):
    # In eager mode transformers 5.23 adds Falcon's linear biases twice: to the scores
    # and with the mask. Its default does it once.
    return "sdpa" if kind == "falcon" else "eager"


def build(name):
    """A transformers model whose every weight is far from its initial value."""
    torch.manual_seed(0)
    kind = VARIANTS[name][0]
    fields = {k: v for k, v in config_json(name).items() if k != "model_type"}
    config = transformers.AutoConfig.for_model(kind, **fields, pad_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention_of(kind)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.float().eval()


def open_saved(directory, kind):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation=attention_of(kind)
    ).eval()


def torch_logits(model, ids, mask=None, dtype=torch.long):
    ids = torch.tensor(ids, dtype=torch.long)
    mask = None if mask is None else torch.tensor(mask, dtype=torch.long)
    with torch.no_grad():
        # The caches of recurrent models outlive a call.
        found = model(input_ids=ids, attention_mask=mask, use_cache=False)
    return found.logits.numpy()


@lru_cache(maxsize=1)
def pair(name, folder):
    """Their model, and ours loaded from its directory."""
    theirs = build(name)
    directory = folder / name
    theirs.save_pretrained(directory)
    config, params = load_model(directory)
    return theirs, config, params


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", VARIANTS)
def test_logits(name, folder):
    theirs, config, params = pair(name, folder)
    ids = random_ids()
    found = forward(LanguageModel(config), params, ids)
    expected = torch_logits(theirs, ids)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Double precision on both sides of the comparison's own rounding: it is not luck.
    exact = torch_logits(theirs.double(), ids)
    theirs.float()
    ours, alike = np.abs(found - exact).max(), np.abs(expected - exact).max()
    assert ours < 10 * alike + 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_padded_rows(name, folder):
    theirs, config, params = pair(name, folder)
    ids = random_ids()
    mask = (np.arange(ids.shape[1])[None] < np.array(LENGTHS)[:, None]).astype(int)
    found = forward(LanguageModel(config), params, np.where(mask, ids, 0))
    expected = torch_logits(theirs, np.where(mask, ids, 0), mask)
    real = mask.astype(bool)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_embedding_gradient(name, folder):
    theirs, config, params = pair(name, folder)
    ids = random_ids()

    @jax.jit
    @jax.value_and_grad
    def ours(params):
        logp = jax.nn.log_softmax(LanguageModel(config).apply(params, ids)[:, :-1])
        return -jnp.take_along_axis(logp, ids[:, 1:, None], -1).mean()

    loss, gradient = ours(params)
    targets = torch.tensor(ids, dtype=torch.long)
    theirs.zero_grad()
    output = theirs(input_ids=targets, labels=targets, use_cache=False)
    output.loss.backward()
    expected = theirs.get_input_embeddings().weight.grad.numpy()
    assert float(loss) == pytest.approx(output.loss.item(), abs=1e-5)
    np.testing.assert_allclose(
        gradient["embedding"]["tokens"], expected, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_their_checkpoint_survives_our_export(name, folder, tmp_path):
    theirs, config, params = pair(name, folder)
    save_pretrained(tmp_path, config, params, like=folder / name)
    again = open_saved(tmp_path, VARIANTS[name][0])
    assert type(again) is type(theirs)
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    ids = random_ids()
    np.testing.assert_allclose(
        torch_logits(again, ids), torch_logits(theirs, ids), atol=1e-5
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_transformers_opens_what_we_made(name, tmp_path):
    config, params = configs()[name], random_params(configs()[name])
    save_pretrained(tmp_path, config, params)
    ids = random_ids()
    expected = forward(LanguageModel(config), params, ids)
    found = torch_logits(open_saved(tmp_path, name), ids)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_types_that_we_name_as_absent_are_causal_models():
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert set(ABSENT) - set(known) <= {"hf_olmo", "mistral3"}


def test_rwkv_weights_are_stored_before_rescaling(folder, tmp_path):
    """Transformers halves weights and stream every few layers, for inference alone."""
    theirs, config, params = pair("rwkv", folder)
    plain = torch_logits(theirs, random_ids())
    theirs.config.rescale_every = 1
    theirs.save_pretrained(tmp_path)
    theirs.config.rescale_every = 6
    config, params = load_model(tmp_path)
    found = forward(LanguageModel(config), params, random_ids())
    np.testing.assert_allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize("name", sorted(PLAIN.values()))
def test_bfloat16_checkpoint(name, tmp_path):
    theirs = build(name).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    config, params = load_model(tmp_path)
    found = forward(LanguageModel(config), params, random_ids())
    # Not theirs.float(): their rotary frequencies were rounded to bfloat16 with it.
    expected = torch_logits(open_saved(tmp_path, VARIANTS[name][0]), random_ids())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sharded_checkpoint(tmp_path):
    theirs = build("gpt_neox")
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    config, params = load_model(tmp_path)
    found = forward(LanguageModel(config), params, random_ids())
    np.testing.assert_allclose(found, torch_logits(theirs, random_ids()), atol=1e-4)
