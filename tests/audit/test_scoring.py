"""What scores of a text may depend on."""

import numpy as np
from tiny_world import sentences

from lt_mia_jax.audit import audit
from lt_mia_jax.features.extract import extract_texts

LENGTH = 24


def cut_texts():
    """Pairs that are alike as far as they are scored, and differ beyond."""
    shared = [f"{text} " * 2 for text in sentences(5, 6)]
    return [text + "the end" for text in shared], [
        text + "\N{SNOWMAN} QUITE ANOTHER END " * 40 for text in shared
    ]


def test_no_score_depends_on_text_that_was_cut_off(pair):
    for side in ("right", "left"):
        short, long = cut_texts()
        if side == "left":
            short, long = ([text[::-1] for text in texts] for texts in (short, long))
        one, other = (
            audit(pair, texts, length=LENGTH, side=side, bootstraps=0)
            for texts in (short, long)
        )
        assert all("truncated" in flags for flags in (*one.flags, *other.flags))
        assert {"zlib", "lowercase", "lt_mia"} <= set(one.scores)
        for name, values in one.scores.items():
            np.testing.assert_allclose(values, other.scores[name], rtol=1e-6)
        assert one.groups[0].words == other.groups[0].words


def test_no_stored_size_depends_on_text_that_was_cut_off(pair, tmp_path):
    def store(name, texts):
        return extract_texts(
            pair.target,
            pair.reference,
            texts,
            ids=[f"{i}" for i in range(len(texts))],
            labels=np.arange(len(texts)) % 2,
            length=LENGTH,
            side="right",
            seed=0,
            out_dir=tmp_path / name,
            meta={},
            executor=pair.executor,
        )

    one, other = (store(f"{i}", texts) for i, texts in enumerate(cut_texts()))
    np.testing.assert_array_equal(one.n_bytes, other.n_bytes)
    np.testing.assert_array_equal(one.zlib_bytes, other.zlib_bytes)
    np.testing.assert_allclose(one.lower_loss, other.lower_loss, rtol=1e-6)
    assert (one.n_bytes < 24 * 8).all()
