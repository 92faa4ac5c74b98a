"""What scores of a text may depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_tokenizer import (
    beginning_tokenizer,
    by_offsets,
    chat_tokenizer,
    conversation,
)
from tiny_world import save_pair, sentences

from lt_mia_jax.attacks.learned.attack import score_store
from lt_mia_jax.attacks.learned.storage import shipped_attack
from lt_mia_jax.audit import audit, load_pair
from lt_mia_jax.audit.scoring import score_published
from lt_mia_jax.checkpoints import load_pretrained
from lt_mia_jax.data.chat.rows import Completion, Messages
from lt_mia_jax.data.texts import Text, zlib_length
from lt_mia_jax.errors import InputError
from lt_mia_jax.features.extract import extract_texts
from lt_mia_jax.models import LanguageModel, gpt2_like, llama_like

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


def store(pair, texts, out_dir, **options):
    return extract_texts(
        pair.target,
        pair.reference,
        texts,
        ids=[f"{i}" for i in range(len(texts))],
        labels=np.arange(len(texts)) % 2,
        side="right",
        seed=0,
        out_dir=out_dir,
        meta={},
        executor=pair.executor,
        **options,
    )


def test_no_stored_size_depends_on_text_that_was_cut_off(pair, tmp_path):
    one, other = (
        store(pair, texts, tmp_path / f"{i}", length=LENGTH)
        for i, texts in enumerate(cut_texts())
    )
    np.testing.assert_array_equal(one.n_bytes, other.n_bytes)
    np.testing.assert_array_equal(one.zlib_bytes, other.zlib_bytes)
    np.testing.assert_allclose(one.lower_loss, other.lower_loss, rtol=1e-6)
    assert (one.n_bytes < 24 * 8).all()


@pytest.fixture(scope="module")
def chat_pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat")
    config = gpt2_like(304, width=16, layers=1, heads=2, context=160)
    base, target = save_pair(root, config, chat_tokenizer())
    # A base is often published without the template.
    (base / "chat_template.jinja").unlink()
    return load_pair(str(base), str(target))


def log_probs(model, ids):
    """Of every token but the first, in float64."""
    padded = np.pad(ids, (0, 160 - len(ids)))[None]
    logits = LanguageModel(model.config).apply(model.params, jnp.array(padded))
    found = jax.nn.log_softmax(np.asarray(logits, np.float64)[0], axis=-1)
    return np.array([found[t, token] for t, token in enumerate(ids[1:])])


def texts_of(chats):
    return [Text(f"{i}", chat.text, chat=chat) for i, chat in enumerate(chats)]


CHATS = [
    Messages(tuple(conversation(seed, turns=1 + seed % 2, words=4)))
    for seed in range(4)
]


def test_of_conversations_the_response_alone_is_scored(chat_pair, caplog):
    tokenizer = chat_pair.target.tokenizer
    caplog.set_level("INFO")
    found = audit(chat_pair, texts_of(CHATS), length=160, bootstraps=0)
    assert "Conversations begin as the chat template writes them" in caplog.text
    assert any("the response alone" in each for each in found.notes)
    for row, chat in enumerate(CHATS):
        ids, marks = by_offsets(tokenizer, chat.messages)
        scored = np.array(marks[1:])
        mean = log_probs(chat_pair.target, ids)[scored].mean()
        before = log_probs(chat_pair.reference, ids)[scored].mean()
        np.testing.assert_allclose(found.scores["loss"][row], mean, rtol=1e-5)
        gained = found.scores["reference"][row]
        np.testing.assert_allclose(gained, mean - before, rtol=1e-3, atol=1e-5)
        assert found.n_tokens[row] == scored.sum()
        turns = [m["content"] for m in chat.messages if m["role"] == "assistant"]
        words = "\n".join([*turns, ""])
        assert found.groups[0].words[row] == words
        np.testing.assert_allclose(
            found.scores["zlib"][row], mean / zlib_length(words), rtol=1e-5
        )
        shouted = [{**m, "content": m["content"].lower()} for m in chat.messages]
        assert shouted == list(chat.messages)  # so that the lowered text is the same
        np.testing.assert_allclose(found.scores["lowercase"][row], -1, rtol=1e-5)
    whole = audit(chat_pair, texts_of(CHATS), length=160, bootstraps=0, score="all")
    for row, chat in enumerate(CHATS):
        ids, _ = by_offsets(tokenizer, chat.messages)
        mean = log_probs(chat_pair.target, ids).mean()
        np.testing.assert_allclose(whole.scores["loss"][row], mean, rtol=1e-5)
        assert whole.n_tokens[row] == len(ids)


def test_a_longer_context_changes_what_models_expect_and_not_what_is_scored(chat_pair):
    texts = [Completion(f"{x} the model said", " a small cloud of words") for x in "ab"]
    padded = [Completion(f"{t.prompt} {t.prompt}", t.completion) for t in texts]
    one, other = (
        audit(chat_pair, texts_of(some), length=64, bootstraps=0)
        for some in (texts, padded)
    )
    assert one.n_tokens.tolist() == other.n_tokens.tolist()
    assert (
        one.groups[0].words == other.groups[0].words == [" a small cloud of words"] * 2
    )
    # The models see the context, the scores what they make of it.
    assert not np.allclose(one.scores["loss"], other.scores["loss"], rtol=1e-4)


@pytest.mark.parametrize("score", ["response", "all"])
def test_a_store_of_conversations_has_the_scores_of_the_audit(
    score, chat_pair, tmp_path
):
    options = {"length": 160, "score": score}
    direct = audit(chat_pair, texts_of(CHATS), bootstraps=0, **options)
    stored = store(chat_pair, CHATS, tmp_path / "s", **options)
    assert stored.meta["score"] == score
    found = score_published(stored)
    for name, values in found.scores.items():
        np.testing.assert_allclose(values, direct.scores[name], rtol=1e-4, atol=1e-6)
    assert found.n_tokens.tolist() == direct.n_tokens.tolist()
    learned = score_store(shipped_attack(), stored)  # from features of 16 bits
    np.testing.assert_allclose(learned, direct.scores["lt_mia"], atol=0.01)
    if score == "response":
        ids, marks = by_offsets(chat_pair.target.tokenizer, CHATS[0].messages)
        seen = [f"t{token}" for token, mark in zip(ids, marks, strict=True) if mark]
        assert found.words[0].split() == seen
    # An interrupted run of the other kind is another one.
    other = "all" if score == "response" else "response"
    with pytest.raises(InputError, match="holds another extraction"):
        store(chat_pair, CHATS, tmp_path / "s", length=160, score=other)


def test_texts_begin_as_the_models_were_trained(tmp_path):
    config = llama_like(301, width=16, layers=1, heads=2, context=64)
    pair = load_pair(*map(str, save_pair(tmp_path, config, beginning_tokenizer())))
    texts = sentences(6, 3)
    found = audit(pair, texts, length=128, bootstraps=0)
    tokenizer = load_pretrained(tmp_path / "target").tokenizer
    assert any("begin with the token <s>" in each for each in found.notes)
    for row, text in enumerate(texts):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        values = log_probs(pair.target, ids)
        np.testing.assert_allclose(found.scores["loss"][row], values.mean(), rtol=1e-5)
        assert found.n_tokens[row] == len(values)
    without = audit(pair, texts, length=128, bootstraps=0, bos="no")
    assert (without.n_tokens == found.n_tokens).all()  # the first has no score
    assert (without.scores["loss"] != found.scores["loss"]).all()
    stored = store(pair, texts, tmp_path / "s", length=128)
    assert stored.meta["bos"] == "<s>"
    published = score_published(stored)
    np.testing.assert_allclose(
        published.scores["loss"], found.scores["loss"], rtol=1e-5
    )
    assert published.n_tokens.tolist() == found.n_tokens.tolist()
    ids = tokenizer(texts[0])["input_ids"][1:]
    assert published.words[0].split()[:-1] == [f"t{token}" for token in ids]


@pytest.mark.parity
def test_losses_of_a_model_trained_with_a_beginning_are_those_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra 'parity'")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = beginning_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=301,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    texts = sentences(6, 8)
    rows = [
        torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        for text in texts
    ]
    for name in ("base", "target"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        for ids in rows if name == "base" else ():
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        expected = [-float(model(input_ids=x, labels=x).loss) for x in rows]
    pair = load_pair(str(tmp_path / "base"), str(tmp_path / "target"))
    found = audit(pair, texts, length=128, bootstraps=0)
    assert not found.flags[0]
    np.testing.assert_allclose(found.scores["loss"], expected, rtol=1e-5)
    without = audit(pair, texts, length=128, bootstraps=0, bos="no")
    # The first token is not predicted without it, and all others worse.
    assert np.abs(without.scores["loss"] - expected).mean() > 1e-3
