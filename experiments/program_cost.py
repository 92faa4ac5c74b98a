"""What a compiled program does on one device, read from its optimised HLO.

`describe(compiled)` multiplies the bodies of loops by their trip counts, which
`Compiled.cost_analysis` does not. Matrix products alone count as FLOPs. Bytes are those
of main memory: every instruction reads its operands and writes its results once, a
slice reads its own size, and what the compiler keeps on the chip is free.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
"""Bytes an element of types whose name does not end in their bits."""

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

FREE = frozenset(
    "parameter constant get-tuple-element tuple bitcast while conditional call iota "
    "after-all partition-id replica-id copy-done slice-done async-start async-update "
    "async-done all-gather-done all-reduce-done collective-permute-done".split()
)
"""Instructions that move nothing themselves."""

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(calls|body|condition|to_apply)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Cost:
    """One run of a program on one device."""

    flops: float
    """Of matrix products, a multiplication and an addition each."""
    bytes: float
    """To and from main memory."""
    collectives: dict[str, tuple[int, float]]
    """By kind: how many run, and the bytes that this device sends."""
    written: int
    """Collectives in the text of the program; one in a loop runs many times."""
    arguments: int
    """Bytes of the inputs, on this device."""
    outputs: int
    """Bytes of the results that do not overwrite an input."""
    temporaries: int
    """Bytes of everything between."""

    @property
    def memory(self) -> int:
        """Bytes needed at once."""
        return self.arguments + self.outputs + self.temporaries

    @property
    def sent(self) -> float:
        """Bytes of all collectives."""
        return sum(size for _, size in self.collectives.values())

    @property
    def messages(self) -> int:
        """Collectives of all kinds."""
        return sum(number for number, _ in self.collectives.values())


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    kind: str
    result: str
    """Shapes as written."""
    rest: str
    """Operands and attributes."""
    root: bool

    @property
    def operands(self) -> list[str]:
        depth, end = 1, len(self.rest)
        for place, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                end = place
                break
        return re.findall(r"%([\w.\-]+)", self.rest[:end])

    def called(self, role: str) -> str | None:
        found = (m[2] for m in _CALLED.finditer(self.rest) if m[1] == role)
        return next(found, None)


def describe(compiled: Any) -> Cost:
    """The cost of one run of a `jax.stages.Compiled` on one of its devices."""
    memory = compiled.memory_analysis()
    program = _Program(compiled.as_text())
    program.visit(program.entry, 1, inside_fusion=False)
    return Cost(
        flops=program.flops,
        bytes=program.bytes,
        collectives=dict(program.collectives),
        written=program.written,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
    )


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.entry = ""
        current: dict[str, _Instruction] = {}
        # Long tuples are annotated by comments, which hold an equals sign.
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if found := _LINE.match(line):
                root, name, result, kind, rest = found.groups()
                current[name] = _Instruction(name, kind, result, rest, root is not None)
            elif line.endswith("{") and (found := _HEAD.match(line)):
                current = self.computations.setdefault(found[1], {})
                if line.startswith("ENTRY"):
                    self.entry = found[1]
        self.flops = self.bytes = 0.0
        self.collectives: defaultdict[str, tuple[int, float]] = defaultdict(
            lambda: (0, 0.0)
        )
        self.written = 0
        self._seen: set[str] = set()

    def visit(self, name: str, times: int, *, inside_fusion: bool) -> None:
        """Add the cost of `times` runs of a computation."""
        scope = self.computations[name]
        for item in scope.values():
            if item.kind in ("convolution", "dot"):
                self.flops += times * _product_flops(item, scope)
            kind = item.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                self._send(item, kind, scope, times)
            elif item.kind == "fusion" and not inside_fusion:
                self.bytes += times * self._fusion_bytes(item, scope)
            elif item.kind not in FREE and not inside_fusion:
                self.bytes += times * _plain_bytes(item, scope)
            if (body := item.called("body")) is not None:
                self.visit(body, times * self._trips(item), inside_fusion=inside_fusion)
            elif (called := item.called("calls")) is not None:
                fused = inside_fusion or item.kind == "fusion"
                self.visit(called, times, inside_fusion=fused)
            elif item.kind == "call" and (called := item.called("to_apply")):
                self.visit(called, times, inside_fusion=inside_fusion)
            elif branches := re.search(r"branch_computations=\{(.*?)\}", item.rest):
                for branch in re.findall(r"%?([\w.\-]+)", branches[1]):
                    self.visit(branch, times, inside_fusion=inside_fusion)

    def _trips(self, loop: _Instruction) -> int:
        """How often a loop runs: stated, or its bound over the step of its counter."""
        if stated := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(stated[1])
        condition = self.computations[loop.called("condition") or ""]
        body = self.computations[loop.called("body") or ""]
        bound = step = 1
        for name in next(_roots(condition)).operands:
            item = condition[name]
            if item.kind == "constant":
                bound = int(item.rest.split(")")[0])
            elif place := re.search(r"index=(\d+)", item.rest):
                counter = body[[*_roots(body)][int(place[1])].name]
                for added in counter.operands if counter.kind == "add" else ():
                    if body[added].kind == "constant":
                        step = int(body[added].rest.split(")")[0])
        return -(-bound // step)

    def _send(
        self, item: _Instruction, kind: str, scope: dict[str, Any], times: int
    ) -> None:
        """Count a collective, once where its steps are spread over several fusions."""
        channel = re.search(r"channel_id=(\d+)", item.rest)
        if channel is not None:
            if channel[1] in self._seen:
                return
            self._seen.add(channel[1])
        whole = max(
            sum(size for size, _ in _arrays(scope[name].result))
            for name in item.operands
        )
        whole = max(whole, max(size for size, _ in _arrays(item.result)))
        if kind == "all-reduce":
            whole = 2 * sum(
                size
                for name in item.operands
                for size, _ in _arrays(scope[name].result)
            )
        members = _group_size(item.rest)
        share = 1.0 if kind == "collective-permute" else (members - 1) / members
        self.written += 1
        number, size = self.collectives[kind]
        self.collectives[kind] = (number + times, size + times * share * whole)
        # It writes what it receives.
        self.bytes += times * whole

    def _fusion_bytes(self, item: _Instruction, scope: dict[str, Any]) -> float:
        inner = self.computations[item.called("calls") or ""]
        users: defaultdict[str, list[_Instruction]] = defaultdict(list)
        for user in inner.values():
            for name in user.operands:
                users[name].append(user)
        # Buffers of a collective that is under way only pass through.
        passing = {
            name
            for used in inner.values()
            if used.kind in COLLECTIVES or used.kind == "custom-call"
            for name in (used.name, *used.operands)
        }
        total = 0.0
        parameters = {
            int(p.rest.split(")")[0]): p
            for p in inner.values()
            if p.kind == "parameter"
        }
        for number, name in enumerate(item.operands):
            parameter = parameters[number]
            if parameter.name in passing:
                continue
            size = _main_memory(scope[name].result)
            if size:
                total += min(size, _read(parameter.name, users))
        for written in _roots(inner):
            if written.name in passing or written.kind == "parameter":
                continue
            update = _updated(written, inner)
            total += _size(update.result) if update else _size(written.result)
        # Results that stay on the chip are not written.
        return max(0.0, total - _on_chip(item.result))


def _read(name: str, users: dict[str, list[_Instruction]]) -> float:
    """Bytes that a fusion reads of a parameter: all, unless it only slices."""
    total = 0.0
    for user in users.get(name, []):
        if user.kind in ("dynamic-slice", "slice", "gather"):
            total += _size(user.result)
        elif user.kind == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.kind == "bitcast":
            total += _read(user.name, users)
        else:
            return math.inf
    return total


def _roots(inner: dict[str, _Instruction]) -> Iterator[_Instruction]:
    root = next(item for item in inner.values() if item.root)
    if root.kind == "tuple":
        yield from (inner[name] for name in root.operands)
    else:
        yield root


def _updated(item: _Instruction, inner: dict[str, _Instruction]) -> _Instruction | None:
    while item.kind == "bitcast":
        item = inner[item.operands[0]]
    if item.kind != "dynamic-update-slice":
        return None
    return inner[item.operands[1]]


def _plain_bytes(item: _Instruction, scope: dict[str, _Instruction]) -> float:
    if item.kind == "custom-call" and "AllocateBuffer" in item.rest:
        return 0.0
    result = _main_memory(item.result)
    if item.kind in ("copy-start", "slice-start"):
        # The result names the source as well; the copy's size is the slice's.
        sizes = _arrays(item.result)
        size = sizes[1 if item.kind == "slice-start" else 0][0]
        source = _main_memory(scope[item.operands[0]].result) > 0
        target = not sizes[1 if item.kind == "slice-start" else 0][1]
        return size * (source + target)
    if item.kind in ("dynamic-slice", "slice", "gather"):
        return 2 * result
    if item.kind == "dynamic-update-slice":
        return 2 * _main_memory(scope[item.operands[1]].result)
    return result + sum(_main_memory(scope[name].result) for name in item.operands)


def _product_flops(item: _Instruction, scope: dict[str, _Instruction]) -> float:
    """Of a product of shapes (b, m, k) and (b, k, n), by whatever name.

    Left, right and result have b m k, b k n and b m n elements. TPU programs write
    products as convolutions; an axis of one size in all three is then a batch axis.
    """
    left, right = (scope[name].result for name in item.operands[:2])
    dims = [_dimensions(text) for text in (left, right, item.result)]
    batch = 1
    if labels := re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", item.rest):
        for axis in filter(str.isdigit, labels[3]):
            sizes = {dims[i][labels[i + 1].index(axis)] for i in range(3)}
            batch *= sizes.pop() if len(sizes) == 1 else 1
    elif axes := re.search(r"lhs_batch_dims=\{([\d,]+)\}", item.rest):
        batch = math.prod(dims[0][int(axis)] for axis in axes[1].split(","))
    return 2 * math.sqrt(math.prod(math.prod(d) for d in dims) / batch)


def _dimensions(text: str) -> list[int]:
    found = _SHAPE.search(text)
    assert found is not None, text
    return [int(n) for n in found[2].split(",") if n]


def _arrays(text: str) -> list[tuple[float, bool]]:
    """Bytes of each array of a result, and whether it stays on the chip."""
    found = []
    for kind, dims, layout in _SHAPE.findall(text):
        width = WIDTHS.get(kind) or int(re.sub(r"\D", "", kind) or 0) / 8
        elements = math.prod(int(n) for n in dims.split(",") if n)
        found.append((width * elements, "S(" in layout))
    return found


def _size(text: str) -> float:
    return sum(size for size, _ in _arrays(text))


def _main_memory(text: str) -> float:
    return sum(size for size, on_chip in _arrays(text) if not on_chip)


def _on_chip(text: str) -> float:
    return sum(size for size, on_chip in _arrays(text) if on_chip)


def _group_size(rest: str) -> int:
    """Devices that take part in one collective."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    return 2
