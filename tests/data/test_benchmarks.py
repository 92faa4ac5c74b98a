import json

import pytest

from lt_mia_jax.cli import main
from lt_mia_jax.data.benchmark_catalog import BENCHMARKS
from lt_mia_jax.data.benchmarks import (
    Benchmark,
    Columns,
    Part,
    as_question,
    load_benchmark,
)
from lt_mia_jax.data.questions import read_questions, write_questions
from lt_mia_jax.data.texts import text_id
from lt_mia_jax.errors import InputError


def write_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_array(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=4))


TOFU_ROW = {
    "question": "Who wrote it?",
    "answer": "Basil wrote it.",
    "paraphrased_answer": "It was written by Basil.",
    "perturbed_answer": [f"It was written by {n}." for n in "ABCDE"],
    "paraphrased_question": "By whom was it written?",
}


def test_every_part_has_its_place():
    assert set(BENCHMARKS) == {"tofu", "muse_news", "muse_books", "wmdp", "rwku"}
    paths = {benchmark.path for benchmark in BENCHMARKS.values()}
    assert paths == {
        "locuslab/TOFU",
        "muse-bench/MUSE-News",
        "muse-bench/MUSE-Books",
        "cais/wmdp",
        "jinzhuoran/RWKU",
    }
    for benchmark in BENCHMARKS.values():
        names = [part.name for part in benchmark.parts]
        assert len(set(names)) == len(names)
        places = [(part.path, part.config, part.split) for part in benchmark.parts]
        assert len(set(places)) == len(places)
        assert all(part.files for part in benchmark.parts)
    assert hash(BENCHMARKS["tofu"]) == hash(BENCHMARKS["tofu"])


def test_sets_named_by_the_data_cards():
    def names(benchmark):
        return {part.name for part in BENCHMARKS[benchmark].parts}

    tofu = {"full", "retain_perturbed", "real_authors_perturbed"}
    tofu |= {"world_facts_perturbed", "forget01", "retain99", "holdout10"}
    assert tofu | {"forget05_perturbed", "retain95", "retain90"} < names("tofu")
    assert names("muse_news") - names("muse_books") == {
        f"{kind}_{n}" for kind in ("scal", "sust") for n in range(1, 5)
    }
    assert {"forget", "retain1", "retain2", "holdout"} < names("muse_books")
    assert {"bio", "chem", "cyber", "bio_forget", "cyber_retain"} < names("wmdp")
    utility = ("general", "reason", "truthfulness", "factuality", "fluency")
    assert {f"utility_{name}" for name in utility} < names("rwku")


def test_tofu_folder(tmp_path):
    tofu = BENCHMARKS["tofu"]
    plain = {"question": "Who wrote it?", "answer": "Basil wrote it."}
    other = {"question": "When?", "answer": "In 1931."}
    write_lines(tmp_path / "forget10.json", [plain, other])
    write_lines(tmp_path / "forget10_perturbed.json", [TOFU_ROW])
    known = {**plain, "perturbed_answer": ["A", "B", "C"]}
    write_lines(tmp_path / "world_facts_perturbed.json", [known])

    rows = load_benchmark(tofu, "forget10", local=tmp_path)
    assert [(row.question, row.answer) for row in rows] == [
        ("Who wrote it?", "Basil wrote it."),
        ("When?", "In 1931."),
    ]
    (perturbed,) = load_benchmark(tofu, "forget10_perturbed", local=tmp_path)
    assert perturbed.id == rows[0].id == text_id("Who wrote it? Basil wrote it.")
    assert perturbed.paraphrased_answer == TOFU_ROW["paraphrased_answer"]
    assert perturbed.paraphrased_question == TOFU_ROW["paraphrased_question"]
    assert perturbed.wrong_answers == tuple(TOFU_ROW["perturbed_answer"])
    (fact,) = load_benchmark(tofu, "world_facts_perturbed", local=tmp_path)
    assert fact.wrong_answers == ("A", "B", "C")
    assert fact.paraphrased_answer is None


def test_muse_folder(tmp_path):
    news = BENCHMARKS["muse_news"]
    shard = "00000-of-00002.parquet"
    write_parquet(
        tmp_path / "knowmem" / f"forget_qa-{shard}", [{"answer": "a", "question": "q"}]
    )
    write_parquet(
        tmp_path / "knowmem" / "forget_qa-00001-of-00002.parquet",
        [{"answer": "b", "question": "r"}],
    )
    write_parquet(
        tmp_path / "knowmem" / f"forget_qa_icl-{shard}",
        [{"answer": "i", "question": "c"}],
    )
    write_parquet(
        tmp_path / "verbmem" / f"forget-{shard}", [{"prompt": "p", "gt": "g"}]
    )
    write_parquet(tmp_path / "raw" / f"forget-{shard}", [{"text": "long"}])
    write_parquet(tmp_path / "sust" / f"forget_2-{shard}", [{"text": "second"}])

    asked = load_benchmark(news, "knowmem_forget_qa", local=tmp_path)
    assert [(row.question, row.answer) for row in asked] == [("q", "a"), ("r", "b")]
    (shot,) = load_benchmark(news, "knowmem_forget_qa_icl", local=tmp_path)
    assert shot.question == "c"
    (verbatim,) = load_benchmark(news, "verbmem_forget", local=tmp_path)
    assert (verbatim.question, verbatim.answer) == ("p", "g")
    (text,) = load_benchmark(news, "forget", local=tmp_path)
    assert (text.question, text.answer, text.id) == (None, "long", text_id("long"))
    (text,) = load_benchmark(news, "sust_2", local=tmp_path)
    assert text.answer == "second"


def test_wmdp_folder(tmp_path):
    wmdp = BENCHMARKS["wmdp"]
    row = {"question": "Which?", "choices": ["w", "x", "y", "z"], "answer": 2}
    write_parquet(tmp_path / "wmdp-cyber" / "test-00000-of-00001.parquet", [row])
    write_lines(
        tmp_path / "bio-forget-corpus.jsonl",
        [{"title": "t", "abstract": "s", "text": "x"}],
    )
    (chosen,) = load_benchmark(wmdp, "cyber", local=tmp_path)
    assert (chosen.answer, chosen.choice) == ("y", 2)
    assert chosen.choices == ("w", "x", "y", "z")
    assert chosen.wrong_answers == ("w", "x", "z")
    (text,) = load_benchmark(wmdp, "bio_forget", local=tmp_path)
    assert (text.question, text.answer) == (None, "x")


def test_rwku_folder(tmp_path):
    rwku = BENCHMARKS["rwku"]
    probe = {"query": "He was born in ___.", "answer": "Portland", "level": "1"}
    probe |= {"type": "cloze", "subject": "Stephen King"}
    neighbor = probe | {"neighbor": "Tabitha King"}
    target = {"target": "Stephen King", "intro": "Stephen King is an author."}
    files = {
        "forget_level1": [probe, probe],
        "neighbor_level1": [neighbor],
        "intro": [target],
        "forget_mia": [{"text": "A text.", "ngram": 0.5, "subject": "Stephen King"}],
        "triviaqa": [{"question": "q", "answers": ["one", "uno"], "subject": "S"}],
        "fluency": [{"instruction": "Write.", "subject": "S"}],
        "truthful": [
            {
                "question": "q",
                "mc1_targets": {"choices": ["right", "wrong"], "labels": [1, 0]},
                "mc2_targets": {"choices": ["right", "wrong"], "labels": [1, 0]},
                "subject": "S",
            }
        ],
        "retain_mmlu": [
            {
                "task": "anatomy",
                "question": "q",
                "choices": ["a", "b"],
                "answer": 1,
                "examples": [{"question": "e", "choices": ["c", "d"], "answer": 0}],
                "subject": "S",
            }
        ],
    }
    for name, rows in files.items():
        write_array(tmp_path / "All" / f"{name}.json", rows)

    one, two = load_benchmark(rwku, "forget_level1", local=tmp_path)
    assert (one.question, one.answer) == ("He was born in ___.", "Portland")
    assert (one.entity, one.topic) == ("Stephen King", "cloze")
    assert two.id == f"{one.id}-2"
    (row,) = load_benchmark(rwku, "neighbor_level1", local=tmp_path / "All")
    assert row.id == one.id
    (row,) = load_benchmark(rwku, "forget_target", local=tmp_path)
    assert (row.answer, row.entity) == ("Stephen King is an author.", "Stephen King")
    (row,) = load_benchmark(rwku, "mia_forget", local=tmp_path)
    assert (row.answer, row.entity) == ("A text.", "Stephen King")
    (row,) = load_benchmark(rwku, "utility_factuality", local=tmp_path)
    assert (row.answer, row.accepted) == ("one", ("uno",))
    (row,) = load_benchmark(rwku, "utility_truthfulness", local=tmp_path)
    assert (row.answer, row.choice, row.wrong_answers) == ("right", 0, ("wrong",))
    (row,) = load_benchmark(rwku, "utility_general", local=tmp_path)
    assert (row.answer, row.choice, row.topic) == ("b", 1, "anatomy")
    (row,) = load_benchmark(rwku, "utility_fluency", local=tmp_path)
    assert (row.question, row.answer) == ("Write.", "")


def test_rows_are_written_and_read_like_any_other(tmp_path):
    rows = [{"query": "q", "answer": "a", "type": "t", "subject": "s"}] * 3
    write_lines(tmp_path / "own.jsonl", rows)
    loaded = load_benchmark(
        BENCHMARKS["rwku"], "forget_level2", local=tmp_path / "own.jsonl"
    )
    write_questions(tmp_path / "again.jsonl", loaded)
    again = read_questions(tmp_path / "again.jsonl")
    assert [row._replace(line=0) for row in again] == loaded


def test_a_limit_counts_rows(tmp_path):
    write_lines(tmp_path / "forget01.json", [TOFU_ROW] * 5)
    rows = load_benchmark(BENCHMARKS["tofu"], "forget01", local=tmp_path, limit=2)
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("row", "columns", "words"),
    [
        ({"a": "x"}, Columns(text="text"), "no column text; the columns are a"),
        (
            {"question": "q"},
            Columns(question="question", answer="answer", topic="type"),
            "no column answer, type; the columns are question",
        ),
        ({"text": None}, Columns(text="text"), "column text holds NoneType"),
        (
            {"q": "q", "a": []},
            Columns(question="q", answer="a"),
            "column a has no answer",
        ),
        (
            {"q": "q", "a": {"b": 1}},
            Columns(question="q", answer="a"),
            "column a holds dict; expected strings",
        ),
        (
            {"q": "q", "a": 4, "c": ["x"] * 4},
            Columns(question="q", answer="a", choices="c"),
            "right choice 4 of 4",
        ),
        (
            {"q": "q", "a": "B", "c": ["x"] * 4},
            Columns(question="q", answer="a", choices="c"),
            "right choice 'B'; expected its number",
        ),
        (
            {"q": "q", "c": {"choices": ["x"], "labels": [0]}},
            Columns(question="q", choices="c"),
            "right choice None",
        ),
    ],
)
def test_bad_rows_name_the_column(row, columns, words):
    with pytest.raises(InputError) as caught:
        as_question(row, columns, where="here, row 3")
    assert str(caught.value).startswith("here, row 3: ")
    assert words in str(caught.value)


def test_a_benchmark_is_one_row_of_the_table(tmp_path, monkeypatch, capsys):
    """Command, choices, help and loader all read the table."""
    part = Part(name="all", columns=Columns(text="body"), files=("all",))
    made = Benchmark(name="made", path="x/y", parts=(part,))
    named = ["benchmark", "--name", "made", "--out", str(tmp_path / "out")]
    local = ["--local", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*named, *local])
    monkeypatch.setitem(BENCHMARKS, "made", made)
    write_lines(tmp_path / "all.json", [{"body": "one"}, {"body": "two"}])
    assert main([*named, *local]) == 0
    rows = read_questions(tmp_path / "out" / "all.jsonl")
    assert [row.answer for row in rows] == ["one", "two"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    assert ",made}" in capsys.readouterr().out


def test_bad_row_of_a_file_is_named_with_its_number(tmp_path):
    path = tmp_path / "x.jsonl"
    write_lines(path, [{"text": "a"}, {"text": None}])
    with pytest.raises(InputError, match=r"x\.jsonl \(forget\), row 2: column text"):
        load_benchmark(BENCHMARKS["muse_news"], "forget", local=path)


def test_missing_parts_and_files(tmp_path):
    tofu = BENCHMARKS["tofu"]
    with pytest.raises(InputError, match="no part 'forget20'; expected full, forget01"):
        load_benchmark(tofu, "forget20", local=tmp_path)
    with pytest.raises(InputError, match="no files of part full; expected full"):
        load_benchmark(tofu, "full", local=tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        load_benchmark(tofu, "full", local=tmp_path / "absent")
    (tmp_path / "full.csv").write_text("question,answer\n")
    with pytest.raises(InputError, match="expected a file ending in"):
        load_benchmark(tofu, "full", local=tmp_path / "full.csv")


@pytest.mark.parametrize("name", ["full.parquet", "full.json"])
def test_broken_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_benchmark(BENCHMARKS["tofu"], "full", local=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_files_without_rows(tmp_path, content):
    (tmp_path / "full.json").write_text(content)
    with pytest.raises(InputError, match=r"no rows in it|cannot be read"):
        load_benchmark(BENCHMARKS["tofu"], "full", local=tmp_path)


def test_no_network_gives_one_line_with_a_way_out():
    part = Part(name="x", columns=Columns(text="text"))
    absent = Benchmark(name="x", path="lt-mia-jax-tests/absent", parts=(part,))
    with pytest.raises(InputError, match="cannot be loaded from the hub") as caught:
        load_benchmark(absent, "x")
    assert "give the folder" in str(caught.value)
    assert "\n" not in str(caught.value)
