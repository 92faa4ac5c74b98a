"""Adapters that PEFT wrote, against the logits of PEFT itself."""

import json

import numpy as np
import pytest
from family_zoo import config_json
from model_zoo import forward, random_ids

from lt_mia_jax.checkpoints import load_model
from lt_mia_jax.models import LanguageModel

torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
peft = pytest.importorskip("peft", reason="needs the extra 'parity'")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

GPT2, LLAMA = ["c_attn", "c_proj", "c_fc"], ["q_proj", "v_proj", "down_proj"]
CASES = {
    "gpt2 stabilized": (
        "gpt2",
        {"target_modules": r".*\.[12]?\d*\.mlp\.c_(fc|proj)", "use_rslora": True},
    ),
    "gpt2 biases": ("gpt2", {"target_modules": GPT2, "bias": "all"}),
    "gpt2 head": ("gpt2", {"target_modules": ["lm_head", "c_attn"]}),
    "gpt2 embedding": ("gpt2", {"target_modules": ["wte", "c_fc"]}),
    "gpt2 saved embedding": (
        "gpt2",
        {"target_modules": GPT2, "modules_to_save": ["wte", "ln_f"]},
    ),
    "llama patterns": (
        "llama-grouped",
        {
            "target_modules": LLAMA,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 5},
            "alpha_pattern": {"v_proj": 3},
        },
    ),
    "llama all-linear": (
        "llama-biases",
        {"target_modules": "all-linear", "bias": "lora_only"},
    ),
    "llama one layer": (
        "llama",
        {"target_modules": LLAMA, "layers_to_transform": [1]},
    ),
    "llama head saved": (
        "llama",
        {"target_modules": ["gate_proj"], "modules_to_save": ["lm_head"]},
    ),
    "gpt2 magnitudes": ("gpt2", {"target_modules": GPT2, "use_dora": True}),
    "gpt_neox": ("gpt_neox", {"target_modules": ["query_key_value", "dense"]}),
    "mamba": ("mamba", {"target_modules": ["in_proj", "x_proj"]}),
    "rwkv": ("rwkv", {"target_modules": ["key", "receptance", "head"]}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {"target_modules": ["linear_x", "q_proj", "down_proj"]},
    ),
}


def moved(model):
    """A model whose every trained weight is far from its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.float().eval()


def base_of(variant, folder):
    torch.manual_seed(0)
    fields = config_json(variant)
    config = transformers.AutoConfig.for_model(
        fields.pop("model_type"), **fields, pad_token_id=None
    )
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    )
    moved(model).save_pretrained(folder)
    return opened(folder)


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def logits_of(model, ids):
    with torch.no_grad():
        found = model(input_ids=torch.tensor(ids, dtype=torch.long), use_cache=False)
    return found.logits.numpy()


@pytest.mark.parametrize("case", CASES)
def test_logits(case, tmp_path):
    variant, settings = CASES[case]
    settings = {"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM", **settings}
    adapted = peft.get_peft_model(
        base_of(variant, tmp_path / "base"), peft.LoraConfig(**settings)
    )
    moved(adapted).save_pretrained(tmp_path / "adapter")
    # What PEFT makes of the files, which is not all of what was in memory.
    theirs = peft.PeftModel.from_pretrained(
        opened(tmp_path / "base"), tmp_path / "adapter"
    ).eval()
    ids = random_ids()
    expected = logits_of(theirs, ids)
    assert np.abs(expected - logits_of(opened(tmp_path / "base"), ids)).max() > 0.05
    config, params = load_model(tmp_path / "adapter")
    found = forward(LanguageModel(config), params, ids)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_embedding_that_was_resized_comes_with_the_adapter(tmp_path):
    base = base_of("llama-one-kv-tied", tmp_path / "base")
    base.resize_token_embeddings(25, mean_resizing=False)
    settings = peft.LoraConfig(r=2, target_modules=LLAMA, task_type="CAUSAL_LM")
    adapted = moved(peft.get_peft_model(base, settings))
    adapted.save_pretrained(tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "base")
    again = opened(tmp_path / "base")
    again.resize_token_embeddings(25, mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    ids = np.where(random_ids() == 3, 24, random_ids())
    config, params = load_model(tmp_path / "adapter")
    assert config.vocab_size == 25
    found = forward(LanguageModel(config), params, ids)
    np.testing.assert_allclose(found, logits_of(theirs, ids), atol=1e-4)
