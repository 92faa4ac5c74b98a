"""Statistics of texts into a file, from a model on this machine or from a server."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lt_mia_jax.audit.completions import Numbers, Server
from lt_mia_jax.audit.scoring import warn_of_intervention
from lt_mia_jax.checkpoints import Pretrained, load_pretrained, weights_sha256
from lt_mia_jax.checkpoints.gguf import is_gguf
from lt_mia_jax.checkpoints.hub import resolve
from lt_mia_jax.checkpoints.pretrained import CONFIG, tokenizer_of
from lt_mia_jax.data.chat.rendering import check_responses
from lt_mia_jax.data.duplicates import normalized
from lt_mia_jax.data.jsonl import short
from lt_mia_jax.data.texts import Text, check_one_kind
from lt_mia_jax.data.tokenize import (
    Bos,
    Score,
    describe_beginning,
    encode,
    flag_texts,
    scored_mask,
    scored_texts,
)
from lt_mia_jax.errors import InputError
from lt_mia_jax.executor import Executor
from lt_mia_jax.features.program import ExtractConfig
from lt_mia_jax.features.scorer import StatisticsExtractor
from lt_mia_jax.features.statistics_file import (
    TextRow,
    check_numbers,
    encoded_rows,
)
from lt_mia_jax.features.statistics_writer import appending, present_rows
from lt_mia_jax.files import fingerprint, read_json
from lt_mia_jax.models import LanguageModel
from lt_mia_jax.models.length import check_length
from lt_mia_jax.training.progress import Progress

log = logging.getLogger(__name__)

_BATCHES = 8
"""Batches of a loaded model between two writes."""


Measure = Callable[[Sequence[TextRow]], Iterable[tuple[Any, Any]]]
"""Log-probabilities and ranks from the second token on, text by text, in order."""


def collect(
    texts: Sequence[Text],
    tokenizer: Any,
    measure: Measure,
    out: Path | str,
    *,
    model: str,
    weights: str | None = None,
    vocab_size: int | None = None,
    length: int = 128,
    side: Literal["right", "left"] = "right",
    bos: Bos = "auto",
    score: Score = "response",
    overwrite: bool = False,
) -> int:
    """Write a row for each text that the file does not have yet.

    Rows are appended as they come, so that a run which was stopped continues; what a
    kill left of a line is removed.

    Args:
      texts: ids stand for one text each.
      tokenizer: of the model.
      measure: asks the model, such as `from_model` and `from_server`.
      out: the file; rows of other texts in it stay.
      model: name of the model in tables.
      weights: stands for its weights, if known.
      vocab_size: number of logits, if known.
      length: tokens a text is cut to; this and the next three as in `audit`.
      side: which end is cut off.
      bos: whether texts begin with a beginning-of-text token.
      score: of conversations, the response alone or all tokens.
      overwrite: begin anew where the file holds something else.

    Returns:
      The number of rows that were written.

    Raises:
      InputError: one id for two texts, a file with something else, statistics that
        are out of their range, or what `measure` raises.
    """
    out = Path(out)
    if out.suffix in (".gz", ".zst"):
        raise InputError(
            f"--out {out}: rows are appended as they stand; name it .jsonl"
        )
    if out.exists() and not out.is_file():
        raise InputError(f"--out {out}: found a pipe or device; name a file")
    common = {"model": model, "weights": weights, "vocab_size": vocab_size}
    cut: Any = {"length": length, "side": side, "bos": bos, "score": score}
    rows = [row._replace(**common) for row in _rows(texts, tokenizer, cut)]
    log.info("%s", describe_beginning(tokenizer, bos, texts[0].content))
    wanted = {row.id: row for row in rows}
    try:
        done = present_rows(out, wanted, common)
    except InputError as error:
        if not overwrite:
            raise InputError(
                f"--out {out}: holds something else ({error}); choose another file, or "
                "--overwrite begins it anew"
            ) from error
        out.unlink()
        done = frozenset[str]()
    todo = [row for row in rows if row.id not in done]
    ready = len(rows) - len(todo)
    if ready:
        log.info("%s: %d of %d texts are done", out, ready, len(rows))
    with (
        appending(out) as write,
        Progress("collecting", len(rows), "text", done=ready) as bar,
    ):
        for row, (log_probs, ranks) in zip(todo, measure(todo), strict=True):
            found = row._replace(log_probs=log_probs, ranks=ranks)
            write(check_numbers(f"text {short(row.id)}", found))
            bar.update()
    return len(todo)


def collect_from_model(
    texts: Sequence[Text],
    model: str,
    out: Path | str,
    executor: Executor,
    *,
    batch_size: int = 16,
    **options: Any,
) -> int:
    """`collect` from a model directory or hub id; `options` are those of `collect`."""
    warn_of_intervention(model)
    log.info("loading %s", model)
    loaded = load_pretrained(model, mesh=executor.mesh)
    check_length(options.get("length", 128), model=loaded.config)
    return collect(
        texts,
        loaded.tokenizer,
        from_model(loaded, executor, batch_size=batch_size),
        out,
        model=model,
        weights=fingerprint(*sorted(weights_sha256(model).values()))[:16],
        vocab_size=loaded.config.vocab_size,
        **options,
    )


def collect_from_server(
    texts: Sequence[Text],
    server: Server,
    tokenizer: str,
    out: Path | str,
    **options: Any,
) -> int:
    """`collect` from a server, with the tokenizer of a model directory or hub id.

    The number of logits is that of its config.json, if there is one.
    """
    return collect(
        texts,
        tokenizer_of(tokenizer),
        from_server(server),
        out,
        model=server.model,
        vocab_size=_vocab_size(tokenizer),
        **options,
    )


def _vocab_size(model: str) -> int | None:
    path = None if is_gguf(model) else resolve(model) / CONFIG
    found = read_json(path) if path is not None and path.is_file() else {}
    size = found.get("vocab_size") if isinstance(found, dict) else None
    return size if isinstance(size, int) and size > 0 else None


def from_model(model: Pretrained, executor: Executor, *, batch_size: int) -> Measure:
    """Asks a model that is loaded here."""
    extractor = StatisticsExtractor(
        LanguageModel(model.config),
        model.params,
        None,
        None,
        ExtractConfig(k=0, batch_size=batch_size),
        executor,
    )

    def measure(rows: Sequence[TextRow]) -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(rows), _BATCHES * batch_size):
            block = rows[start : start + _BATCHES * batch_size]
            # Every step, also those of context: `scored` stands beside them.
            whole = [row._replace(scored=None) for row in block]
            counts = [len(row.token_ids) for row in block]
            encoded = encoded_rows(whole, max(*counts, 1))
            found = extractor.statistics(encoded, [row.id for row in block])
            for n, count in enumerate(counts):
                steps = slice(max(count - 1, 0))
                yield found.target_log_prob[n, steps], found.target_rank[n, steps]

    return measure


def from_server(server: Server) -> Measure:
    """Asks a server; texts that have no step are not sent."""

    def measure(rows: Sequence[TextRow]) -> Iterator[Numbers]:
        prompts = [np.asarray(row.token_ids).tolist() for row in rows]
        answers = server.ask([prompt for prompt in prompts if len(prompt) > 1])
        for prompt in prompts:
            yield next(answers) if len(prompt) > 1 else ([], [])

    return measure


def _rows(texts: Sequence[Text], tokenizer: Any, cut: Any) -> list[TextRow]:
    """A row without numbers for each id; the first text of those that are alike."""
    if not texts:
        raise InputError("no texts to collect statistics of")
    check_one_kind(texts)
    distinct: dict[str, Text] = {}
    for text in texts:
        first = distinct.setdefault(text.id, text)
        if first is not text and normalized(first.text) != normalized(text.text):
            raise InputError(
                f"the id {short(text.id)} stands for two texts; statistics are found "
                "by id: give each text its own, or none"
            )
    given = [text.content for text in distinct.values()]
    encoded = encode(given, tokenizer, **cut)
    check_responses(flag_texts(encoded), cut["length"])
    parts = scored_texts(given, encoded, tokenizer)
    counts, scored = encoded.attention_mask.sum(axis=1), scored_mask(encoded)
    return [
        TextRow(
            name,
            encoded.input_ids[n, : counts[n]],
            (),
            (),
            scored[n, : counts[n]],
            parts[n],
            bool(encoded.truncated[n]),
        )
        for n, name in enumerate(distinct)
    ]
