"""`unlearn`: run a method on a model; resumable, on any devices."""

import dataclasses
import hashlib
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lt_mia_jax.arrays import Params
from lt_mia_jax.data.answers import EncodedAnswers
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor, make_executor
from lt_mia_jax.finetune import lora
from lt_mia_jax.finetune.lora import Adapters
from lt_mia_jax.finetune.step import float32, signature
from lt_mia_jax.models.language_model import Intervention
from lt_mia_jax.training.checkpoint import Checkpointer
from lt_mia_jax.training.loop import fit
from lt_mia_jax.training.metrics import MetricsWriter
from lt_mia_jax.training.state import init_state
from lt_mia_jax.unlearning.methods import Method, Mrp, fitting
from lt_mia_jax.unlearning.methods.prepare import Setting, prepare
from lt_mia_jax.unlearning.recipe import ForgetTexts as ForgetTexts
from lt_mia_jax.unlearning.recipe import UnlearnConfig as UnlearnConfig
from lt_mia_jax.unlearning.sets import UnlearningBatches
from lt_mia_jax.unlearning.step import Frozen, TrainableModel, UnlearnStep

logger = logging.getLogger(__name__)


class UnlearnResult(NamedTuple):
    """A model after unlearning."""

    params: Params
    """Float32 parameters, adapters merged in. Beside an intervention those that were
    given, bit for bit."""
    adapters: Adapters | None
    """The adapters, when there are any."""
    method: Method
    """With everything filled in that depends on the model."""
    steps: int
    """Updates in the whole run."""
    resumed_from: int
    """Updates that an earlier process had already done."""
    intervention: Intervention | None = None
    """What a method made that leaves the weights alone: the model has forgotten only
    with it. `storage.save_intervention` writes it."""


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
    """Make a model forget some texts; the same call continues a stopped run.

    Every update reads a batch of forget texts (in passes over all) and as many retain
    texts (drawn). A continued run returns exactly what an uninterrupted one would.

    Args:
      model: a `LanguageModel`.
      params: the model before; left as it is.
      forget: the texts to forget, with what the method needs beside them.
      retain: texts to keep; None for methods that need none.
      method: a value of `methods`.
      config: the recipe.
      directory: gets `history.jsonl` (one row a step) and `state/`, the checkpoints.
      executor: the devices; None takes all, for data parallelism.
      save_every_seconds: least time between checkpoints.
      intervention: what the model comes with, from an earlier run of `Mrp`, which
        another one extends.

    Raises:
      InputError: texts that the method needs are missing, the run diverges (the last
        good checkpoint is kept), or `directory` holds another run.
    """
    executor = make_executor() if executor is None else executor
    directory = Path(directory)
    if intervention is not None:
        method = _extending(method, intervention)
    method = method.fitted(model.config)
    _check(method, forget, retain, config)
    name = _signature(model, params, forget, retain, method, config, intervention)
    key = jax.random.key(config.seed)
    edit = method.intervention()
    trainee = TrainableModel(model=model, lora=config.lora, intervention=edit)
    sets = UnlearningBatches(
        forget, retain, method, config, executor, model.config.vocab_size
    )
    if sets.schedule.total < method.forget_every:
        raise InputError(
            f"{type(method).__name__} forgets in each {method.forget_every}th step, "
            f"and this run has {sets.schedule.total}; expected more epochs or smaller "
            "batches"
        )

    def setting(trainee: TrainableModel, base: Any, trained: Any) -> Setting:
        return Setting(
            model=model.config,
            apply_fn=trainee.apply_fn(base),
            forward_fn=trainee.apply_fn(base, forward=True),
            trained=trained,
            forget=sets.all_forget,
            retain=sets.some_retain,
            forget_texts=len(forget.answers.input_ids),
            key=jax.random.fold_in(key, 1),
        )

    base = None
    if edit is not None:
        base = executor.place(params)
        frozen_model = setting(TrainableModel(model=model), None, base)
        trained = fitting.start(method, frozen_model, intervention)
        if method.forget() is None and method.retain() is None:
            return UnlearnResult(params, None, method, 0, 0, edit(trained))
    else:
        trained = params = float32(params)
        if config.lora is not None:
            trained = lora.init(jax.random.fold_in(key, 2), params, config.lora)
            base = executor.place(params)
    trained = executor.copy(trained)
    sets.remember_reference(trainee.apply_fn(base), trained)
    prepared = prepare(method, setting(trainee, base, trained))
    sets.row_weight = prepared.row_weight
    step = UnlearnStep(
        trainee=trainee,
        method=method,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1.0),
        schedule=sets.schedule,
        axis=executor.axis,
    )
    start = partial(init_state, optimizer=step.transform(prepared.arrays))
    rate = executor.place(np.float32(config.optimizer.learning_rate))
    data = {name: executor.place(x) for name, x in prepared.data.items()}
    frozen = Frozen(base, data, rate)
    result = fit(
        jax.tree_util.Partial(step, frozen),
        executor.init_sharded(start, trained),
        total_steps=sets.schedule.total,
        batch_at=sets.batch_at,
        key=jax.random.fold_in(key, 0),
        executor=executor,
        label="unlearning",
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
        found, adapters, method, sets.schedule.total, result.resumed_from, made
    )


def _extending(method: Method, intervention: Intervention) -> Method:
    if isinstance(method, Mrp):
        return method.extending(intervention)
    raise InputError(
        f"the model comes with an intervention, and {type(method).__name__} would lose "
        "it; take the model without it, or extend a projection by mrp"
    )


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
    missing = {"refusal": forget.refusals, "inverted": forget.inverted}
    if method.alternative in missing and not missing[method.alternative]:
        raise InputError(
            f"{name} needs other answers to the texts to forget; expected the field "
            f"{method.alternative!r} in every row"
        )
    if method.weights_only and config.lora is not None:
        why = (
            "chooses among the model's weights"
            if method.intervention() is None
            else "trains no weights"
        )
        raise InputError(f"{name} {why}; leave --lora out")


def _signature(
    model: Any,
    params: Params,
    forget: ForgetTexts,
    retain: EncodedAnswers | None,
    method: Method,
    config: UnlearnConfig,
    intervention: Intervention | None,
) -> str:
    """Names everything that decides the result."""
    described = {"method": type(method).__name__, **dataclasses.asdict(method)}
    found = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    found.update(signature(config, model, params).encode())
    for texts in (forget.answers, *forget.refusals, *forget.inverted, retain):
        for field in () if texts is None else texts[:3]:
            found.update(f"{field.shape}".encode())
            found.update(np.ascontiguousarray(field).tobytes())
    for leaf in jax.tree.leaves(intervention):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()
