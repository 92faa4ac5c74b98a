"""Reading the text of an optimized XLA program, and what running it once costs.

The compiler's own cost analysis visits the body of a loop once. Here a loop counts as
often as it runs: CPU programs state the number beside it, TPU programs hold a counter.
"""

import dataclasses
import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Iterator

from experiments.speed.hlo_text import (
    COLLECTIVES,
    FREE,
    REFERENCE,
    Computation,
    Instruction,
    constant_of,
    main_memory_bytes,
    other_operations,
    parse_arrays,
    product_operations,
    root_of,
)

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(
    r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*?)\)(?:, (.*))?$"
)
_CALLED = r"\b(?:calls|to_apply|called_computations)=\{?%([\w.\-]+)"
_BODY, _CONDITION = r"\bbody=%([\w.\-]+)", r"\bcondition=%([\w.\-]+)"
_BRANCHES = r"\b(?:branch|true|false)_computations?=(\{[^}]*\}|%[\w.\-]+)"
_TRIPS = r'"known_trip_count":\{"n":"(\d+)"\}'
_BUFFER = r'custom_call_target="(AllocateBuffer|ConcatBitcast)"'
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}")
_SLICES = ("slice", "dynamic-slice", "gather")


class Program:
    """A parsed program."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        partitions = re.search(r"num_partitions=(\d+)", text)
        self.devices = int(partitions[1]) if partitions else 1
        inside: Computation = {}
        # Long tuples are annotated by comments, which hold an equals sign.
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if found := _LINE.match(line):
                root, name, shape, opcode, given, attributes = found.groups("")
                inside[name] = Instruction(
                    name, parse_arrays(shape), opcode, given, attributes, bool(root)
                )
            elif found := _HEAD.match(line):
                inside = self.computations[found[2]] = {}
                if found[1]:
                    self.entry = found[2]
        for name, scope in self.computations.items():
            if name != self.entry:
                _join_reduce_scatter(scope)
        self._started = {
            scope[x.operands[0]].channel: x.operands[0]
            for scope in self.computations.values()
            for x in scope.values()
            if "AsyncCollectiveStart" in x.attributes
        }

    @property
    def collectives(self) -> Counter[str]:
        """How often each kind stands in the program, however often it runs."""
        everywhere = (x for c in self.computations.values() for x in c.values())
        return Counter(kind for x in everywhere if (kind := self._collective(x)))

    @property
    def unbounded(self) -> int:
        """Loops of which nothing tells how often they run; they count once."""
        return sum(
            x.opcode == "while" and self._trips(x, scope) is None
            for scope in self.computations.values()
            for x in scope.values()
        )

    def cost(self) -> Counter[str]:
        """Of one run on one device, by name.

        `flops` are one operation for each element of an arithmetic result, comparisons
        and transcendental functions included, and two for each multiply-add of a
        product; `products` are the latter alone. `bytes` are those of main memory: each
        instruction outside a fusion, and each fusion, reads its arguments and writes
        its result, but only the slices of an array that it slices or updates in place,
        and nothing that stays on the chip. A kind of collective is how often it runs,
        with `sent` before it the bytes that this device sends.
        """
        return self._cost(self.entry)

    @functools.cache  # noqa: B019  (programs are few and live as long as the process)
    def _cost(self, name: str) -> Counter[str]:
        total = Counter[str]()
        for x, scope, fused in self._visit(name):
            if x.opcode == "while":
                trips = self._trips(x, scope)
                for part in (_BODY, _CONDITION):
                    once = self._cost(x.attribute(part))
                    for key, n in once.items():
                        total[key] += n * (1 if trips is None else trips)
            elif x.opcode == "conditional":  # one branch is taken: the dearest counts
                listed = " ".join(re.findall(_BRANCHES, x.attributes))
                branches = map(self._cost, REFERENCE.findall(listed))
                total.update(functools.reduce(operator.or_, branches))
            elif kind := self._collective(x):
                total.update(self._messages(x, kind, scope))
            else:
                product = product_operations(x, scope)
                flops = product or other_operations(x, scope)
                moved = 0 if fused else self._bytes(x, scope)
                total.update(flops=flops, products=product, bytes=moved)
        return total

    def _visit(
        self, name: str, fused: bool = False
    ) -> Iterator[tuple[Instruction, Computation, bool]]:
        """Instructions of a computation and of those that it runs once."""
        scope = self.computations[name]
        for x in scope.values():
            yield x, scope, fused
            if x.opcode in ("fusion", "call", "async-start"):
                inner = x.attribute(_CALLED)
                yield from self._visit(inner, fused or x.opcode == "fusion")

    def _trips(self, loop: Instruction, scope: Computation) -> int | None:
        """How often a loop runs: as stated, or until its counter meets its bound."""
        if stated := loop.attribute(_TRIPS):
            return int(stated)
        condition = self.computations[loop.attribute(_CONDITION)]
        body = self.computations[loop.attribute(_BODY)]
        test = root_of(condition)
        if "direction=LT" not in test.attributes:
            return None
        counter, bound = test.operands
        place = condition[counter].attribute(r"index=(\d+)")
        if not place:
            return None
        first, turn = (
            inside[x.operands[int(place)]]
            for x, inside in ((scope[loop.operands[0]], scope), (root_of(body), body))
        )
        start, end = constant_of(first, scope), constant_of(condition[bound], condition)
        added = turn.operands if turn.opcode == "add" else []
        step = next(filter(None, (constant_of(body[x], body) for x in added)), None)
        if start is None or end is None or step is None:
            return None
        return max(0, -((start - end) // step))

    def _collective(self, x: Instruction) -> str | None:
        """Its kind, if it is a collective; of several steps only the first counts."""
        kind = x.opcode.removesuffix("-start")
        first = self._started.get(x.channel, x.name) == x.name
        return kind if kind in COLLECTIVES and first else None

    def _messages(
        self, x: Instruction, kind: str, scope: Computation
    ) -> dict[str, int]:
        operands = [scope[name] for name in x.operands]
        given, members = sum(o.bytes for o in operands), self._members(x)
        share = given * (members - 1) // members
        sent = {
            "all-gather": given * (members - 1),
            "all-reduce": 2 * share,
            "collective-permute": given,
        }
        # Most starts of asynchronous pairs name their operands before their results.
        results = x.arrays[len(operands) :] or x.arrays
        read = sum(o.main_memory for o in operands)
        return {
            kind: 1,
            "sent " + kind: sent.get(kind, share),
            "bytes": read + main_memory_bytes(results),
        }

    def _members(self, x: Instruction) -> int:
        """Devices that take part in one collective."""
        if mesh := _MESH.search(x.attributes):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
            axes = re.findall(r"'(\w+)'", mesh[2])
            return math.prod(int(sizes[axis]) for axis in axes)
        if size := x.attribute(r"replica_groups=\[\d+,(\d+)\]"):
            return int(size)
        return len(x.numbers(r"replica_groups=\{\{([\d,]+)\}")) or self.devices

    def _bytes(self, x: Instruction, scope: Computation) -> int:
        operands = [scope[name] for name in x.operands]
        if x.opcode == "fusion":
            inner = self.computations[x.attribute(_CALLED)]
            given = (i for i in inner.values() if i.opcode == "parameter")
            read = sum(self._read(i.name, inner, i.main_memory) for i in given)
            return read + _written(root_of(inner), inner)
        if x.opcode in FREE or x.opcode.endswith("-done") or x.attribute(_BUFFER):
            return 0
        if x.opcode in (*_SLICES, "copy-start", "slice-start"):
            target = x.arrays[x.opcode == "slice-start"]
            return target.bytes * (2 - target.on_chip - operands[0].arrays[0].on_chip)
        if x.opcode == "dynamic-update-slice":
            (update,) = operands[1].arrays
            return update.bytes * (2 - update.on_chip - x.arrays[0].on_chip)
        return x.main_memory + sum(o.main_memory for o in operands)

    def _read(self, name: str, fusion: Computation, whole: int) -> int:
        """Bytes that a fusion reads of an array that has `whole` in main memory."""
        total = 0
        for user in fusion.values():
            if name not in user.operands:
                continue
            place = user.operands.index(name)
            first = place == 0
            if user.opcode == "bitcast" and not user.root:
                total += self._read(user.name, fusion, whole)
            elif user.opcode == "fusion":
                inner = self.computations[user.attribute(_CALLED)]
                given = (i for i in inner.values() if i.opcode == "parameter")
                (same,) = (i.name for i in given if i.given == str(place))
                total += self._read(same, inner, whole)
            elif first and user.opcode in _SLICES:
                total += user.bytes
            elif not (user.passes or (first and user.opcode == "dynamic-update-slice")):
                return whole
        return min(total, whole)


def _join_reduce_scatter(fusion: Computation) -> None:
    """TPUs write it as an all-reduce of which each device keeps a slice."""
    root = root_of(fusion)
    if root.opcode == "dynamic-slice":
        whole = fusion[root.operands[0]]
        if whole.opcode == "all-reduce":
            fusion[root.name] = dataclasses.replace(
                whole, opcode="reduce-scatter", arrays=root.arrays, root=True
            )
            del fusion[whole.name]


def _written(result: Instruction, inner: Computation) -> int:
    """Bytes of main memory that a fusion writes: of an update in place, the update."""
    if result.opcode == "tuple":
        return sum(_written(inner[name], inner) for name in result.operands)
    made = result
    while made.opcode == "bitcast":
        made = inner[made.operands[0]]
    if made.opcode == "parameter" or made.passes:
        return 0
    if made.opcode == "dynamic-update-slice" and result.main_memory:
        return inner[made.operands[1]].bytes
    return result.main_memory
