"""Reading the text of an optimised XLA program, and what running it once costs.

The compiler's own cost analysis visits the body of a loop once. Here a loop counts as
often as it runs: XLA writes the number beside each loop that it could bound.
"""

import dataclasses
import functools
import math
import re
from collections import Counter

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_TRIPS = r'"known_trip_count":\{"n":"(\d+)"\}'
_CALLED = r"\b(?:calls|to_apply|called_computations)=\{?%([\w.\-]+)"
_BRANCHES = r"\b(?:branch|true|false)_computations?=(\{[^}]*\}|%[\w.\-]+)"

_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast iota after-all opt-barrier "
    "partition-id replica-id domain".split()
)
"""Instructions that move nothing."""

_MOVES = frozenset(
    "broadcast copy reshape transpose slice dynamic-slice dynamic-update-slice "
    "concatenate pad reverse gather scatter custom-call rng-bit-generator "
    "copy-start copy-done bitcast-convert infeed outfeed send recv".split()
)
"""Instructions that move values and compute none."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, pattern: str) -> str | None:
        """The first group of `pattern` in the attributes."""
        found = re.search(pattern, self.attributes)
        return found and found[1]

    def axes(self, name: str) -> list[int]:
        """A list of dimensions, `name={0,2}`."""
        listed = self.attribute(name + r"=\{([\d,]+)\}")
        return [int(n) for n in listed.split(",")] if listed else []

    @property
    def collective(self) -> str | None:
        """Its kind, if it is one; of an asynchronous pair only the start counts."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What running a computation once costs."""

    flops: float = 0.0
    bytes: float = 0.0
    collectives: Counter[str] = dataclasses.field(default_factory=Counter)
    unbounded: int = 0
    """Loops whose number of trips the compiler does not know; they count once."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.collectives + other.collectives,
            self.unbounded + other.unbounded,
        )

    def times(self, n: int) -> "Cost":
        """Of `n` runs."""
        repeated = Counter({kind: n * c for kind, c in self.collectives.items()})
        return Cost(n * self.flops, n * self.bytes, repeated, self.unbounded)

    def largest(self, other: "Cost") -> "Cost":
        """The larger of each figure: of branches only one is taken."""
        return Cost(
            max(self.flops, other.flops),
            max(self.bytes, other.bytes),
            self.collectives | other.collectives,
            max(self.unbounded, other.unbounded),
        )


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Element type and dimensions of an array, or of each part of a tuple."""
    return [
        (kind, tuple(int(n) for n in dims.split(",") if n))
        for kind, dims in _ARRAY.findall(shape)
    ]


def elements(shape: str) -> int:
    """Elements of the first array."""
    found = arrays(shape)
    return math.prod(found[0][1]) if found else 0


def size(shape: str) -> float:
    """Bytes of all arrays."""
    return sum(math.prod(dims) * _width(kind) for kind, dims in arrays(shape))


def _width(kind: str) -> float:
    if kind in ("pred", "token"):
        return float(kind == "pred")
    bits = re.search(r"\d+", kind)  # bf16, s32, f8e4m3fn, c64
    return int(bits[0]) / 8 if bits else 0.0


class Program:
    """A parsed program."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        inside: Computation | None = None
        for line in text.splitlines():
            if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
                name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
                inside = self.computations[name] = {}
                if line.startswith("ENTRY "):
                    self.entry = name
            elif line.startswith("}"):
                inside = None
            elif inside is not None and (found := _INSTRUCTION.match(line)):
                read = _read(found[2], line[found.end() :], bool(found[1]))
                inside[read.name] = read

    def static_collectives(self) -> Counter[str]:
        """How often each kind stands in the program, however often it runs."""
        everywhere = (x for c in self.computations.values() for x in c.values())
        return Counter(kind for x in everywhere if (kind := x.collective))

    def cost(self, *, loops_once: bool = False) -> Cost:
        """Of one run on one device.

        One operation for each element of an arithmetic result, comparisons and
        transcendental functions included, and two for each multiply-add of a product.
        Each instruction outside a fusion, and each fusion, reads its arguments and
        writes its result; of an array that is only sliced it reads the slices.

        Args:
          loops_once: visit the body of each loop once, as the compiler does.
        """
        return self._computation(self.entry, loops_once, False)

    @functools.cache  # noqa: B019  (programs are few and live as long as the process)
    def _computation(self, name: str, once: bool, fused: bool) -> Cost:
        scope = self.computations[name]
        parts = (self._instruction(x, scope, once, fused) for x in scope.values())
        return sum(parts, Cost())

    def _instruction(
        self, x: Instruction, scope: Computation, once: bool, fused: bool
    ) -> Cost:
        moved = 0.0 if fused or x.opcode in _FREE else self._bytes(x, scope)
        called = x.attribute(_CALLED)
        match x.opcode:
            case "while":
                trips = x.attribute(_TRIPS)
                n = int(trips) if trips and not once else 1
                turn = Cost(unbounded=int(trips is None))
                for part in ("body", "condition"):
                    inner = x.attribute(part + r"=%([\w.\-]+)")
                    assert inner
                    turn += self._computation(inner, once, fused).times(n)
                return turn
            case "conditional":
                listed = " ".join(re.findall(_BRANCHES, x.attributes))
                named = _REFERENCE.findall(listed)
                branches = (self._computation(b, once, fused) for b in named)
                return functools.reduce(Cost.largest, branches, Cost())
            case "fusion":
                assert called
                return self._computation(called, once, True) + Cost(bytes=moved)
            case "call" | "async-start" if called:
                return self._computation(called, once, fused)
        kind = x.collective
        found = Counter([kind]) if kind else Counter()
        return Cost(self._flops(x, scope), moved, found)

    def _flops(self, x: Instruction, scope: Computation) -> float:
        shapes = [scope[o].shape for o in x.operands if o in scope]
        target = x.attribute(r'custom_call_target="([^"]+)"') or ""
        if x.opcode == "dot":
            return _product(x, shapes, x.axes("lhs_contracting_dims"))
        if target.startswith("__cublas$"):
            axes = x.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]') or ""
            return _product(x, shapes, [int(n) for n in re.findall(r"\d+", axes)])
        if x.opcode == "convolution":
            kernel = arrays(shapes[1])[0][1]
            labels = x.attribute(r"dim_labels=\w+_(\w+)->") or "o"
            per_output = math.prod(kernel) / kernel[labels.index("o")]
            return 2.0 * elements(x.shape) * per_output  # padding counts as data
        if x.opcode in ("reduce", "all-reduce", "reduce-scatter"):
            return max(elements(shapes[0]) - elements(x.shape), 0)
        if x.opcode == "reduce-window":
            window = (x.attribute(r"window=\{size=([\dx]+)") or "1").split("x")
            return elements(x.shape) * (math.prod(map(int, window)) - 1)
        if x.opcode == "sort":
            length = arrays(shapes[0])[0][1][x.axes("dimensions")[0]]
            return elements(shapes[0]) * math.ceil(math.log2(max(length, 1)))
        if x.opcode in _FREE or x.opcode in _MOVES or x.collective:
            return 0.0
        return 0.0 if x.opcode.endswith(("-start", "-done")) else elements(x.shape)

    def _bytes(self, x: Instruction, scope: Computation) -> float:
        shapes = [scope[o].shape for o in x.operands if o in scope]
        match x.opcode:
            case "while" | "conditional" | "call":
                return 0.0
            case "dynamic-slice" | "slice" | "gather":
                return 2 * size(x.shape)
            case "dynamic-update-slice":
                return 2 * size(shapes[1])  # in place
            case "fusion":
                called = x.attribute(_CALLED)
                assert called
                inner = self.computations[called]
                root = next(i for i in inner.values() if i.root)
                given = (i for i in inner.values() if i.opcode == "parameter")
                return _written(root, inner) + sum(_read_by(inner, i) for i in given)
        if x.opcode.endswith("-done"):
            return 0.0
        return size(x.shape) + sum(map(size, shapes))


def _read(name: str, rest: str, root: bool) -> Instruction:
    """The instruction behind `name = `: a shape, an opcode, operands, attributes."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    operands = tuple(_REFERENCE.findall(rest[start:end]))
    return Instruction(name, shape, rest[:start], operands, rest[end:], root)


def _closing(text: str, start: int) -> int:
    """The position behind the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position + 1
    return len(text)


def _product(x: Instruction, shapes: list[str], contracted: list[int]) -> float:
    left = arrays(shapes[0])[0][1]
    return 2.0 * elements(x.shape) * math.prod(left[axis] for axis in contracted)


def _read_by(inner: Computation, parameter: Instruction) -> float:
    """Bytes that a fusion reads of one of its parameters."""
    total = 0.0
    for user in inner.values():
        if parameter.name not in user.operands:
            continue
        first = user.operands[0] == parameter.name
        if first and user.opcode in ("dynamic-slice", "slice", "gather"):
            total += size(user.shape)
        elif not (first and user.opcode == "dynamic-update-slice"):
            return size(parameter.shape)
    return min(total, size(parameter.shape))


def _written(root: Instruction, inner: Computation) -> float:
    """Bytes that a fusion writes: of an update in place, the update."""
    if root.opcode == "tuple":
        return sum(_written(inner[name], inner) for name in root.operands)
    if root.opcode == "bitcast" and root.operands:
        return _written(inner[root.operands[0]], inner)
    if root.opcode == "dynamic-update-slice":
        return size(inner[root.operands[1]].shape)
    return size(root.shape)
