"""Encoding and generation: widths do not matter, texts and tokens agree."""

import numpy as np
import pytest

from lt_mia_jax.data.syntofu import TEMPLATE
from lt_mia_jax.errors import InputError
from lt_mia_jax.verification.evaluate import examine
from lt_mia_jax.verification.evaluated import generate


def test_width_is_that_of_the_texts(subjects, splits):
    """Texts that fit the model's positions do, whatever length was asked for."""
    rows = splits["forget25_perturbed"]
    for length in (64, 1000):
        wide = subjects[0]._replace(length=length)
        for got, expected in zip(
            examine(wide, rows), examine(subjects[0], rows), strict=True
        ):
            np.testing.assert_array_equal(got, expected)
    short = [row._replace(answer="a", value=None) for row in rows]
    lengths = wide.encode(short).attention_mask.sum(axis=1)
    assert wide.encode(short).input_ids.shape[1] - lengths.max() < 8


def test_generation_from_text_is_that_from_tokens(subjects, splits):
    rows = splits["forget25"][:5]
    expected = examine(subjects[0], rows).generated
    # The context leaves room for half of it; answers are cut at the shorter of both.
    found = generate(subjects[0], [row.question for row in rows], 8)
    for short, long in zip(found, expected, strict=True):
        assert long.startswith(short) or short.startswith(long)
    longer = [" ".join([row.question] * 9) for row in rows]
    cut = generate(subjects[0], longer, 8)
    words = [text.split() for text in longer]
    kept = 32 - 8 + 1 - 1
    assert cut == generate(subjects[0], [" ".join(w[-kept:]) for w in words], 8)
    with pytest.raises(InputError, match="no token"):
        generate(subjects[0]._replace(template=TEMPLATE.__class__()), [""], 4)
