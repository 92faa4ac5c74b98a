"""Which parameters and which texts matter: saliency, Fisher, masks, scores, weights.

Scores of parameters are trees of non-negative float32 that mirror the parameters; they
become boolean masks for `transforms.saliency_masked`. Thresholds are exact order
statistics, found by counting (`threshold`). Scores of texts are directional
derivatives: one forward-mode pass gives those of a whole batch.
"""

import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from lt_mia_jax.arrays import Array, Float, Key
from lt_mia_jax.training.fisher import PerExample, Tree, float32, sum_over
from lt_mia_jax.training.threshold import largest
from lt_mia_jax.trees import parameter_count, path_of


def saliency(
    gradient: Callable[[Tree, Any], Tree], params: Tree, batches: Iterable[Any]
) -> Tree:
    """`|sum over batches of gradient(params, batch)|`, float32.

    The gradient of the forget loss is summed over all batches before the magnitude.

    Raises:
      ValueError: no batch.

    Source: SalUn, arXiv 2310.12508, equation 2.
    """
    total = sum_over("saliency", (gradient(params, batch) for batch in batches))
    return jax.tree.map(jnp.abs, total)


def row_mask(gradients: Tree, percentile: float = 90.0) -> Tree:
    """True on output neurons whose gradient norm reaches a percentile over the model.

    A row holds the inputs of one output neuron: a column of a kernel, which is stored
    (input, output), a token of an embedding, an element of a bias or scale. Every layer
    has its own rows.

    The percentile is NumPy's, of all rows' norms; rows at the threshold are kept. The
    axis of the inputs (`row_axis`) has size 1 in the mask.

    Raises:
      ValueError: `percentile` is outside [0, 100].

    Source: SURE in "Catastrophic Failure of LLM Unlearning via Quantization", arXiv
    2410.16454, and its code (one percentile over the rows of all tensors).
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile = {percentile}, expected in [0, 100]")

    def norms(path: Any, g: Array) -> Array:
        axis = row_axis(path_of(path))
        g = g.astype(jnp.float32)
        if axis is None:
            return jnp.abs(g)
        return jnp.sqrt(jnp.sum(g * g, axis=axis, keepdims=True))

    scores = jax.tree_util.tree_map_with_path(norms, gradients)
    n = parameter_count(scores)
    # The first order statistic at or above the interpolated percentile; rounded, since
    # 0.9 * 10 is not a whole number in binary.
    below = math.ceil(round(percentile / 100 * (n - 1), 6))
    return largest(scores, n - below)


def row_axis(path: str) -> int | None:
    """The input axis of a `LanguageModel`'s parameter; None if it has none."""
    first, name = path.split("/")[0], path.split("/")[-1]
    if name in ("kernel", "taps", "blocks"):
        return -2
    if first == "embedding" or name == "log_decay":
        return -1
    return None


def attribution_scores(
    per_example: PerExample, params: Tree, batch: Any, direction: Tree
) -> Float[Array, "B"]:
    """`<gradient of each text's loss, direction>` by one forward-mode pass.

    With the gradient of the retain loss as direction, a high score means that ascent on
    the text raises the retain loss.

    `per_example(params, batch)` must be differentiable in forward mode.

    Source: GUARD, arXiv 2506.10946 (the scores); directional derivatives.
    """
    tangent = jax.tree.map(lambda p, d: d.astype(p.dtype), params, direction)
    found = jax.jvp(lambda p: per_example(p, batch), (params,), (tangent,))[1]
    return found.astype(jnp.float32)


def guard_weights(
    scores: Float[Array, "N"], temperature: Float[Array, ""] | float | None = None
) -> Float[Array, "N"]:
    """`N * softmax(-scores / temperature)`: mean 1, smaller for high scores.

    Without a temperature it is the standard deviation of the scores.

    Source: GUARD, arXiv 2506.10946; the published normalization could not be verified,
    softmax is our choice.
    """
    scores = scores.astype(jnp.float32)
    scale = jnp.std(scores) if temperature is None else temperature
    scale = jnp.where(scale > 0, scale, 1.0)
    return len(scores) * jax.nn.softmax(-(scores - scores.mean()) / scale)


def weighted_squared_norms(
    per_example: PerExample,
    params: Tree,
    batch: Any,
    weight: Tree,
    *,
    key: Key[Array, ""],
    probes: int = 16,
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Estimates of `sum_j weight_j g_j^2` of each text's gradient; standard errors.

    The mean over random signs `z` of the squared derivative along `sqrt(weight) * z`:
    unbiased, with one forward-mode pass per probe.

    The weight mirrors the parameters and is not negative, such as a diagonal Fisher.

    Raises:
      ValueError: fewer than 2 probes.

    Source: Hutchinson 1990, A stochastic estimator of the trace of the influence matrix
    for Laplacian smoothing splines.
    """
    if probes < 2:
        raise ValueError(f"probes = {probes}, expected at least 2")

    def probe(key: Array) -> Array:
        def signed(path: Any, p: Array, w: Array) -> Array:
            name = jax.tree_util.keystr(path).encode()
            own = jax.random.fold_in(key, zlib.crc32(name))
            z = jax.random.rademacher(own, p.shape, jnp.float32)
            return jnp.sqrt(w.astype(jnp.float32)) * z

        signs = jax.tree_util.tree_map_with_path(signed, params, weight)
        return attribution_scores(per_example, params, batch, signs) ** 2

    found = jax.lax.map(probe, jax.random.split(key, probes))
    return found.mean(axis=0), found.std(axis=0, ddof=1) / math.sqrt(probes)


def forgetting_confidence(
    per_example: PerExample,
    params: Tree,
    batch: Any,
    *,
    optimum: Tree,
    fisher: Tree,
    rate: float,
    key: Key[Array, ""],
    probes: int = 16,
) -> Float[Array, "B"]:
    """How far one learning step on each text moves away from the optimum of a task.

    `1/2 sum F (params - rate * g - optimum)^2` with `g` the gradient of the text's
    loss. A text with a high value conflicts with the task: it is one to forget.

    `optimum` are the best parameters for the task, `fisher` its diagonal Fisher
    information there; `key` and `probes` are those of `weighted_squared_norms`.

    Source: Learning with forgetting, arXiv 2505.19715, as we read it: a Laplace
    approximation of the task's posterior.
    """
    away = jax.tree.map(jnp.subtract, float32(params), float32(optimum))
    pull = jax.tree.map(jnp.multiply, fisher, away)
    parts = jax.tree.map(lambda f, a: jnp.sum(f * a), pull, away)
    constant = sum(jax.tree.leaves(parts))
    cross = attribution_scores(per_example, params, batch, pull)
    square, _ = weighted_squared_norms(
        per_example, params, batch, fisher, key=key, probes=probes
    )
    return 0.5 * (constant - 2.0 * rate * cross + rate**2 * square)
