"""Instructions of an XLA program as text, and the operations that each computes."""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
REFERENCE = re.compile(r"%([\w.\-]+)")
_CONTRACTED = r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)'

FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast iota after-all opt-barrier "
    "partition-id replica-id domain fusion call async-start".split()
)
"""Instructions that move nothing, or whose computation is counted in their place."""

_MOVES = frozenset(
    "broadcast copy reshape transpose slice dynamic-slice dynamic-update-slice "
    "concatenate pad reverse gather scatter custom-call rng-bit-generator "
    "bitcast-convert infeed outfeed send recv".split()
)
"""Instructions that move values and compute none."""


class Array(NamedTuple):
    """The type of an array."""

    kind: str
    dims: tuple[int, ...]
    on_chip: bool
    """Kept outside main memory."""

    @property
    def elements(self) -> int:
        """Their number."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Of all elements."""
        bits = re.search(r"\d+", self.kind)  # bf16, s32, f8e4m3fn, c64
        width = int(bits[0]) if bits else 8 * (self.kind == "pred")
        return self.elements * width // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    arrays: list[Array]
    """The result, or the parts of a tuple."""
    opcode: str
    given: str
    """What stands in the parentheses."""
    attributes: str
    root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of instructions."""
        return REFERENCE.findall(self.given)

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(array.bytes for array in self.arrays)

    @property
    def main_memory(self) -> int:
        """Bytes of the result in main memory."""
        return main_memory_bytes(self.arrays)

    @property
    def passes(self) -> bool:
        """Whether a fusion only hands it on: what collectives move is theirs."""
        started = "AsyncCollective" in self.attributes
        return self.opcode in (*COLLECTIVES, "tuple") or started

    @property
    def channel(self) -> str:
        """What the steps of one collective have in common."""
        return self.attribute(r"channel_id=(\d+)")

    def attribute(self, pattern: str) -> str:
        """The first group of `pattern` in the attributes, empty if it is not there."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""

    def numbers(self, pattern: str) -> list[int]:
        """The numbers in it."""
        return [int(n) for n in re.findall(r"\d+", self.attribute(pattern))]


Computation = dict[str, Instruction]


def parse_arrays(shape: str) -> list[Array]:
    """The arrays of a type as written: one, or the parts of a tuple."""
    return [
        Array(kind, tuple(int(n) for n in dims.split(",") if n), "S(" in layout)
        for kind, dims, layout in _ARRAY.findall(shape)
    ]


def main_memory_bytes(arrays: list[Array]) -> int:
    """Bytes of those that are not kept on the chip."""
    return sum(array.bytes for array in arrays if not array.on_chip)


def root_of(scope: Computation) -> Instruction:
    """The instruction whose result the computation returns."""
    return next(x for x in scope.values() if x.root)


def constant_of(x: Instruction, scope: Computation) -> int | None:
    """The integer that an instruction holds, through copies; None if it has none."""
    while x.opcode == "copy":
        x = scope[x.operands[0]]
    found = x.opcode == "constant" and re.fullmatch(r"-?\d+", x.given)
    return int(x.given) if found else None


def product_operations(x: Instruction, scope: Computation) -> int:
    """Operations of a product, by whatever name; 0 of anything else."""
    if x.opcode == "convolution":
        return _convolution(x, *(scope[name].arrays[0] for name in x.operands))
    if x.opcode != "dot" and "__cublas$" not in x.attributes:
        return 0
    left = scope[x.operands[0]].arrays[0].dims
    contracted = math.prod(left[axis] for axis in x.numbers(_CONTRACTED))
    return 2 * x.arrays[0].elements * contracted


def _convolution(x: Instruction, left: Array, right: Array) -> int:
    """Without padding and holes, by which TPU programs write batched products."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.attributes)
    assert labels is not None
    given, kernel, result = (
        dict(zip(axes, array.dims, strict=True))
        for axes, array in zip(labels.groups(), (left, right, x.arrays[0]), strict=True)
    )
    window = dict(re.findall(r"(\w+)=([\dx_-]+)", x.attribute(r"window=\{([^}]*)\}")))

    def option(name: str, axis: str, default: int) -> int:
        listed = window.get(name)
        return int(listed.split("x")[int(axis)].split("_")[0]) if listed else default

    count = 2 * result["b"] * result["f"] * kernel["i"]
    for axis in filter(str.isdigit, kernel):
        corner = option("stride", axis, 1) * np.arange(result[axis])[:, None]
        place = corner + option("rhs_dilate", axis, 1) * np.arange(kernel[axis])
        place = place - option("pad", axis, 0)
        gap = option("lhs_dilate", axis, 1)
        inside = (place >= 0) & (place <= gap * (given[axis] - 1)) & (place % gap == 0)
        count *= int(inside.sum())
    return count


def other_operations(x: Instruction, scope: Computation) -> int:
    """Operations of anything but a product."""
    if x.opcode in FREE | _MOVES or x.opcode.endswith(("-start", "-done")):
        return 0
    result = x.arrays[0].elements
    given = scope[x.operands[0]].arrays[0] if x.operands else x.arrays[0]
    match x.opcode:
        case "reduce":
            return max(given.elements - result, 0)
        case "reduce-window":
            return result * (math.prod(x.numbers(r"size=([\dx]+)")) - 1)
        case "sort":
            length = given.dims[x.numbers(r"dimensions=\{(\d+)")[0]]
            return given.elements * math.ceil(math.log2(max(length, 1)))
    return result
