"""`lt-mia collect`: what a model says of texts, as a file that `audit` reads."""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Literal

from lt_mia_jax.devices import Devices, DevicesFlags
from lt_mia_jax.errors import BATCH, LENGTH, InputError, Range, between
from lt_mia_jax.outputs import Source, Writing, WritingFlags, inputs, replacing

log = logging.getLogger(__name__)

RATE = Range("0.001 to 1000000", lambda x: 1e-3 <= x <= 1e6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collect:
    """Collect a model's log-probabilities and ranks of texts in a file, for audit.

    The model is loaded here or asked through a server. A row of the file holds the
    token ids of a text, and log-probabilities and ranks of its true tokens. Run
    it for the model under audit and for the model before fine-tuning, with the same
    texts, tokenizer and length; `lt-mia audit --target-statistics F
    --reference-statistics F` then needs neither of them. A run that was stopped
    continues; rows that are there stay.
    """

    model: Source
    """A Hugging Face directory or hub id; with --server the name of the model there."""
    texts: tuple[Path, ...]
    """Texts under audit, and known non-members, in files as `lt-mia audit` takes them.
    """
    column: str = "text"
    """Field or column that holds the texts."""
    out: Path
    """The JSONL file to write or to continue. It holds the texts."""
    server: str | None = None
    """Address of an OpenAI-compatible server that gives `prompt_logprobs`, as vLLM
    does, such as http://localhost:8000/v1. A key is read from the environment variable
    LT_MIA_API_KEY, and written nowhere."""
    tokenizer: Source | None = None
    """With --server: directory or hub id of the model's tokenizer. Texts are tokenized
    here and sent as token ids."""
    length: Annotated[int, LENGTH] = 128
    """Tokens a text is cut to, the final end-of-text token included; as in audit."""
    side: Literal["right", "left"] = "right"
    """Which end of a long text is cut off; left for code."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """Begin every text with the beginning-of-text token, which is not scored; auto does
    what the tokenizer does."""
    score: Literal["response", "all"] = "response"
    """Tokens of conversations that are scored; plain texts are scored whole."""
    batch_size: Annotated[int, BATCH] = 16
    """Texts in one forward pass, without --server."""
    rate: Annotated[float | None, RATE] = None
    """Maximum requests per second; by default as fast as the server answers."""
    concurrency: Annotated[int, between(1, 256)] = 4
    """Concurrent requests."""
    retries: Annotated[int, between(0, 100)] = 6
    """Further attempts after 429, 5xx, a timeout or an incomplete answer. Waits double
    from 1 s to 60 s, or are what the server asks for (Retry-After)."""
    timeout: Annotated[float, between(1, 86_400)] = 120.0
    """Seconds to wait for an answer."""
    writing: WritingFlags = dataclasses.field(default_factory=Writing)
    """How it treats what is there already."""
    devices: DevicesFlags = dataclasses.field(default_factory=Devices)
    """Where it runs."""


def run(config: Collect) -> None:
    """Collect, and say where from beside the file."""
    from lt_mia_jax.audit.collect import collect_from_model, collect_from_server
    from lt_mia_jax.audit.completions import Server
    from lt_mia_jax.data.texts import read_texts
    from lt_mia_jax.provenance import recorded

    if (config.server is None) != (config.tokenizer is None):
        raise InputError(
            "--server and --tokenizer belong together: give the directory or hub id of "
            "the served model's tokenizer, or leave both out to load --model here"
        )
    if config.devices.distributed != "off":
        raise InputError("--distributed: collect runs in one process; leave it out")
    texts = [
        text for path in config.texts for text in read_texts(path, column=config.column)
    ]
    reads, overwrite = [path for _, path in inputs(config)], config.writing.overwrite
    options = {
        "length": config.length,
        "side": config.side,
        "bos": config.bos,
        "score": config.score,
        "overwrite": overwrite,
    }

    def ours(path: Path) -> bool:
        # What an old file holds, `collect` looks at, unless it is to be replaced.
        return not overwrite or path.with_name(f"{path.name}.run.json").exists()

    with contextlib.ExitStack() as stack:
        server = None
        if config.server is not None:
            server = Server(
                url=config.server,
                model=config.model,
                rate=config.rate,
                concurrency=config.concurrency,
                retries=config.retries,
                timeout=config.timeout,
            )
        stack.enter_context(replacing(config.out, reads, ours, overwrite=overwrite))
        stack.enter_context(recorded(config.out, "collect", config))
        if server is None or config.tokenizer is None:
            written = collect_from_model(
                texts,
                config.model,
                config.out,
                config.devices.make(),
                batch_size=config.batch_size,
                **options,
            )
        else:
            written = collect_from_server(
                texts, server, config.tokenizer, config.out, **options
            )
    log.info("wrote %d rows to %s", written, config.out)
