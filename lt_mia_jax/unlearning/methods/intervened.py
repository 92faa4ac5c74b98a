"""Methods that leave every weight as it is, and make an intervention instead."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.models.placement import AtLayers, ByLayer, by_layer
from lt_mia_jax.training.optimizer import OptimizerConfig, make_sgd
from lt_mia_jax.unlearning.interventions.edits import Projection, orthonormal_rows
from lt_mia_jax.unlearning.interventions.gated import GatedRotation, Weighting
from lt_mia_jax.unlearning.methods.method import Method, Recipe


@dataclass(frozen=True)
class Projections:
    """From free rows of each layer to the projection off their span."""

    layers: tuple[int, ...]

    def __call__(self, trained: Any) -> Intervention:
        """The intervention.

        Args:
          trained: `rows`, `"N k D"`, of each layer; and `earlier`, `"N E D"`, those of
            an earlier run, which stay as they are.
        """
        rows = jnp.asarray(trained["rows"])
        if "earlier" in trained:
            earlier = jax.lax.stop_gradient(jnp.asarray(trained["earlier"]))
            rows = jnp.concatenate([earlier, rows], axis=1)
        return by_layer(
            {
                layer: Projection(orthonormal_rows(own))
                for layer, own in zip(self.layers, rows, strict=True)
            }
        )


@dataclass(frozen=True, kw_only=True)
class Mrp(Method):
    """A small subspace is projected out of the stream at a few layers.

    Its rows are trained by plain gradient descent on `-L_f + rho L_r` with the model
    frozen, rho being `retain_weight`; --weight-decay is not used. They start as the
    main directions of the texts to forget outside of those of the texts to keep. On a
    model that comes with such a projection the new rows are added to its own.

    Source: MRP, arXiv 2508.15449; the start is ours (see `directions.forget_rows`), and
    so is rho, which the paper does not give.
    """

    rows: int = 2
    """Dimensions that are taken out at each layer."""
    layers: tuple[int, ...] = ()
    """Where, in layers that the stream has passed; none draws `count` of them."""
    count: int = 2
    """Layers that are drawn; the last one is never among them, unless it is alone."""
    draw: int = 0
    """Seed of that draw."""
    retain_rank: int | None = None
    """Directions of the texts to keep that the start spares; None is a quarter of the
    width."""
    weights_only: ClassVar[bool] = True
    recipe: ClassVar[Recipe] = Recipe(learning_rate=2e-4, epochs=2, batch_size=5)

    @property
    def needs_retain(self) -> bool:
        """The start looks at them, whatever the loss does."""
        return True

    def fitted(self, model: ModelConfig) -> "Mrp":
        """With layers."""
        if self.rows < 1 or self.count < 1:
            raise InputError(
                f"mrp: rows = {self.rows}, count = {self.count}; expected at least 1"
            )
        wrong = [n for n in self.layers if not 0 <= n <= model.layers]
        if wrong or len(set(self.layers)) < len(self.layers):
            raise InputError(
                f"mrp: layers = {list(self.layers)}; expected different numbers from 0 "
                f"(the embedding) to {model.layers} (after the last layer)"
            )
        if self.layers:
            return self
        choice = max(1, model.layers - 1)
        drawn = np.argsort(np.random.Philox(self.draw).random_raw(choice)) + 1
        layers = tuple(sorted(int(n) for n in drawn[: self.count]))
        return dataclasses.replace(self, layers=layers)

    def extending(self, earlier: Intervention) -> "Mrp":
        """At the layers of an earlier projection.

        Raises:
          InputError: it is something else, or `layers` are others.
        """
        if not isinstance(earlier, ByLayer) or not isinstance(
            earlier.stacked, Projection
        ):
            raise InputError(
                "the model comes with an intervention that is no projection of mrp, "
                "and mrp extends nothing else; take the model without it"
            )
        layers = tuple(int(n) for n in earlier.layers)
        if self.layers not in ((), layers):
            raise InputError(
                f"mrp: layers = {list(self.layers)}, but the projection that the model "
                f"comes with acts at {list(layers)}; leave --method.layers out"
            )
        return dataclasses.replace(self, layers=layers)

    def intervention(self) -> Projections:
        """Off the span of the rows."""
        return Projections(self.layers)

    def optimizer(
        self, config: OptimizerConfig, total_steps: int, rate: Array | None
    ) -> optax.GradientTransformation:
        """Plain gradient descent."""
        return make_sgd(config, total_steps, rate)


def _as_fitted(trained: Any) -> Intervention:
    return trained


@dataclass(frozen=True, kw_only=True)
class GuardIt(Method):
    """Prompts about forgotten topics open a gate; their texts are turned away.

    Nothing is trained: topics are clusters of the texts to forget, each with a vector,
    and a gate that looks at the prompt alone (`gated.GatedRotation`). The paper embeds
    by a sentence encoder, which is another model; here the model embeds its prompts
    itself, by the mean of its stream over them. Of the settings of a run, --epochs,
    --batch-size and --learning-rate change nothing.

    Source: GUARD-IT, arXiv 2605.12765, but for the embedding.
    """

    layer: int | None = None
    """Layers that the stream has passed; None is a quarter of the model."""
    strength: float = 1.0
    """How far to turn, in multiples of the vectors; the paper tries values in [0, 1].
    """
    most_topics: int = 20
    """Most clusters; from 2 on, the largest silhouette decides."""
    threshold: float | None = None
    """Cosine above which the gate opens. None takes the one with the largest recall on
    the texts to forget minus `penalty` times the rate on the texts to keep. The paper's
    0.55 is for a sentence encoder."""
    penalty: float = 1.0
    """Price of opening for a text to keep."""
    weighting: Weighting = "mean"
    """How several open topics share: alike (TOFU) or by similarity (MUSE)."""
    weights_only: ClassVar[bool] = True

    @property
    def needs_forget(self) -> bool:
        """The topics are theirs."""
        return True

    @property
    def needs_retain(self) -> bool:
        """The gate has to tell them apart."""
        return True

    def forget(self) -> None:
        """No gradient is taken."""

    def retain(self) -> None:
        """No gradient is taken."""

    def fitted(self, model: ModelConfig) -> "GuardIt":
        """With a layer."""
        layer = max(1, model.layers // 4) if self.layer is None else self.layer
        if not 0 <= layer <= model.layers:
            raise InputError(
                f"guard_it: layer = {layer}; expected 0 (the embedding) to "
                f"{model.layers} (after the last layer)"
            )
        return dataclasses.replace(self, layer=layer)

    def intervention(self) -> Callable[[Any], Intervention]:
        """What was fitted."""
        return _as_fitted

    def placed(self, fitted: GatedRotation) -> AtLayers:
        """At the method's layer."""
        return AtLayers(fitted, np.asarray([self.layer], np.int32))
