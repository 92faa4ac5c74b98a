"""The transfer study: its plan, its means over combinations, and the published grid."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
import tiny_world
from family_zoo import config_json
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score

from experiments.transfer import __main__ as transfer
from experiments.transfer import attacks as transfer_attacks
from experiments.transfer import jobs as transfer_jobs
from experiments.transfer import plan as transfer_plan
from experiments.transfer import report as transfer_report
from experiments.transfer.statistics import (
    Judged,
    Resamples,
    at_equal_gap,
    group,
    pooled_tpr,
    weighted_roc,
)
from experiments.transfer.tables import point
from lt_mia_jax import lt_mia_features
from lt_mia_jax.attacks import load_attack
from lt_mia_jax.attacks.metrics import auc, tpr_at_fpr
from lt_mia_jax.checkpoints import read_config, save_pretrained
from lt_mia_jax.data.corpora import Corpus
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.data.tokenize import train_bpe
from lt_mia_jax.devices import Devices
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.layout import FeatureLayout
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.study import stages as study
from lt_mia_jax.study.launch import Local, run_jobs

WHOLE = "LT_MIA_WHOLE_GRID"


def judged(seed, base="a", corpus="x", draw=0, n=60, shift=1.0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.5).astype(np.int64)
    # Coarse scores, so that there are ties.
    scores = np.round(rng.normal(size=n) + shift * labels, 1)
    ids = np.array([f"{corpus}{i}" for i in rng.permutation(2 * n)[:n]])
    return Judged(
        name=f"{base}-{corpus}-{draw}",
        base=base,
        corpus=corpus,
        draw=draw,
        ids=ids,
        labels=labels,
        scores={"s": scores, "flat": np.zeros(n)},
    )


def test_weighted_roc():
    one, rng = judged(0), np.random.default_rng(1)
    weights = rng.integers(0, 4, (5, len(one.labels))).astype(np.float64)
    areas, rates = weighted_roc(one.labels, one.scores["s"], weights, 0.1)
    for area, rate, own in zip(areas, rates, weights, strict=True):
        expected = roc_auc_score(one.labels, one.scores["s"], sample_weight=own)
        assert area == pytest.approx(expected, abs=1e-12)
        times = own.astype(int)
        labels, scores = (np.repeat(x, times) for x in (one.labels, one.scores["s"]))
        assert rate == pytest.approx(tpr_at_fpr(labels, scores, 0.1).conservative)
    scores = np.where(np.arange(60) < 5, np.nan, one.scores["s"])
    area, _ = weighted_roc(one.labels, scores, np.ones((1, 60)), 0.1)
    assert area[0] == pytest.approx(auc(one.labels, scores))


def test_means_and_what_their_intervals_hold():
    parts = [
        judged(10 * c + d, corpus=corpus, draw=d, shift=shift)
        for c, (corpus, shift) in enumerate([("x", 0.5), ("y", 2.0)])
        for d in range(3)
    ]
    drawn = Resamples(parts, count=400, seed=0)
    found, _ = group(parts, ["s"], drawn, rate=0.1)["s"]
    alone = [roc_auc_score(p.labels, p.scores["s"]) for p in parts]
    assert found.value == pytest.approx(np.mean(alone))
    low, high = found.mean.low, found.mean.high
    assert low < found.value < high
    # About the spread that three repetitions of sixty texts have.
    spread = np.sqrt(np.mean([np.var(alone[i : i + 3]) for i in (0, 3)]) / 6)
    assert high - low > 2 * spread
    flat, _ = group(parts, ["flat"], drawn, rate=0.1)["flat"]
    assert flat.mean == pytest.approx((0.5, 0.5, 0.5))
    # A mean of one kind of cell does not depend on cells beside it.
    own = group(parts[:3], ["s"], drawn, rate=0.1)["s"][0]
    assert own.value == pytest.approx(np.mean(alone[:3]))
    assert own.mean.low < own.value < own.mean.high
    np.testing.assert_allclose(drawn.shares(parts).sum(axis=1), 1)


def test_at_equal_gap():
    """Two families of equal strength, one of which was tuned less; corpora differ."""
    rng = np.random.default_rng(0)
    families, corpora = np.repeat(["a", "b"], 12), np.tile(["x", "y", "z"], 8)
    gaps = rng.uniform(0.3, 0.6, 24) - 0.25 * (families == "b")
    of_corpus = {"x": 0.2, "y": -0.3, "z": 0.1}  # adds up to zero
    probits = 0.4 + 2 * gaps + np.array([of_corpus[c] for c in corpora])
    aucs = ndtr(probits + np.where(families == "b", 0.1, 0.0))
    found = at_equal_gap(aucs[:, None], gaps, list(families), list(corpora), 0.5)
    assert found["a"] == pytest.approx(ndtr(0.4 + 2 * 0.5))
    assert found["b"] == pytest.approx(ndtr(0.4 + 2 * 0.5 + 0.1))
    means = [aucs[families == family].mean() for family in "ab"]
    assert means[0] > means[1]


def test_pooled_rates_are_refused_for_few_nonmembers():
    many = [judged(i, draw=i, n=2000) for i in range(3)]
    drawn = Resamples(many, count=20, seed=0)
    labels = np.concatenate([m.labels for m in many])
    scores = np.concatenate([m.scores["s"] for m in many])
    found = pooled_tpr(many, ["s"], drawn, rate=0.01)["s"]
    assert found.value == tpr_at_fpr(labels, scores, 0.01).conservative
    assert pooled_tpr(many, ["s"], drawn, rate=0.001) == {}


def test_the_rate_of_a_combination_is_refused_for_few_nonmembers():
    for n, refused in ((2400, False), (1600, True)):
        one = judged(0, n=n)
        labels, scores = one.labels, one.scores["s"]
        assert refused == (sum(labels == 0) < 1000)
        area, rate = point(one, "s")
        assert area == pytest.approx(auc(labels, scores))
        if refused:
            assert np.isnan(rate)
        else:
            assert rate == tpr_at_fpr(labels, scores, 0.01).conservative


@pytest.mark.parametrize("columns", ["target", "reference"])
def test_columns_of_one_model_do_not_see_the_other(columns):
    rng = np.random.default_rng(0)
    one, two, other = (rng.normal(size=(2, 6, 50)).astype(np.float32) for _ in range(3))
    ids, mask = rng.integers(0, 50, (2, 6)), np.ones((2, 6), np.int32)
    first, _ = lt_mia_features(one, two, ids, mask, k=20)
    changed = (one, other) if columns == "target" else (other, two)
    second, _ = lt_mia_features(*changed, ids, mask, k=20)
    same = np.asarray((first == second).all(axis=(0, 1)))
    hidden = transfer_attacks.columns_of(FeatureLayout(20), columns)
    assert same[hidden].all()
    both = transfer_attacks.columns_of(FeatureLayout(20), "comparison")
    assert not same[both].all()
    # Everything but zeros of pairs, which depend on both only by chance.
    assert not (hidden & both).any()


@pytest.mark.parametrize("preset", ["tiny", "paper", "check"])
def test_nothing_judged_was_trained_on(preset):
    plan = transfer_plan.PRESETS[preset]()
    bases = {base.name: base for base in plan.bases}
    assert len(bases) == len(plan.bases)
    names = [c.name for c in (*plan.train, *plan.judge)]
    assert len(set(names)) == len(names)
    for part in ("base", "corpus"):
        seen = {getattr(c, part) for c in plan.train}
        assert not seen & {getattr(c, part) for c in plan.judge}
    assert {bases[c.base].family for c in plan.train} == {"transformer"}
    known = {corpus for base in plan.bases for corpus in base.corpora}
    assert not known & {c.corpus for c in plan.judge}


def test_published_grid():
    plan = transfer_plan.paper()
    assert (len(plan.train), len(plan.judge)) == (60, 40)
    assert sum(c.lora is None for c in plan.train) == 4 * 4
    with pytest.raises(InputError, match="leaves 0 combinations to train"):
        transfer_plan.part(plan, ("state-spaces",))
    with pytest.raises(InputError, match="mamba gpt2_: no base begins so; there are"):
        transfer_plan.part(plan, ("mamba", "distilgpt2", "gpt2_"))
    with pytest.raises(InputError, match="--without lama: no base begins so"):
        transfer_plan.part(plan, (), ("lama",))


def test_bases_can_be_left_out():
    plan = transfer_plan.paper()
    left, gone = plan.bases[0].name, plan.bases[1].name
    found = transfer_plan.part(plan, (), (gone,))
    assert {b.name for b in plan.bases} - {b.name for b in found.bases} == {gone}
    combinations = (*found.train, *found.judge)
    assert gone not in {c.base for c in combinations}
    whole = (*plan.train, *plan.judge)
    assert len(combinations) == sum(c.base != gone for c in whole)
    judged = found.judge[0].base
    both = transfer_plan.part(plan, (left, gone, judged), (gone,))
    assert {b.name for b in both.bases} == {left, judged}


def test_flags_that_name_no_attack(tmp_path):
    config = transfer.Transfer(out=tmp_path, attacks=("main", "colums"))
    with pytest.raises(InputError, match=r"colums: no attack.*columns-reference"):
        transfer.jobs(config)


def test_a_score_that_exists_for_no_text():
    one = judged(0)
    none = np.full(len(one.labels), np.nan)
    plain = np.ones((2, len(none)))
    assert np.isnan(weighted_roc(one.labels, none, plain, 0.01)).all()


def test_tiny_models_can_be_saved_under_their_type(tmp_path):
    for base in transfer_plan.tiny().bases:
        params = jax.eval_shape(LanguageModel(base.model).init, jax.random.key(0))
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
        save_pretrained(tmp_path / base.name, base.model, zeros, None)
        assert read_config(
            json.loads((tmp_path / base.name / "config.json").read_text()), base.name
        ) == dataclasses.replace(base.model)


def test_repetitions_draw_other_members():
    ids = tuple(f"id{i}" for i in range(600))
    corpus = Corpus("x", ids, ids, False, {})
    parts = [
        study.split(
            corpus,
            study.Combination(
                base="b",
                corpus="x",
                draw=draw,
                members=60,
                nonmembers=60,
                validation=5,
                familiar=False,
            ),
            seed=0,
        )
        for draw in (0, 1)
    ]
    shared = set(parts[0].members) & set(parts[1].members)
    # 60 of 270 candidates in each: about 13 are expected in both.
    assert 2 < len(shared) < 30


VARIANT_OF = {
    "falcon-rw-1b": "falcon-rw",
    "falcon-7b": "falcon-7b",
    "pythia": "gpt_neox",
    "redpajama": "gpt_neox",
    "qwen": "qwen2",
    "gpt-j": "gptj",
    "recurrentgemma": "recurrent_gemma",
    "gemma": "gemma",
    "mpt": "mpt",
    "bloom": "bloom",
    "llama": "llama",
    "olmo": "olmo",
    "stablelm": "stablelm",
    "mistral": "mistral",
    "phi": "phi",
    "opt": "opt",
    "mamba": "mamba",
    "rwkv": "rwkv",
    "gpt": "gpt2",
}
LONG = ("n_positions", "max_position_embeddings", "max_seq_len", "context_length")


def paper_files(root, names):
    """A tiny random directory of the right `model_type` a model, a file a data set."""
    tokenizer = train_bpe(tiny_world.sentences(0, 200), vocab_size=300)
    for i, name in enumerate(names):
        variant = next(v for part, v in VARIANT_OF.items() if part in name)
        fields = {**config_json(variant), "vocab_size": 300}
        fields |= {field: 128 for field in LONG if field in fields}
        config = read_config(fields, name)
        params = LanguageModel(config).init(jax.random.key(i))
        save_pretrained(root / "models" / name, config, params, tokenizer)
    corpora = (
        *transfer_plan.PAPER_TRAINING_CORPORA,
        *transfer_plan.PAPER_JUDGED_CORPORA,
    )
    for i, corpus in enumerate(corpora):
        texts = [{"text": text} for text in tiny_world.sentences(10 + i, 130)]
        write_texts(root / "data" / f"{corpus}.jsonl", texts)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_published_grid_end_to_end(tmp_path):
    """Two models, or with LT_MIA_WHOLE_GRID all twenty-five (a quarter of an hour)."""
    only = ("distilgpt2", "state-spaces")
    if os.environ.get(WHOLE):
        only = ()
    config = transfer.Transfer(
        preset="paper",
        out=tmp_path / "out",
        only=only,
        models_from=tmp_path / "models",
        data_from=tmp_path / "data",
        members=12,
        nonmembers=14,
        validation=4,
        epochs=1,
        attack_epochs=1,
        permutations=2,
        attacks=("main-0", "columns-reference"),
        devices=Devices(executor="single"),
        resamples=20,
    )
    paper_files(tmp_path, [base.name for base in config.plan().bases])
    jobs = transfer.jobs(config)
    run_jobs(jobs, Local(), logs=tmp_path / "logs")
    features = tmp_path / "out" / "combinations"
    kept = {path: path.stat().st_mtime_ns for path in features.rglob("*.safetensors")}
    run_jobs(jobs, Local(), logs=tmp_path / "logs")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}

    found = transfer_report.report(config.study, resamples=20)
    transfer_report.write(found, config.out, tmp_path / "docs")
    page = (tmp_path / "docs" / transfer_report.PAGE).read_text()
    assert "| Mamba | 4 |" in page
    assert "too few non-members" in page
    assert "| only the text (bag of tokens, forest) |" in page
    values = json.loads((config.out / transfer_report.RESULTS).read_text())
    figures = list((tmp_path / "docs").glob("*.svg"))
    assert figures
    assert all(values["fingerprint"] in path.read_text() for path in figures)
    assert len(values["combinations"]) == len(config.plan().judge)
    for entry in values["combinations"]:
        scores = np.load(features / entry["name"] / transfer_jobs.SCORES)
        expected = roc_auc_score(scores["labels"], scores["score_ez"])
        assert entry["auc"]["ez"] == pytest.approx(expected)

    # What was made otherwise is neither reported nor used as this.
    changed = dataclasses.replace(config, seed=1)
    with pytest.raises(InputError, match="was made with other settings"):
        transfer_report.report(changed.study, resamples=20)
    changed = dataclasses.replace(config, models_from=tmp_path / "elsewhere")
    first = config.plan().train[0]
    with pytest.raises(InputError, match="was made with other settings"):
        transfer_jobs.make_combination(changed.study, first, judged=False)

    transfer_report.package(config.study, tmp_path / "shipped", found)
    shipped = load_attack(tmp_path / "shipped")
    original = load_attack(config.out / "attacks" / "main-0" / "attack")
    assert shipped.text_ids == original.text_ids != set()
    assert len(shipped.card["combinations"]) == len(config.plan().train)
    jax.tree.map(np.testing.assert_array_equal, shipped.params, original.params)
