"""What is done to the experts: one function and one row an operation.

`OPERATIONS` lists the rows of all files of this folder, in the order of the tables.
"""

from experiments.survival.operations import adapters, compression, streams, weights
from experiments.survival.operations.operation import Operation

_FILES = (weights, compression, streams, adapters)

OPERATIONS: dict[str, Operation] = {
    row.name: row for file in _FILES for row in file.ROWS
}
