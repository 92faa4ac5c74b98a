"""Every unlearning objective with its oracle, on a batch with all kinds of texts."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle_unlearning as oracle

from lt_mia_jax.unlearning import objectives
from lt_mia_jax.unlearning.objectives import distributions, representation
from lt_mia_jax.unlearning.objectives.batch import TextBatch

V, D, T, T_OTHER, LAYER = 11, 5, 8, 6, 3
REDUCTIONS = ("token", "sequence_sum", "sequence_mean")
CONTROL = np.array([0.6, 0.0, -0.8, 0.0, 0.0], np.float32)


def random_batch(seed, rows, steps, weight):
    """Prompts of different lengths; of the last two texts nothing is predicted."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(steps - 3, steps + 1, size=rows)
    prompts = rng.integers(0, 3, size=rows)
    at = np.arange(steps)[None]
    real = at < lengths[:, None]
    labels = real & (at >= prompts[:, None])
    labels[-2] = False
    labels[-1] = at[0] == 0
    ids = np.where(real, rng.integers(0, V, (rows, steps)), 0)
    nll = rng.uniform(0.2, 2.5, (rows, steps)) * np.asarray(
        np.pad(labels[:, 1:], ((0, 0), (0, 1)))
    )
    return TextBatch(
        input_ids=ids.astype(np.int32),
        attention_mask=real.astype(np.uint8),
        label_mask=labels.astype(np.uint8),
        weight=np.asarray(weight, np.float32),
        reference_nll=nll.astype(np.float32),
    )


WEIGHT = (1.0, 0.5, 0.0, 2.0, 1.0, 1.0)


@lru_cache
def numpy_case():
    batch = random_batch(0, 6, T, WEIGHT)
    # Alternatives lack targets elsewhere, and weights of theirs must not matter.
    other = random_batch(1, 6, T_OTHER, np.full(6, 7.0))
    other = jax.tree.map(lambda x: np.roll(x, 1, axis=0), other)
    rng = np.random.default_rng(2)
    params = {
        "logits": 1.5 * rng.normal(size=(6, T, V)),
        "other": 1.5 * rng.normal(size=(6, T_OTHER, V)),
        "stream": rng.normal(size=(6, T, D)),
        "reference": {
            "logits": 1.5 * rng.normal(size=(6, T, V)),
            "stream": rng.normal(size=(6, T, D)),
        },
    }
    # Targets that the model half knows: no term is saturated.
    for name, texts in (("logits", batch), ("other", other)):
        np.put_along_axis(
            params[name][:, :-1],
            texts.input_ids[:, 1:, None],
            rng.uniform(1, 4, (6, texts.input_ids.shape[1] - 1, 1)),
            axis=2,
        )
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    return params, batch._replace(alternative=other)


def device_case():
    return jax.tree.map(jnp.asarray, numpy_case())


def apply_fn(params, input_ids, capture=None):
    """The parameters are the outputs: gradients come out per logit."""
    if "other" in params and input_ids.shape[1] != params["logits"].shape[1]:
        return params["other"]
    if capture is None:
        return params["logits"]
    return params["logits"], {capture[0]: params["stream"]}


@dataclass(frozen=True)
class Case:
    """One objective: how to call it, its oracle, and what the oracle differentiates."""

    call: Any
    oracle: Any
    """(point, params, batch) -> terms, where point stands for params[reads]."""
    reads: str = "logits"
    reference: bool = False
    blocks: bool = False

    def __call__(self, params, batch, **settings):
        if self.reference:
            settings["reference_params"] = params["reference"]
        return self.call(params, batch, apply_fn=apply_fn, **settings)


CASES = {
    **{
        f"nll-{name}": Case(
            partial(objectives.nll, reduction=name),
            lambda z, p, b, name=name: oracle.nll(z, b, reduction=name),
        )
        for name in REDUCTIONS
    },
    **{
        f"neg_nll-{name}": Case(
            partial(objectives.neg_nll, reduction=name),
            lambda z, p, b, name=name: oracle.nll(z, b, reduction=name, sign=-1),
        )
        for name in REDUCTIONS
    },
    **{
        f"alternative_nll-{name}": Case(
            partial(objectives.alternative_nll, reduction=name),
            lambda z, p, b, name=name: oracle.nll(
                z, b.alternative, reduction=name, weight=b.weight
            ),
            "other",
        )
        for name in REDUCTIONS
    },
    "npo": Case(objectives.npo, lambda z, p, b: oracle.npo(z, b, beta=0.1)),
    "npo-2": Case(
        partial(objectives.npo, beta=2.0), lambda z, p, b: oracle.npo(z, b, beta=2)
    ),
    "simnpo": Case(
        objectives.simnpo, lambda z, p, b: oracle.simnpo(z, b, beta=4.5, delta=0)
    ),
    "simnpo-2": Case(
        partial(objectives.simnpo, beta=2.0, delta=1.5),
        lambda z, p, b: oracle.simnpo(z, b, beta=2, delta=1.5),
    ),
    "dpo-loser": Case(
        objectives.dpo, lambda z, p, b: oracle.dpo(z, p["other"], b, beta=0.1)
    ),
    "dpo-winner": Case(
        partial(objectives.dpo, beta=0.5),
        lambda z, p, b: oracle.dpo(p["logits"], z, b, beta=0.5),
        "other",
    ),
    "wga": Case(objectives.wga, lambda z, p, b: oracle.wga(z, p["logits"], b, beta=1)),
    "wga-5": Case(
        partial(objectives.wga, beta=5.0),
        lambda z, p, b: oracle.wga(z, p["logits"], b, beta=5),
    ),
    "tnpo": Case(
        objectives.tnpo, lambda z, p, b: oracle.tnpo(z, p["logits"], b, beta=4)
    ),
    "wtnpo": Case(
        objectives.wtnpo,
        lambda z, p, b: oracle.wtnpo(z, p["logits"], b, beta=4, alpha=1.5),
    ),
    "satimp": Case(
        objectives.satimp,
        lambda z, p, b: oracle.satimp(z, p["logits"], b, beta1=5, beta2=1),
    ),
    "undial": Case(
        distributions.undial,
        lambda z, p, b: oracle.undial(z, p["reference"]["logits"], b, beta=10),
        reference=True,
        blocks=True,
    ),
    "kl": Case(
        distributions.kl_to_reference,
        lambda z, p, b: oracle.kl(z, p["reference"]["logits"], b),
        reference=True,
        blocks=True,
    ),
    "ce_u": Case(
        distributions.ce_u,
        lambda z, p, b: oracle.ce_u(z, p["logits"], b, skip=1),
        blocks=True,
    ),
    "ce_u-0": Case(
        partial(distributions.ce_u, skip=0),
        lambda z, p, b: oracle.ce_u(z, p["logits"], b, skip=0),
    ),
    "pdu_flatten": Case(distributions.pdu_flatten, lambda z, p, b: oracle.pdu(z, b)),
    "rmu": Case(
        partial(
            representation.rmu,
            layer=LAYER,
            steering=3.0,
            control=jnp.asarray(CONTROL),
        ),
        lambda h, p, b: oracle.stream_distance(h, b, lambda i, t: 3.0 * CONTROL),
        "stream",
    ),
    "adaptive_rmu": Case(
        partial(
            representation.adaptive_rmu,
            layer=LAYER,
            steering=0.5,
            control=jnp.asarray(CONTROL),
        ),
        lambda h, p, b: oracle.stream_distance(
            h,
            b,
            lambda i, t: (
                0.5 * np.sqrt((p["reference"]["stream"][i, t] ** 2).sum()) * CONTROL
            ),
        ),
        "stream",
        reference=True,
    ),
    "rmu_retain": Case(
        partial(representation.rmu_retain, layer=LAYER),
        lambda h, p, b: oracle.stream_distance(
            h, b, lambda i, t: p["reference"]["stream"][i, t]
        ),
        "stream",
        reference=True,
    ),
}


@partial(jax.jit, static_argnums=0, static_argnames="block")
def value_and_gradient(case, params, batch, **settings):
    """Gradients of everything in params, the reference's included."""
    return jax.value_and_grad(case, has_aux=True)(params, batch, **settings)


def assert_same(found, expected, rtol=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(
            x, y, rtol=rtol, atol=rtol * float(np.abs(y).max(initial=0))
        ),
        found,
        expected,
    )


def rows_of(tree, rows):
    return jax.tree.map(lambda x: x[rows], tree)
