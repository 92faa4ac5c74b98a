"""How often an audit accuses when no text is a member, and how often when some are.

python -m experiments.calibration --out runs/calibration

One tiny transformer is pretrained and fine-tuned on 480 texts. Audits of other texts
are then drawn under thirteen conditions, of which most break an assumption, and under
three with members. Every audit is judged as `lt_mia_jax.audit` does it; texts are
scored once. A stopped command goes on where it was; --markdown writes the table.
"""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from experiments.calibration.conditions import (
    CONDITIONS,
    SHORT,
    Condition,
    Pools,
    pools,
)
from lt_mia_jax.attacks.learned.storage import shipped_attack
from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.audit.inputs import check_texts
from lt_mia_jax.audit.judge import judge
from lt_mia_jax.audit.scoring import ModelPair, ScoredTexts, score_texts
from lt_mia_jax.audit.verdict import LEVEL
from lt_mia_jax.data.corpora import deduplicate, load_corpus
from lt_mia_jax.data.texts import Text, text_id
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import make_executor
from lt_mia_jax.files import read_json, write_atomic, write_json
from lt_mia_jax.finetune import PretrainConfig
from lt_mia_jax.models import gpt2_like
from lt_mia_jax.outputs import Output, Writing, WritingFlags, claimed
from lt_mia_jax.provenance import git_commit
from lt_mia_jax.study import demo
from lt_mia_jax.study import stages as study
from lt_mia_jax.study.launch import command

log = logging.getLogger("lt_mia_jax.calibration")

WRITES = Output(
    ("corpora", "tokenizer", "base", "target", "results", "run.json", "config.json"),
    resumes=False,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Draw null audits and audits with members, and count accusations."""

    out: Path
    """Folder of models and results."""
    draws: int = 200
    """Audits of each condition."""
    seed: int = 0
    """Of models and draws."""
    only: tuple[str, ...] = ()
    """Conditions whose names begin with one of these; all by default."""
    markdown: Path | None = None
    """Write the table of what is finished here."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""


class Scored(NamedTuple):
    """Scores of all texts of one setting, by text."""

    texts: ScoredTexts
    row: dict[str, int]

    def of(self, texts: Sequence[Text]) -> ScoredTexts:
        """Those of some texts, in their order."""
        rows = [self.row[text.text] for text in texts]
        words = self.texts.words or []
        return dataclasses.replace(
            self.texts,
            ids=[text.id for text in texts],
            n_tokens=self.texts.n_tokens[rows],
            scores={name: x[rows] for name, x in self.texts.scores.items()},
            flags=[self.texts.flags[row] for row in rows],
            words=[words[row] for row in rows],
        )


def make(out: Path, seed: int) -> tuple[ModelPair, Pools]:
    """The models, and the texts that audits are drawn from."""
    names = ("py_code", "speeches", "ml_docs", "ml_code")
    loaded = [load_corpus(name, cache=out / "corpora") for name in names]
    corpora = dict(zip(names, deduplicate(loaded), strict=True))
    known = [corpora[name] for name in demo.PRETRAINING]
    texts = study.pretraining_texts(known, seed=seed, most=6000)
    tokenizer = study.make_tokenizer(
        out / "tokenizer", texts, vocab_size=demo.VOCABULARY
    )
    model = gpt2_like(demo.VOCABULARY, width=128, layers=2, heads=4, context=128)
    recipe = PretrainConfig(steps=300, optimizer=demo.RECIPE, seed=seed)
    base = study.make_base(out / "base", model, texts, tokenizer, recipe)
    corpus = corpora["ml_docs"]
    tuned = study.Combination(
        base="gpt2", corpus="ml_docs", nonmembers=2200, familiar=False
    )
    rows = study.split(corpus, tuned, seed=seed)
    target = study.make_target(out / "target", base, corpus, rows, tuned, seed=seed)
    # Rows stand in corpus order: halves of the list would differ in source.
    nonmembers = np.random.default_rng(seed).permutation(rows.nonmembers)
    pair = ModelPair(base, target, make_executor(), "base", "target")
    return pair, pools(
        [corpus.texts[row] for row in rows.members],
        [corpus.texts[row] for row in nonmembers],
        corpora["ml_code"].texts,
        corpora["speeches"].texts,
    )


def score(pair: ModelPair, texts: Pools, length: int) -> Scored:
    """Every score of every text of the pools, from one pass of each model."""
    if length == SHORT:  # only sets drawn alike are scored so
        texts = {name: texts[name] for name in ("texts", "known")}
    every = dict.fromkeys(text for pool in texts.values() for text in pool)
    rows = [Text(text_id(text), text) for text in every]
    found = score_texts(rows, pair, attack=shipped_attack(), length=length)
    return Scored(found, {text.text: n for n, text in enumerate(rows)})


def audit_once(
    condition: Condition, texts: Pools, scored: Scored, seed: tuple[int, int]
) -> dict[str, Any]:
    """What one audit decides."""
    suspects, known = condition.draw(texts, np.random.default_rng(seed))
    own, other = (
        [Text(f"{n}", text) for n, text in enumerate(each)]
        for each in (suspects, known)
    )
    try:
        inputs = check_texts(own, other)
    except InputError:
        return {"decision": "refused"}
    found = judge(
        scored.of(inputs.texts),
        scored.of(inputs.nonmembers),
        primary=LEARNED,
        independent=inputs.independent,
        seed=seed[1],
    )
    assert found.comparison is not None
    accused = 0 if found.q_values is None else np.nansum(found.q_values <= LEVEL)
    return {
        "decision": found.comparison.decision,
        "auc": found.comparison.auc.value,
        "member": found.dataset is not None and found.dataset.decision == "member",
        "accused": int(accused),
        "texts": len(inputs.texts),
    }


def run(config: Calibration) -> None:
    """Make the models, draw what is missing, write the table."""
    results = config.out / "results"
    chosen = [each for each in CONDITIONS if each.name.startswith(config.only or ("",))]
    missing = [
        each
        for each in chosen
        if not (path := _path(results, each)).exists()
        or len(read_json(path)) < config.draws
    ]
    if missing:
        overwrite = config.writing.overwrite
        with claimed(config.out, WRITES, "calibration", config, overwrite=overwrite):
            draw_audits(config, missing, results)
    lines = [
        row(each, read_json(_path(results, each)))
        for each in CONDITIONS
        if _path(results, each).exists()
    ]
    table = "\n".join([*HEADER, *lines])
    print(table)
    if config.markdown is not None:
        made = f"Made by `python -m experiments.calibration` at {git_commit()}.\n\n"
        write_atomic(config.markdown, f"{made}{table}\n")


def draw_audits(
    config: Calibration, missing: Sequence[Condition], results: Path
) -> None:
    """Judge the audits of each condition, and write what was decided."""
    pair, texts = make(config.out, config.seed)
    lengths = dict.fromkeys(each.length for each in missing)
    scored = {length: score(pair, texts, length) for length in lengths}
    for each in missing:
        drawn = [
            audit_once(each, texts, scored[each.length], (config.seed, n))
            for n in tqdm(range(config.draws), desc=each.name, disable=None)
        ]
        write_json(_path(results, each), drawn)
        log.info("%s", row(each, drawn))


def _path(results: Path, condition: Condition) -> Path:
    return results / f"{condition.name.replace(' ', '_')}.json"


HEADER = (
    "| condition | texts | audits | text-only AUC | no verdict | doubtful | member "
    "verdict | accuse a text | texts accused |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def row(condition: Condition, drawn: Sequence[dict[str, Any]]) -> str:
    """Shares of the audits of one condition."""

    def share(hold: Any) -> str:
        return f"{100 * np.mean([bool(hold(each)) for each in drawn]):.1f} %"

    areas = [each["auc"] for each in drawn if each.get("auc") is not None]
    accused = sum(each.get("accused", 0) for each in drawn)
    texts = sum(each.get("texts", 0) for each in drawn)
    cells = (
        condition.name,
        condition.about,
        f"{len(drawn)}",
        f"{np.mean(areas):.2f}" if areas else "",
        share(lambda each: each["decision"] in ("different", "refused")),
        share(lambda each: each["decision"] == "doubtful"),
        share(lambda each: each.get("member")),
        share(lambda each: each.get("accused")),
        f"{100 * accused / texts:.2f} %" if texts else "",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(command(Calibration, run, __doc__))
