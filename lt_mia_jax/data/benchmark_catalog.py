"""Locations and columns of TOFU, MUSE, WMDP and RWKU."""

from dataclasses import replace

from lt_mia_jax.data.benchmarks import Benchmark, Columns, Part

_QA = Columns(question="question", answer="answer")
_TEXT = Columns(text="text")


def _tofu() -> Benchmark:
    known = replace(_QA, wrong_answers="perturbed_answer")
    perturbed = replace(
        known,
        paraphrased_question="paraphrased_question",
        paraphrased_answer="paraphrased_answer",
    )
    sizes = ("01", "05", "10")
    columns = {
        "full": _QA,
        **{f"forget{size}": _QA for size in sizes},
        **{f"retain{100 - int(size)}": _QA for size in sizes},
        **{f"holdout{size}": _QA for size in sizes},
        **{f"forget{size}_perturbed": perturbed for size in sizes},
        "retain_perturbed": perturbed,
        "real_authors_perturbed": known,
        "world_facts_perturbed": known,
    }
    return Benchmark(
        name="tofu",
        title="TOFU",
        source="arXiv 2401.06121",
        path="locuslab/TOFU",
        parts=tuple(
            Part(name, held, name, files=(name,)) for name, held in columns.items()
        ),
    )


def _muse(corpus: str, *, sequences: bool) -> Benchmark:
    """MUSE-News or MUSE-Books; only News has sequences of forget sets."""

    def part(name: str, config: str, split: str, columns: Columns) -> Part:
        return Part(name, columns, config, split, files=(f"{config}/{split}",))

    raw = ("forget", "retain1", "retain2", "holdout")
    asked = ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl")
    privacy = ("forget", "retain", "holdout")
    configs = ("scal", "sust") if sequences else ()
    continued = Columns(question="prompt", answer="gt")
    return Benchmark(
        name=f"muse_{corpus.lower()}",
        title=f"MUSE-{corpus}",
        source="arXiv 2407.06460",
        path=f"muse-bench/MUSE-{corpus}",
        parts=(
            *(part(split, "raw", split, _TEXT) for split in raw),
            *(part(f"knowmem_{split}", "knowmem", split, _QA) for split in asked),
            part("verbmem_forget", "verbmem", "forget", continued),
            *(part(f"privleak_{split}", "privleak", split, _TEXT) for split in privacy),
            *(
                part(f"{config}_{number}", config, f"forget_{number}", _TEXT)
                for config in configs
                for number in range(1, 5)
            ),
        ),
    )


def _wmdp() -> Benchmark:
    chosen = replace(_QA, choices="choices")
    questions = [
        Part(
            subject,
            chosen,
            f"wmdp-{subject}",
            "test",
            files=(f"wmdp-{subject}/test", f"{subject}_questions"),
        )
        for subject in ("bio", "chem", "cyber")
    ]
    corpora = [
        Part(
            name.replace("-", "_"),
            _TEXT,
            f"{name}-corpus",
            path="cais/wmdp-corpora",
            files=(f"{name}-corpus/train", f"{name}-corpus"),
        )
        for name in ("bio-retain", "cyber-forget", "cyber-retain")
    ]
    bio_forget = Part(
        "bio_forget",
        _TEXT,
        path="cais/wmdp-bio-forget-corpus",
        files=("wmdp-bio-forget-corpus/data/train", "bio-forget-corpus"),
    )
    return Benchmark(
        name="wmdp",
        title="WMDP",
        source="arXiv 2403.03218",
        path="cais/wmdp",
        parts=(*questions, *corpora, bio_forget),
    )


def _rwku() -> Benchmark:
    def part(name: str, file: str, columns: Columns, split: str = "test") -> Part:
        return Part(name, columns, name, split, files=(f"All/{file}", file))

    probe = Columns(question="query", answer="answer", entity="subject", topic="type")
    about = Columns(text="text", entity="subject")
    asked = Columns(question="question")
    utility = {
        "general": ("retain_mmlu", replace(_QA, choices="choices", topic="task")),
        "reason": ("retain_bbh", replace(_QA, topic="task")),
        "truthfulness": ("truthful", replace(asked, choices="mc1_targets")),
        "factuality": ("triviaqa", replace(asked, answer="answers")),
        "fluency": ("fluency", Columns(question="instruction")),
    }
    levels = [f"forget_level{n}" for n in (1, 2, 3)]
    levels += [f"neighbor_level{n}" for n in (1, 2)]
    target = Columns(text="intro", entity="target")
    return Benchmark(
        name="rwku",
        title="RWKU",
        source="arXiv 2406.10890",
        path="jinzhuoran/RWKU",
        parts=(
            part("forget_target", "intro", target, "train"),
            *(part(name, name, probe) for name in levels),
            part("mia_forget", "forget_mia", about),
            part("mia_retain", "retain_mia", about),
            *(part(f"utility_{name}", *where) for name, where in utility.items()),
            part("train_original_passage", "passage", about, "train"),
            part("train_positive_llama3", "positive", about, "train"),
        ),
    )


_ALL = (
    _tofu(),
    _muse("News", sequences=True),
    _muse("Books", sequences=False),
    _wmdp(),
    _rwku(),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}
"""By name; `lt-mia benchmark` writes each of them."""
