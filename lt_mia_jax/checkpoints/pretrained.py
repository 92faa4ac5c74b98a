"""Loading and saving models in Hugging Face layout."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lt_mia_jax.arrays import Params
from lt_mia_jax.checkpoints import rules
from lt_mia_jax.checkpoints.adapters.base import base_of
from lt_mia_jax.checkpoints.adapters.config import is_adapter
from lt_mia_jax.checkpoints.adapters.reader import AdaptedReader, Adapter
from lt_mia_jax.checkpoints.families import FAMILIES
from lt_mia_jax.checkpoints.gguf import (
    GgufReader,
    is_gguf,
    load_gguf_tokenizer,
    read_gguf_config,
)
from lt_mia_jax.checkpoints.hf_config import read_config, write_config
from lt_mia_jax.checkpoints.hf_fields import NEUTRAL
from lt_mia_jax.checkpoints.hub import resolve
from lt_mia_jax.checkpoints.safetensors import TensorReader, check_dtype, write_tensors
from lt_mia_jax.checkpoints.tokenizer import has_tokenizer, load_tokenizer
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.files import (
    MANIFEST,
    content_sha256,
    read_json,
    verify_manifest,
    write_json,
)
from lt_mia_jax.models import ExecutionConfig, LanguageModel, ModelConfig
from lt_mia_jax.models.config import Tied
from lt_mia_jax.sharding import parameter_shardings
from lt_mia_jax.trees import flatten, unflatten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "config.json"


class Pretrained(NamedTuple):
    """A model from disk."""

    config: ModelConfig
    params: Params
    tokenizer: "PreTrainedTokenizerBase"


class Source(NamedTuple):
    """A model on disk of which nothing but the configuration has been read."""

    path: Path
    """Directory or GGUF file, of an adapter that of its base."""
    kind: str
    config: ModelConfig
    open: Callable[[], TensorReader | GgufReader]
    adapter: Adapter | None = None
    untied: bool = False
    """The adapter gives the model a head of its own."""

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer; errors as `load_pretrained`."""
        return _tokenizer(self.path, self.adapter and self.adapter.directory)


def load_pretrained(
    path_or_id: str | Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    base: str | Path | None = None,
) -> Pretrained:
    """A model and its tokenizer from a directory in Hugging Face layout or the hub.

    An adapter of PEFT (LoRA) is merged into its base as that is read; its tokenizer is
    its own, else the base's.

    Args:
      path_or_id: a local directory, a Llama-type GGUF file, or a hub id.
      dtype: of the parameters, "float32" or "bfloat16"; decays and steps of
        recurrences are always float32.
      mesh: shards the parameters as they are read; None uses the default device.
      base: the base of an adapter whose own is neither on disk nor on the hub.

    Raises:
      InputError: files are missing, broken, contradictory or not supported.

    Example:
      >>> import jax
      >>> from lt_mia_jax import LanguageModel, load_pretrained, save_pretrained
      >>> from lt_mia_jax.data import train_bpe
      >>> from lt_mia_jax.models import gpt2_like
      >>> tokenizer = train_bpe(["to be or not to be"], vocab_size=257)
      >>> config = gpt2_like(257, width=16, layers=1, heads=2, context=8)
      >>> params = LanguageModel(config).init(jax.random.key(0))
      >>> save_pretrained("tiny", config, params, tokenizer)
      >>> loaded = load_pretrained("tiny")
      >>> loaded.config == config, loaded.tokenizer("be").input_ids
      (True, [66, 69])
    """
    # Before the weights, so that what is missing is reported before a long load.
    source = describe(path_or_id, base)
    tokenizer = source.tokenizer()
    return Pretrained(source.config, _load(source, dtype, mesh), tokenizer)


def load_model(
    path_or_id: str | Path,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    base: str | Path | None = None,
) -> tuple[ModelConfig, Params]:
    """Config and parameters alone; arguments and errors as `load_pretrained`."""
    source = describe(path_or_id, base)
    return source.config, _load(source, dtype, mesh)


def tokenizer_of(
    path_or_id: str | Path, *, base: str | Path | None = None
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model; arguments and errors as `load_pretrained`."""
    found, adapter = located(path_or_id, base)
    if not is_gguf(found) and (found / CONFIG).is_file():
        # transformers reads it too, and would call the tokenizer broken.
        read_json(found / CONFIG)
    return _tokenizer(found, adapter)


def weights_sha256(
    path_or_id: str | Path, *, base: str | Path | None = None
) -> dict[str, str]:
    """SHA-256 of each file of weights of a model, by name; errors as `load_model`.

    Those of an adapter are its two files and the weights of its base.
    """
    found, adapter = located(path_or_id, base)
    if is_gguf(found):
        files = [found]
    else:
        with TensorReader(found) as reader:
            files = reader.files
    own = [] if adapter is None else Adapter(adapter).files
    return {path.name: content_sha256(path) or "" for path in (*own, *files)}


def located(
    path_or_id: str | Path, base: str | Path | None = None
) -> tuple[Path, Path | None]:
    """Directory or GGUF file of a whole model, and directory of its adapter.

    Arguments and errors as `load_pretrained`.
    """
    if is_gguf(path_or_id):
        return Path(path_or_id), None
    directory = resolve(path_or_id)
    if is_adapter(directory):
        return base_of(directory, base), directory
    return directory, None


def _tokenizer(whole: Path, adapter: Path | None) -> "PreTrainedTokenizerBase":
    if adapter is not None and has_tokenizer(adapter):
        return load_tokenizer(adapter)
    return load_gguf_tokenizer(whole) if is_gguf(whole) else load_tokenizer(whole)


def describe(path_or_id: str | Path, base: str | Path | None) -> Source:
    """What a model is, before its weights are read."""
    path, directory = located(path_or_id, base)
    if is_gguf(path):
        gguf = GgufReader(path)
        data, where = read_gguf_config(gguf), str(path)
        source = partial(Source, path, open=lambda: gguf)
    else:
        data, where = _read_config_json(path), str(path / CONFIG)
        source = partial(Source, path, open=partial(_open, path))
    config = read_config(data, where)
    kind = data["model_type"]
    if directory is None:
        return source(kind=kind, config=config)
    adapter = Adapter(directory)
    changed = adapter.fields(FAMILIES[kind].table(config), config)
    adapted = read_config({**data, **changed}, where) if changed else config
    untied = isinstance(config.head, Tied) and not isinstance(adapted.head, Tied)
    return source(kind=kind, config=adapted, adapter=adapter, untied=untied)


def _read_config_json(directory: Path) -> Any:
    path = directory / CONFIG
    if not path.is_file():
        raise InputError(
            f"{directory}: no {CONFIG}; a model directory holds {CONFIG}, "
            "model.safetensors and the tokenizer"
        )
    return read_json(path)


def _open(directory: Path) -> TensorReader:
    """A directory's weights, compared with our manifest beside them, if there is one.

    Raises:
      InputError: they have changed, or cannot be read.
    """
    if (directory / MANIFEST).is_file():
        found = read_json(directory / MANIFEST)
        named = found.get("files") if isinstance(found, dict) else None
        if isinstance(named, dict) and CONFIG in named and "digest" in found:
            verify_manifest(directory)
    return TensorReader(directory)


class Opened(NamedTuple):
    """A model on disk whose tensors can be read."""

    reader: rules.Reader
    table: rules.Table
    shapes: dict[str, jax.ShapeDtypeStruct]
    """Of its parameters, by path."""


@contextlib.contextmanager
def opened(source: Source, dtype: str) -> Iterator[Opened]:
    """The tensors of a model, of an adapter merged into its base as they are read.

    `dtype` and errors as `load_pretrained`.
    """
    execution = ExecutionConfig(param_dtype=check_dtype(dtype))
    config = source.config
    table = FAMILIES[source.kind].table(config)
    with source.open() as reader:
        rules.check_sizes(reader, config)
        shapes = flatten(LanguageModel(config, execution).shapes())
        if source.adapter is not None:
            groups = rules.expand(table, config, shapes)
            reader = AdaptedReader(
                reader,
                source.adapter,
                table,
                [each for group in groups for each in group],
                untied=source.untied,
            )
        yield Opened(reader, table, shapes)


def _load(source: Source, dtype: str, mesh: Mesh | None) -> Params:
    with opened(source, dtype) as (reader, table, shapes):
        shardings = mesh and parameter_shardings(shapes, mesh)

        def put(name: str, leaf: np.ndarray) -> jax.Array:
            placed = jax.device_put(leaf, shardings and shardings[name])
            # The copy runs in the background; until it ends, both arrays are in memory.
            return placed.block_until_ready()

        return unflatten(rules.load(reader, table, source.config, shapes, put=put))


def save_pretrained(
    directory: str | Path,
    config: ModelConfig,
    params: Params,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    like: str | Path | None = None,
) -> None:
    """Write a model that `load_pretrained` and transformers can open.

    Files are written atomically, config.json last. The stored dtype is that of the
    parameters.

    Args:
      directory: created if needed; a model of the same layout is overwritten.
      config: config of the model.
      params: its parameters, shaped as those of `LanguageModel.init`.
      tokenizer: None writes no tokenizer.
      like: a model whose config.json provides the fields that do not change the
        logits, such as special token ids, and the `model_type` if several are possible.

    Raises:
      InputError: no family can express the model, the parameters do not fit it or
        have mixed dtypes, or the files cannot be written.

    Example:
      >>> import json, pathlib
      >>> import jax
      >>> from lt_mia_jax import LanguageModel, save_pretrained
      >>> from lt_mia_jax.models import gpt2_like
      >>> config = gpt2_like(64, width=16, layers=1, heads=2, context=8)
      >>> params = LanguageModel(config).init(jax.random.key(0))
      >>> save_pretrained("tiny", config, params)
      >>> json.loads(pathlib.Path("tiny/config.json").read_text())["model_type"]
      'gpt2'
    """
    flat = flatten(params)
    dtype = _check_params(flat, config)

    def read(place: rules.Place) -> Any:
        return flat[place.path][place.part] if place.part else flat[place.path]

    write_model(directory, config, dtype.name, read, tokenizer, like=like)


def write_model(
    directory: str | Path,
    config: ModelConfig,
    dtype: str,
    read: Callable[[rules.Place], Any],
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    like: str | Path | None = None,
) -> None:
    """`save_pretrained` of parameters that are made as they are written.

    `read` gives one layer's part of a parameter, in the order of the family's table.
    """
    directory = Path(directory)
    lent = {} if like is None else _lent(like)
    kind, data = write_config(config, prefer=lent.get("model_type"))
    execution = ExecutionConfig(param_dtype=check_dtype(dtype))
    shapes = flatten(LanguageModel(config, execution).shapes())
    data = {**_neutral_fields(lent, tokenizer), **data, "dtype": dtype}
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {directory}: {error.strerror}") from error
    table = FAMILIES[kind].table(config)
    write_tensors(directory, list(rules.export(table, config, shapes, read)))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(directory))
    write_json(directory / CONFIG, data)


def _lent(like: str | Path) -> dict[str, Any]:
    """The config.json of a model, of an adapter that of its base."""
    found, _ = located(like)
    return {} if is_gguf(found) else read_json(found / CONFIG)


def _check_params(flat: Mapping[str, Any], config: ModelConfig) -> np.dtype:
    dtype = np.dtype(flat[next(iter(flat))].dtype) if flat else np.dtype(np.float32)
    execution = ExecutionConfig(param_dtype=check_dtype(dtype.name))
    expected = flatten(LanguageModel(config, execution).shapes())
    wrong = sorted(set(flat) ^ set(expected)) or [
        f"{name} is {list(leaf.shape)} instead of {list(expected[name].shape)}"
        for name, leaf in flat.items()
        if leaf.shape != expected[name].shape
    ]
    if wrong:
        raise InputError(
            f"parameters do not fit the config: {capped(wrong, '; ')}; pass the config "
            "that they were made with"
        )
    mixed = [
        f"{name} is {leaf.dtype} instead of {expected[name].dtype}"
        for name, leaf in flat.items()
        if leaf.dtype != expected[name].dtype
    ]
    if mixed:
        raise InputError(
            f"parameters have mixed dtypes: {capped(mixed, '; ')}; cast them to one"
        )
    return dtype


def _neutral_fields(
    lent: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase | None"
) -> dict[str, Any]:
    if lent:
        drop = {"architectures", "model_type", "torch_dtype", "transformers_version"}
        return {k: v for k, v in lent.items() if k in NEUTRAL - drop}
    # Absent ids would be read as the family's defaults, which may not be in the
    # vocabulary.
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name, None) for name in names}
