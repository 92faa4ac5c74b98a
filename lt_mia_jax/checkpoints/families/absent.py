"""Causal language models without a `Family`: what they would need, for messages.

Source: `modeling_*.py` of each type in transformers 5.24.
"""

_EXPERTS = "layers of experts are missing"
_SCALES = "factors on embedding, residual stream and logits are missing"
_SCALED_LOGITS = "the factor on the logits (logit_scale) is missing"
_FUSED = "tensors that hold several projections at once are not split"

ABSENT: dict[str, tuple[str, str]] = {
    "phi3": ("llama", f"{_FUSED} (qkv_proj, gate_up_proj), and longrope is missing"),
    "glm": ("llama", f"{_FUSED} (gate_up_proj), nor are rotated pairs read"),
    "glm4": ("gemma2", f"{_FUSED} (gate_up_proj), nor are rotated pairs read"),
    "gpt_neo": ("gpt2", "scores without a factor and attention_types are not read"),
    "gpt_bigcode": ("gpt2", "one key and value head for all queries is not read"),
    "codegen": ("gptj", f"{_FUSED} (qkv_proj, in four blocks)"),
    "starcoder2": ("gpt_neox", "the names of its tensors are missing"),
    "cohere": ("gptj", _SCALED_LOGITS),
    "cohere2": ("gptj", f"{_SCALED_LOGITS}, and so are layers without positions"),
    "granite": ("llama", _SCALES),
    "nemotron": ("gpt_neox", "squared ReLU and layer norms with 1 + w are missing"),
    "olmo3": ("olmo2", "its local layers are not read"),
    "smollm3": ("llama", "layers without positions are missing"),
    "exaone4": ("olmo2", "layers without positions are missing"),
    "gemma3": ("gemma3_text", "models that also read images are not read"),
    "gemma3n": ("gemma3_text", "its embeddings of each layer are missing"),
    "mistral3": ("mistral", "models that also read images are not read"),
    "falcon_mamba": ("mamba", "norms of steps and states are missing"),
    "mamba2": ("mamba", "its scan by heads is missing"),
    "llama4": ("llama", f"{_EXPERTS}, and models that also read images are not read"),
    "mixtral": ("mistral", _EXPERTS),
    "qwen2_moe": ("qwen2", _EXPERTS),
    "qwen3_moe": ("qwen3", _EXPERTS),
    "olmoe": ("olmo2", _EXPERTS),
    "phimoe": ("llama", _EXPERTS),
    "granitemoe": ("llama", f"{_EXPERTS}; {_SCALES}"),
    "gpt_oss": ("llama", f"{_EXPERTS}, and attention sinks"),
    "deepseek_v2": ("llama", f"{_EXPERTS}, and attention over compressed keys"),
    "deepseek_v3": ("llama", f"{_EXPERTS}, and attention over compressed keys"),
    "hf_olmo": ("olmo", "OLMo's own format is not read; get the -hf form of the model"),
}
"""By `model_type`: the supported one that is closest, and what is missing in it."""

_HEADS = ("ForCausalLM", "LMHeadModel")


def why_unsupported(kind: object, architectures: object) -> str:
    """What to say of a `model_type` that is not supported, after its name.

    Example:
      >>> why_unsupported("phi3", None)[:48]
      'it is close to llama, but tensors that hold seve'
    """
    if isinstance(kind, str) and kind in ABSENT:
        near, missing = ABSENT[kind]
        return f"it is close to {near}, but {missing}"
    named = architectures if isinstance(architectures, list) else []
    if any(str(name).endswith(_HEADS) for name in named):
        return "a causal language model, whose layers and tensor names are missing"
    return "check that this is the config.json of a causal language model"
