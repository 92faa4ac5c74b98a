"""One unlearning update as a pure function: two gradients, one transformation."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Key, Params
from lt_mia_jax.executor import per_device_key, psum
from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.lora import LoraConfig
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.training.optimizer import OptimizerConfig
from lt_mia_jax.training.state import TrainState
from lt_mia_jax.unlearning.methods import LossTerm, Method, Schedule
from lt_mia_jax.unlearning.objectives.batch import ApplyFn, TextBatch
from lt_mia_jax.unlearning.transforms import monitored, second_moment


class PairBatch(NamedTuple):
    """What one update reads."""

    forget: TextBatch | None
    retain: TextBatch | None


class Frozen(NamedTuple):
    """Arrays that an update reads and does not change."""

    base: Params | None
    """The model under the adapters or the intervention; None when all weights are
    trained."""
    data: dict[str, Any]
    """Further arguments of the objectives, by name."""
    rate: Array | None = None
    """Stands for the optimizer's learning rate: as an argument, so that one compiled
    program serves all rates that are tried."""


@dataclass(frozen=True, kw_only=True)
class TrainableModel:
    """How what is trained becomes a model; equal values share compiled programs."""

    model: Any
    """A `LanguageModel`."""
    lora: LoraConfig | None = None
    """With it adapters are trained, over a frozen base."""
    intervention: Callable[[Any], Intervention] | None = None
    """With it the numbers of an intervention are, likewise: `Method.intervention`."""

    def __call__(
        self, base: Params | None, trained: Any, input_ids: Any, **options: Any
    ) -> Any:
        """What `LanguageModel.apply` gives for the model that `trained` makes."""
        if self.intervention is not None:
            edit = self.intervention(trained)
            return self.model.apply(base, input_ids, intervention=edit, **options)
        if self.lora is None:
            return self.model.apply(trained, input_ids, **options)
        adapters = lora.scaled(trained, self.lora.scale)
        return self.model.apply(base, input_ids, adapters=adapters, **options)

    def apply_fn(self, base: Params | None, *, forward: bool = False) -> ApplyFn:
        """`apply_fn(trained, input_ids, **options)`, which may enter `jit`.

        Args:
          base: the model under what is trained, or None.
          forward: whether `jax.jvp` is to go through.
        """
        if not forward:
            return jax.tree_util.Partial(self, base)
        execution = replace(self.model.execution, forward_mode=True)
        model = replace(self.model, execution=execution)
        return jax.tree_util.Partial(replace(self, model=model), base)


@dataclass(frozen=True, kw_only=True)
class UnlearnStep:
    """An update; equal values share one compiled program."""

    trainee: TrainableModel
    method: Method
    optimizer: OptimizerConfig
    schedule: Schedule
    axis: str | None = None
    """The executor's; see `executor`."""

    def transform(
        self, arrays: dict[str, Any] | None = None, rate: Array | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The method's transformation around the optimizer."""
        optimizer = self.method.optimizer(self.optimizer, self.schedule.total, rate)
        return self.method.transform(optimizer, self.schedule, arrays or {})

    def __call__(
        self, frozen: Frozen, state: TrainState, batch: PairBatch, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, Array]]:
        """The next state; `loss`, those of both sides, and monitored numbers."""
        key = per_device_key(key, self.axis)
        apply_fn = self.trainee.apply_fn(frozen.base)

        def side(term: LossTerm, texts: TextBatch, at: Any) -> tuple[Array, Any]:
            further = {name: frozen.data[name] for name in term.data}

            def value(trained: Any) -> Array:
                found, info = term.objective(
                    trained,
                    texts,
                    apply_fn=apply_fn,
                    key=key,
                    **term.settings,
                    **further,
                )
                if self.axis is None:
                    return found
                # Of the whole batch's mean, this device's part.
                own = jax.lax.stop_gradient(info.normalizer)
                whole = psum(own, self.axis)
                return found * own / jnp.where(whole != 0, whole, 1.0)

            return psum(jax.value_and_grad(value)(at), self.axis)

        forget, retain = self.method.forget(), self.method.retain()
        metrics: dict[str, Array] = {}
        gradient, extra = None, {}
        if forget is not None:
            assert batch.forget is not None
            of_forget = partial(side, forget, batch.forget)
            metrics["forget_loss"], gradient = of_forget(state.params)
            extra["forget_value"] = metrics["forget_loss"]
            extra["grad_fn"] = lambda at: of_forget(at)[1]
        if retain is not None:
            assert batch.retain is not None
            metrics["retain_loss"], retain_gradient = side(
                retain, batch.retain, state.params
            )
            if gradient is None:
                gradient = retain_gradient
            else:
                extra["retain_grads"] = retain_gradient
                extra["retain_value"] = metrics["retain_loss"]
        assert gradient is not None, "a method with neither side"
        with contextlib.suppress(ValueError):  # of two nobody can say which is meant
            moment = second_moment(state.opt_state, b2=self.optimizer.b2)
            extra["second_moment"] = moment
        updates, opt_state = self.transform(rate=frozen.rate).update(
            gradient, state.opt_state, state.params, **extra
        )
        params = optax.apply_updates(state.params, updates)
        metrics["loss"] = sum(metrics.values(), start=jnp.zeros(()))
        metrics["grad_norm"] = optax.tree.norm(gradient)
        metrics["update_norm"] = optax.tree.norm(updates)
        metrics |= monitored(opt_state)
        return TrainState(state.step + 1, params, opt_state), metrics
