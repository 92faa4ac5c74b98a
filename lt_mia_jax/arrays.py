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

from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree, UInt

Params = dict[str, Any]
"""Parameters: nested plain dicts of arrays, stacked over layers where scanned."""

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Num", "Params", "PyTree", "UInt"]
