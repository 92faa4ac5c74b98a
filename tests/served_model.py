"""A small server with vLLM's prompt log-probabilities, around tiny models.

Source: the schema of vLLM's /v1/completions, with `prompt_logprobs`.
"""

import contextlib
import copy
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np

from lt_mia_jax.checkpoints import load_pretrained
from lt_mia_jax.models import LanguageModel

WIDTH = 24
"""Tokens of the longest prompt."""


class Served:
    """What the server serves, how it fails, and what it was asked."""

    def __init__(self, **models):
        self.models = {name: load_pretrained(path) for name, path in models.items()}
        self._programs = {
            name: jax.jit(LanguageModel(model.config).apply)
            for name, model in self.models.items()
        }
        self._lock = threading.Lock()
        self.url, self.key = "", None
        self.faults = deque()
        """One for each of the next requests: what `Handler.fail` knows."""
        self.times, self.asked = [], []
        """When requests came; model and prompt of those that were answered."""

    def fresh(self):
        """The same models, as if nobody had asked yet."""
        other = copy.copy(self)
        other.faults, other.times, other.asked = deque(), [], []
        return other

    def log_probs(self, name, prompt):
        """Log-probabilities `"T V"` in float64."""
        ids = np.zeros((1, WIDTH), np.int32)
        ids[0, : len(prompt)] = prompt
        with self._lock:
            logits = self._programs[name](self.models[name].params, ids)
        logits = np.asarray(logits, np.float64)[0, : len(prompt)]
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def answer(self, body):
        """One completion, as vLLM has it."""
        prompt, most = body["prompt"], body["prompt_logprobs"]
        listed = [None]
        found = self.log_probs(body["model"], prompt)
        for token, row in zip(prompt[1:], found[:-1], strict=True):
            # Of tokens that tie all but one have a worse rank, as in vLLM.
            entry = {str(token): (row[token], int((row >= row[token]).sum()))}
            best = np.argsort(-row, kind="stable")[:most].tolist()
            entry |= {str(t): (row[t], n) for n, t in enumerate(best, 1)}
            listed.append(
                {
                    key: {"logprob": float(x), "rank": rank, "decoded_token": "?"}
                    for key, (x, rank) in entry.items()
                }
            )
        choice = {"index": 0, "text": "x", "prompt_logprobs": listed}
        return {"object": "text_completion", "choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    """Answers one request, or fails as it was told."""

    def do_POST(self):
        served = self.server.served
        served.times.append(time.monotonic())
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = served.faults.popleft() if served.faults else None
        if fault is not None and self.fail(fault):
            return
        if served.key and self.headers["Authorization"] != f"Bearer {served.key}":
            self.reply(401, {"error": {"message": "no such key"}})
        elif self.path != "/v1/completions" or body["model"] not in served.models:
            self.reply(404, {"error": {"message": f"no model {body['model']}"}})
        else:
            answer = served.answer(body)
            served.asked.append((body["model"], body["prompt"]))
            self.reply(200, answer, cut=fault == "truncated")

    def fail(self, fault):
        """Whether there is nothing more to answer."""
        match fault:
            case "slow":
                time.sleep(2.0)
            case "dropped":
                self.close_connection = True
                self.connection.close()
                return True
            case "garbage":
                self.reply(200, None)
                return True
            case (code, headers):
                self.reply(code, {"message": f"fault {code}"}, headers)
                return True
        return False

    def reply(self, code, value, headers=(), *, cut=False):
        data = b"<html>" if value is None else json.dumps(value).encode()
        with contextlib.suppress(OSError):  # who asked has gone
            self.send_response(code)
            for name, text in dict(headers).items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Serve inside of this block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.served = served
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
