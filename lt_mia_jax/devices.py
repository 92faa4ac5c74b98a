"""The flags that say where a command runs; the same on every command."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lt_mia_jax.errors import COUNT

if TYPE_CHECKING:
    from lt_mia_jax.executor import Executor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """Where the command runs. Results do not depend on it, up to rounding."""

    executor: Literal["jit", "pmap", "single"] = "jit"
    """jit splits batches, and with --fsdp parameters, over all devices; pmap keeps a
    whole copy of the parameters on every device; single uses one device."""
    fsdp: Annotated[int, COUNT] = 1
    """Devices that share one copy of the parameters, for models too large for one."""
    distributed: str = "off"
    """Several processes as one run: auto (TPU slice, GKE, Slurm, Open MPI), off, or
    HOST:PORT,ID,COUNT: address of process 0, index of this process, number of
    processes. All run the same command line on a folder that all can see."""

    def make(self) -> "Executor":
        """The executor; call it after the processes have joined (`cli.join`)."""
        from lt_mia_jax.executor import make_executor

        return make_executor(self.executor, fsdp=self.fsdp)


DevicesFlags = Annotated[Devices, tyro.conf.arg(name="")]
"""As a field of a command: its flags have no prefix."""
