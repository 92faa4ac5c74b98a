"""`unlearn`: run a method on a model; resumable, on any devices."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_mia_jax.arrays import Params
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.answers import EncodedAnswers
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, make_executor
from lt_mia_jax.files import fingerprint
from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.lora import Adapters
from lt_mia_jax.finetune.step import float32, signature
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.training.checkpoint import Checkpointer
from lt_mia_jax.training.loop import fit
from lt_mia_jax.training.metrics import MetricsWriter
from lt_mia_jax.training.state import init_state
from lt_mia_jax.unlearning.batches import UnlearningBatches
from lt_mia_jax.unlearning.methods.method import Method
from lt_mia_jax.unlearning.methods.own import source_of
from lt_mia_jax.unlearning.methods.setting import Setting
from lt_mia_jax.unlearning.recipe import ForgetTexts, UnlearnConfig
from lt_mia_jax.unlearning.step import (
    Frozen,
    PairBatch,
    TrainableModel,
    UnlearnStep,
)

WRAPPERS = ("sharpness", "fisher_share")
"""Settings of `UnlearnConfig` that wrap the optimizer of a method."""


class UnlearnResult(NamedTuple):
    """A model after unlearning."""

    params: Params
    """Float32 parameters, with adapters merged. If the method makes an intervention,
    the given parameters, bit for bit."""
    adapters: Adapters | None
    """The LoRA adapters, if any were trained."""
    method: Method
    """The method with model-dependent settings filled in."""
    steps: int
    """Updates in the whole run."""
    resumed_from: int
    """Updates that an earlier process had already done."""
    intervention: Intervention | None = None
    """The intervention that the method made: without it the model has forgotten
    nothing. `storage.save_intervention` writes it."""


def unlearn(
    model: Any,
    params: Params,
    forget: ForgetTexts,
    retain: EncodedAnswers | None,
    method: Method,
    config: UnlearnConfig,
    *,
    directory: Path | str,
    executor: Executor | None = None,
    save_every_seconds: float = 60.0,
    intervention: Intervention | None = None,
) -> UnlearnResult:
    """Make a model forget texts; the same call continues an interrupted run.

    Every update reads a batch of forget texts, in epochs over all of them, and as many
    retain texts, drawn at random. A continued run gives exactly the same result.

    Args:
      model: a `LanguageModel`.
      params: the model before unlearning; not changed.
      forget: the texts to forget, with other answers if the method needs them.
      retain: the texts to keep; None for methods that need none.
      method: a value of `methods.METHODS`, or of any subclass of `Method`.
      config: the recipe.
      directory: for `history.jsonl` (one row per step) and checkpoints in `state/`.
      executor: the devices; None uses all, for data parallelism.
      save_every_seconds: minimum time between checkpoints.
      intervention: the intervention that the model comes with, if any; only `Mrp`
        extends one.

    Raises:
      InputError: texts that the method needs are missing, the run diverges (the last
        good checkpoint is kept), or `directory` holds another run.
    """
    executor = make_executor() if executor is None else executor
    directory = Path(directory)
    if intervention is not None:
        method = method.extending(intervention)
    method = method.fitted(model.config)
    _check(method, forget, retain, config)
    name = _signature(model, params, forget, retain, method, config, intervention)
    key = jax.random.key(config.seed)
    edit = method.intervention()
    batches = UnlearningBatches(
        forget, retain, method, config, executor, model.config.vocab_size
    )
    if batches.schedule.total < method.forget_every:
        raise InputError(
            f"{type(method).__name__} forgets in every {method.forget_every}th step, "
            f"and this run has {batches.schedule.total}; expected more epochs or "
            "smaller batches"
        )
    base = None
    if edit is not None:
        trained = executor.place(params)
    else:
        trained = params = float32(params)
        if config.lora is not None:
            trained = lora.init(jax.random.fold_in(key, 2), params, config.lora)
            base = executor.place(params)
        trained = executor.copy(trained)
    trainable = TrainableModel(model=model, lora=config.lora)
    setting = Setting(
        model=model.config,
        apply_fn=trainable.apply_fn(base),
        forward_fn=trainable.apply_fn(base, forward=True),
        trained=trained,
        forget=batches.all_forget,
        retain=batches.some_retain,
        forget_texts=len(forget.answers.input_ids),
        key=jax.random.fold_in(key, 1),
        earlier=intervention,
        texts=forget,
        roll_out=partial(trainable.roll_out, base),
    )
    prepared = method.prepare(setting)
    if edit is not None:
        if method.forget() is None and method.retain() is None:
            return UnlearnResult(params, None, method, 0, 0, edit(prepared.start))
        base, trained = trained, executor.copy(prepared.start)
        trainable = TrainableModel(model=model, intervention=edit)
    batches.remember_reference(trainable.apply_fn(base), trained)
    batches.row_weight = prepared.row_weight
    step = UnlearnStep(
        trainable=trainable,
        method=method,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1.0),
        schedule=batches.schedule,
        axis=executor.axis,
        sharpness=config.sharpness,
        fisher_share=config.fisher_share,
    )
    start = partial(init_state, optimizer=step.transform(dict(prepared.arrays)))
    rate = executor.place(np.float32(config.optimizer.learning_rate))
    data = {name: executor.place(x) for name, x in prepared.data.items()}
    terms = [term for term in (method.forget(), method.retain()) if term]
    if any("reference_params" in term.data for term in terms):
        data["reference_params"] = executor.place(trained)
    result = fit(
        jax.tree_util.Partial(step, Frozen(base, data, rate)),
        executor.init_sharded(start, trained),
        total_steps=batches.schedule.total,
        batch_at=batches.batch_at,
        key=jax.random.fold_in(key, 0),
        executor=executor,
        label="unlearning",
        revise=prepared.revise and partial(_revised, prepared.revise),
        checkpointer=Checkpointer(directory / "state", signature=name),
        save_every_seconds=save_every_seconds,
        metrics=MetricsWriter(directory / "history.jsonl"),
    )
    found, adapters, made = result.state.params, None, None
    if edit is not None:
        found, made = params, jax.jit(edit)(found)
    elif config.lora is not None:
        found, adapters = lora.merge(params, found, config.lora.scale), found
    return UnlearnResult(
        found, adapters, method, batches.schedule.total, result.resumed_from, made
    )


def _revised(revise: Any, trained: Any, batch: PairBatch, step: int) -> PairBatch:
    """The batch with what the method reads instead of the forget texts."""
    assert batch.forget is not None
    return batch._replace(forget=revise(trained, batch.forget, step))


def _check(
    method: Method,
    forget: ForgetTexts,
    retain: EncodedAnswers | None,
    config: UnlearnConfig,
) -> None:
    name = type(method).__name__
    if method.needs_retain and (retain is None or not len(retain.input_ids)):
        raise InputError(
            f"{name} needs texts to keep; give --retain"
            + (", or choose a method without" if method.needs_forget else "")
        )
    if method.needs_forget and not len(forget.answers.input_ids):
        raise InputError(f"{name}: there is no text to forget")
    kind = method.alternative
    if kind not in (None, "random") and not forget.alternatives(kind):
        raise InputError(
            f"{name} needs other answers to the texts to forget; expected the field "
            f"{kind!r} in every row"
        )
    edits = method.intervention() is not None
    if method.weights_only and config.lora is not None:
        why = "trains no weights" if edits else "chooses among the model's weights"
        raise InputError(f"{name} {why}; leave --lora out")
    for flag in WRAPPERS:
        if edits and getattr(config, flag) is not None:
            raise InputError(
                f"{name} trains no weights; leave --{flag.replace('_', '-')} out"
            )
    if config.sharpness is not None and method.forget() is None:
        raise InputError(
            f"{name} takes no gradient on forget texts; leave --sharpness out"
        )


def _signature(
    model: Any,
    params: Params,
    forget: ForgetTexts,
    retain: EncodedAnswers | None,
    method: Method,
    config: UnlearnConfig,
    intervention: Intervention | None,
) -> str:
    """A hash of everything that decides the result."""
    # The names and settings of earlier runs, which can go on.
    name = type(method).__name__
    earlier = {"CausalLayerUnlearning": "Sha256", "GracefulForgetting": "Lwf"}
    described = {"method": earlier.get(name, name), **dataclasses.asdict(method)}
    given = {k: x for k, x in to_dict(config).items() if k not in WRAPPERS or x}
    parts = [described, source_of(method), signature(given, model, params)]
    for texts in (forget.answers, *forget.refusals, *forget.inverted, retain):
        for field in () if texts is None else texts[:3]:
            parts += [str(field.shape), np.asarray(field)]
    parts += method.words(forget)
    return fingerprint(*parts, *map(np.asarray, jax.tree.leaves(intervention)))
