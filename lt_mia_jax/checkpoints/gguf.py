"""Llama models in GGUF files, under the names and row order of Hugging Face."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lt_mia_jax.checkpoints.gguf_header import check_header
from lt_mia_jax.checkpoints.tokenizer import load_tokenizer
from lt_mia_jax.checkpoints.transforms import Shape
from lt_mia_jax.errors import InputError, capped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAME = re.compile(rf"(?:blk\.([0-9]+)\.)?({'|'.join(NAMES)})\.(weight|bias)")
HEADS = {"q_proj": "attention.head_count", "k_proj": "attention.head_count_kv"}
FIELDS = {
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
}
OTHERS = re.compile(
    r"attention\.(head_count_kv|key_length)|rope\.(freq_base|scale_linear)|vocab_size|"
    r"rope\.scaling\.(type|factor|finetuned|original_context_length)|tensor_data_layout"
)


def is_gguf(path: str | Path) -> bool:
    """Whether the path is a file whose name ends in .gguf."""
    return str(path).lower().endswith(".gguf") and Path(path).is_file()


class GgufReader:
    """Named float32 tensors of a Llama GGUF file, used like `TensorReader`.

    Tensors that no Llama model has keep their name, and the loader reports them.

    Raises:
      InputError: no `gguf` package, or a file that is broken or of another kind.
    """

    def __init__(self, path: Path):
        self.origin = path
        metadata, tensors = _open(path)
        self.metadata = _llama_metadata(metadata, path)
        self._tensors = {_hf_name(tensor.name): tensor for tensor in tensors}
        for name in filter(re.compile(r"rope_\w+\.weight").fullmatch, self.names):
            if not self.real(name) or (self.read(name) != 1).any():
                raise InputError(
                    f"{path}: {name} rescales the rotary frequencies (Llama 3.1 and "
                    "later) without the rule; use the safetensors checkpoint"
                )
            del self._tensors[name]

    def __enter__(self) -> "GgufReader":
        return self

    def __exit__(self, *details: object) -> None:
        self._tensors.clear()

    @property
    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._tensors)

    def shape(self, name: str) -> Shape:
        """Shape of a tensor; the header lists the fastest-moving dimension first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def dtype(self, name: str) -> str:
        """The format's own type name, such as `Q4_1`."""
        return self._tensors[name].tensor_type.name

    def real(self, name: str) -> bool:
        """Whether the installed `gguf` can turn the tensor's type into numbers."""
        from gguf import GGML_QUANT_SIZES, dequantize

        kind = self._tensors[name].tensor_type
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:  # what gguf raises for a type it cannot decode
            return False
        return True

    def read(self, name: str) -> np.ndarray:
        """The tensor, dequantized to float32; it may be a read-only view."""
        from gguf import dequantize

        tensor = self._tensors[name]
        array = np.asarray(dequantize(tensor.data, tensor.tensor_type))
        if key := HEADS.get(name.split(".")[-2:][0]):
            # Converters interleave the halves of each head, for another rotation.
            pairs = array.reshape(self.metadata[key], -1, 2, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        return array


def _hf_name(name: str) -> str:
    if match := NAME.fullmatch(name):
        layer = f"model.layers.{match[1]}." if match[1] else ""
        return f"{layer}{NAMES[match[2]]}.{match[3]}"
    # A name in Hugging Face's convention says nothing about the order of rows.
    foreign = re.match(r"(model|layers|embed_tokens|norm|lm_head)\.", name)
    return f"gguf:{name}" if foreign else name


def _open(path: Path) -> tuple[dict[str, Any], list[Any]]:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        hint = "GGUF files need pip install 'lt-mia-jax[gguf]'"
        raise InputError(f"{path}: {hint} ({error})") from error
    try:
        check_header(path)
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    # Wrong offsets cause arbitrary exceptions of numpy.
    except Exception as error:
        raise InputError(
            f"{path}: not a complete GGUF file ({type(error).__name__}: {error}); it "
            "is truncated, corrupt or newer than the installed gguf, get it again"
        ) from error
    return metadata, reader.tensors


def _llama_metadata(metadata: dict[str, Any], path: Path) -> dict[str, Any]:
    kind, parts = metadata.get("general.architecture"), metadata.get("split.count", 1)
    if kind != "llama" or parts not in (0, 1):
        raise InputError(
            f"{path}: architecture {kind!r} in {parts} file(s), supported is 'llama' "
            "in one (llama-gguf-split --merge joins); use the safetensors checkpoint"
        )
    llama = {
        # Files store float32; the shortest decimal is the number before rounding.
        key[6:]: float(str(np.float32(value))) if type(value) is float else value
        for key, value in metadata.items()
        if key.startswith("llama.")
    }
    missing = [f"llama.{name}" for name in FIELDS if name not in llama]
    wrong = [
        f"llama.{name} = {value!r}"
        for name, value in llama.items()
        if name.endswith(("_count", "_count_kv", "_length"))
        and not (type(value) is int and value > 0)
    ]
    if missing or wrong:
        raise InputError(
            f"{path}: missing metadata {capped(missing)}; not a positive integer "
            f"{capped(wrong)}; convert the model again"
        )
    heads, width = llama["attention.head_count"], llama["embedding_length"]
    filled = {"attention.head_count_kv": heads, "attention.key_length": width // heads}
    return {**filled, **llama}


def read_gguf_config(reader: GgufReader) -> dict[str, Any]:
    """The content of a config.json that describes the file's model.

    Raises:
      InputError: metadata that are not implemented.
    """
    meta, names = reader.metadata, reader.names
    head_dim = meta["attention.key_length"]
    expected = {"attention.value_length": head_dim, "rope.dimension_count": head_dim}
    problems = [
        f"llama.{name} = {value!r}"
        for name, value in sorted(meta.items())
        if not (name in FIELDS or OTHERS.fullmatch(name) or value == expected.get(name))
    ]
    if problems:
        raise InputError(
            f"{reader.origin}: not implemented for heads of {head_dim}: "
            f"{capped(problems, ', ')}; use another model"
        )
    kind = meta.get("rope.scaling.type", "linear")
    factor = meta.get("rope.scaling.factor") or meta.get("rope.scale_linear") or 1.0
    scaled = kind != "none" and (kind, factor) != ("linear", 1.0)
    # Rows may be padded beyond the tokens; fewer are a mistake, which the loader finds.
    rows = [reader.shape(n)[0] for n in names if n == "model.embed_tokens.weight"]
    rows += [x for x in (meta.get("vocab_size"),) if type(x) is int]
    return {
        "model_type": "llama",
        **{field: meta[name] for name, field in FIELDS.items()},
        "num_key_value_heads": meta["attention.head_count_kv"],
        "head_dim": head_dim,
        "vocab_size": max(rows, default=None),
        "rope_theta": meta.get("rope.freq_base", 10000.0),
        "rope_scaling": {"rope_type": kind, "factor": factor} if scaled else None,
        "attention_bias": any(re.search(r"self_attn\..*bias", name) for name in names),
        "mlp_bias": any(re.search(r"mlp\..*bias", name) for name in names),
        "tie_word_embeddings": "lm_head.weight" not in names,
    }


def load_gguf_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer.json beside a GGUF file, else the tokenizer inside the file.

    For the latter transformers (up to 5.24) needs torch, and it implements few of the
    rules that split text before merging: `smollm` is added here, others are logged.

    Raises:
      InputError: there is no tokenizer, or it cannot be built.
    """
    if (path.parent / "tokenizer.json").is_file():
        return load_tokenizer(path.parent)
    rule = _open(path)[0].get("tokenizer.ggml.pre")
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path.parent), gguf_file=path.name, local_files_only=True
        )
    # Missing or contradictory metadata raise arbitrary exceptions, also from Rust.
    except Exception as error:
        raise InputError(
            f"{path}: the tokenizer inside cannot be built ({type(error).__name__}: "
            f"{error}); transformers needs torch for it: pip install "
            "'lt-mia-jax[parity]', or put the model's tokenizer.json beside the file"
        ) from error
    core = tokenizer.backend_tokenizer
    plain = isinstance(core.pre_tokenizer, ByteLevel)
    if plain and rule == "smollm":
        # Split digits first, so that spaces before a number stay together.
        core.pre_tokenizer = Sequence([Digits(True), core.pre_tokenizer])
    elif plain and rule != "gpt-2":
        logger.warning("%s: unknown split rule %r, tokens may differ", path, rule)
    return tokenizer
