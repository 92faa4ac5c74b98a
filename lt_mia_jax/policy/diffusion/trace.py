"""TraceRL: PPO on slices of the order in which tokens were decoded.

Source: "Revolutionizing Reinforcement Learning Framework for Diffusion Large Language
Models" (TraceRL), arXiv 2509.06949, and its code (`Gen-Verse/dLLM-RL`). Kept: slices of
the trace, merged neighboring steps, advantages by steps with a value model, the clipped
value loss, KL to the policy that decoded. Not kept: models of 8B, block-wise attention
with cached keys; a bidirectional model is one block in `trace_slices`.
"""

from typing import Any, Literal, assert_never

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key, Params
from lt_mia_jax.errors import InputError
from lt_mia_jax.policy.diffusion.decode import Rollout
from lt_mia_jax.policy.diffusion.model import (
    Diffusion,
    join,
    masked_at_random,
    response_places,
)
from lt_mia_jax.policy.diffusion.trajectory import over_states
from lt_mia_jax.policy.objective import PolicyAux, group_advantages, policy_loss


def _ranked(step_map: Int[Array, "*N T"]) -> Int[Array, "*N T"]:
    """Each step as its number among the distinct steps of its row, from 0 on."""
    one, other = step_map[..., :, None], step_map[..., None, :]
    first = ~jnp.tril(one == other, -1).any(axis=-1)
    return ((other < one) & first[..., None, :]).sum(axis=-1)


def _in_blocks(step_map: Int[Array, "N T"], block: int) -> Int[Array, "N B b"]:
    rows, length = step_map.shape
    if block < 1 or length % block:
        raise InputError(f"block = {block} must divide the {length} response tokens")
    return step_map.reshape(rows, length // block, block)


def collapse_steps(
    step_map: Int[Array, "N T"], shrink: int, block: int
) -> Int[Array, "N T"]:
    """Merge every `shrink` neighboring steps of a block; blocks from left to right.

    `block` is that of the decoder. Steps are numbered anew from 0 without gaps. The
    first token of a merged step stands for all: later ones are scored without it.

    Example:
      >>> collapse_steps(jnp.array([[0, 2, 1, 3, 5, 4, 4, 4]]), 2, 4)
      Array([[0, 1, 0, 1, 2, 2, 2, 2]], dtype=int32)

    Raises:
      InputError: a block that does not divide T, or `shrink` below 1.
    """
    if shrink < 1:
        raise InputError(f"shrink = {shrink}, expected at least 1")
    merged = _ranked(_in_blocks(step_map, block)) // shrink
    sizes = merged.max(axis=-1) + 1
    before = jnp.cumsum(sizes, axis=1) - sizes
    return (merged + before[:, :, None]).reshape(step_map.shape)


def trace_slices(
    tokens: Int[Array, "N T"],
    step_map: Int[Array, "N T"],
    block: int,
    *,
    mask: int,
    count: int | None = None,
) -> tuple[Int[Array, "K N T"], Bool[Array, "K N T"]]:
    """States to train on, and the tokens trained in each.

    In slice k the k-th step of every block is trained; it and later ones are masked.
    Every token is trained in one slice. For a model that sees all blocks at once,
    `block` is T: with smaller ones a block would see what later blocks became.

    Args:
      tokens: the responses.
      step_map: the step of each token, such as of `collapse_steps`.
      block: tokens of a block, which divide T.
      mask: the id of the mask token.
      count: K; None reads it from the step map, which must not be traced then. Too few
        leave tokens out, too many are empty.

    Example:
      >>> inputs, trained = trace_slices(
      ...     jnp.array([[5, 6, 7]]), jnp.array([[2, 0, 2]]), 3, mask=9
      ... )
      >>> inputs[:, 0].tolist(), trained[:, 0].tolist()
      ([[9, 9, 9], [9, 6, 9]], [[False, True, False], [True, False, True]])

    Raises:
      InputError: a block that does not divide T.
    """
    rank = _ranked(_in_blocks(step_map, block)).reshape(step_map.shape)
    number = jnp.arange(int(rank.max()) + 1 if count is None else count)[:, None, None]
    return jnp.where(rank[None] < number, tokens[None], mask), rank[None] == number


def random_slices(
    key: Key[Array, ""], tokens: Int[Array, "N T"], count: int, *, mask: int
) -> tuple[Int[Array, "K N T"], Bool[Array, "K N T"]]:
    """`count` states with tokens masked at random, all of which are trained.

    What TraceRL is compared with: each state masks at a rate drawn from U(0, 1),
    whatever the order of decoding. A token may be trained in several slices or none.
    """
    hidden, _ = masked_at_random(key, (count * len(tokens), tokens.shape[1]))
    hidden = hidden.reshape(count, *tokens.shape)
    return jnp.where(hidden, mask, tokens[None]), hidden


def last_step_rewards(
    rewards: Float[Array, "N"],
    step_map: Int[Array, "N T"],
    mask: Bool[Array, "N T"],
) -> Float[Array, "N T"]:
    """The reward of a text on every token of its last step, 0 on the others.

    Example:
      >>> steps = jnp.array([[0, 1, 1]])
      >>> last_step_rewards(jnp.array([2.0]), steps, steps >= 0)
      Array([[0., 2., 2.]], dtype=float32)
    """
    steps = jnp.where(mask, step_map, -1)
    last = mask & (steps == steps.max(axis=1, keepdims=True))
    return jnp.where(last, rewards[:, None], 0.0)


def step_gae(
    rewards: Float[Array, "N T"],
    values: Float[Array, "N T"],
    step_map: Int[Array, "N T"],
    mask: Bool[Array, "N T"],
    *,
    discount: float = 1.0,
    trace: float = 1.0,
    step_count: int | None = None,
) -> tuple[Float[Array, "N T"], Float[Array, "N T"]]:
    """Generalized advantages and returns over decoding steps; 0 outside the mask.

    Steps are the distinct ones of the tokens in the mask. With r*, V* the means over
    the tokens of step t, `d_t = r*_t - V*_t + g V*_{t+1}`, `A*_t = d_t + g l A*_{t+1}`
    and `R*_t = r*_t + g R*_{t+1}`; a token of step t has the advantage
    `r - V + g V*_{t+1} + g l A*_{t+1}` and the return `r + g R*_{t+1}`.

    Args:
      rewards: of each token.
      values: what the value model expects at each token.
      step_map: the step at which each token was decoded.
      mask: the tokens that are trained.
      discount: g.
      trace: l.
      step_count: bound of the step map; None is T.

    Example:
      >>> steps, mask = jnp.array([[0, 1]]), jnp.ones((1, 2), bool)
      >>> gain, total = step_gae(
      ...     jnp.array([[0.0, 1.0]]), jnp.array([[0.25, 0.5]]), steps, mask
      ... )
      >>> gain, total
      (Array([[0.75, 0.5 ]], dtype=float32), Array([[1., 1.]], dtype=float32))

    Source: TraceRL, arXiv 2509.06949, section on the diffusion value model.
    """
    count = step_map.shape[1] if step_count is None else step_count
    member = jax.nn.one_hot(step_map, count) * mask[:, :, None]
    tokens = member.sum(axis=1)

    def means(x: Float[Array, "N T"]) -> Float[Array, "S N"]:
        return (jnp.einsum("nt,nts->ns", x, member) / jnp.maximum(tokens, 1.0)).T

    def back(after: Any, now: Any) -> tuple[Any, Any]:
        value, advantage, total = after
        reward, own, present = now
        gap = reward - own + discount * value
        here = own, gap + discount * trace * advantage, reward + discount * total
        # Steps without tokens do not exist: nothing is discounted there.
        here = tuple(jnp.where(present, x, y) for x, y in zip(here, after, strict=True))
        return here, after

    zero = jnp.zeros(len(rewards))
    _, after = jax.lax.scan(
        back,
        (zero, zero, zero),
        (means(rewards), means(values), tokens.T > 0),
        reverse=True,
    )
    value, advantage, total = (
        jnp.take_along_axis(x.T, step_map.clip(0, count - 1), axis=1) for x in after
    )
    gain = rewards - values + discount * value + discount * trace * advantage
    returns = rewards + discount * total
    return jnp.where(mask, gain, 0.0), jnp.where(mask, returns, 0.0)


def trace_advantages(
    rewards: Float[Array, "Q G"], *, low: float = 0.2, high: float = 0.8
) -> Float[Array, "Q G"]:
    """Rewards in units of their group's spread; 0 for prompts too hard or too easy.

    `rewards` are in [0, 1], a truncated answer is wrong; a prompt whose mean is outside
    [low, high] teaches nothing.

    Example:
      >>> trace_advantages(jnp.array([[1.0, 0.0], [1.0, 1.0]])).round(3)
      Array([[ 1., -1.],
             [ 0.,  0.]], dtype=float32)
    """
    accuracy = rewards.mean(axis=1, keepdims=True)
    kept = (accuracy >= low) & (accuracy <= high)
    return jnp.where(kept, group_advantages(rewards), 0.0)


def trace_loss(
    log_probs: Float[Array, "N T"],
    old: Float[Array, "N T"],
    advantages: Float[Array, "N"] | Float[Array, "N T"],
    mask: Bool[Array, "N T"],
    *,
    kl_to: Literal["old", "ref"] = "old",
    reference: Float[Array, "N T"] | None = None,
    clip: float = 0.2,
    beta: float = 0.01,
) -> tuple[Float[Array, ""], PolicyAux]:
    """`policy_loss` summed over tokens and divided by T.

    `kl_to` is what the policy stays close to: the one that decoded, as released, or a
    frozen `reference`, whose log probabilities are needed then.
    """
    match kl_to:
        case "old":
            anchor = old
        case "ref":
            anchor = reference
        case _:
            assert_never(kl_to)
    return policy_loss(
        log_probs,
        old,
        advantages,
        mask,
        clip=clip,
        beta=beta,
        reference=anchor,
        average="length",
        length=mask.shape[1],
    )


def value_init(key: Key[Array, ""], diffusion: Diffusion) -> Params:
    """Parameters of a value model: a model of its own, and a head that says 0."""
    width = diffusion.model.config.width
    head = {"kernel": jnp.zeros(width), "bias": jnp.zeros(())}
    return {"model": diffusion.model.init(key), "head": head}


def state_values(
    diffusion: Diffusion,
    params: Params,
    rollout: Rollout,
    states: Int[Array, "K N T"],
    new: Bool[Array, "K N T"],
) -> Float[Array, "N T"]:
    """Expected return at each token, in the state in which it is decoded.

    A linear function of the last stream of `params["model"]`; see `value_init`.
    """
    last = diffusion.model.config.layers
    places = response_places(rollout.lengths, rollout.tokens.shape[1])

    def score(state: Int[Array, "N T"]) -> Float[Array, "N T"]:
        text = join(rollout.prompts, rollout.lengths, state)
        _, streams = diffusion.model.apply(params["model"], text, capture=(last,))
        stream = jnp.take_along_axis(streams[last], places[:, :, None], axis=1)
        head = params["head"]
        return stream.astype(jnp.float32) @ head["kernel"] + head["bias"]

    return over_states(score, states, new)


def value_loss(
    values: Float[Array, "N T"],
    old: Float[Array, "N T"],
    returns: Float[Array, "N T"],
    mask: Bool[Array, "N T"],
    *,
    clip: float = 0.2,
) -> Float[Array, ""]:
    """Half the squared error, the larger one of values and values clipped around `old`.

    Mean over the tokens of the mask.

    Example:
      >>> old, new = jnp.zeros((1, 1)), jnp.ones((1, 1))
      >>> round(float(value_loss(new, old, new, new > 0)), 4)  # 0.8^2 / 2
      0.32

    Source: "Proximal Policy Optimization" as implemented with a clipped value, and
    TraceRL, arXiv 2509.06949.
    """
    near = old + jnp.clip(values - old, -clip, clip)
    error = jnp.maximum((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * jnp.where(mask, error, 0.0).sum() / jnp.maximum(mask.sum(), 1)
