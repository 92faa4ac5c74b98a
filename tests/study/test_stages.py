"""Corpora of a study, from their source to the files that its jobs read."""

import random

import pytest
import tiny_world

from lt_mia_jax.data.corpora import Corpus
from lt_mia_jax.data.texts import text_id
from lt_mia_jax.errors import InputError
from lt_mia_jax.study import stages


def corpus(name, texts, *, code=False):
    return Corpus(name, tuple(map(text_id, texts)), tuple(texts), code, {"made": "1"})


@pytest.fixture
def made():
    rng = random.Random(0)
    texts = [tiny_world.sentence(rng, 40) for _ in range(12)]
    # The second has the last text of the first too, with one more word.
    return corpus("one", texts[:6]), corpus("two", [*texts[6:], f"{texts[5]} so"])


def test_corpora_are_read_as_they_were_without_near_copies(made, tmp_path):
    stages.make_corpora(tmp_path, {"names": 2}, lambda: made)
    assert stages.read_corpus(tmp_path, "one") == made[0]
    found = stages.read_corpus(tmp_path, "two")
    assert found == corpus("two", made[1].texts[:-1])


def test_finished_corpora_are_not_loaded_again(made, tmp_path):
    stages.make_corpora(tmp_path, {"names": 2}, lambda: made)
    stages.make_corpora(tmp_path, {"names": 2}, lambda: pytest.fail("loaded again"))
    with pytest.raises(InputError, match="other settings"):
        stages.make_corpora(tmp_path, {"names": 3}, lambda: made)


def test_a_file_that_changed_is_refused(made, tmp_path):
    stages.make_corpora(tmp_path, {"names": 2}, lambda: made)
    path = tmp_path / "one.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match=r"one.jsonl has changed; delete"):
        stages.read_corpus(tmp_path, "one")
