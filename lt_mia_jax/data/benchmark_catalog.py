"""Locations and columns of TOFU, MUSE, WMDP and RWKU."""

from lt_mia_jax.data.benchmarks import Benchmark, Columns, Part

_QA = Columns(question="question", answer="answer")
_TEXT = Columns(text="text")


def _tofu() -> Benchmark:
    perturbed = Columns(
        question="question",
        answer="answer",
        paraphrased_question="paraphrased_question",
        paraphrased_answer="paraphrased_answer",
        wrong_answers="perturbed_answer",
    )
    known = Columns(
        question="question", answer="answer", wrong_answers="perturbed_answer"
    )
    sizes = ("01", "05", "10")
    columns = {"full": _QA}
    columns |= {f"forget{size}": _QA for size in sizes}
    columns |= {f"retain{100 - int(size)}": _QA for size in sizes}
    columns |= {f"holdout{size}": _QA for size in sizes}
    columns |= {f"forget{size}_perturbed": perturbed for size in sizes}
    columns |= {"retain_perturbed": perturbed}
    columns |= {"real_authors_perturbed": known, "world_facts_perturbed": known}
    return Benchmark(
        name="tofu",
        title="TOFU",
        source="arXiv 2401.06121",
        path="locuslab/TOFU",
        parts=tuple(
            Part(name=name, config=name, columns=value, files=(name,))
            for name, value in columns.items()
        ),
    )


def _muse(corpus: str, *, sequences: bool) -> Benchmark:
    """MUSE-News or MUSE-Books; only News has sequences of forget sets."""

    def part(name: str, config: str, split: str, columns: Columns) -> Part:
        return Part(
            name=name,
            config=config,
            split=split,
            columns=columns,
            files=(f"{config}/{split}",),
        )

    raw = ("forget", "retain1", "retain2", "holdout")
    asked = ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl")
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
            *(
                part(f"privleak_{split}", "privleak", split, _TEXT)
                for split in ("forget", "retain", "holdout")
            ),
            *(
                part(f"{config}_{number}", config, f"forget_{number}", _TEXT)
                for config in configs
                for number in range(1, 5)
            ),
        ),
    )


def _wmdp() -> Benchmark:
    chosen = Columns(question="question", answer="answer", choices="choices")
    subjects = ("bio", "chem", "cyber")
    corpora = ("bio-retain", "cyber-forget", "cyber-retain")
    return Benchmark(
        name="wmdp",
        title="WMDP",
        source="arXiv 2403.03218",
        path="cais/wmdp",
        parts=(
            *(
                Part(
                    name=subject,
                    config=f"wmdp-{subject}",
                    split="test",
                    columns=chosen,
                    files=(f"wmdp-{subject}/test", f"{subject}_questions"),
                )
                for subject in subjects
            ),
            *(
                Part(
                    name=name.replace("-", "_"),
                    path="cais/wmdp-corpora",
                    config=f"{name}-corpus",
                    columns=_TEXT,
                    files=(f"{name}-corpus/train", f"{name}-corpus"),
                )
                for name in corpora
            ),
            Part(
                name="bio_forget",
                path="cais/wmdp-bio-forget-corpus",
                columns=_TEXT,
                files=("wmdp-bio-forget-corpus/data/train", "bio-forget-corpus"),
            ),
        ),
    )


def _rwku() -> Benchmark:
    probe = Columns(question="query", answer="answer", entity="subject", topic="type")
    about = Columns(text="text", entity="subject")
    utility = {
        "general": ("retain_mmlu", "answer", "choices", "task"),
        "reason": ("retain_bbh", "answer", None, "task"),
        "truthfulness": ("truthful", None, "mc1_targets", None),
        "factuality": ("triviaqa", "answers", None, None),
    }

    def part(name: str, file: str, columns: Columns, split: str = "test") -> Part:
        return Part(
            name=name,
            config=name,
            split=split,
            columns=columns,
            files=(f"All/{file}", file),
        )

    levels = [f"forget_level{n}" for n in (1, 2, 3)]
    levels += [f"neighbor_level{n}" for n in (1, 2)]
    target = Columns(text="intro", entity="target")
    passage, positive = "train_original_passage", "train_positive_llama3"
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
            *(
                part(
                    f"utility_{name}",
                    file,
                    Columns(
                        question="question", answer=answer, choices=choices, topic=topic
                    ),
                )
                for name, (file, answer, choices, topic) in utility.items()
            ),
            part("utility_fluency", "fluency", Columns(question="instruction")),
            part(passage, "passage", about, "train"),
            part(positive, "positive", about, "train"),
        ),
    )


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        _tofu(),
        _muse("News", sequences=True),
        _muse("Books", sequences=False),
        _wmdp(),
        _rwku(),
    )
}
"""By name; `lt-mia benchmark` writes each of them."""
