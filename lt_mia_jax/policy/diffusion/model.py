"""Masked-diffusion language models: what one is, the layout of texts, the loss.

A text is a prompt, T response tokens right behind it, and padding on the right, which
attention does not see: a row means the same alone and beside longer ones.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key, Params
from lt_mia_jax.errors import InputError
from lt_mia_jax.models.config import Alibi, Attention, BlockConfig, Mlp, ModelConfig
from lt_mia_jax.models.language_model import LanguageModel
from lt_mia_jax.models.mixers.attention import is_causal

PADDING = -1
"""The id of tokens that a bidirectional model does not see."""
NEVER = -1e30
"""Logit of the mask token as an answer; finite, so that no gradient is NaN."""
SHORTEST = 1e-3
"""Smallest masking rate of the loss, whose weight is its inverse."""


def bidirectional(config: ModelConfig) -> ModelConfig:
    """The same model with attention to later tokens as well.

    Example:
      >>> from lt_mia_jax.models import gpt2_like
      >>> config = gpt2_like(64, width=16, layers=1, heads=2, context=8)
      >>> bidirectional(config).pattern[0].mixer.causal
      False

    Raises:
      InputError: a mixer other than attention, ALiBi, or a window.
    """
    for block in config.pattern:
        _refuse(_why_ordered(block))
    pattern = tuple(
        replace(block, mixer=replace(block.mixer, causal=False))  # type: ignore[reportCallIssue]
        for block in config.pattern
    )
    return replace(config, pattern=pattern)


def check_bidirectional(config: ModelConfig) -> None:
    """Refuse models that cannot fill in a token from what stands behind it.

    Raises:
      InputError: a block whose mixer is causal or a recurrence, or has ALiBi, whose
        bias grows with the position of the key and so is right for causal models only.
    """
    for block in config.pattern:
        _refuse(_why_ordered(block))
    _refuse("its attention is causal" if is_causal(config) else None)


def _why_ordered(block: BlockConfig) -> str | None:
    """What of a block fits causal models alone, whether or not it sees later tokens."""
    for part in (block.mixer, block.feed_forward):
        if not isinstance(part, Attention | Mlp | None):
            return f"{type(part).__name__} reads from left to right"
    position = getattr(block.mixer, "position", None)
    return "ALiBi favors later keys" if isinstance(position, Alibi) else None


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise InputError(
            f"{problem}; a masked-diffusion model needs attention to all tokens: build "
            "it with policy.diffusion.model.bidirectional(gpt2_like(...))"
        )


@dataclass(frozen=True)
class Diffusion:
    """A bidirectional model with the two tokens that decoding needs; hashable.

    Example:
      >>> from lt_mia_jax.models import gpt2_like
      >>> config = gpt2_like(64, width=16, layers=1, heads=2, context=8)
      >>> denoiser = Diffusion(LanguageModel(bidirectional(config)), mask=63, end=0)
      >>> params = denoiser.model.init(jax.random.key(0))
      >>> prompts, lengths = jnp.array([[5, 6], [7, -1]]), jnp.array([2, 1])
      >>> response = jnp.full((2, 4), 63)
      >>> response_logits(denoiser, params, prompts, lengths, response).shape
      (2, 4, 64)
    """

    model: LanguageModel
    mask: int
    """Stands where a token is still unknown; never an answer."""
    end: int
    """Ends a response and fills the rest of it."""

    def __post_init__(self):
        check_bidirectional(self.model.config)
        size = self.model.config.vocab_size
        if not 0 <= self.mask < size or not 0 <= self.end < size:
            raise InputError(
                f"mask = {self.mask} and end = {self.end} must be ids below {size}"
            )
        if self.mask == self.end:
            raise InputError(f"mask and end are both {self.mask}; they must differ")


class Examples(NamedTuple):
    """Prompts with responses, for training."""

    prompts: Int[Array | np.ndarray, "B P"]
    """Padded on the right with anything."""
    lengths: Int[Array | np.ndarray, "B"]
    """Tokens of each prompt."""
    responses: Int[Array | np.ndarray, "B T"]
    """Filled with the end token; see `filled`."""


def filled(
    tokens: Int[Array | np.ndarray, "B T"],
    lengths: Int[Array | np.ndarray, "B"],
    end: int,
) -> Int[Array, "B T"]:
    """Responses whose places behind the first `lengths` tokens hold the end token.

    Example:
      >>> filled(jnp.array([[4, 5, 9], [6, 9, 9]]), jnp.array([2, 3]), 0)
      Array([[4, 5, 0],
             [6, 9, 9]], dtype=int32)
    """
    places = jnp.arange(tokens.shape[1])[None, :]
    return jnp.where(places < jnp.asarray(lengths)[:, None], jnp.asarray(tokens), end)


def join(
    prompts: Int[Array | np.ndarray, "B P"],
    lengths: Int[Array | np.ndarray, "B"],
    responses: Int[Array | np.ndarray, "B T"],
) -> Int[Array, "B L"]:
    """Each response right behind its prompt, and then padding; L = P + T.

    Example:
      >>> join(jnp.array([[5, 6], [7, 9]]), jnp.array([2, 1]), jnp.array([[1], [2]]))
      Array([[ 5,  6,  1],
             [ 7,  2, -1]], dtype=int32)
    """
    prompts, responses = jnp.asarray(prompts), jnp.asarray(responses)
    width, count = prompts.shape[1], responses.shape[1]
    ends = jnp.asarray(lengths)[:, None]
    places = jnp.arange(width + count)[None, :]
    answer = jnp.clip(places - ends, 0, count - 1)
    answer = jnp.take_along_axis(responses, answer, axis=1)
    question = jnp.pad(prompts, ((0, 0), (0, count)))
    text = jnp.where(places < ends, question, answer)
    return jnp.where(places < ends + count, text, PADDING)


def response_places(
    lengths: Int[Array | np.ndarray, "B"], count: int
) -> Int[Array, "B T"]:
    """Index in `join`'s texts of each of `count` response tokens."""
    return jnp.asarray(lengths)[:, None] + jnp.arange(count)[None, :]


def response_logits(
    diffusion: Diffusion,
    params: Params,
    prompts: Int[Array | np.ndarray, "B P"],
    lengths: Int[Array | np.ndarray, "B"],
    responses: Int[Array | np.ndarray, "B T"],
) -> Float[Array, "B T V"]:
    """Logits of what each response token is; the mask token is no answer.

    `responses` hold the mask token where they are unknown. Prompts and responses
    longer than the model's learned positions raise an `InputError`.
    """
    logits = diffusion.model.apply(params, join(prompts, lengths, responses))
    places = response_places(lengths, responses.shape[1])
    logits = jnp.take_along_axis(logits, places[:, :, None], axis=1)
    return logits.at[:, :, diffusion.mask].set(NEVER)


def masked_at_random(
    key: Key[Array, ""], shape: tuple[int, ...]
) -> tuple[Bool[Array, "B T"], Float[Array, "B"]]:
    """Which tokens of shape (B, T) are masked at the rate of their text, and the rates.

    Rates are uniform between 0.001 and 1.
    """
    for_rate, for_tokens = jax.random.split(key)
    uniform = jax.random.uniform(for_rate, shape[:1])
    rate = SHORTEST + (1 - SHORTEST) * uniform
    return jax.random.uniform(for_tokens, shape) < rate[:, None], rate


def denoising_loss(
    diffusion: Diffusion, params: Params, examples: Examples, key: Key[Array, ""]
) -> Float[Array, ""]:
    """`-(1 / (t T)) sum over masked tokens of log p`, mean over texts, in nats a token.

    Each text draws t from U(0, 1), and masks each token of its response, the end
    tokens that fill it included, with probability t. An upper bound of the negative
    log-likelihood of a token.

    Source: "Large Language Diffusion Models" (LLaDA), arXiv 2502.09992, eq. 3, on
    responses only as in its section 2.3; the mask is no answer as in "Simple and
    Effective Masked Diffusion Language Models", arXiv 2406.07524, section 3.2.3.
    """
    responses = jnp.asarray(examples.responses)
    masked, rate = masked_at_random(key, responses.shape)
    noisy = jnp.where(masked, diffusion.mask, responses)
    logits = response_logits(
        diffusion, params, examples.prompts, examples.lengths, noisy
    )
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    own = jnp.take_along_axis(log_probs, responses[:, :, None], axis=-1)[:, :, 0]
    total = jnp.where(masked, own, 0.0).sum(axis=1)
    return -(total / (rate * responses.shape[1])).mean()
