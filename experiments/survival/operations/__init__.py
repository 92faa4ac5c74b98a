"""What is done to the experts: one function and one row an operation.

`OPERATIONS` lists the rows of all files of this folder, in the order of the tables.
"""

from experiments.survival.operations import adapters, streams, weights
from experiments.survival.operations.operation import Operation

OPERATIONS: dict[str, Operation] = {
    row.name: row for row in (*weights.ROWS, *streams.ROWS, *adapters.ROWS)
}
