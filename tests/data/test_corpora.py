import json
import random

import pytest

from lt_mia_jax.data.corpora import Corpus, deduplicate, load_corpus
from lt_mia_jax.data.splits import split_corpus
from lt_mia_jax.data.texts import fingerprint, text_id, write_texts
from lt_mia_jax.errors import InputError


def made_texts(count: int, seed: int = 0) -> list[str]:
    pick = random.Random(seed)
    words = [f"w{number}" for number in range(3_000)]
    return [" ".join(pick.choices(words, k=60)) for _ in range(count)]


def made_file(tmp_path, texts, name="made.jsonl"):
    path = tmp_path / name
    write_texts(path, ({"text": text} for text in texts))
    return str(path)


def made_corpus(name, texts):
    return Corpus(name, tuple(map(text_id, texts)), tuple(texts), False, {})


def test_a_file_becomes_a_corpus(tmp_path, caplog):
    texts = made_texts(30)
    corpus = load_corpus(made_file(tmp_path, ["", *texts, texts[3].upper()]))
    assert corpus.texts == tuple(texts)
    assert corpus.ids == tuple(map(text_id, texts))
    assert corpus.fingerprint == fingerprint(map(text_id, texts))
    assert corpus.name == "made"
    assert not corpus.code
    assert corpus.versions["made.jsonl"].startswith("sha256:")
    assert "30 documents, fewer than 2000" in caplog.text


def test_explicit_ids_stay(tmp_path):
    path = tmp_path / "named.jsonl"
    texts = made_texts(3)
    path.write_text(
        "".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts))
    )
    assert load_corpus(str(path)).ids == ("0", "1", "2")


def test_near_copies_never_stand_on_both_sides(tmp_path):
    pick = random.Random(8)
    originals = made_texts(300)
    edited = []
    for text in originals:
        words = text.split()
        words[pick.randrange(60)] = "changed"
        edited.append(" ".join(words))
    mixed = originals + edited
    pick.shuffle(mixed)
    corpus = load_corpus(made_file(tmp_path, mixed))
    split = split_corpus(
        corpus.ids, seed=0, model="m", corpus="c", n_members=80, n_nonmembers=80,
        n_validation=5, pool=None,
    )  # fmt: skip
    original_of = dict(zip(originals + edited, originals * 2, strict=True))
    sides = [{original_of[corpus.texts[row]] for row in rows} for rows in split]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert len(corpus.texts) == 300


def test_limit_keeps_the_same_documents_whatever_the_order(tmp_path):
    texts = made_texts(50)
    limited = load_corpus(made_file(tmp_path, texts), limit=20)
    other = load_corpus(made_file(tmp_path, texts[::-1], "other.jsonl"), limit=20)
    assert set(limited.ids) == set(other.ids)
    assert limited.texts == tuple(text for text in texts if text in limited.texts)
    assert len(limited.ids) == 20


def test_a_hub_data_set_from_a_folder(tmp_path):
    texts = made_texts(20)
    path = tmp_path / "train.jsonl"
    write_texts(path, ({"code": text} for text in [*texts, texts[0], "short"]))
    corpus = load_corpus("swallow-code", local=tmp_path)
    assert corpus.texts == tuple(texts)
    assert (corpus.name, corpus.code) == ("swallow_code", True)
    assert corpus.versions["tokyotech-llm/swallow-code"] == "local files"


def test_long_documents_are_compared_by_the_part_that_is_read(tmp_path):
    same, *rest = made_texts(3)
    same = " ".join([same, *made_texts(10, seed=3)])
    heads = [f"{same} {tail * 5}" for tail in rest]
    tails = [f"{tail * 5} {same}" for tail in rest]
    write_texts(tmp_path / "train.jsonl", ({"text": t} for t in heads + tails))
    assert load_corpus("ag_news", local=tmp_path).texts == (heads[0], *tails)
    assert load_corpus("swallow_code", local=tmp_path).texts == (*heads, tails[0])


def test_an_offline_domain_and_its_cache(tmp_path):
    made = load_corpus("ucd_table", cache=tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("ucd_table-")
    assert load_corpus("ucd_table", cache=tmp_path) == made
    assert len(made.ids) == len(set(made.ids)) > 1_000
    assert "unicode" in made.versions
    # The cache is read, not just written.
    write_texts(file, [{"text": "cached"}])
    assert load_corpus("ucd_table", cache=tmp_path).texts == ("cached",)


def test_deduplicate_across_corpora():
    texts = made_texts(30)
    first = made_corpus("first", texts[:20])
    second = made_corpus("second", texts[15:])
    kept = deduplicate([first, second])
    assert kept[0] == first
    assert kept[1] == made_corpus("second", texts[20:])


@pytest.mark.parametrize(
    ("name", "local", "words"),
    [
        ("no_such_corpus", None, "py_code.*ag_news"),
        ("absent.jsonl", None, "no such file"),
        ("ag_news", "absent", "no such folder"),
        ("ucd_table", "absent", "no local folder"),
    ],
)
def test_user_errors(name, local, words):
    with pytest.raises(InputError, match=words):
        load_corpus(name, local=local)


def test_a_file_of_empty_texts(tmp_path):
    with pytest.raises(InputError, match="no documents"):
        load_corpus(made_file(tmp_path, ["", " "]))
