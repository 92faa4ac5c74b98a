"""What a method sees before the first update, and what it makes of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import fetch
from lt_mia_jax.models.config import ModelConfig
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.policy.rollouts import Rollouts
from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.objectives.batch import ApplyFn, TextBatch
from lt_mia_jax.unlearning.recipe import ForgetTexts


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The model before unlearning, and the texts."""

    model: ModelConfig
    apply_fn: ApplyFn
    forward_fn: ApplyFn
    """The same model, differentiable in forward mode (`jax.jvp`)."""
    trained: Any
    """The tree to be trained, at its start: the model's parameters or LoRA adapters.
    For a method that makes an intervention, the parameters of the frozen model."""
    forget: Callable[[], Iterable[TextBatch]]
    """Batches of all forget texts in order; rows of weight 0 fill up the last one."""
    retain: Callable[[], Iterable[TextBatch]]
    """Batches of the retain texts, or of an even sample of them."""
    forget_texts: int
    """Number of forget texts."""
    key: Key[Array, ""]
    """For random draws."""
    earlier: Intervention | None = None
    """The intervention that the model comes with, if any."""
    texts: ForgetTexts | None = None
    """The forget texts in words, with the tokenizer."""
    roll_out: Callable[..., Rollouts] | None = None
    """`policy.rollouts.roll_out` of the model that a trained tree makes, called as
    `roll_out(trained, prompts, lengths, ...)`."""

    def gradient(self, params: Any, batch: TextBatch) -> Any:
        """Gradient of the summed loss of a batch; like `params`."""
        return _summed_gradient(self.apply_fn, params, batch)

    def retain_gradient(self) -> Any:
        """Gradient of the mean token loss over the retain texts; like `trained`.

        Raises:
          InputError: there are no retain texts.
        """
        whole, tokens = None, 0.0
        for batch in self.retain():
            new = self.gradient(self.trained, batch)
            whole = new if whole is None else jax.tree.map(jax.numpy.add, whole, new)
            real = fetch(batch.weight) > 0
            tokens += float(fetch(batch.label_mask)[real, 1:].sum())
        if whole is None:
            raise InputError("no retain texts; give --retain")
        return jax.tree.map(lambda x: x / max(tokens, 1.0), whole)

    def both_sides(
        self, read: Callable[[TextBatch], Iterable[np.ndarray]]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The arrays of `read(batch)`, joined over the forget and the retain texts.

        Raises:
          InputError: there are no retain texts.
        """
        forget, retain = (
            [np.concatenate(x) for x in zip(*map(read, texts()), strict=True)]
            for texts in (self.forget, self.retain)
        )
        if not retain:
            raise InputError("no retain texts; give --retain")
        return forget, retain

    def per_text(
        self, score: Callable[[Any, TextBatch], Float[Array, "B"]]
    ) -> Float[Array, " N"]:
        """`score(trained, batch)` of all forget texts, in their order."""
        found = [fetch(score(self.trained, batch)) for batch in self.forget()]
        return jax.numpy.asarray(np.concatenate(found)[: self.forget_texts])


class Prepared(NamedTuple):
    """What a method computes once, before the first update."""

    data: Mapping[str, Any] = {}
    """Arrays for the objectives, by the names in `LossTerm.data`. `reference_params`
    need not be among them."""
    arrays: Mapping[str, Any] = {}
    """Arrays for `Method.transform`, such as a mask."""
    row_weight: Float[np.ndarray, " N"] | None = None
    """Loss weight of each forget text; None is 1."""
    revise: Callable[[Any, TextBatch, int], TextBatch] | None = None
    """Makes the rows that an update reads from its forget texts: a pure function of the
    trained tree, these texts and the number of the step. Arrays are on the host; the
    number of rows is a multiple of that of the texts."""
    start: Any = None
    """For a method that makes an intervention: the tree to be trained, at its start."""


def per_example_loss(
    apply_fn: ApplyFn, params: Any, batch: TextBatch
) -> Float[Array, "B"]:
    """Summed loss of each text in nats; 0 for texts of weight 0."""
    _, aux = objectives.nll(params, batch, apply_fn=apply_fn, reduction="sequence_sum")
    return aux.per_example


@jax.jit
def reference_nll(
    apply_fn: ApplyFn, reference: Any, batch: TextBatch
) -> Float[Array, "B T"]:
    """`objectives.cached_reference_nll`, compiled."""
    return objectives.cached_reference_nll(reference, batch, apply_fn=apply_fn)


@jax.jit
def _summed_gradient(apply_fn: ApplyFn, params: Any, batch: TextBatch) -> Any:
    return jax.grad(lambda p: per_example_loss(apply_fn, p, batch).sum())(params)
