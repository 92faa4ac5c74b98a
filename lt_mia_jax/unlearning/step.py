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
from lt_mia_jax.finetune.config import LoraConfig
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.policy.rollouts import Rollouts, roll_out
from lt_mia_jax.training.config import OptimizerConfig
from lt_mia_jax.training.state import TrainState
from lt_mia_jax.unlearning.methods.method import LossTerm, Method, Schedule
from lt_mia_jax.unlearning.objectives.batch import ApplyFn, TextBatch
from lt_mia_jax.unlearning.transforms import (
    fisher_masked,
    monitored,
    second_moment,
    sharpness_aware,
)


class PairBatch(NamedTuple):
    """The texts of one update; a side that the method does not read is None."""

    forget: TextBatch | None
    retain: TextBatch | None


class Frozen(NamedTuple):
    """Arrays that an update reads and does not change."""

    base: Params | None
    """The model under the adapters or the intervention; None if all weights are
    trained."""
    data: dict[str, Any]
    """Further arguments of the objectives, by name; see `LossTerm.data`."""
    rate: Array | None = None
    """Replaces the optimizer's learning rate. An argument, so that one compiled program
    serves all rates."""


@dataclass(frozen=True, kw_only=True)
class TrainableModel:
    """How the trained tree becomes a model; equal values share compiled programs."""

    model: Any
    """A `LanguageModel`."""
    lora: LoraConfig | None = None
    """If given, the tree holds LoRA adapters on a frozen base."""
    intervention: Callable[[Any], Intervention] | None = None
    """If given, the tree is that of an intervention on a frozen base; see
    `Method.intervention`."""

    def __call__(
        self, base: Params | None, trained: Any, input_ids: Any, **options: Any
    ) -> Any:
        """`LanguageModel.apply` of the model that `base` and `trained` make."""
        if self.intervention is not None:
            edit = self.intervention(trained)
            return self.model.apply(base, input_ids, intervention=edit, **options)
        if self.lora is None:
            return self.model.apply(trained, input_ids, **options)
        adapters = lora.scaled(trained, self.lora.scale)
        return self.model.apply(base, input_ids, adapters=adapters, **options)

    def roll_out(
        self, base: Params | None, trained: Any, *texts: Any, **how: Any
    ) -> Rollouts:
        """`policy.rollouts.roll_out` of the model that `base` and `trained` make."""
        if self.lora is None:
            return roll_out(self.model, trained, *texts, **how)
        adapters = lora.scaled(trained, self.lora.scale)
        assert base is not None
        return roll_out(self.model, base, *texts, adapters=adapters, **how)

    def apply_fn(self, base: Params | None, *, forward: bool = False) -> ApplyFn:
        """`apply_fn(trained, input_ids, **options)`, which may enter `jit`.

        With `forward` it also works under `jax.jvp`.
        """
        if not forward:
            return jax.tree_util.Partial(self, base)
        execution = replace(self.model.execution, forward_mode=True)
        model = replace(self.model, execution=execution)
        return jax.tree_util.Partial(replace(self, model=model), base)


@dataclass(frozen=True, kw_only=True)
class UnlearnStep:
    """An update; equal values share one compiled program."""

    trainable: TrainableModel
    method: Method
    optimizer: OptimizerConfig
    schedule: Schedule
    axis: str | None = None
    """The executor's device axis; see `executor`."""
    sharpness: float | None = None
    """See `UnlearnConfig.sharpness`."""
    fisher_share: float | None = None
    """See `UnlearnConfig.fisher_share`."""

    def transform(
        self, arrays: dict[str, Any] | None = None, rate: Array | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The method's transformation around the optimizer, and what wraps it."""
        optimizer = self.method.optimizer(self.optimizer, self.schedule.total, rate)
        whole = self.method.transform(optimizer, self.schedule, arrays or {})
        if self.fisher_share is not None:
            whole = fisher_masked(whole, quantile=1.0 - self.fisher_share)
        if self.sharpness is not None:
            whole = sharpness_aware(whole, self.sharpness)
        return whole

    def _of_answers(self, answers: TextBatch, rewards: Array) -> dict[str, Array]:
        """Mean reward of the sampled answers, and the number of their tokens."""
        real = (answers.weight > 0).astype(jnp.float32)
        total = psum((real * rewards).sum(), self.axis)
        return {
            "reward": total / psum(real.sum(), self.axis),
            "sampled_tokens": psum(
                (answers.label_mask * real[:, None]).sum(dtype=jnp.float32), self.axis
            ),
        }

    def __call__(
        self, frozen: Frozen, state: TrainState, batch: PairBatch, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, Array]]:
        """The next state; the losses, norms, and monitored numbers of the update."""
        key = per_device_key(key, self.axis)
        apply_fn = self.trainable.apply_fn(frozen.base)

        def side(term: LossTerm, texts: TextBatch, at: Any) -> tuple[Array, Any]:
            def value(trained: Any) -> Array:
                found, aux = term(
                    trained, texts, apply_fn=apply_fn, key=key, data=frozen.data
                )
                if self.axis is None:
                    return found
                # This device's part of the mean over the whole batch.
                own = jax.lax.stop_gradient(aux.normalizer)
                whole = psum(own, self.axis)
                return found * own / jnp.where(whole != 0, whole, 1.0)

            return psum(jax.value_and_grad(value)(at), self.axis)

        forget, retain = self.method.forget(), self.method.retain()
        metrics: dict[str, Array] = {}
        gradient, extra = None, {}
        if forget is not None:
            assert batch.forget is not None
            of_forget = partial(side, forget, batch.forget)
            value, gradient = of_forget(state.params)
            metrics["forget_loss"] = extra["forget_value"] = value
            extra["grad_fn"] = lambda at: of_forget(at)[1]
        if retain is not None:
            assert batch.retain is not None
            value, of_retain = side(retain, batch.retain, state.params)
            metrics["retain_loss"] = value
            if gradient is None:
                gradient = of_retain
            else:
                extra |= {"retain_grads": of_retain, "retain_value": value}
        assert gradient is not None, "a method with neither side"
        with contextlib.suppress(ValueError):  # several moments: none is handed over
            moment = second_moment(state.opt_state, b2=self.optimizer.b2)
            extra["second_moment"] = moment
        updates, opt_state = self.transform(rate=frozen.rate).update(
            gradient, state.opt_state, state.params, **extra
        )
        params = optax.apply_updates(state.params, updates)
        metrics["loss"] = sum(metrics.values(), start=jnp.zeros(()))
        if batch.forget is not None and batch.forget.rewards is not None:
            metrics |= self._of_answers(batch.forget, batch.forget.rewards)
        metrics["grad_norm"] = optax.tree.norm(gradient)
        metrics["update_norm"] = optax.tree.norm(updates)
        metrics |= monitored(opt_state)
        return TrainState(state.step + 1, params, opt_state), metrics
