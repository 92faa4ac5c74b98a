"""Paths, selection and sizes of parameter trees."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from lt_mia_jax.errors import InputError


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of a nested dict by "/"-joined path, in sorted path order."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key in sorted(node):
                visit(f"{prefix}/{key}" if prefix else str(key), node[key])
        else:
            flat[prefix] = node

    visit("", tree)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose `flatten` is `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def select(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Names that match any glob (`*` also crosses "/"), in their given order.

    Raises:
      InputError: a glob that matches nothing; all such globs are listed.
    """
    names = list(names)
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if idle:
        raise InputError(f"patterns {idle} match no parameter; parameters are {names}")
    return [n for n in names if any(fnmatchcase(n, p) for p in patterns)]


def byte_count(tree: Any) -> int:
    """Total bytes of all array leaves (arrays or `jax.ShapeDtypeStruct`)."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def parameter_count(tree: Any) -> int:
    """Total number of array elements of all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
