"""Decoding a masked-diffusion model, with the record that its policy is scored by."""

from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key, Params
from lt_mia_jax.errors import INSIDE_UNIT, NOT_NEGATIVE, UNIT, InputError, check_ranges
from lt_mia_jax.finetune import loss
from lt_mia_jax.policy.diffusion.model import Diffusion, response_logits


@dataclass(frozen=True)
class DecodeSettings:
    """Everything that decides, with a key, what is decoded; hashable.

    Example:
      >>> from lt_mia_jax.policy.diffusion.schedules import ascending_counts
      >>> settings = DecodeSettings(16, ascending_counts(16))
      >>> settings.steps, settings.bounds
      (4, (16,))
    """

    length: int
    """T, the number of response tokens."""
    counts: tuple[int, ...] = ()
    """Tokens that each step commits; empty: as many as are confident enough."""
    blocks: tuple[int, ...] = ()
    """Sizes of blocks that are filled from left to right; empty: one block."""
    end_factors: tuple[float, ...] = ()
    """Factor of each step on the confidence of end tokens; empty: 1."""
    temperature: float = 1.0
    """Divides the logits that tokens are drawn from; 0 takes the most likely."""
    threshold: float = 0.9
    """Without `counts`: a step commits every token above it, and at least one."""

    def __post_init__(self):
        check_ranges(
            "decoding",
            temperature=(self.temperature, NOT_NEGATIVE),
            threshold=(self.threshold, INSIDE_UNIT),
            **{f"end_factors[{i}]": (x, UNIT) for i, x in enumerate(self.end_factors)},
        )
        if min((*self.counts, *self.blocks, self.length)) < 1:
            raise InputError("decoding: length, counts and blocks must be at least 1")
        for name in ("counts", "blocks"):
            parts = getattr(self, name)
            if parts and sum(parts) != self.length:
                raise InputError(
                    f"decoding: {name} add up to {sum(parts)}, expected the length, "
                    f"{self.length}"
                )
        if self.end_factors and len(self.end_factors) != self.steps:
            raise InputError(
                f"decoding: {len(self.end_factors)} end_factors, expected one for each "
                f"of {self.steps} steps"
            )
        if self.counts and not set(self.bounds) <= {*accumulate(self.counts)}:
            raise InputError(
                f"decoding: steps of {self.counts} tokens do not fill blocks of "
                f"{self.blocks} one after the other"
            )

    @property
    def steps(self) -> int:
        """S, the largest number of passes."""
        return len(self.counts) or self.length

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where each block ends."""
        return tuple(accumulate(self.blocks or (self.length,)))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("prompts", "lengths", "tokens", "steps", "log_probs"),
    meta_fields=("settings",),
)
@dataclass(frozen=True)
class Rollout:
    """Decoded responses, and how they came about; a pytree, but for `settings`."""

    prompts: Int[Array, "N P"]
    lengths: Int[Array, "N"]
    """Tokens of each prompt."""
    tokens: Int[Array, "N T"]
    """The responses."""
    steps: Int[Array, "N T"]
    """The step at which each token was committed, from 0 on."""
    log_probs: Float[Array, "N T"]
    """Log probability of each token when it was committed, at the temperature (at 1 for
    temperature 0): of the token given its place, not of the choice of the place."""
    settings: DecodeSettings = field()

    def check(self, settings: DecodeSettings) -> None:
        """Refuse to score under other settings than those of the decoding.

        Raises:
          InputError: they differ; a ratio of probabilities would then be of nothing.
        """
        if self.settings != settings:
            raise InputError(
                f"the rollout was decoded with {self.settings}; scoring it with "
                f"{settings} is not its policy"
            )


def trajectory(
    tokens: Int[Array, "N T"], steps: Int[Array, "N T"], count: int, mask: int
) -> tuple[Int[Array, "S1 N T"], Bool[Array, "S N T"]]:
    """The states before each of `count` steps and after the last, and what is new.

    A committed token never changes, so the step of each token says it all.

    Example:
      >>> tokens, steps = jnp.array([[5, 6]]), jnp.array([[1, 0]])
      >>> states, new = trajectory(tokens, steps, 2, mask=9)
      >>> states[:, 0].tolist(), new[:, 0].tolist()
      ([[9, 9], [9, 6], [5, 6]], [[False, True], [True, False]])
    """
    number = jnp.arange(count + 1)[:, None, None]
    states = jnp.where(steps[None] < number, tokens[None], mask)
    return states, steps[None] == number[:-1]


def decode(
    diffusion: Diffusion,
    params: Params,
    prompts: Int[Array | np.ndarray, "N P"],
    lengths: Int[Array | np.ndarray, "N"],
    *,
    settings: DecodeSettings,
    key: Key[Array, ""],
    rows: Int[Array | np.ndarray, "N"] | None = None,
) -> Rollout:
    """Fill in responses, a few tokens a step.

    A step proposes a token for every unknown place (Gumbel argmax at the temperature).
    Its confidence is its probability at temperature 1, times the end factor if it is
    the end token: such a token waits, it is not replaced. Of the leftmost block with
    unknown places the most confident ones are committed, among equals the leftmost.

    Args:
      diffusion: the model and its tokens.
      params: its parameters.
      prompts: token ids, padded on the right with anything.
      lengths: tokens of each prompt.
      settings: the schedule; each compiles once a shape.
      key: seed of all draws.
      rows: number of each row in the key, so that a row decoded alone draws what it
        draws in a batch; None counts from 0.

    Example:
      >>> from lt_mia_jax.models import LanguageModel, gpt2_like
      >>> from lt_mia_jax.policy.diffusion.model import bidirectional
      >>> config = gpt2_like(64, width=16, layers=1, heads=2, context=16)
      >>> denoiser = Diffusion(LanguageModel(bidirectional(config)), mask=63, end=0)
      >>> params, key = denoiser.model.init(jax.random.key(0)), jax.random.key(1)
      >>> settings = DecodeSettings(4, counts=(1, 3))
      >>> texts = np.array([[5, 6], [7, 0]]), np.array([2, 1])
      >>> found = decode(denoiser, params, *texts, settings=settings, key=key)
      >>> found.tokens.shape, np.sort(found.steps).tolist()
      ((2, 4), [[0, 1, 1, 1], [0, 1, 1, 1]])

    Raises:
      InputError: prompts and responses longer than the model's learned positions.

    Source: low-confidence remasking of LLaDA, arXiv 2502.09992, section 2.4; the factor
    and the ascending schedule are those of CJ-GRPO (`yjyddq/EOSER-ASS-RL`), the
    threshold that of TraceRL, arXiv 2509.06949. Not kept: half precision, guidance.
    """
    count = len(prompts)
    rows = np.arange(count) if rows is None else rows
    lengths = jnp.asarray(lengths, jnp.int32)
    return _decode(
        diffusion, settings, params, jnp.asarray(prompts), lengths, key, rows
    )


class _State(NamedTuple):
    step: Int[Array, ""]
    tokens: Int[Array, "N T"]
    steps: Int[Array, "N T"]
    log_probs: Float[Array, "N T"]


@partial(jax.jit, static_argnums=(0, 1))
def _decode(
    diffusion: Diffusion,
    settings: DecodeSettings,
    params: Params,
    prompts: Int[Array, "N P"],
    lengths: Int[Array, "N"],
    key: Key[Array, ""],
    rows: Int[Array, "N"],
) -> Rollout:
    shape = (len(prompts), settings.length)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    factors = jnp.asarray(settings.end_factors or (1.0,) * settings.steps)
    counts = jnp.asarray(settings.counts or (0,) * settings.steps)

    def unfinished(state: _State) -> Bool[Array, ""]:
        # With counts every pass is needed, so nothing else has to be looked at.
        unknown = (state.steps == settings.steps).any()
        return (state.step < settings.steps) & unknown

    def advance(state: _State) -> _State:
        step, unknown = state.step, state.steps == settings.steps
        logits = response_logits(diffusion, params, prompts, lengths, state.tokens)
        drawn = proposals(logits, keys, step, settings.temperature)
        confidence = picked(jax.nn.softmax(logits, axis=-1), drawn)
        confidence = jnp.where(
            drawn == diffusion.end, confidence * factors[step], confidence
        )
        chosen = commits(
            confidence,
            unknown,
            bounds=settings.bounds,
            count=counts[step] if settings.counts else None,
            threshold=settings.threshold,
        )
        log_probs = token_log_probs(logits, drawn, settings.temperature)
        return _State(
            step + 1,
            jnp.where(chosen, drawn, state.tokens),
            jnp.where(chosen, step, state.steps),
            jnp.where(chosen, log_probs, state.log_probs),
        )

    start = _State(
        jnp.zeros((), jnp.int32),
        jnp.full(shape, diffusion.mask, jnp.int32),
        jnp.full(shape, settings.steps, jnp.int32),
        jnp.zeros(shape, jnp.float32),
    )
    end = jax.lax.while_loop(unfinished, advance, start)
    return Rollout(prompts, lengths, end.tokens, end.steps, end.log_probs, settings)


def picked(x: Float[Array, "N T V"], tokens: Int[Array, "N T"]) -> Float[Array, "N T"]:
    """The value of each token."""
    return jnp.take_along_axis(x, tokens[:, :, None], axis=-1)[:, :, 0]


def token_log_probs(
    logits: Float[Array, "N T V"], tokens: Int[Array, "N T"], temperature: float
) -> Float[Array, "N T"]:
    """Log probabilities at a temperature, at 1 for temperature 0, in nats."""
    return loss.token_log_probs(logits / (temperature or 1.0), tokens)


def proposals(
    logits: Float[Array, "N T V"],
    keys: Key[Array, "N"],
    step: int | Int[Array, ""],
    temperature: float,
) -> Int[Array, "N T"]:
    """A token for each place, drawn with the key of the row and the step."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def noise(key: Key[Array, ""]) -> Float[Array, "T V"]:
        return jax.random.gumbel(jax.random.fold_in(key, step), logits.shape[1:])

    noisy = logits / temperature + jax.vmap(noise)(keys)
    return jnp.argmax(noisy, axis=-1).astype(jnp.int32)


def commits(
    confidence: Float[Array, "N T"],
    unknown: Bool[Array, "N T"],
    *,
    bounds: tuple[int, ...],
    count: int | Int[Array, ""] | None,
    threshold: float = 0.9,
) -> Bool[Array, "N T"]:
    """Which places a step commits: the `count` most confident ones of the active block.

    The active block is the first with an unknown place; the others count for nothing.
    Without `count` it is all above `threshold`, and at least one where one is unknown.

    Example:
      >>> confidence = jnp.array([[0.1, 0.5, 0.5, 0.9]])
      >>> commits(confidence, confidence > 0, bounds=(3, 4), count=1)
      Array([[False,  True, False, False]], dtype=bool)
    """
    places = jnp.arange(unknown.shape[1])[None, :]
    first = jnp.argmax(unknown, axis=1)
    ends = jnp.asarray(bounds)
    end = ends[jnp.searchsorted(ends, first, side="right")]
    active = unknown & (places < end[:, None])
    ranked = jnp.where(active, confidence, -jnp.inf)
    order = jnp.argsort(-ranked, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    if count is None:
        return active & ((ranked > threshold) | (rank == 0))
    return active & (rank < count)
