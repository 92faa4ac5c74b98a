"""Reading and writing safetensors in one file, or in shards with an index."""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
from safetensors import SafetensorError, safe_open

from lt_mia_jax.checkpoints.transforms import Shape
from lt_mia_jax.errors import InputError, capped
from lt_mia_jax.files import read_json, write_json
from lt_mia_jax.models.execution import DType

log = logging.getLogger(__name__)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_STORED = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
REAL_DTYPES = set(_STORED.values())
SHARD_BYTES = 5 * 10**9


class Tensor(NamedTuple):
    """An array to be written, which `make` creates."""

    name: str
    shape: Shape
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of the array."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class TensorReader:
    """Named tensors of a checkpoint directory; data is read on request.

    A single file is read before shards, as transformers does. It is a context manager,
    because it keeps the files open.
    """

    def __init__(self, directory: Path, *, sharded: bool = False, single: str = SINGLE):
        """Open a checkpoint; if `sharded`, its shards even beside a single file.

        Another name than that of a model's `single` file has no shards.

        Raises:
          InputError: files are missing or broken, or a single file and a whole set of
            shards hold different tensors.
        """
        self._stack = contextlib.ExitStack()
        self.origin, files = _find_files(directory, sharded, single)
        try:
            self._open(files)
            if self.origin.name == SINGLE and (directory / INDEX).is_file():
                self._check_shards(directory)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, files: dict[Path, list[str] | None]) -> None:
        self._slices: dict[str, Any] = {}
        self._files: dict[str, tuple[Path, Any]] = {}
        for path, wanted in files.items():
            try:
                file = self._stack.enter_context(safe_open(path, framework="np"))
                names = list(file.keys())
                absent = sorted(set(wanted or names) - set(names))
                if absent:
                    raise InputError(
                        f"{path}: tensors {capped(absent)} of {INDEX} are not in it; "
                        "get the file again"
                    )
                for name in wanted or names:
                    self._files[name] = (path, file)
                    self._slices[name] = file.get_slice(name)
            except (SafetensorError, OSError) as error:
                raise _unreadable(path, error) from error

    def _check_shards(self, directory: Path) -> None:
        """Refuse a folder in which two models may be meant."""
        try:
            shards = TensorReader(directory, sharded=True)
        except InputError as error:
            log.warning("%s is read; what lies beside it is not: %s", SINGLE, error)
            return
        with shards:
            names = sorted({*self.names, *shards.names})
            found = next((n for n in names if not _same(n, self, shards)), None)
        if found is not None:
            raise InputError(
                f"{directory}: {SINGLE} and the shards of {INDEX} are two checkpoints "
                f"(different: {found}); remove the one that is out of date"
            )

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    @property
    def files(self) -> list[Path]:
        """The files that hold tensors, sorted."""
        return sorted({path for path, _ in self._files.values()})

    @property
    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, from the header."""
        return tuple(self._slices[name].get_shape())

    def dtype(self, name: str) -> str:
        """The format's own dtype name, such as `BF16`."""
        return str(self._slices[name].get_dtype())

    def real(self, name: str) -> bool:
        """Whether the tensor is floating point and not quantized."""
        return self.dtype(name) in REAL_DTYPES

    def read(self, name: str) -> np.ndarray:
        """The tensor in its stored dtype (bfloat16 as `ml_dtypes.bfloat16`)."""
        path, file = self._files[name]
        try:
            return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error


def _same(name: str, one: TensorReader, other: TensorReader) -> bool:
    """Whether two checkpoints have one tensor; the values of real ones are compared."""
    if not (name in one.names and name in other.names):
        return False
    if (one.shape(name), one.dtype(name)) != (other.shape(name), other.dtype(name)):
        return False
    # Others are refused when they are read.
    return not one.real(name) or one.read(name).tobytes() == other.read(name).tobytes()


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: not a complete safetensors file ({error}); it is truncated or "
        "corrupt, get it again"
    )


def _find_files(
    directory: Path, sharded: bool, name: str
) -> tuple[Path, dict[Path, list[str] | None]]:
    """The file to name in messages, and the tensors (None: all) of each file."""
    single, index = directory / name, directory / INDEX
    if single.is_file() and not sharded:
        return single, {single: None}
    if index.is_file() and name == SINGLE:
        return index, _read_index(index)
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    hint = (
        f"{capped(pickles)} are pickle files, which are never opened; open the model "
        "with transformers and save it with save_pretrained"
        if pickles
        else f"put {SINGLE} (or shards with {INDEX}) there"
        if name == SINGLE
        else "put it there"
    )
    raise InputError(f"{directory}: no {name}; {hint}")


def _read_index(index: Path) -> dict[Path, list[str] | None]:
    table = read_json(index)
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no 'weight_map' table; get the file again")
    files: dict[Path, list[str] | None] = {}
    wrong = []
    for name, file in weight_map.items():
        # An index must not reach outside its own folder.
        if not isinstance(file, str) or Path(file).name != file:
            wrong.append(f"{file!r} is not a plain file name")
            continue
        path = index.parent / file
        if path not in files and not path.is_file():
            wrong.append(f"{file} is missing")
        wanted = files.setdefault(path, [])
        assert wanted is not None
        wanted.append(name)
    if wrong:
        raise InputError(
            f"{index}: {capped(sorted(set(wrong)), '; ')}; get the shards again"
        )
    return files


def write_tensors(
    directory: Path, tensors: Sequence[Tensor], *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write one file, or shards and then their index, each atomically.

    Only one tensor is in host memory at a time. No file takes its name before all are
    complete, so what is there stays if a tensor cannot be made.

    Raises:
      InputError: the disk is full, or the directory contains a checkpoint in the other
        layout, beside which this one is ambiguous.
    """
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    other = directory / (INDEX if len(shards) == 1 else SINGLE)
    if other.exists():
        raise InputError(
            f"{directory}: holds another checkpoint ({other.name}); choose an empty "
            "folder"
        )
    named = {SINGLE: shards[0]}
    if len(shards) > 1:
        count = f"{len(shards):05d}.safetensors"
        named = {f"model-{n:05d}-of-{count}": x for n, x in enumerate(shards, start=1)}
    with contextlib.ExitStack() as temporaries:
        written = {
            directory / name: temporaries.enter_context(_written(directory / name, own))
            for name, own in named.items()
        }
        # Without an index, a mixture of old and new shards is not a model.
        (directory / INDEX).unlink(missing_ok=True)
        for path, temporary in written.items():
            os.replace(temporary, path)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors)
        weight_map = {
            tensor.name: name for name, own in named.items() for tensor in own
        }
        table = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / INDEX, table)


@contextlib.contextmanager
def _written(path: Path, tensors: Sequence[Tensor]) -> Iterator[str]:
    """A complete file beside `path`; removed in the end, unless it has been renamed.

    Tensors are made in the order in which they are given, whatever their place is.
    """
    header, places = _layout(tensors)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
    )
    try:
        try:
            with open(handle, "wb") as file:
                file.write(header)
                for tensor in tensors:
                    file.seek(len(header) + places[tensor.name])
                    file.write(_bytes_of(tensor).data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error}; free space or choose another folder"
            ) from error
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _bytes_of(tensor: Tensor) -> np.ndarray:
    array = np.asarray(tensor.make(), order="C")
    if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
        found = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"{tensor.name}: {found}, not {tensor.dtype} {tensor.shape}")
    return array.reshape(-1).view(np.uint8)


def _layout(tensors: Sequence[Tensor]) -> tuple[bytes, dict[str, int]]:
    """The header of a file, and where the data of each tensor begins behind it.

    Source: the format's description, and the order of safetensors 0.6 (the widest
    types first, then by name).
    """
    # transformers requires this metadata entry.
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, end = {}, 0
    for tensor in sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name)):
        places[tensor.name], begin = end, end
        end += tensor.nbytes
        kind = _STORED[tensor.dtype.name]
        table[tensor.name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def check_dtype(name: str) -> DType:
    """The name of a dtype for parameters.

    Raises:
      InputError: it is not "float32" or "bfloat16".
    """
    if name not in get_args(DType):
        raise InputError(f"dtype {name!r}: expected one of {sorted(get_args(DType))}")
    return cast(DType, name)
