"""The flags that say where a command runs; the same on every command."""

import dataclasses
from typing import Annotated

import tyro

from lt_mia_jax.executor import Executor, Kind, make_executor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """Where the command runs. Results do not depend on it, up to rounding."""

    executor: Kind = "jit"
    """jit splits batches, and with --fsdp parameters, over all devices; pmap keeps a
    whole copy of the parameters on every device; single uses one device."""

    fsdp: int = 1
    """Devices that share one copy of the parameters, for models too large for one."""

    distributed: str = "off"
    """Several processes as one run: auto (TPU slice, GKE, Slurm, Open MPI), off, or
    HOST:PORT,ID,COUNT: address of process 0, number of this one, how many there are.
    All are started alike, on a folder that all see."""

    def make(self) -> Executor:
        """The executor; processes must have met before."""
        return make_executor(self.executor, fsdp=self.fsdp)


DevicesFlags = Annotated[Devices, tyro.conf.arg(name="")]
"""As a field of a command: its flags have no prefix."""
