"""Parameter-selective mean teacher: adapt to a drifting stream, protect the source.

A student learns from its teacher on unlabeled batches; the teacher is a running mean of
the student; the Fisher information of the source model says which weights are held.

Source: "Parameter-Selective Continual Test-Time Adaptation", arXiv 2407.02253. Kept:
the loss, the pull and the selective mean, for any `apply(params, inputs) -> logits`.
Not kept: image models, augmentations and benchmarks. Paper and released code differ:

* `paper`: the student is pulled to itself one step ago, which brakes weights of high
  information; the teacher stands still where it is above a quantile, and answers.
* `released`: the pull is to the source; at every step the weights with the 3 % smallest
  squared gradients go back to the source, in both models; the teacher's mean is applied
  twice elsewhere; the second view is the clean input again; both models answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lt_mia_jax.arrays import Array, Float
from lt_mia_jax.errors import NOT_NEGATIVE, UNIT, check_fields
from lt_mia_jax.training.fisher import float32
from lt_mia_jax.training.threshold import top_share_mask
from lt_mia_jax.training.transforms.anchor import ewc_pull, running_mean
from lt_mia_jax.training.transforms.contract import Tree, at_params, require_choice
from lt_mia_jax.transfer.adapt.protect import fisher_mask, masked_ema

Apply = Callable[[Tree, Any], Array]  # (parameters, inputs) to logits "B C"


@dataclass(frozen=True)
class PsmtConfig:
    """The settings of `psmt_step`; hashable, for a static argument of `jax.jit`."""

    apply: Apply
    """The classifier; a module-level function, or steps compile again."""
    optimizer: optax.GradientTransformation
    lam: float = 500.0
    """Factor on the pull `sum F (student - anchor)^2`."""
    eta: float = 0.999
    """Decay of the teacher."""
    q: float = 0.97
    """`paper`: the share of weights that the teacher follows; see `fisher_mask`."""
    reset: float = 0.03
    """`released`: the share of weights that go back to the source at each step."""
    balance: float = 0.5
    """Weight of the reverse part of the symmetric cross-entropy."""
    variant: Literal["paper", "released"] = "paper"

    def __post_init__(self):
        require_choice("psmt", "variant", self.variant, ("paper", "released"))
        units = dict.fromkeys(("eta", "q", "reset", "balance"), UNIT)
        check_fields("psmt", self, {"lam": NOT_NEGATIVE, **units})


class PsmtState(NamedTuple):
    """The two models, and what their next step needs."""

    student: Tree
    teacher: Tree
    pull: Any
    """An `EwcState`; the anchor is the source or, in `paper`, the student before."""
    protected: Tree
    """Booleans: where the teacher stands still; None in the released form."""
    optimizer: Any


def symmetric_cross_entropy(
    student: Float[Array, "B C"], teacher: Float[Array, "B C"], balance: float = 0.5
) -> Float[Array, "B"]:
    """`-(1 - a) p_t . log p_s - a p_s . log p_t` of logits in nats; `a` is balance."""
    log_s, log_t = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    forward, backward = jnp.exp(log_t) * log_s, jnp.exp(log_s) * log_t
    return -jnp.sum((1 - balance) * forward + balance * backward, axis=-1)


def predicted_nll(apply: Apply) -> Callable[[Tree, Any], Float[Array, "B"]]:
    """For `diagonal_fisher`: each text's negative log-likelihood as predicted, nats."""
    return lambda params, x: -jnp.max(jax.nn.log_softmax(apply(params, x)), axis=-1)


def psmt_init(source: Tree, fisher: Tree, config: PsmtConfig) -> PsmtState:
    """Student and teacher are copies of the source, whose information is `fisher`."""
    return PsmtState(
        at_params(source, source),
        at_params(source, source),
        ewc_pull(2 * config.lam, source, fisher).init(source),
        fisher_mask(fisher, config.q) if config.variant == "paper" else None,
        config.optimizer.init(source),
    )


def psmt_step(
    state: PsmtState, batch: tuple[Any, Any], *, config: PsmtConfig
) -> tuple[PsmtState, Float[Array, "B C"]]:
    """Answer a batch without labels, and adapt to it.

    `batch` is the inputs and an augmented view of them. The logits are the teacher's
    before the step, plus the student's in the released form.

    Example:
      >>> config = PsmtConfig(lambda w, x: x @ w, optax.sgd(0.1))
      >>> state = psmt_init(jnp.eye(2), jnp.ones((2, 2)), config)
      >>> state, logits = psmt_step(state, (jnp.eye(2), jnp.eye(2)), config=config)
      >>> logits.shape
      (2, 2)
    """
    paper, (clean, augmented) = config.variant == "paper", batch
    answer = config.apply(state.teacher, clean)

    def loss(student: Tree) -> tuple[Array, Array]:
        own = config.apply(student, clean)
        other = config.apply(student, augmented) if paper else own
        a = config.balance
        both = [symmetric_cross_entropy(x, answer, a) for x in (own, other)]
        return 0.5 * jnp.mean(both[0] + both[1]), own

    gradient, own = jax.grad(loss, has_aux=True)(state.student)
    pull = ewc_pull(2 * config.lam)  # anchor and information are in the state
    gradient, pulled = pull.update(gradient, state.pull, state.student)
    step, optimizer = config.optimizer.update(gradient, state.optimizer, state.student)
    student = optax.apply_updates(state.student, step)
    if paper:
        teacher = masked_ema(state.teacher, student, state.protected, config.eta)
        pulled = state.pull._replace(anchor=float32(state.student))
        return PsmtState(student, teacher, pulled, state.protected, optimizer), answer
    # Magnitudes have the order of squares; ties at the threshold are not reset.
    kept = top_share_mask(jax.tree.map(jnp.abs, gradient), 1.0 - config.reset)
    source = jax.tree.map(lambda s, a: a.astype(s.dtype), student, state.pull.anchor)
    student = jax.tree.map(jnp.where, kept, student, source)
    teacher = state.teacher
    for _ in range(2):
        teacher = running_mean(teacher, student, config.eta)
    teacher = jax.tree.map(jnp.where, kept, teacher, source)
    return PsmtState(student, teacher, pulled, None, optimizer), answer + own
