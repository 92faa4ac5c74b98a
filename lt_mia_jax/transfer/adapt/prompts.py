"""Soft prompts of a frozen model, and PANDA: transfer of a prompt by distillation.

A prompt is a matrix of p vectors that the first layer reads in front of the text. It is
set as an intervention, so it works on every family, and with adapters.

Source: prompt tuning, arXiv 2104.08691; PANDA ("Prompt Transfer Meets Knowledge
Distillation for Efficient Model Adaptation"), arXiv 2208.10160. Kept: the loss with its
weight by similarity of tasks. Not kept: its construction of task embeddings (ours is
`prompt_embed`), its models and tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lt_mia_jax.arrays import Array, Bool, Float, Int, Key, Params
from lt_mia_jax.models.language_model import LanguageModel
from lt_mia_jax.training.threshold import difference
from lt_mia_jax.training.transforms.contract import require_choice
from lt_mia_jax.trees import pytree


def prompt_init(
    key: Key[Array, ""], params: Params, count: int, *, model: LanguageModel
) -> Float[Array, "P D"]:
    """A prompt of the embeddings of `count` random tokens, float32."""
    ids = jax.random.randint(key, (1, count), 0, model.config.vocab_size)
    _, taps = model.apply(params, ids, capture=(0,))
    return taps[0][0].astype(jnp.float32)


@pytree
class SoftPrompt:
    """An intervention that puts vectors in place of the first tokens."""

    prompt: Float[Array | np.ndarray, "P D"]
    """Input of the first layer: after positions, norm and factor of the embedding."""

    def __call__(
        self, stream: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> Float[Array, "B T D"]:
        """The edited stream."""
        put = jnp.asarray(self.prompt, stream.dtype)[None]
        put = jnp.broadcast_to(put, (stream.shape[0], *put.shape[1:]))
        return jnp.where(layer == 0, stream.at[:, : put.shape[1]].set(put), stream)


@dataclass(frozen=True)
class PromptTuned:
    """A model with a soft prompt in front of every text.

    Its parameters are `{"base": ..., "prompt": "P D"}`. The optimizer
    `training.transforms.freeze(..., ["prompt"])` trains the prompt alone. A prompt
    without rows is the base.

    Example:
      >>> from lt_mia_jax.models import gpt2_like
      >>> model = LanguageModel(gpt2_like(64, width=16, layers=1, heads=2, context=8))
      >>> params = {"base": model.init(jax.random.key(0)), "prompt": jnp.ones((3, 16))}
      >>> PromptTuned(model).apply(params, jnp.array([[3, 1, 4]])).shape
      (1, 3, 64)
    """

    model: LanguageModel

    def apply(
        self, params: Mapping[str, Any], input_ids: Int[Any, "B T"], **options: Any
    ) -> Any:
        """As the base's `apply`, without logits and streams of the prompt."""
        prompt, count = params["prompt"], len(params["prompt"])
        longer = jnp.pad(jnp.asarray(input_ids), ((0, 0), (count, 0)))
        found = self.model.apply(
            params["base"], longer, intervention=SoftPrompt(prompt), **options
        )
        return jax.tree.map(lambda x: x[:, count:], found)


def prompt_embed(
    model: LanguageModel,
    params: Params,
    prompt: Float[Array, "P D"],
    probes: Int[Array | np.ndarray, "N T"],
) -> Float[Array, "D"]:
    """What a prompt of any length does to the mean last stream, over probe texts."""
    last = model.config.layers
    tree = {"base": params, "prompt": prompt}
    _, moved = PromptTuned(model).apply(tree, probes, capture=(last,))
    _, plain = model.apply(params, probes, capture=(last,))
    return difference(moved[last], plain[last]).mean(axis=(0, 1))


def transferability(
    source: Float[Array, "D"], target: Float[Array, "D"]
) -> Float[Array, ""]:
    """Cosine of two task embeddings; 0 if one of them is zero."""
    return jnp.asarray(optax.cosine_similarity(source, target, epsilon=1e-12))


def panda_loss(
    student: Float[Array, "B T V"],
    teacher: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    similarity: Float[Array, ""] | float,
    strength: float = 1.0,
    *,
    mask: Bool[Array, "B T"] | None = None,
    variant: Literal["paper", "released"] = "paper",
) -> Float[Array, ""]:
    """Cross-entropy plus the distance of the student's logits from a teacher's.

    The teacher is the source prompt, briefly tuned on the target task. "paper" adds
    `strength * similarity * MSE`. The "released" code has no weight by similarity: it
    adds `0.1 * strength * MSE / B`. Means are over the tokens of the mask.

    Example:
      >>> z, y = jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), jnp.int32)
      >>> panda_loss(z, z + 2, y, similarity=0.5).round(3)  # log 2 + 0.5 * 4
      Array(2.693, dtype=float32)
    """
    require_choice("panda_loss", "variant", variant, ("paper", "released"))
    weight = strength * similarity
    if variant == "released":
        weight = 0.1 * strength / labels.shape[0]
    gap = jnp.square(student - jax.lax.stop_gradient(teacher)).mean(axis=-1)
    nll = optax.softmax_cross_entropy_with_integer_labels(student, labels)
    return jnp.mean(nll, where=mask) + weight * jnp.mean(gap, where=mask)
