"""The example in PyTorch writes what `lt-mia collect` writes."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from chat_tokenizer import beginning_tokenizer
from tiny_world import read_rows, save_pair, sentences

from lt_mia_jax.cli import main
from lt_mia_jax.data.texts import write_texts
from lt_mia_jax.models import gpt2_like

pytestmark = pytest.mark.parity

EXAMPLE = Path(__file__).parents[2] / "examples" / "collect_with_transformers.py"


@pytest.mark.parametrize("bos", [False, True])
def test_its_file_is_that_of_the_command(bos, tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    torch.set_num_threads(1)
    config = gpt2_like(304, width=16, layers=1, heads=2, context=64)
    _, model = save_pair(tmp_path, config, beginning_tokenizer(adds=bos))
    odd = ["", " a\N{SNOWMAN} ", "x" * 40]
    texts = [{"text": text} for text in [*sentences(1, 6), *odd]]
    write_texts(tmp_path / "texts.jsonl", [{"id": 7, **texts[0]}, *texts[1:]])
    flags = ["--model", str(model), "--length", "24"]
    flags += ["--texts", str(tmp_path / "texts.jsonl"), "--out"]
    assert main(["collect", *flags, str(tmp_path / "ours.jsonl")]) == 0
    example = runpy.run_path(str(EXAMPLE))
    example["main"]([*flags, str(tmp_path / "theirs.jsonl")])
    ours, theirs = (read_rows(tmp_path / f"{x}.jsonl") for x in ("ours", "theirs"))
    assert len(ours) == 9
    for one, other in zip(ours, theirs, strict=True):
        del one["weights"]
        one.setdefault("scored", [1] * len(one["token_ids"]))
        np.testing.assert_allclose(
            one.pop("log_probs"), other.pop("log_probs"), atol=1e-4
        )
        assert one == other
        assert one["scored"][:1] == [int(not bos or len(one["token_ids"]) < 2)]
