"""Operations that train further: adapters, protected updates, streams, distillation."""

from experiments.survival.operations.operation import Operation

ROWS: tuple[Operation, ...] = ()
