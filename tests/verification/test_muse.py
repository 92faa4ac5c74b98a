"""MUSE from files of its layout, against decoding one token at a time."""

import copy
import json
from functools import partial

import jax
import numpy as np
import pytest
from quick_compile import jit
from tiny_world import sentences
from tokenizers.processors import TemplateProcessing

from lt_mia_jax.data.benchmark_catalog import BENCHMARKS
from lt_mia_jax.data.benchmarks import load_benchmark
from lt_mia_jax.data.questions import AnswerTemplate
from lt_mia_jax.data.tokenize import train_bpe
from lt_mia_jax.errors import InputError
from lt_mia_jax.models import LanguageModel, gpt2_like
from lt_mia_jax.verification.evaluated import EvaluatedModel
from lt_mia_jax.verification.metrics.generation import rouge_l_f1
from lt_mia_jax.verification.muse import _cut, measure_muse, muse_card, read_muse
from lt_mia_jax.verification.storage import card_to_json

CONTEXT = 48
COUNT = CONTEXT // 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A copy of the repository with a few rows in each file that is read."""
    root = tmp_path_factory.mktemp("muse")
    long = [text.split() for text in sentences(5, 6)]

    def write(name, rows):
        path = root / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))

    write(
        "verbmem/forget",
        [{"prompt": " ".join(w[:8]), "gt": " ".join(w[8:])} for w in long],
    )
    for side in ("forget", "retain"):
        asked = [{"question": f"the {w[0]} said", "answer": w[1]} for w in long]
        write(f"knowmem/{side}_qa", asked)
        write(f"knowmem/{side}_qa_icl", asked[:1])
        write(f"privleak/{side}", [{"text": " ".join(w)} for w in long])
    write("privleak/holdout", [{"text": text} for text in sentences(6, 7)])
    return root


@pytest.fixture(scope="module")
def subjects():
    tokenizer = train_bpe(sentences(0, 200), vocab_size=300)
    model = LanguageModel(gpt2_like(300, 16, 1, 2, CONTEXT))
    return [
        EvaluatedModel(
            model, model.init(jax.random.key(i)), tokenizer, AnswerTemplate(), 40
        )
        for i in range(2)
    ]


apply = jit(lambda model, params, ids: model.apply(params, ids), static_argnums=0)


def continued(subject, prompt, count):
    """Token by token, the whole text read again each time."""
    ids = subject.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = ids[-(CONTEXT - COUNT + 1) :]
    start = len(ids)
    for _ in range(count):
        padded = np.zeros((1, CONTEXT), np.int32)
        kept = ids[:CONTEXT]
        padded[0, : len(kept)] = kept
        logits = apply(subject.model, subject.params, padded)
        ids.append(int(np.asarray(logits)[0, len(ids) - 1].argmax()))
        if ids[-1] == subject.tokenizer.eos_token_id:
            break
    return subject.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_the_whole_evaluation(files, subjects):
    texts = read_muse(partial(load_benchmark, BENCHMARKS["muse_news"], local=files))
    assert [len(part) for part in texts] == [6, 6, 6, 1, 1, 6, 7]
    found = [measure_muse(subject, texts) for subject in subjects]
    subject = subjects[0]
    row = texts.verbatim[2]
    assert found[0].verbatim[2] == pytest.approx(
        rouge_l_f1([continued(subject, row.question, COUNT)], [row.answer])[0]
    )
    example, asked = texts.retain_examples[0], texts.retain_questions[4]
    prompt = (
        f"Question: {example.question}\nAnswer: {example.answer}\n\n"
        f"Question: {asked.question}\nAnswer: "
    )
    said = continued(subject, prompt, COUNT).split("\n\n")[0].split("Question:")[0]
    assert found[0].retain_knowledge[4] == pytest.approx(
        rouge_l_f1([said], [asked.answer])[0]
    )
    card = card_to_json(muse_card(found[0], found[1]))
    assert card["verbmem"]["value"] == pytest.approx(found[0].verbatim.mean())
    assert card["knowmem_retain"]["low"] <= card["knowmem_retain"]["value"]
    assert set(card["priv_leak"]) == {"value", "low", "high"}
    assert muse_card(found[1], found[1]).priv_leak.value == 0
    assert muse_card(found[0]).priv_leak is None
    assert card["tpr_min_k"]["refused"]
    plain = texts._replace(verbatim=texts.forget)
    with pytest.raises(InputError, match="plain text"):
        measure_muse(subject, plain)


def test_the_first_token_of_a_text_counts(subjects):
    """As in MUSE: of 24 tokens, one is the beginning-of-text token that is added."""
    text = " ".join(sentences(8, 9))
    plain = subjects[0].tokenizer
    ids = plain(text)["input_ids"]
    assert len(ids) > COUNT
    assert _cut(subjects[0], text, COUNT) == plain.decode(ids[:COUNT])
    begun = copy.deepcopy(plain)
    begun.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", plain.eos_token_id)]
    )
    assert begun(text)["input_ids"] == [plain.eos_token_id, *ids]
    cut = _cut(subjects[0]._replace(tokenizer=begun), text, COUNT)
    assert cut == plain.decode(ids[: COUNT - 1])


def test_stems_are_compared_on_request(files, subjects, monkeypatch):
    texts = read_muse(partial(load_benchmark, BENCHMARKS["muse_news"], local=files))
    texts = texts._replace(
        verbatim=[row._replace(answer="walked cats") for row in texts.verbatim]
    )
    said = "lt_mia_jax.verification.muse.generate"
    monkeypatch.setattr(said, lambda _, prompts, count: ["walks cats"] * len(prompts))
    for stem, expected in ((False, 0.5), (True, 1.0)):
        found = measure_muse(subjects[0], texts, stem=stem)
        np.testing.assert_array_equal(found.verbatim, expected)


def test_parts_that_are_not_there(files):
    (files / "privleak" / "holdout.json").rename(files / "elsewhere.json")
    with pytest.raises(InputError, match="privleak_holdout"):
        read_muse(partial(load_benchmark, BENCHMARKS["muse_books"], local=files))
