"""Every `model_type` of config.json: its fields and the names of its tensors.

To add one, define a `Family` in the file of its relatives and add it to `FAMILIES`.
"""

from lt_mia_jax.checkpoints.families import alibi, gemma, gpt, llama, recurrent
from lt_mia_jax.checkpoints.families.family import Family

FAMILIES: dict[str, Family] = {
    "gpt2": gpt.GPT2,
    "llama": llama.LLAMA,
    "gpt_neox": gpt.GPT_NEOX,
    "gptj": gpt.GPTJ,
    "mistral": llama.MISTRAL,
    "qwen2": llama.QWEN2,
    "qwen3": llama.QWEN3,
    "gemma": gemma.GEMMA,
    "falcon": alibi.FALCON,
    "mpt": alibi.MPT,
    "bloom": alibi.BLOOM,
    "opt": gpt.OPT,
    "phi": llama.PHI,
    "olmo": llama.OLMO,
    "stablelm": llama.STABLELM,
    "mamba": recurrent.MAMBA,
    "rwkv": recurrent.RWKV,
    "recurrent_gemma": recurrent.RECURRENT_GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3_TEXT,
    "olmo2": llama.OLMO2,
}
"""By the `model_type` of config.json; writing tries them in this order."""
