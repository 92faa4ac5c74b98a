"""Methods that train some of the weights, under a mask made before the first update."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import optax

from lt_mia_jax.errors import FRACTION, InputError, Range
from lt_mia_jax.executor import fetch
from lt_mia_jax.training.threshold import top_share_mask
from lt_mia_jax.trees import flatten
from lt_mia_jax.unlearning import objectives, transforms
from lt_mia_jax.unlearning.importance.attribution import row_mask, saliency
from lt_mia_jax.unlearning.importance.tracing import Trace, causal_layers, causal_trace
from lt_mia_jax.unlearning.interventions.gates import prompt_mask
from lt_mia_jax.unlearning.methods.ascent import GradDiff
from lt_mia_jax.unlearning.methods.method import Method, Recipe, Schedule, term_of
from lt_mia_jax.unlearning.methods.preference import Npo
from lt_mia_jax.unlearning.methods.setting import Prepared, Setting

FEED_FORWARD = ("*/feed_forward/*",)


def under_mask(
    self: Method,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    arrays: Mapping[str, Any],
) -> optax.GradientTransformationExtraArgs:
    """`Method.transform` under `arrays["mask"]`: weights outside it do not move."""
    inner = optax.chain(self.combine(schedule), optimizer)
    return transforms.saliency_masked(inner, arrays.get("mask"))


@dataclass(frozen=True, kw_only=True)
class SalUn(Method):
    """Learn random labels with the weights of highest saliency on the forget texts.

    Source: arXiv 2310.12508.
    """

    share: Annotated[float, FRACTION] = 0.5
    """Fraction of the weights that are trained."""
    alternative = "random"
    weights_only = True
    transform = under_mask
    forget = term_of(objectives.alternative_nll)

    def prepare(self, setting: Setting) -> Prepared:
        """The saliency mask."""
        scores = saliency(setting.gradient, setting.trained, setting.forget())
        return Prepared(arrays={"mask": top_share_mask(scores, self.share)})


@dataclass(frozen=True, kw_only=True)
class Sure(Npo):
    """NPO on the output neurons of highest saliency on the forget texts.

    Source: arXiv 2410.16454.
    """

    percentile: Annotated[float, Range("0 to 100", lambda x: 0 <= x <= 100)] = 90.0
    """Only neurons whose gradient norm reaches this percentile are trained."""
    weights_only = True
    transform = under_mask

    def prepare(self, setting: Setting) -> Prepared:
        """The mask of rows."""
        scores = saliency(setting.gradient, setting.trained, setting.forget())
        return Prepared(arrays={"mask": row_mask(scores, self.percentile)})


@dataclass(frozen=True, kw_only=True)
class CausalLayerUnlearning(GradDiff):
    """GradDiff on the feed-forward weights of some layers, with an adaptive alpha.

    Source: the team SHA256 at SemEval-2025 Task 4, arXiv 2504.12996.
    """

    layers: tuple[int, ...] | Literal["trace", "first"] = "first"
    """Layers to train, from 0. "first" is the first third; "trace" is the third with
    the largest effect in causal tracing."""
    highest: Annotated[
        float, Range("at least 1.2, the smallest alpha", lambda x: x >= 1.2)
    ] = 2.3
    """Largest alpha; `retain_weight` is not used."""
    weights_only = True
    transform = under_mask
    recipe = Recipe(learning_rate=1.5e-5, epochs=8)
    retain = term_of(objectives.nll)

    def prepare(self, setting: Setting) -> Prepared:
        """The mask of layers."""
        if not any("/feed_forward/" in name for name in flatten(setting.trained)):
            raise InputError(
                "causal_layer_unlearning trains feed-forward weights, and this model "
                "has none; use another method"
            )
        count = max(1, setting.model.layers // 3)
        match self.layers:
            case "first":
                layers = list(range(count))
            case "trace":
                layers = [n - 1 for n in causal_layers(_trace(setting), count)]
            case chosen:
                layers = [int(layer) for layer in chosen]
        mask = transforms.layer_mask(setting.trained, FEED_FORWARD, layers)
        return Prepared(arrays={"mask": mask})

    def combine(self, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
        """With the adaptive weight."""
        return transforms.adaptive_combine(
            steps_per_epoch=schedule.epoch,
            highest=self.highest,
            forget_weight=self.forget_weight,
        )


def _trace(setting: Setting) -> Trace:
    """Causal trace of the first batch of forget texts.

    The noise falls on the whole prompt: which tokens name the subject is not known.
    """
    batch = next(iter(setting.forget()))
    prompt = prompt_mask(batch.attention_mask, batch.label_mask)
    trace = jax.jit(causal_trace, static_argnames="layers")(
        setting.trained,
        batch.input_ids,
        prompt,
        batch.label_mask,
        apply_fn=setting.apply_fn,
        layers=setting.model.layers,
        key=setting.key,
    )
    real = fetch(batch.weight) > 0
    return jax.tree.map(lambda x: jax.numpy.asarray(x[..., real]), fetch(trace))
