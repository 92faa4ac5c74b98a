"""Log-probabilities of given tokens from an OpenAI-compatible server, as vLLM has them.

Source: vLLM's OpenAI-compatible server, https://docs.vllm.ai: the parameter
`prompt_logprobs` of /v1/completions gives for each token of the prompt an object from
token ids to `logprob`, `rank` and `decoded_token`, null for the first one.
"""

import dataclasses
import email.utils
import http.client
import json
import logging
import math
import os
import queue
import random
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from lt_mia_jax.errors import InputError, Unavailable
from lt_mia_jax.files import parse_json

log = logging.getLogger(__name__)

KEY = "LT_MIA_API_KEY"
"""Environment variable with the key of a server; it stands in no file."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, unless the server asks for more."""
LARGEST = 2**28
"""Bytes of an answer."""
_NO_PROBABILITY = -9999.0
"""What vLLM writes for minus infinity, which JSON has not."""
_LATER = (408, 425, 429)

Numbers = tuple[list[float], list[int]]
"""Log-probabilities and ranks of the tokens from the second one on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A served model, and how it is asked.

    Example:
      >>> from lt_mia_jax.audit.completions import Server
      >>> Server(url="http://localhost:8000", model="tuned").endpoint
      'http://localhost:8000/v1/completions'
    """

    url: str
    """Address, such as http://localhost:8000/v1."""
    model: str
    """Name of the model there."""
    rate: float | None = None
    """Most requests in a second; None asks as fast as answers come."""
    concurrency: int = 4
    """Requests under way at a time."""
    retries: int = 6
    """Further attempts after a request that failed for a passing reason."""
    timeout: float = 120.0
    """Seconds to wait for an answer."""
    first_wait: float = 1.0
    """Seconds before the second attempt; each further one waits twice as long."""

    def __post_init__(self) -> None:
        """Refuse what is no address of a server, or holds a key."""
        try:
            parts = urllib.parse.urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname
            _ = parts.port, self.url.encode("ascii"), (known or "").encode("idna")
        except ValueError:  # also of characters
            parts, known = urllib.parse.urlsplit(""), None
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise InputError(
                "--server: found a user, a query or a fragment in the address, which "
                f"would be written down; give the address alone, and a key in {KEY}"
            )
        if not known:
            raise InputError(
                f"--server {self.url}: expected an address such as "
                "http://localhost:8000/v1"
            )

    @property
    def endpoint(self) -> str:
        """Where completions are asked for."""
        base = self.url.rstrip("/").removesuffix("/completions").removesuffix("/v1")
        return f"{base}/v1/completions"

    def ask(self, prompts: Sequence[Sequence[int]]) -> Iterator[Numbers]:
        """Log-probabilities and ranks of each prompt's tokens, in order.

        A prompt has at least two tokens.

        Raises:
          InputError: the server refuses, or its answers lack what is needed.
          Unavailable: it did not answer in all attempts.
        """
        client = _Client(self)
        waiting: deque[Future[Numbers]] = deque()
        try:
            for prompt in prompts:
                waiting.append(client.submit(prompt))
                if len(waiting) >= 2 * self.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            client.stop()


class _Passing(Exception):
    """A failure that another attempt may not have."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address would get the key, and a POST without its body."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
    ) -> None:
        """None: the answer counts as an error."""


class _Client:
    """Threads that ask one server, no faster than it wants."""

    def __init__(self, server: Server):
        self.server, self.endpoint = server, server.endpoint
        self._stopped = threading.Event()
        self._waiting: queue.SimpleQueue[tuple[Sequence[int], Future[Numbers]]]
        self._waiting = queue.SimpleQueue()
        self._lock, self._next = threading.Lock(), 0.0
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise InputError(
                    f"{KEY}: found a key with characters that a header cannot hold; "
                    "expected letters, digits and signs of ASCII"
                )
            self._headers["Authorization"] = f"Bearer {key}"

        for _ in range(server.concurrency):
            # They do not hold up the end of the process.
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, prompt: Sequence[int]) -> Future[Numbers]:
        """Ask when it is this prompt's turn."""
        future: Future[Numbers] = Future()
        self._waiting.put((prompt, future))
        return future

    def stop(self) -> None:
        """End the threads; nobody waits for answers any more."""
        self._stopped.set()
        for _ in range(self.server.concurrency):
            self._waiting.put(((), Future()))  # wakes one of them

    def _work(self) -> None:
        while not self._stopped.is_set():
            prompt, future = self._waiting.get()
            if self._stopped.is_set():
                return
            try:
                future.set_result(self._ask(prompt))
            except BaseException as error:
                future.set_exception(error)

    def _ask(self, prompt: Sequence[int]) -> Numbers:
        body = {
            "model": self.server.model,
            "prompt": list(prompt),
            # One token is the least that all versions generate.
            "max_tokens": 1,
            "temperature": 1.0,
            # The likeliest token beside the true one shows which of them tie.
            "prompt_logprobs": 1,
        }
        data = json.dumps(body).encode()
        wait = self.server.first_wait
        for attempt in range(self.server.retries + 1):
            self._pace()
            try:
                return read_answer(self._send(data), prompt, self.endpoint)
            except _Passing as failure:
                if attempt == self.server.retries:
                    raise Unavailable(
                        f"{self.endpoint}: {failure}, {attempt + 1} times; rows that "
                        "were collected are kept, the same command continues"
                    ) from failure
                # Half to one and a half: threads that failed together part.
                pause = failure.wait or wait * (0.5 + random.random())
                log.warning("%s: %s; waiting %.0f s", self.endpoint, failure, pause)
                if failure.wait:
                    self._pause(pause)
                self._stopped.wait(pause)
                wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("the last attempt returns or raises")

    def _pace(self) -> None:
        """Wait for the next turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + (1 / self.server.rate if self.server.rate else 0)
        self._stopped.wait(turn - now)
        if self._stopped.is_set():
            raise _Stopped

    def _pause(self, seconds: float) -> None:
        """No thread asks before the server wants to be asked again."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def _send(self, data: bytes) -> Any:
        request = urllib.request.Request(self.endpoint, data, self._headers)
        try:
            with self._open(request, timeout=self.server.timeout) as answer:
                content = answer.read(LARGEST + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError(
                    f"{self.endpoint}: its certificate is not trusted ({reason}); set "
                    "SSL_CERT_FILE to that of the server's authority"
                ) from error
            words = f"{type(reason).__name__}: {reason}".rstrip(": ")
            raise _Passing(f"no complete answer ({words})") from error
        if len(content) > LARGEST:
            raise InputError(f"{self.endpoint}: an answer of more than {LARGEST} bytes")
        try:
            return parse_json(content)
        except ValueError as error:
            raise _Passing(
                f"a cut answer, or one that is not JSON ({error})"
            ) from error

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What an answer with an error's code means."""
        said = _message(error)
        if error.code in _LATER or error.code >= 500:
            wait = _seconds(error.headers.get("Retry-After"))
            return _Passing(f"HTTP {error.code} ({said})", wait)
        fix = "give the --model and --length that it serves"
        if error.code in (401, 403):
            fix = f"set {KEY} to your key"
        if 300 <= error.code < 400:
            fix = f"give its new address, {error.headers.get('Location')}"
        return InputError(
            f"{self.endpoint}: the server refuses (HTTP {error.code}: {said}); {fix}"
        )


class _Stopped(Exception):
    """Nobody waits for the answer any more."""


def read_answer(answer: Any, prompt: Sequence[int], where: str) -> Numbers:
    """Log-probabilities and ranks of a prompt's tokens in a server's answer.

    Among equally likely tokens the rank is 1 if the most likely is one of them; vLLM
    ranks a token behind all that tie with it.

    Raises:
      InputError: the answer lacks what is needed; `where` opens the message.
    """
    try:
        found = answer["choices"][0]["prompt_logprobs"]
    except (KeyError, IndexError, TypeError):
        found = None
    if not isinstance(found, list):
        raise InputError(
            f"{where}: the answer has no prompt_logprobs (log-probabilities and ranks "
            "of the prompt by token id); `logprobs` with `echo` has no ids and no "
            "ranks. Serve the model with vLLM, or write the file with "
            "examples/collect_with_transformers.py"
        )
    if len(found) != len(prompt):
        raise InputError(
            f"{where}: {len(found)} prompt_logprobs for {len(prompt)} tokens; expected "
            "as many, for the prompt as it was sent"
        )
    log_probs, ranks = [], []
    for step, (token, listed) in enumerate(zip(prompt[1:], found[1:], strict=True)):
        place = f"{where}: token {step + 2} (id {token})"
        entry = listed.get(str(token)) if isinstance(listed, dict) else None
        if not isinstance(entry, dict):
            raise InputError(
                f"{place} is not among its prompt_logprobs; is --tokenizer that of the "
                "served model?"
            )
        log_prob: Any = entry.get("logprob")
        rank = entry.get("rank")
        if not isinstance(rank, int) or not _has_number(entry):
            raise InputError(
                f"{place} has logprob {log_prob} and rank {rank}; expected numbers, as "
                "vLLM gives them"
            )
        if log_prob <= _NO_PROBABILITY:
            raise InputError(f"{place} has no probability; check the served model")
        others = [x["logprob"] for x in listed.values() if _has_number(x)]
        others.remove(log_prob)
        log_probs.append(float(log_prob))
        ranks.append(1 if others and log_prob >= max(others) else rank)
    return log_probs, ranks


def _has_number(entry: Any) -> bool:
    value = entry.get("logprob") if isinstance(entry, dict) else None
    return isinstance(value, int | float) and math.isfinite(value)


def _message(error: urllib.error.HTTPError) -> str:
    """The server's own words, shortened."""
    try:
        content = error.read(2**16)
        found = json.loads(content)
        found = found.get("error", found)
        words = found.get("message", found) if isinstance(found, dict) else found
    except (ValueError, AttributeError, OSError, http.client.HTTPException):
        words = error.reason
    return " ".join(str(words).split())[:300]


def _seconds(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, a number or a date.

    Source: RFC 9110, section 10.2.3.
    """
    if value is None:
        return None
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(wait, 0.0), 3600.0) if math.isfinite(wait) else None
