"""What is left out of an audit, and what is refused."""

import numpy as np
import pytest
from tiny_world import sentences

from lt_mia_jax.audit.inputs import check_texts
from lt_mia_jax.data.texts import Text
from lt_mia_jax.errors import InputError


def records(texts, label=None):
    return [Text(f"{n}", text, label, n + 1) for n, text in enumerate(texts)]


def test_distinct_texts_stay():
    texts, known = records(sentences(1, 30), 1), records(sentences(2, 25))
    found = check_texts(texts, known)
    assert found.texts == texts
    assert found.nonmembers == known
    assert found.independent.all()
    assert found.labels.tolist() == [1] * 30
    assert found.notes == ["All labels are 1: no AUC can be computed."]


def changes(text):
    """The same text as people have it twice."""
    return (
        text,
        f"# {text}",
        text.replace(" ", "\n  "),
        text.upper(),
        f"{text} And one more sentence.",
        " ".join(text.split()[:20]),
    )


@pytest.mark.parametrize("change", range(6))
def test_members_among_the_nonmembers_are_left_out(change):
    texts = sentences(1, 60)
    hidden = [changes(text)[change] for text in texts]
    known = records(sentences(2, 25) + hidden)
    found = check_texts(records(texts), known)
    assert found.nonmembers == known[:25]
    assert any(note.endswith("among the texts: 60.") for note in found.notes)


def test_one_text_many_times_is_one_nonmember():
    [one] = sentences(2, 1)
    copies = [f"{change} {n}" for n in range(5) for change in changes(one)]
    with pytest.raises(InputError, match="1 usable non-members, distinct"):
        check_texts(records(sentences(1, 30)), records(copies))
    known = records(sentences(3, 24) + copies)
    found = check_texts(records(sentences(1, 30)), known)
    assert found.nonmembers == known[:25]


def test_repeats_are_counted_once_and_near_copies_named():
    texts = sentences(1, 10)
    given = [*texts, texts[3].upper(), texts[4] + " ", f"{texts[5]} and a bit more"]
    found = check_texts(records(given), [])
    assert [text.id for text in found.texts] == [*map(str, range(10)), "12"]
    assert found.independent.tolist() == [True] * 10 + [False]
    assert any(note.endswith("white space and punctuation: 2.") for note in found.notes)
    assert any(note.endswith("whole set leaves out: 1.") for note in found.notes)


def test_contradictory_labels_are_refused():
    texts = sentences(1, 5)
    given = [*records(texts, 1), Text("x", f"  {texts[2].title()}", 0, 9)]
    with pytest.raises(InputError, match="line 3 and line 9 are the same text"):
        check_texts(given, [])
    marked = [*records(sentences(2, 30)), Text("y", "a member", 1, 31)]
    with pytest.raises(InputError, match="line 31 has label 1"):
        check_texts(records(texts), marked)


def test_some_labels_are_refused():
    given = [*records(sentences(1, 5), 1), Text("x", "another", None, 6)]
    with pytest.raises(InputError, match=r"5 of 6 texts have a label \(line 6"):
        check_texts(given, [])


def test_labels_follow_the_texts_that_stay():
    texts = sentences(1, 6)
    given = [Text(f"{n}", text, n % 2) for n, text in enumerate([*texts, texts[0]])]
    given[-1] = given[-1]._replace(label=0)
    found = check_texts(given, [])
    np.testing.assert_array_equal(found.labels, [0, 1] * 3)
