"""Figures that a compiled program gives without being run."""

import dataclasses
from typing import Any

from experiments.speed.hlo import Program
from experiments.speed.hlo_text import COLLECTIVES


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one run of a program, on one device."""

    flops: float
    """Each loop counted as often as it runs."""
    flops_loops_once: float | None
    """The compiler's own figure, None if it gives none."""
    bytes_accessed: float
    """Read and written by instructions and fusions, loops as often as they run."""
    bytes_loops_once: float | None
    """The compiler's own figure, None if it gives none."""
    unbounded_loops: int
    """Loops that count once because nothing tells how often they run."""
    collectives: dict[str, int]
    """How often each kind stands in the program."""
    collectives_run: dict[str, int]
    """How often each kind is executed."""
    arguments: int
    """Bytes."""
    outputs: int
    """Bytes, without those that reuse arguments."""
    temporaries: int
    """Bytes."""
    products: float = 0.0
    """FLOPs of matrix products alone."""
    sent: dict[str, float] = dataclasses.field(default_factory=dict)
    """Bytes that this device sends by each kind of collective."""

    @property
    def peak(self) -> int:
        """An upper bound of the memory that one run holds, in bytes."""
        return self.arguments + self.outputs + self.temporaries


def describe(compiled: Any) -> Figures:
    """The figures of what `jax.jit(f).lower(...).compile()` returns."""
    program = Program(compiled.as_text())
    cost = program.cost()
    run = {kind: cost[kind] for kind in COLLECTIVES if cost[kind]}
    own, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return Figures(
        flops=cost["flops"],
        flops_loops_once=own.get("flops"),
        bytes_accessed=cost["bytes"],
        bytes_loops_once=own.get("bytes accessed"),
        unbounded_loops=program.unbounded,
        collectives=dict(program.collectives),
        collectives_run=run,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        products=cost["products"],
        sent={kind: cost["sent " + kind] for kind in run},
    )
