"""MRP: a subspace is projected out of the residual stream; no weight changes."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array
from lt_mia_jax.errors import AT_LEAST_1, InputError
from lt_mia_jax.executor import fetch
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.models.placement import ByLayer, by_layer
from lt_mia_jax.training.config import OptimizerConfig
from lt_mia_jax.training.optimizer import make_sgd
from lt_mia_jax.unlearning.interventions import directions
from lt_mia_jax.unlearning.interventions.edits import Projection, orthonormal_rows
from lt_mia_jax.unlearning.methods.method import Method, Recipe
from lt_mia_jax.unlearning.methods.setting import Prepared, Setting
from lt_mia_jax.unlearning.objectives.batch import ApplyFn, TextBatch


@dataclass(frozen=True)
class Projections:
    """From unconstrained rows to the projection that removes their span."""

    layers: tuple[int, ...]

    def __call__(self, trained: Any) -> Intervention:
        """The intervention from `rows`, `"N k D"`, of each layer.

        Possibly with `earlier`, `"N E D"`: the rows of another run, which stay.
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
    """Project a small subspace out of the residual stream at a few layers.

    The rows of the projection are trained by plain gradient descent on `-L_f + rho L_r`
    with the model frozen; rho is `retain_weight`, and --weight-decay is ignored. They
    start as the main directions of the forget texts outside those of the retain texts.
    If the model already carries an MRP projection, another run extends it.

    Source: MRP, arXiv 2508.15449; the start is ours (see `directions.forget_rows`), and
    so is rho, which the paper does not give.
    """

    rows: Annotated[int, AT_LEAST_1] = 2
    """Dimensions removed at each layer."""
    layers: tuple[int, ...] = ()
    """Layers whose output is projected; 0 is the embedding. Empty draws `count`."""
    count: Annotated[int, AT_LEAST_1] = 2
    """Number of layers to draw; the last layer is drawn only if it is the only one."""
    draw: int = 0
    """Seed of that draw."""
    retain_rank: int | None = None
    """Number of main directions of the retain texts that the start avoids; None is a
    quarter of the width."""
    weights_only = True
    recipe = Recipe(learning_rate=2e-4, epochs=2, batch_size=5)

    @property
    def needs_retain(self) -> bool:
        """The start needs them, even if `retain_weight` is 0."""
        return True

    def fitted(self, model: ModelConfig) -> "Mrp":
        """With its layers drawn."""
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
          InputError: `earlier` is no projection, or acts at layers other than `layers`.
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

    def prepare(self, setting: Setting) -> Prepared:
        """Start each layer's rows at the directions of the forget texts alone.

        On a model with a projection they are those of the stream behind it. `start` is
        what `Projections` takes.

        Raises:
          InputError: at a layer the forget texts have fewer directions of their own.
        """
        earlier: Any = setting.earlier

        def token_rows(batch: TextBatch) -> list[np.ndarray]:
            model = (setting.apply_fn, setting.trained)
            streams = fetch(_streams(*model, batch, earlier, self.layers))
            mask = fetch(batch.attention_mask) * (fetch(batch.weight) > 0)[:, None]
            return [directions.token_rows(x, mask) for x in streams]

        sides = setting.both_sides(token_rows)
        wanted = {"count": self.rows, "retain_rank": self.retain_rank}
        found = []
        for layer, forget, retain in zip(self.layers, *sides, strict=True):
            try:
                found.append(directions.forget_rows(forget, retain, **wanted))
            except InputError as error:
                raise InputError(f"mrp, layer {layer}: {error}") from error
        trained: dict[str, Any] = {"rows": np.stack(found)}
        if earlier is not None:
            trained["earlier"] = np.asarray(earlier.stacked.rows, np.float32)
        return Prepared(start=trained)

    def intervention(self) -> Projections:
        """The projection that removes the span of the rows."""
        return Projections(self.layers)

    def optimizer(
        self, config: OptimizerConfig, total_steps: int, rate: Array | None
    ) -> optax.GradientTransformation:
        """Plain gradient descent."""
        return make_sgd(config, total_steps, rate)


@partial(jax.jit, static_argnames="layers")
def _streams(
    apply_fn: ApplyFn,
    params: Any,
    batch: TextBatch,
    earlier: ByLayer | None,
    layers: tuple[int, ...],
) -> tuple[Array, ...]:
    _, streams = apply_fn(params, batch.input_ids, intervention=earlier, capture=layers)
    return tuple(streams[layer].astype(jnp.float32) for layer in layers)
