"""Array types and the legend of dimension letters used in every signature.

| letter | dimension            | letter | dimension                |
|--------|----------------------|--------|--------------------------|
| `B`    | batch (texts)        | `G`    | key/value heads          |
| `T`    | tokens or steps      | `K`    | head size                |
| `V`    | vocabulary           | `F`    | feed-forward width       |
| `D`    | model width          | `L`    | layers                   |
| `H`    | query heads          | `S`    | recurrent state size     |
| `C`    | feature columns      | `N`    | texts of a whole corpus  |

Step `t` of a text is the prediction of token `t + 1`; the last step of a padded
sequence predicts nothing and is never valid.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree, UInt

from lt_mia_jax.errors import InputError

Params = dict[str, Any]
"""Parameters: nested plain dicts of arrays, stacked over layers where scanned."""

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Num", "Params", "PyTree", "UInt"]


def finite_rows(name: str, values: Array | np.ndarray) -> np.ndarray:
    """Values in float64 on the host; an `InputError` if empty or not finite."""
    rows = np.asarray(values).astype(np.float64)
    if not rows.size:
        raise InputError(f"{name} is empty; expected at least one row")
    bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
    if bad.size:
        raise InputError(
            f"{name} has {bad.size} rows that are not finite, the first is {bad[0]}"
        )
    return rows
