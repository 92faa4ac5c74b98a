"""Against transformers on PyTorch: logits, loss and gradients, both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import configs, forward, random_ids, random_params

from lt_mia_jax.checkpoints import load_model, save_pretrained
from lt_mia_jax.models import LanguageModel

torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

pytestmark = pytest.mark.parity

COMMON = {"vocab_size": 23, "bos_token_id": 0, "eos_token_id": 0}
GPT2 = {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
WIDE = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 300.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
PARTIAL = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}

CASES = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-gelu": ("GPT2", {**GPT2, "activation_function": "gelu", "n_inner": 40}),
    "gpt2-relu": ("GPT2", {**GPT2, "activation_function": "relu"}),
    "gpt2-eps": ("GPT2", {**GPT2, "layer_norm_epsilon": 1e-2}),
    "gpt2-untied": ("GPT2", {**GPT2, "tie_word_embeddings": False}),
    "llama": ("Llama", WIDE),
    "llama-grouped": ("Llama", {**WIDE, "num_key_value_heads": 2}),
    "llama-one-kv-tied": (
        "Llama",
        {**WIDE, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "llama-biases": ("Llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("Llama", {**WIDE, "head_dim": 12, "rms_norm_eps": 1e-2}),
    "llama-linear": (
        "Llama",
        {
            **WIDE,
            "rope_parameters": {
                "rope_type": "linear",
                "factor": 4.0,
                "rope_theta": 100.0,
            },
        },
    ),
    "llama-llama3": ("Llama", {**WIDE, "rope_parameters": LLAMA3}),
    "neox": ("GPTNeoX", WIDE),
    "neox-sequential": ("GPTNeoX", {**WIDE, "use_parallel_residual": False}),
    "neox-partial": ("GPTNeoX", {**WIDE, "rope_parameters": PARTIAL}),
    "neox-no-bias-tied": (
        "GPTNeoX",
        {**WIDE, "attention_bias": False, "tie_word_embeddings": True},
    ),
}


def build(kind, fields):
    """A transformers model whose every weight is far from its initial value."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**fields)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.float().eval()


def open_saved(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def torch_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize("case", CASES)
def test_logits(case, tmp_path):
    theirs = build(*CASES[case])
    theirs.save_pretrained(tmp_path)
    config, params = load_model(tmp_path)
    found = forward(LanguageModel(config), params, random_ids())
    np.testing.assert_allclose(found, torch_logits(theirs, random_ids()), atol=1e-4)


@pytest.mark.parametrize("case", ["gpt2", "llama-grouped", "neox-partial"])
def test_loss_and_embedding_gradient(case, tmp_path):
    theirs = build(*CASES[case])
    theirs.save_pretrained(tmp_path)
    config, params = load_model(tmp_path)
    ids = random_ids()

    @jax.jit
    @jax.value_and_grad
    def ours(params):
        logp = jax.nn.log_softmax(LanguageModel(config).apply(params, ids)[:, :-1])
        return -jnp.take_along_axis(logp, ids[:, 1:, None], -1).mean()

    loss, gradient = ours(params)
    targets = torch.tensor(ids, dtype=torch.long)
    output = theirs(input_ids=targets, labels=targets)
    output.loss.backward()
    expected = theirs.get_input_embeddings().weight.grad.numpy()
    assert float(loss) == pytest.approx(output.loss.item(), abs=1e-5)
    np.testing.assert_allclose(
        gradient["embedding"]["tokens"], expected, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("case", ["gpt2", "llama-grouped", "neox-partial"])
def test_their_checkpoint_survives_our_export(case, tmp_path):
    theirs = build(*CASES[case])
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = load_model(tmp_path / "theirs")
    save_pretrained(tmp_path / "ours", config, params)
    again = open_saved(tmp_path / "ours")
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", configs())
def test_transformers_opens_what_we_write(name, tmp_path):
    config, params = configs()[name], random_params(configs()[name])
    save_pretrained(tmp_path, config, params)
    ids = random_ids()
    expected = forward(LanguageModel(config), params, ids)
    found = torch_logits(open_saved(tmp_path), ids)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_bfloat16_checkpoint(tmp_path):
    theirs = build(*CASES["llama"]).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    config, params = load_model(tmp_path)
    found = forward(LanguageModel(config), params, random_ids())
    # Not theirs.float(): their rotary frequencies were rounded to bfloat16 with it.
    expected = torch_logits(open_saved(tmp_path), random_ids())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sharded_checkpoint(tmp_path):
    theirs = build(*CASES["neox"])
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    config, params = load_model(tmp_path)
    found = forward(LanguageModel(config), params, random_ids())
    np.testing.assert_allclose(found, torch_logits(theirs, random_ids()), atol=1e-4)
