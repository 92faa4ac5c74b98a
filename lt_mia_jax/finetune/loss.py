"""Masked next-token loss."""

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Bool, Float, Int, UInt


def token_log_probs(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """Log-probability of each target token, in nats.

    Computed in float32 whatever the dtype of `logits`, whose position t scores
    `targets[:, t]`. Padding is not masked here, and ids are not checked under jit.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def next_token_loss(
    logits: Float[Array, "B T V"],
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"] | UInt[Array, "B T"] | Bool[Array, "B T"],
    row_weight: Float[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss over the real tokens after the first, in nats, and their number.

    Every token of the batch counts the same, whatever the length of its text; the
    end-of-text token that closes a text is a target. A batch without any target has
    loss 0.

    Args:
      logits: position t scores token t + 1; the last position scores nothing.
      input_ids: the texts.
      attention_mask: 1 on real tokens, 0 on padding.
      row_weight: factor on each row's tokens, in the loss and in the number; rows of
        weight 0 fill up a batch.

    Returns:
      The weighted mean of -log p, and the weighted number of tokens.

    Source: Learning the Signature of Memorization in Autoregressive Language Models,
    arXiv 2604.03199 (fine-tuning loss of the reference implementation).
    """
    # Targets move one place to the left instead of cutting the last logits off: a
    # slice of the logits would be a copy of the largest array of the step.
    log_probs = token_log_probs(logits, jnp.roll(input_ids, -1, axis=1))
    weight = jnp.roll(attention_mask, -1, axis=1).at[:, -1].set(0)
    weight = weight.astype(jnp.float32)
    if row_weight is not None:
        weight = weight * row_weight[:, None]
    count = weight.sum()
    # A where and not a product: the logits of padding may hold anything.
    total = -jnp.where(weight > 0, log_probs * weight, 0.0).sum()
    return total / jnp.where(count > 0, count, 1.0), count
