"""Groups of sampled answers, and the log probabilities of their tokens."""

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key, Params
from lt_mia_jax.finetune import loss
from lt_mia_jax.models.language_model import Adapters, LanguageModel
from lt_mia_jax.models.sampling import sample


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are drawn. Recorded with them, because it is part of the policy."""

    max_new_tokens: int
    temperature: float = 1.0
    """Above 0: also divides the logits when the answers are scored."""
    top_p: float | None = None
    """See `models.sampling.sample`. The cut is not part of the scored policy."""
    end_tokens: tuple[int, ...] = ()


@flax.struct.dataclass
class Rollouts:
    """Sampled answers behind their prompts; the G answers to a prompt are adjacent."""

    input_ids: Int[Array, "N T"]
    """Prompt and answer, padded on the right with 0."""
    mask: Bool[Array, "N T"]
    """True where the following token was sampled."""
    log_probs: Float[Array, "N T"]
    """Log probability of the following token when it was sampled; 0 outside."""
    lengths: Int[Array, "N"]
    """Tokens of each prompt."""
    decoding: Decoding = flax.struct.field(pytree_node=False)

    def answers(self) -> list[list[int]]:
        """The sampled tokens of each answer, on the host."""
        ids, mask = np.asarray(self.input_ids), np.asarray(self.mask)
        sampled = np.pad(mask[:, :-1], ((0, 0), (1, 0)))
        return [row[own].tolist() for row, own in zip(ids, sampled, strict=True)]


def roll_out(
    model: LanguageModel,
    params: Params,
    prompts: Int[Array | np.ndarray, "Q T"],
    lengths: Int[Array | np.ndarray, "Q"],
    *,
    key: Key[Array, ""],
    group: int,
    decoding: Decoding,
    adapters: Adapters | None = None,
) -> Rollouts:
    """Sample `group` answers to each prompt.

    Example:
      >>> from lt_mia_jax.models import gpt2_like
      >>> model = LanguageModel(gpt2_like(64, width=16, layers=1, heads=2, context=8))
      >>> params, key = model.init(jax.random.key(0)), jax.random.key(1)
      >>> prompts, lengths = np.array([[3, 1, 4], [5, 9, 0]]), np.array([3, 2])
      >>> decoding = Decoding(max_new_tokens=4)
      >>> found = roll_out(
      ...     model, params, prompts, lengths, key=key, group=2, decoding=decoding
      ... )
      >>> found.input_ids.shape, found.mask.sum(axis=1)
      ((4, 7), Array([4, 4, 4, 4], dtype=int32))

    Raises:
      InputError: see `models.sampling.sample`.
    """
    prompts = jnp.repeat(jnp.asarray(prompts, jnp.int32), group, axis=0)
    lengths = jnp.repeat(jnp.asarray(lengths, jnp.int32), group)
    found = sample(
        model,
        params,
        prompts,
        lengths,
        key=key,
        max_new_tokens=decoding.max_new_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        end_tokens=decoding.end_tokens,
        adapters=adapters,
    )
    ids, mask, log_probs = _laid_out(prompts, lengths, *found)
    return Rollouts(ids, mask, log_probs, lengths, decoding)


@jax.jit
def _laid_out(
    prompts: Int[Array, "N P"],
    lengths: Int[Array, "N"],
    tokens: Int[Array, "N M"],
    counts: Int[Array, "N"],
    log_probs: Float[Array, "N M"],
) -> tuple[Array, Array, Array]:
    """Answers directly behind their prompts."""
    width = prompts.shape[1] + tokens.shape[1]
    place = jnp.arange(width)[None, :]
    start, end = lengths[:, None], (lengths + counts)[:, None]
    which = jnp.clip(place - start, 0, tokens.shape[1] - 1)
    answer = jnp.take_along_axis(tokens, which, axis=1)
    wide = jnp.pad(prompts, ((0, 0), (0, tokens.shape[1])))
    ids = jnp.where(place < start, wide, jnp.where(place < end, answer, 0))
    # One to the left: a position predicts the token behind it.
    mask = (place >= start - 1) & (place < end - 1)
    which = jnp.clip(place - start + 1, 0, tokens.shape[1] - 1)
    moved = jnp.take_along_axis(log_probs, which, axis=1)
    return ids, mask, jnp.where(mask, moved, 0.0)


def token_log_probs(
    model: Any,
    params: Params,
    rollouts: Rollouts,
    *,
    adapters: Adapters | None = None,
) -> Float[Array, "N T"]:
    """Log probability of each sampled token under `params`; 0 outside the mask.

    At the temperature at which the answers were drawn, so at the sampling parameters it
    is `rollouts.log_probs`, to rounding. Differentiable.
    """
    logits = model.apply(params, rollouts.input_ids, adapters=adapters)
    scaled = logits / (rollouts.decoding.temperature or 1.0)
    found = loss.token_log_probs(scaled, jnp.roll(rollouts.input_ids, -1, axis=1))
    return jnp.where(rollouts.mask, found, 0.0)
