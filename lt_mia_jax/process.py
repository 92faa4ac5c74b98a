"""The process that runs a command: cores, memory, messages, exit codes."""

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Callable

from lt_mia_jax.errors import InputError, Stopped, Unavailable

BAD_INPUT = 2
UNAVAILABLE = 75
INTERRUPTED = 130
TERMINATED = 143

NO_BACKEND = "Unable to initialize backend"
"""How JAX says that a platform has no device."""


def exit_code(run: Callable[[], object], program: str) -> int:
    """Call `run`; explain a mistake or a stop in one line on stderr.

    Returns:
      0 on success, 2 on bad input, too little memory or no device, 75 when other
      processes of the run did not come or another run writes to the folder, 130 when
      interrupted, 143 when stopped by SIGTERM with the state saved.
    """
    try:
        run()
    except InputError as error:
        return _said(f"{program}: error: {error}", BAD_INPUT)
    except Unavailable as error:
        return _said(f"{program}: {error}", UNAVAILABLE)
    except Stopped as stop:
        return _said(f"{program}: {stop}", TERMINATED)
    except Exception as error:
        if isinstance(error, RuntimeError) and NO_BACKEND in str(error):
            return _said(f"{program}: error: {_no_device(error)}", BAD_INPUT)
        if not _is_out_of_memory(error):
            raise
        message = "out of memory; use a smaller --batch-size, --length or model"
        return _said(f"{program}: error: {message}", BAD_INPUT)
    except KeyboardInterrupt:
        message = "stopped; the same command continues where it was interrupted"
        return _said(f"{program}: {message}", INTERRUPTED)
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python or XLA, whose class JAX renames at times, found no memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def _said(message: str, code: int) -> int:
    sys.stderr.write(message + "\n")
    return code


def log_progress() -> None:
    """Messages of the package go to stderr, those of others only from warnings up."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("lt_mia_jax").setLevel(logging.INFO)
    # It logs what it also raises.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)


def use_machine() -> None:
    """Take all cores, and keep freed memory; before the first JAX computation."""
    use_all_cores()
    keep_freed_memory()


def check_devices() -> None:
    """Make sure that JAX finds a device, after the processes of a run have joined.

    Raises:
      InputError: what `JAX_PLATFORMS` names is not there, or none works.
    """
    import jax

    try:
        jax.devices()
    # The exception depends on the platform: for CUDA a bare AssertionError.
    except Exception as error:
        raise InputError(_no_device(error)) from error


def _no_device(error: Exception) -> str:
    detail = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    chosen = os.environ.get("JAX_PLATFORMS", "")
    wanted = f"JAX_PLATFORMS={chosen}" if chosen else "JAX"
    extra = "tpu" if "tpu" in chosen else "gpu"
    return (
        f"{wanted}: no such device works here ({detail}); unset JAX_PLATFORMS to use "
        f"what there is, or install 'lt-mia-jax[{extra}]' on a machine that has one"
    )


def cores() -> int:
    """Processor cores that this process may use; on CPUs they decide rounding.

    Training carries such differences in the last digits further.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_all_cores() -> None:
    """One JAX device per CPU core (at most eight), unless the user chose a number.

    Much of a small model's work on CPU runs on one thread per device, so splitting the
    batch is about twice as fast on two cores. Accelerators are not touched.
    """
    chosen = os.environ.get("JAX_NUM_CPU_DEVICES") or os.environ.get("XLA_FLAGS", "")
    if not chosen:
        import jax  # the command line needs none of it to print --help

        jax.config.update("jax_num_cpu_devices", min(cores(), 8))


def keep_freed_memory() -> None:
    """Keep freed memory for the next use rather than return it to the system.

    A training step on CPU frees and takes gigabytes, and glibc would unmap and map
    them each time (16 x 128 tokens, 30 M parameters: 5.2 s a step become 4.1). The
    peak stays what it is. The same for other programs, in their environment:
    MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1. No effect, and no
    harm, where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    # Threads of XLA free what others took: one arena finds it again.
    arena_max, mmap_max, trim_threshold = -8, -4, -1
    for parameter, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1)):
        ctypes.CDLL(None).mallopt(parameter, value)
