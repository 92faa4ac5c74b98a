"""Starts commands as forks of a process that has imported everything already.

Run as a script: a line of JSON asks for a command and is answered by its process id, or
asks for its exit code. A fork may be told to kill itself around its n-th rename.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Server:
    """The other end of the script; a context manager."""

    def __init__(self, *, everything: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "all" if everything else "little"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **{
                    "JAX_NUM_CPU_DEVICES": "1",
                    "JAX_PLATFORMS": "cpu",
                    "USE_TORCH": "0",
                },
                "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            },
        )
        assert self._ask({}) == "ready"

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, arguments, folder, log, *, rename=None, count=None) -> int:
        """Start a command in a folder; its process id.

        `rename` is (n, after): kill it before or after its n-th rename. `count` is a
        file that gets the number of renames.
        """
        question = {"arguments": [*map(str, arguments)], "folder": str(folder)}
        question |= {"log": str(log), "rename": rename}
        return self._ask(question | {"count": None if count is None else str(count)})

    def wait(self, pid: int) -> int:
        """The exit code; of a signal minus its number."""
        return self._ask({"wait": pid})

    def run(self, arguments, folder, log, **options) -> int:
        """Start and wait."""
        return self.wait(self.start(arguments, folder, log, **options))

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def child(question: dict[str, Any]) -> int:
    """What a fork does."""
    os.chdir(question["folder"])
    log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    renames = 0

    def counted(rename):
        def run(*args, **options):
            nonlocal renames
            renames += 1
            n, after = question["rename"] or (-1, False)
            if renames == n and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = rename(*args, **options)
            if renames == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run

    os.replace, os.rename = counted(os.replace), counted(os.rename)
    from lt_mia_jax.cli import main

    sys.argv[1:] = question["arguments"]
    code = main(question["arguments"])
    if question["count"]:
        Path(question["count"]).write_text(str(renames))
    return code


def import_all() -> None:
    """Everything that commands import, without a use of devices."""
    import lt_mia_jax

    for module in pkgutil.walk_packages(lt_mia_jax.__path__, "lt_mia_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    with contextlib.suppress(ImportError):
        import orbax.checkpoint.checkpoint_manager  # noqa: F401
    import safetensors.numpy  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    importlib.import_module("tiny_demo").shrink()


def serve() -> None:
    """Answer questions until the input ends."""
    import jax._src.xla_bridge as bridge

    if sys.argv[1] == "all":
        import_all()
    importlib.import_module("datasets")
    for name in ("cli", "executor", "data.benchmarks", "report.rendering"):
        importlib.import_module(f"lt_mia_jax.{name}")
    assert not bridge.backends_are_initialized()
    for line in sys.stdin:
        question = json.loads(line)
        if not question:
            answer: Any = "ready"
        elif "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                code = 70
                try:
                    code = child(question)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                finally:
                    os._exit(code)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
