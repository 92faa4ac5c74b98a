"""Vocabulary entries that one of two models has alone.

Statistics that compare run over the ids that both models have. Log-probabilities and
moments of one model run over all of its own; the cross moments weight the shared ids by
the reference's probabilities, which are normalized over these ids.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array

Rest = Sequence[Array | None]
"""For each model its logits beyond the shared ids, `"N R"`; None where there are none.
"""
_OWN = ("target_mean", "reference_mean")
_CROSS = ("cross_mean", "cross_var")


def normalizers(shared: list[Array], rest: Rest) -> list[Array]:
    """Logsumexp over all of each model's ids, from that over the shared ones."""
    return [
        lse if x is None else jnp.logaddexp(lse, jax.nn.logsumexp(x, axis=1))
        for lse, x in zip(shared, rest, strict=True)
    ]


def with_rest(
    sums: dict[str, Array],
    shared: list[Array],
    lse: list[Array],
    rest: Rest,
    means: dict[str, Array] | None = None,
) -> dict[str, Array]:
    """Means of the shared ids, or variances around `means`, made those of the models.

    `shared` and `lse` are logsumexps over the shared ids, and over all of each model's.
    """
    found = dict(sums)
    own = _OWN if means is None else ("target_var",)
    for name, n, x in zip(own, lse, rest, strict=False):
        if x is None:
            continue
        lp = x - n[:, None]
        values = lp if means is None else (lp - means["target_mean"][:, None]) ** 2
        weights = jnp.exp(lp)
        found[name] += jnp.where(weights > 0, weights * values, 0.0).sum(axis=1)
    if len(rest) == 2 and rest[1] is not None:
        share = jnp.exp(shared[1] - lse[1])
        found |= {name: found[name] / share for name in _CROSS if name in found}
    return found
