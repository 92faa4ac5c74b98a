"""Masters: offline reinforcement learning of a student on answers written beforehand.

To each prompt teacher and student have answered several times. An answer is worth more
if it is right, and if teacher and student agree on it more than on others of its group:
these are easily transferred. No answer is written during training.

Source: "Masking Teacher and Reinforcing Student for Distilling Vision-Language Models"
(Masters), arXiv 2512.22238. Kept: both rewards, four answers of each side, group
advantages, the divergence as a second term of the loss. Not kept: images, a language
model as the judge (the caller gives the accuracy). The mask of the teacher's weights is
`transfer.weightspace.masking.mask_teacher`; the caller applies it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Int
from lt_mia_jax.finetune import loss
from lt_mia_jax.policy.objective import PolicyAux, group_advantages, policy_loss


def js_divergence(
    teacher: Float[Array, "N T V"],
    student: Float[Array, "N T V"],
    mask: Bool[Array, "N T"],
) -> Float[Array, "N"]:
    """Jensen-Shannon divergence of two models' predictions of each answer, nats.

    The mean over the tokens of the answer; between 0 (equal predictions) and log 2. The
    order of the models does not matter. Arguments are finite logits over the same
    tokens, and a mask of the tokens of the answer at the same positions: step t of the
    logits predicts token t + 1. An answer without tokens has 0.

    Example:
      >>> far = jnp.array([[[99.0, 0.0], [0.0, 0.0]]])
      >>> js_divergence(far, -far, jnp.array([[False, True]])).round(3)
      Array([0.693], dtype=float32)
    """
    p, q = (
        jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
        for logits in (teacher, student)
    )
    middle = jnp.logaddexp(p, q) - jnp.log(2.0)
    each = 0.5 * (jnp.exp(p) * (p - middle) + jnp.exp(q) * (q - middle)).sum(axis=-1)
    chosen = mask[:, 1:]
    total = jnp.where(chosen, each, 0.0).sum(axis=1)
    return total / jnp.maximum(chosen.sum(axis=1), 1)


def transfer_reward(divergence: Float[Array, "Q G"]) -> Float[Array, "Q G"]:
    """`(max - D) / (max - min)` within the group of answers to each of Q prompts.

    In [0, 1]: 1 for the answer on which the models agree most, 0 for that on which they
    agree least. Groups of equal divergences get 0, so that they teach nothing.

    Example:
      >>> transfer_reward(jnp.array([[0.1, 0.2, 0.5], [0.3, 0.3, 0.3]])).round(2)
      Array([[1.  , 0.75, 0.  ],
             [0.  , 0.  , 0.  ]], dtype=float32)
    """
    low, high = (f(axis=1, keepdims=True) for f in (divergence.min, divergence.max))
    found = (high - divergence) / jnp.where(high > low, high - low, 1.0)
    # A quotient of equal numbers may be compiled to one that is not exactly 1.
    return jnp.where((divergence == low) & (high > low), 1.0, found)


class Answers(NamedTuple):
    """Answers written beforehand, prompts included; groups are contiguous rows."""

    ids: Int[Array, "N T"]
    """N = Q G texts."""
    mask: Bool[Array, "N T"]
    """True on the tokens of the answer."""
    teacher: Float[Array, "N T V"]
    """Logits of the teacher."""
    old: Float[Array, "N T"]
    """Log probabilities under the student before the first update (`token_log_probs`),
    whoever wrote the answer: the ratio of the first update is 1."""
    advantages: Float[Array, "N"]
    """Of each answer in its group."""


def token_log_probs(
    logits: Float[Array, "N T V"], ids: Int[Array, "N T"]
) -> Float[Array, "N T"]:
    """Log probability of each token given those before it; 0 for the first one.

    Example:
      >>> token_log_probs(jnp.zeros((1, 2, 4)), jnp.array([[3, 1]])).round(3)
      Array([[ 0.   , -1.386]], dtype=float32)
    """
    found = loss.token_log_probs(logits[:, :-1], ids[:, 1:])
    return jnp.pad(found, ((0, 0), (1, 0)))


def scored_answers(
    ids: Int[Array, "N T"],
    mask: Bool[Array, "N T"],
    accuracy: Float[Array, "N"],
    teacher: Float[Array, "N T V"],
    student: Float[Array, "N T V"],
    *,
    group: int = 8,
) -> Answers:
    """Answers with their advantages.

    The reward is `accuracy + transfer_reward`, both in [0, 1].

    Args:
      ids: prompts with answers, each `group` rows to one prompt.
      mask: True on the tokens of the answer.
      accuracy: what the judge says of each answer, in [0, 1].
      teacher: its logits of `ids`.
      student: those of the student before training.
      group: answers to a prompt; 4 of the teacher and 4 of the student in the paper.

    Raises:
      ValueError: N is no multiple of `group`.
    """
    if len(ids) % group:
        raise ValueError(f"{len(ids)} answers are not groups of {group}")
    divergence = js_divergence(teacher, student, mask).reshape(-1, group)
    rewards = accuracy.reshape(-1, group) + transfer_reward(divergence)
    advantages = group_advantages(rewards).reshape(-1)
    return Answers(ids, mask, teacher, token_log_probs(student, ids), advantages)


def masters_loss(
    model: Any,
    params: Any,
    answers: Answers,
    *,
    weight: float = 1.0,
    clip: float = 0.2,
) -> tuple[Float[Array, ""], PolicyAux]:
    """The clipped objective plus `weight` times the mean divergence from the teacher.

    The policy term averages over texts, and `model.apply(params, ids)` gives logits of
    the student. No gradient flows to the teacher. The value of `weight` is ours.

    Source: Masters, arXiv 2512.22238; DeepSeekMath (GRPO), arXiv 2402.03300, eq. 3.
    """
    logits = model.apply(params, answers.ids)
    mask = answers.mask.at[:, 0].set(False)  # nothing predicts the first token
    value, aux = policy_loss(
        token_log_probs(logits, answers.ids),
        answers.old,
        answers.advantages,
        mask,
        clip=clip,
        average="texts",
    )
    apart = js_divergence(jax.lax.stop_gradient(answers.teacher), logits, mask)
    return value + weight * apart.mean(), aux
