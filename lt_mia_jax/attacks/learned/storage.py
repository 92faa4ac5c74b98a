"""Learned attacks on disk: safetensors and JSON, never a pickle."""

import dataclasses
import functools
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as dump_tensors

from lt_mia_jax.arrays import Params
from lt_mia_jax.attacks.learned.attack import Attack
from lt_mia_jax.attacks.learned.classifier import from_torch_state, init
from lt_mia_jax.attacks.learned.classifier_config import ClassifierConfig
from lt_mia_jax.configs import from_dict, read_record, refuse, to_dict
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.files import (
    MANIFEST,
    read_json,
    verify_manifest,
    write_atomic,
    write_json,
    write_manifest,
)
from lt_mia_jax.trees import flatten, unflatten

WEIGHTS = "classifier.safetensors"
CONFIG = "classifier.json"
CARD = "card.json"
FILES = (WEIGHTS, CONFIG, CARD)
SHIPPED = Path(__file__).parent / "shipped"
"""The attack that comes with the package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Card:
    """What is read of a card."""

    text_ids: tuple[str, ...] = ()
    combinations: tuple[Mapping[str, Any], ...] = ()


def save_attack(
    directory: Path | str,
    config: ClassifierConfig,
    params: Params,
    card: Mapping[str, Any],
) -> None:
    """Write weights, configuration and card, then a manifest that vouches for them.

    An interrupted save leaves either the old attack or one that `load_attack` refuses.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST).unlink(missing_ok=True)
    arrays = {
        name: np.ascontiguousarray(leaf, dtype=np.float32)
        for name, leaf in flatten(params).items()
    }
    write_atomic(directory / WEIGHTS, dump_tensors(arrays))
    write_json(directory / CONFIG, to_dict(config))
    write_json(directory / CARD, dict(card))
    write_manifest(directory, FILES)


def load_attack(path: Path | str) -> Attack:
    """Read an attack: a directory of `save_attack`, or an original torch checkpoint.

    Raises:
      InputError: missing, truncated or changed files, weights that do not fit the
        configuration, or not-finite weights.

    Example:
      >>> from lt_mia_jax import load_attack
      >>> from lt_mia_jax.attacks import save_attack, shipped_attack
      >>> save_attack("attack", *shipped_attack())
      >>> load_attack("attack").k
      20
    """
    path = Path(path)
    if path.is_file():
        return load_torch_attack(path)
    verify_manifest(path)
    config = from_dict(ClassifierConfig, read_json(path / CONFIG))
    try:
        arrays = load_tensors((path / WEIGHTS).read_bytes())
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path / WEIGHTS}: not readable ({error})") from error
    except FileNotFoundError:
        raise InputError(f"{path / WEIGHTS}: no such file") from None
    params = unflatten(arrays)
    _check_weights(path / WEIGHTS, config, params)
    card = read_json(path / CARD)
    _, problems = read_record(_Card, card)
    refuse(path / CARD, problems, "Train the attack again")
    return Attack(config, params, card)


@functools.cache
def shipped_attack() -> Attack:
    """The attack that comes with the package, zero-shot for any model.

    Its `card` tells what it was trained on, how well it did on models and texts that
    it never saw, what it is for and where its limits are; docs/results.md says more.
    """
    return load_attack(SHIPPED)


def _check_weights(path: Path, config: ClassifierConfig, params: Params) -> None:
    """Same names and shapes as the configuration gives, and every number finite."""
    expected = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    wanted = {name: leaf.shape for name, leaf in flatten(expected).items()}
    found = {name: leaf.shape for name, leaf in flatten(params).items()}
    wrong = sorted(
        f"{name}: found {found.get(name, 'nothing')}, "
        f"expected {wanted.get(name, 'nothing')}"
        for name in wanted.keys() | found.keys()
        if wanted.get(name) != found.get(name)
    )
    if wrong:
        raise InputError(
            f"{path}: weights do not fit the config; {capped(wrong, '; ')}"
        )
    infinite = [n for n, leaf in flatten(params).items() if not np.isfinite(leaf).all()]
    if infinite:
        raise InputError(f"{path}: NaN or infinite weights in {capped(infinite, ', ')}")


def _numpy_scalars() -> list[Any]:
    """What pickles of NumPy's numbers need, under the names of NumPy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    kinds = {type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}
    return [np.dtype, *((scalar, name) for name in names), *kinds]


def load_torch_attack(path: Path | str) -> Attack:
    """Read a checkpoint of the original implementation (`torch.save` of a dict).

    Only tensors, plain values and NumPy scalars (which scikit-learn's metrics are) are
    read: a file that needs other Python objects is refused, because unpickling them
    would run code from the file. Sizes come from the
    weights, heads, dropout and sequence length from the file's hyper-parameters.

    Raises:
      InputError: torch is not installed, or the file is not such a checkpoint.

    Source: checkpoint layout of the LT-MIA release (`state_dict`, `seq_len`,
    `architecture`, `mia_hparams`).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading a torch checkpoint needs torch; "
            "pip install 'lt-mia-jax[parity]'"
        ) from error
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not a plain torch checkpoint; it holds objects other than "
            "tensors and numbers, which could run code when loaded. Re-save it with "
            f"tensors and plain values only ({str(error).splitlines()[0][:200]})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not readable as a torch checkpoint, it may be truncated ({error})"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{path}: no 'state_dict' in the file; not an attack")
    stored: dict[Any, Any] = content["state_dict"]
    wrong = [
        f"{name!r}: {type(tensor).__name__}"
        for name, tensor in stored.items()
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor))
        or tensor.layout is not torch.strided
        or not tensor.is_floating_point()
    ]
    if wrong:
        raise InputError(
            f"{path}: 'state_dict' holds {capped(wrong, '; ')}; expected dense "
            "tensors of floating-point numbers by name"
        )
    state = {name: tensor.float().numpy() for name, tensor in stored.items()}
    try:
        hyper = content.get("mia_hparams") or {}
        config, params = from_torch_state(
            state,
            heads=int(hyper.get("nhead", 8)),
            length=int(content.get("seq_len", 128)),
            dropout=float(hyper.get("dropout", 0.05)),
            architecture=content.get("architecture"),
        )
        if "seq_len" in content:
            config = dataclasses.replace(config, length=int(content["seq_len"]))
        combinations = [str(c) for c in content.get("train_combinations") or ()]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    # What stands for a number or a shape may be anything.
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: settings or shapes of no attack ({type(error).__name__}: {error})"
        ) from error
    _check_weights(path, config, params)
    card = {
        "source": path.name,
        "architecture": config.architecture,
        "train_combinations": combinations,
    }
    return Attack(config, params, card)
