"""Operations that leave a base frozen: adapters, pools, prompts, steering, experts."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.survival.ingredients import World
from experiments.survival.learning import Batch, adamw, learn, only, token_loss
from experiments.survival.measure import Made
from experiments.survival.operations.operation import Operation
from lt_mia_jax.arrays import Array, Params
from lt_mia_jax.data.tokenize import Encoded
from lt_mia_jax.finetune import LoraConfig, lora
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.config import Learned
from lt_mia_jax.transfer.adapt.experts import adapt
from lt_mia_jax.transfer.adapt.features import TextFeatures
from lt_mia_jax.transfer.adapt.pool import Pool, Routed, route, text_query
from lt_mia_jax.transfer.adapt.prompts import PromptTuned, prompt_init
from lt_mia_jax.transfer.adapt.quantized import QuantizedAdapted, quantize_base
from lt_mia_jax.transfer.adapt.reglora import add_reglora, reglora_mask
from lt_mia_jax.transfer.adapt.residual import Refine, freeze_mask
from lt_mia_jax.transfer.adapt.steering import (
    PromptEnd,
    prompt_streams,
    skill_direction,
)
from lt_mia_jax.trees import flatten, unflatten

LORA = LoraConfig(rank=8, alpha=16.0, dropout=0.0)
RATE, ALPHA, PROMPT = 2e-3, 0.2, 20


def frozen_base_loss(model: Any, params: Mapping[str, Any], batch: Batch) -> Array:
    """Loss of a model whose parameters have a frozen `base`."""
    base = jax.lax.stop_gradient(params["base"])
    return token_loss(model, {**params, "base": base}, batch)


def _fit(
    world: World, model: Any, params: Any, trained: str, texts: Encoded, **changes: Any
) -> Any:
    settings = {
        "optimizer": only(trained, adamw(RATE)),
        "loss": frozen_base_loss,
        **changes,
    }
    return learn(
        model, params, texts, epochs=world.epochs, seed=world.config.seed, **settings
    )[0]


def _new_adapters(world: World, number: int) -> lora.Adapters:
    key = jax.random.fold_in(jax.random.key(world.config.seed), number)
    return lora.init(key, world.base.params, LORA)


def _adapted(world: World, name: str, number: int) -> Any:
    """The base with adapters that learned the members of a or b."""
    model = lora.Adapted(world.model, LORA.scale)
    start = {"base": world.base.params, "adapters": _new_adapters(world, number)}
    return _fit(world, model, start, "adapters", world.members(name))


def _lora(world: World) -> Made:
    return Made(lora.Adapted(world.model, LORA.scale), _adapted(world, "a", 0))


def _reglora(world: World) -> Made:
    """Adapters on a, merged; then adapters on b that keep off what a uses most."""
    first = _adapted(world, "a", 0)
    mask = reglora_mask(first["adapters"])
    base = lora.merge(first["base"], first["adapters"], LORA.scale)
    model = lora.Adapted(world.model, LORA.scale)
    optimizer = only("adapters", optax.chain(add_reglora(mask), adamw(RATE)))
    start = {"base": base, "adapters": _new_adapters(world, 1)}
    texts = world.members("b")
    found = _fit(world, model, start, "adapters", texts, optimizer=optimizer)
    return Made(model, found)


def _two_phases(world: World) -> Made:
    """One set of adapters on a 4-bit base learns a, and goes on with b."""
    model = QuantizedAdapted(world.model, LORA.scale)
    base = quantize_base(world.base.params)
    plain = lora.Adapted(world.model, LORA.scale)
    whole = model.merged({"base": base, "adapters": {}})
    both = {"base": whole, "adapters": _new_adapters(world, 0)}
    for name in ("a", "b"):
        both = _fit(world, plain, both, "adapters", world.members(name))
    return Made(plain, both)


@dataclass(frozen=True)
class RoutedByText:
    """Texts find their adapters by their own tokens."""

    model: Routed

    def apply(self, params: Mapping[str, Any], ids: Any) -> Array:
        """Logits of each text under the adapters of the nearest key."""
        # Padding is not known here: the mean of all tokens is the query.
        query = text_query(params["base"], ids, jnp.ones(jnp.shape(ids), bool))
        index = route(params["pool"], query, params["reserved"])
        return self.model.apply(params, ids, index)


def _pool(world: World) -> Made:
    """A slot for a, one for b, and the base itself for everything else."""

    def key(texts: Encoded) -> Array:
        ids = jnp.asarray(texts.input_ids)
        return text_query(world.base.params, ids, jnp.ones(ids.shape, bool)).mean(0)

    slots = [_adapted(world, name, i)["adapters"] for i, name in enumerate("ab")]
    adapters = jax.tree.map(lambda *leaves: jnp.stack(leaves), *slots)
    keys = jnp.stack([key(world.members(name)) for name in "ab"])
    params = {
        "base": world.base.params,
        "pool": Pool(keys, adapters),
        "reserved": key(world.general()),
    }
    return Made(RoutedByText(Routed(world.model, LORA.scale)), params)


def _with_room(world: World, rows: int) -> tuple[LanguageModel, Params]:
    """The base with `rows` positions more in front; texts keep those they know.

    What stands in the new rows does not matter: a soft prompt has no positions.
    """
    config, params = world.base.config, flatten(world.base.params)
    size = config.context + rows
    embedding = dataclasses.replace(config.embedding, positions=Learned(size=size))
    table = np.asarray(params["embedding/positions"])
    params["embedding/positions"] = np.concatenate([table[:rows], table])
    wider = dataclasses.replace(config, context=size, embedding=embedding)
    return LanguageModel(wider), unflatten(params)


def _prompt(world: World) -> Made:
    """A soft prompt in front of the base, trained on the members of a."""
    wider, base = _with_room(world, PROMPT)
    prompt = prompt_init(jax.random.key(world.config.seed), base, PROMPT, model=wider)
    model, start = PromptTuned(wider), {"base": base, "prompt": prompt}
    return Made(model, _fit(world, model, start, "prompt", world.members("a")))


@dataclass(frozen=True)
class LastStream:
    """Features of REFINE's source: the stream after the last layer, of every token."""

    model: LanguageModel

    def __call__(self, params: Params, ids: Any) -> Array:
        """Features "B T D"."""
        last = self.model.config.layers
        _, taps = self.model.apply(params, ids, capture=(last,))
        return taps[last].astype(jnp.float32)


class SmallEncoder(nn.Module):
    """REFINE's residual: a token and the two before it, through one layer."""

    width: int
    vocabulary: int

    @nn.compact
    def __call__(self, ids: Any) -> Array:
        """Features "B T width", causal."""
        x = nn.Embed(self.vocabulary, self.width)(jnp.asarray(ids))
        pads = [jnp.pad(x, ((0, 0), (n, 0), (0, 0)))[:, : x.shape[1]] for n in (1, 2)]
        return nn.gelu(nn.Dense(self.width)(jnp.concatenate([x, *pads], axis=-1)))


class Normed(nn.Module):
    """A head with a norm in front."""

    vocabulary: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits."""
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


@dataclass(frozen=True)
class Refined:
    """REFINE as a language model."""

    module: Refine

    def apply(self, params: Params, ids: Any) -> Array:
        """Logits."""
        return cast(Array, self.module.apply({"params": params}, jnp.asarray(ids)))


def _refine(world: World) -> Made:
    """Frozen features of expert a; encoder and head learn general text, then b."""
    vocabulary = world.base.config.vocab_size
    module = Refine(
        (LastStream(world.model),), SmallEncoder(32, vocabulary), Normed(vocabulary)
    )
    ids = jnp.asarray(world.members("b").input_ids[:2])
    key = jax.random.key(world.config.seed)
    params = module.init(key, ids, [world.expert("a")])["params"]
    optimizer = optax.chain(
        optax.masked(optax.adamw(RATE), freeze_mask),
        optax.masked(
            optax.set_to_zero(), lambda p: jax.tree.map(lambda m: not m, freeze_mask(p))
        ),
    )
    model = Refined(module)
    for texts, epochs in ((world.general(2000), 4), (world.members("b"), world.epochs)):
        params, _ = learn(
            model,
            params,
            texts,
            epochs=epochs,
            seed=world.config.seed,
            optimizer=optimizer,
        )
    return Made(model, params)


@dataclass(frozen=True)
class Steered:
    """A model whose first token is steered in all layers."""

    model: LanguageModel

    def apply(self, params: Mapping[str, Any], ids: Any) -> Array:
        """Logits."""
        ones = jnp.ones(jnp.shape(ids)[0], jnp.int32)
        edit = PromptEnd(params["directions"], ALPHA, ones)
        return self.model.apply(params["base"], ids, intervention=edit)


def _directions(world: World) -> np.ndarray:
    """From the base to expert a, by layer, on texts of neither."""
    texts = world.general(64)
    lengths = texts.attention_mask.sum(axis=1).astype(np.int32)
    streams = [
        prompt_streams(world.model, params, texts.input_ids, lengths)
        for params in (world.expert("a"), world.base.params)
    ]
    return skill_direction(np.asarray(streams[0]), np.asarray(streams[1]))


def _steer(world: World, params: Params) -> Made:
    tree = {"base": params, "directions": _directions(world)}
    return Made(Steered(world.model), tree)


def _steered_expert(world: World) -> Made:
    return _steer(world, world.expert("a"))


def _steered_base(world: World) -> Made:
    return _steer(world, world.base.params)


def _aggregated(world: World) -> Made:
    """Steps of the base towards the mean features of both experts, on general text."""
    features = TextFeatures(world.model)
    texts = world.general(320).input_ids.reshape(-1, 32, world.base.config.context)
    student = world.base.params
    experts = [world.expert(name) for name in "ab"]
    step = jax.jit(functools.partial(adapt, features=features, rate=1e-2))
    for ids in texts:
        target = sum(features(params, ids) for params in experts) / len(experts)
        student = step(student, ids, target)
    return Made(world.model, student)


ROWS = (
    Operation("lora", "LoRA", "adapters of rank 8 learn a on the base", "a", _lora),
    Operation(
        "reglora",
        "SEFE",
        "adapters on a, merged; adapters on b under RegLoRA's penalty",
        "ab",
        _reglora,
    ),
    Operation(
        "int4-two-phases",
        "LoRA educational guidance",
        "adapters on a 4-bit base learn a and go on with b",
        "ab",
        _two_phases,
    ),
    Operation(
        "pool",
        "L2M",
        "adapters for a and for b in a pool; each text is routed by its tokens",
        "ab",
        _pool,
    ),
    Operation(
        "soft-prompt",
        "PANDA",
        "a prompt of 20 vectors learns a in front of the base",
        "a",
        _prompt,
    ),
    Operation(
        "refine",
        "REFINE",
        "frozen features of expert a; a small encoder and a new head learn general "
        "text, then b",
        "ab",
        _refine,
    ),
    Operation(
        "steer-expert",
        "UNLOCK",
        "expert a, first token steered further from the base",
        "a",
        _steered_expert,
    ),
    Operation(
        "steer-base",
        "UNLOCK",
        "the base, first token steered towards expert a",
        "a",
        _steered_base,
    ),
    Operation(
        "aggregate",
        "Meta-DMoE",
        "ten steps of the base towards the mean features of both experts, on general "
        "text",
        "ab",
        _aggregated,
    ),
)
