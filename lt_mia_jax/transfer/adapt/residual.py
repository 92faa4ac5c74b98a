"""REFINE: frozen source features beside a small encoder that is trained with the head.

Source: REFINE. Kept: frozen features under `stop_gradient`, a residual encoder, a head
on both, several sources. Not kept: its backbones, data and settings.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.transfer.adapt.features import Features
from lt_mia_jax.trees import map_named

SOURCE = "source_"


class Refine(nn.Module):
    """`head([source_1(x); ...; residual(x)])`, of which only the sources are frozen.

    Example:
      >>> source = lambda params, x: x @ params["w"]
      >>> refine = Refine((source,), residual=nn.Dense(2), head=nn.Dense(3))
      >>> x, frozen = jnp.ones((5, 4)), [{"w": jnp.ones((4, 6))}]
      >>> params = refine.init(jax.random.key(0), x, frozen)["params"]
      >>> refine.apply({"params": params}, x).shape
      (5, 3)
    """

    sources: tuple[Features, ...]
    """Functions of pretrained parameters; without any, it is trained from scratch."""
    residual: nn.Module | None
    """The encoder, from inputs to features "B H"; None is a probe of the sources."""
    head: nn.Module
    """From all features to the output."""

    @nn.compact
    def __call__(
        self, inputs: Any, frozen: Sequence[Any] | None = None
    ) -> Float[Array, "B O"]:
        """The output of the head.

        `frozen` are the parameters of each source, for `init` only, which puts them
        into the tree as "source_0", "source_1" and so on.
        """
        parts = []
        for number, features in enumerate(self.sources):
            name = f"{SOURCE}{number}"
            if self.has_variable("params", name):
                own = self.get_variable("params", name)
            elif frozen is None:
                raise ValueError("init needs `frozen`, the parameters of each source")
            else:
                own = self.param(name, lambda _, tree=frozen[number]: tree)
            parts.append(jax.lax.stop_gradient(features(own, inputs)))
        if self.residual is not None:
            parts.append(self.residual(inputs))
        return self.head(jnp.concatenate(parts, axis=-1))


def freeze_mask(params: Any) -> Any:
    """True where `Refine` is trained, False in its sources; for `optax.masked`."""
    return map_named(lambda path, _: not path.startswith(SOURCE), params)
