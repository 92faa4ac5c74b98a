import itertools

import numpy as np
import pytest

from lt_mia_jax.data.splits import (
    attack_split,
    hash_unit,
    hold_out,
    membership,
    role,
    rows_by_role,
    split_corpus,
)
from lt_mia_jax.data.texts import Text
from lt_mia_jax.errors import InputError

IDS = [f"text-{number}" for number in range(4_000)]
COUNTS = {"n_members": 500, "n_nonmembers": 480, "n_validation": 60}


def sides(model: str, corpus: str = "c", seed: int = 0) -> np.ndarray:
    return np.array([membership(seed, model, corpus, id) for id in IDS])


def test_hash_units_are_uniform_and_depend_on_every_part():
    units = np.array([hash_unit("purpose", 3, id) for id in IDS])
    counts, _ = np.histogram(units, bins=20, range=(0, 1))
    expected = len(IDS) / 20
    # Chi-squared with 19 degrees of freedom; 44 is beyond the 99.9 % quantile.
    assert ((counts - expected) ** 2 / expected).sum() < 44
    assert hash_unit("a", "b") != hash_unit("ab") != hash_unit("b", "a")


def test_hash_units_do_not_change():
    # From another program: printf 'role\x1f0\x1fx' | b2sum -l 64. A change would
    # silently move texts between the sides.
    digest = 0xC08275C61CFF4232
    assert hash_unit("role", 0, "x") == pytest.approx(digest / 2**64, abs=1e-15)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("gpt2", "c", 0), ("llama", "c", 0)),
        (("gpt2", "c", 0), ("gpt2", "d", 0)),
        (("gpt2", "c", 0), ("gpt2", "c", 1)),
    ],
)
def test_membership_is_independent_across_combinations(first, second):
    a, b = sides(*first) == "member", sides(*second) == "member"
    # Correlation of independent draws has standard deviation 1/sqrt(4000) = .016.
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


def test_draws_are_independent_of_each_other():
    draws = np.stack(
        [
            [role(0, id) == "attack" for id in IDS],
            [attack_split(0, id) == "train" for id in IDS],
            sides("m") == "member",
        ]
    )
    correlations = np.corrcoef(draws) - np.eye(3)
    assert np.abs(correlations).max() < 0.06


def test_fractions():
    drawn = sides("m")
    assert np.mean(drawn == "member") == pytest.approx(0.45, abs=0.04)
    assert np.mean(drawn == "nonmember") == pytest.approx(0.45, abs=0.04)
    parts = np.array([attack_split(1, id) for id in IDS])
    assert np.mean(parts == "train") == pytest.approx(0.7, abs=0.04)
    assert np.mean(parts == "test") == pytest.approx(0.15, abs=0.04)
    roles = rows_by_role(IDS, seed=1)
    assert len(roles["pretrain"]) / len(IDS) == pytest.approx(0.5, abs=0.04)


def test_rows_agree_with_the_draws_and_cover_everything():
    roles = rows_by_role(IDS, seed=5)
    for name, rows in roles.items():
        assert {role(5, IDS[row]) for row in rows} == {name}
    assert sorted(np.concatenate(list(roles.values()))) == list(range(len(IDS)))


def test_split_has_exact_counts_and_disjoint_rows_of_the_right_kind():
    split = split_corpus(IDS, seed=7, model="m", corpus="c", **COUNTS)
    assert [len(rows) for rows in split] == [500, 480, 60]
    for a, b in itertools.combinations(split, 2):
        assert not set(a) & set(b)
    names = ("member", "nonmember", "finetune_validation")
    for name, rows in zip(names, split, strict=True):
        assert {membership(7, "m", "c", IDS[row]) for row in rows} == {name}
        assert {role(7, IDS[row]) for row in rows} == {"attack"}
        assert sorted(rows) == list(rows)


def split_ids(ids, **changes):
    split = split_corpus(
        ids, **(dict(seed=7, model="m", corpus="c") | COUNTS | changes)
    )
    return [{ids[row] for row in rows} for rows in split]


def test_order_of_the_corpus_does_not_matter():
    assert split_ids(IDS) == split_ids(IDS[::-1])


def test_adding_documents_moves_none_across():
    before = split_ids(IDS)
    after = split_ids([f"new-{number}" for number in range(300)] + IDS)
    for old, new in itertools.permutations(range(3), 2):
        assert not before[old] & after[new]
    # Whoever enters is a newcomer, so each displaces one text at most.
    for old, new in zip(before, after, strict=True):
        assert all(id.startswith("new-") for id in new - old)
        assert len(old & new) > len(old) / 2


def test_removing_documents_moves_none_across():
    before = split_ids(IDS)
    after = split_ids(IDS[::2], n_members=200, n_nonmembers=200, n_validation=20)
    for old, new in itertools.permutations(range(3), 2):
        assert not before[old] & after[new]


def test_too_few_documents_are_counted():
    with pytest.raises(InputError, match=r"member: 0 found, 3 needed.*nonmember") as e:
        split_corpus(
            [], seed=0, model="m", corpus="tiny", n_members=3, n_nonmembers=2,
            n_validation=0,
        )  # fmt: skip
    assert "tiny" in str(e.value)
    assert "finetune_validation" not in str(e.value)


def test_repeated_ids_are_refused():
    with pytest.raises(InputError, match="1 ids occur more than once"):
        split_ids(["a", "b", "a"])


def test_no_pool_uses_every_text():
    split = split_corpus(
        IDS, seed=7, model="m", corpus="c", n_members=1_600, n_nonmembers=1_600,
        n_validation=300, pool=None,
    )  # fmt: skip
    assert {role(7, IDS[row]) for row in split.members} == {"attack", "pretrain"}


def texts_of(seed, count):
    words = np.random.default_rng(seed).integers(0, 5000, (count, 30))
    return [" ".join(f"w{word}" for word in row) for row in words]


def records(texts):
    return [Text(f"id{n}", text) for n, text in enumerate(texts)]


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5])
def test_hold_out_takes_the_smallest_hashes(fraction):
    texts = records(texts_of(0, 40))
    kept, held = hold_out(texts, fraction, seed=3)
    count = max(1, round(40 * fraction))
    units = [hash_unit(3, "validation", text.id) for text in texts]
    assert held == sorted(sorted(range(40), key=units.__getitem__)[:count])
    assert sorted(kept + held) == list(range(40))


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_no_held_out_text_is_a_copy_of_a_kept_one(fraction):
    """Every text stands there twice or more, changed as people change texts."""
    texts = texts_of(1, 16)
    given = records(
        [
            *texts,
            *(f"# {text.upper()}" for text in texts),
            *(f"{text} and more" for text in texts[:5]),
        ]
    )
    kept, held = hold_out(given, fraction, seed=0)
    originals = [row % 16 if row < 32 else row - 32 for row in range(len(given))]
    assert not {originals[row] for row in kept} & {originals[row] for row in held}
    assert 2 <= len(held) <= max(3, round(fraction * len(given)))


def test_copies_of_one_text_cannot_be_split():
    kept, held = hold_out(records(texts_of(2, 1) * 5), 0.5, seed=0)
    assert kept == list(range(5))
    assert not held
