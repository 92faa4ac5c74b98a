"""Costs of hand-written programs as TPUs run them, counted by hand."""

import pytest

from experiments.speed.hlo import Program

MAIN, STACK, CHIP = "{1,0:T(8,128)}", "{2,1,0:T(8,128)}", "{1,0:T(8,128)S(1)}"
"""Layouts of arrays in main memory and of one that stays on the chip."""
KILO = 4 * 8 * 128
"""Bytes of `f32[8,128]`."""


def program(entry, *computations):
    lines = [f"  {line}" for line in entry.strip().splitlines()]
    text = "\n".join(["ENTRY %main () -> f32[] {", *lines, "}"])
    return Program("\n\n".join(["HloModule m, num_partitions=4", *computations, text]))


def loop(test, step, body=""):
    return (
        f"""
%turn (t: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %t = (s32[]{{:T(128)}}, f32[8,128]{MAIN}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%t), index=0
  %i.copy = s32[]{{:T(128)S(6)}} copy(%i)
  %step = s32[]{{:T(128)}} constant({step})
  %next = s32[]{{:T(128)}} add(%i.copy, %step)
  %x = f32[8,128]{MAIN} get-tuple-element(%t), index=1
  %y = f32[8,128]{CHIP} negate(%x)
{body}
  ROOT %out = (s32[]{{:T(128)}}, f32[8,128]{MAIN}) tuple(%next, %x)
}}""",
        f"""
%test (s: (s32[], f32[8,128])) -> pred[] {{
  %bound = s32[]{{:T(128)}} constant(10)
  %s = (s32[]{{:T(128)}}, f32[8,128]{MAIN}) parameter(0)
  %j = s32[]{{:T(128)}} get-tuple-element(%s), index=0
  ROOT %more = pred[]{{:T(512)}} compare(%j, %bound), direction={test}
}}""",
    )


def looped(start, around=""):
    return f"""
%start = s32[]{{:T(128)}} constant({start})
%start.copy = s32[]{{:T(128)}} copy(%start)
%a = f32[8,128]{MAIN} parameter(0)
{around}
%init = (s32[]{{:T(128)}}, f32[8,128]{MAIN}) tuple(%start.copy, %a)
ROOT %w = (s32[]{{:T(128)}}, f32[8,128]{MAIN}) while(%init), condition=%test, body=%turn
"""


@pytest.mark.parametrize(
    ("start", "test", "step", "turns"),
    [(0, "LT", 1, 10), (0, "LT", 2, 5), (3, "LT", 2, 4), (12, "LT", 1, 0)],
)
def test_a_loop_runs_until_its_counter_meets_the_bound(start, test, step, turns):
    found = program(looped(start), *loop(test, step))
    assert found.unbounded == 0
    # The counter's addition and its comparison beside those of the array.
    assert found.cost()["flops"] == turns * (8 * 128 + 2)


@pytest.mark.parametrize(("test", "step"), [("NE", 1), ("LT", "unknown")])
def test_a_loop_without_such_a_counter_counts_once_and_is_reported(test, step):
    found = program(looped(0), *loop(test, step))
    assert found.unbounded == 1
    assert found.cost()["flops"] == 8 * 128 + 2


def test_a_loop_runs_as_often_as_is_stated_beside_it():
    stated = ', backend_config={"known_trip_count":{"n":"7"}}'
    found = program(looped(0).rstrip() + stated, *loop("NE", 1))
    assert found.cost()["flops"] == 7 * (8 * 128 + 2)


FUSIONS = (
    f"""
%one_layer (p: f32[6,8,128], i: s32[]) -> f32[8,128] {{
  %p = f32[6,8,128]{STACK} parameter(0)
  %i = s32[]{{:T(128)S(6)}} parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,8,128]{STACK} dynamic-slice(%p, %i, %zero, %zero)
  ROOT %layer = f32[8,128]{CHIP} bitcast(%cut)
}}""",
    f"""
%store (all: f32[6,8,128], new: f32[8,128], k: s32[]) -> (f32[6,8,128], f32[8,128]) {{
  %all = f32[6,8,128]{STACK} parameter(0)
  %new = f32[8,128]{CHIP} parameter(1)
  %k = s32[]{{:T(128)S(6)}} parameter(2)
  %none = s32[] constant(0)
  %one = f32[1,8,128]{STACK} bitcast(%new)
  %put = f32[6,8,128]{STACK} dynamic-update-slice(%all, %one, %k, %none, %none)
  %same = f32[8,128]{CHIP} negate(%new)
  ROOT %both = (f32[6,8,128]{STACK}, f32[8,128]{CHIP}) tuple(%put, %same)
}}""",
    f"""
%as_it_is (same.in: f32[8,128]) -> f32[8,128] {{
  %same.in = f32[8,128]{MAIN} parameter(0)
  ROOT %same.out = f32[8,128]{MAIN} bitcast(%same.in)
}}""",
    f"""
%nested (u: f32[6,8,128], v: f32[8,128], m: s32[]) -> f32[8,128] {{
  %u = f32[6,8,128]{STACK} parameter(0)
  %v = f32[8,128]{MAIN} parameter(1)
  %m = s32[]{{:T(128)S(6)}} parameter(2)
  %left = f32[8,128]{MAIN} fusion(%u, %m), kind=kLoop, calls=%one_layer
  %right = f32[8,128]{MAIN} fusion(%v), kind=kLoop, calls=%as_it_is
  ROOT %sum = f32[8,128]{MAIN} add(%left, %right)
}}""",
)

OPERANDS = f"""
%a = f32[8,128]{MAIN} parameter(0)
%b = f32[8,128]{CHIP} parameter(1)
%stack = f32[6,8,128]{STACK} parameter(2)
%n = s32[]{{:T(128)S(6)}} parameter(3)
"""


@pytest.mark.parametrize(
    ("line", "reads_and_writes"),
    [
        (f"f32[8,128]{MAIN} add(%a, %a)", 3),
        (f"f32[8,128]{CHIP} add(%a, %b)", 1),
        (f"(f32[8,128]{CHIP}, f32[8,128]{MAIN}, u32[]) copy-start(%a)", 1),
        (f"(f32[8,128]{CHIP}, f32[8,128]{CHIP}, u32[]) copy-start(%b)", 0),
        (
            f"((f32[8,128]{MAIN}), f32[4,128]{CHIP}, s32[]) slice-start(%a)",
            0.5,
        ),
        (f"f32[8,128]{MAIN} copy-done(%a)", 0),
        (f"f32[1,8,128]{STACK} dynamic-slice(%stack, %n, %n, %n)", 2),
        ("f32[6,8,128]{2,1,0} dynamic-update-slice(%stack, %b, %n, %n, %n)", 1),
        ('f32[9,9]{1,0} custom-call(), custom_call_target="AllocateBuffer"', 0),
        (f"f32[8,128]{CHIP} fusion(%stack, %n), kind=kLoop, calls=%one_layer", 1),
        # One layer and another array are read, their sum is written.
        (f"f32[8,128]{MAIN} fusion(%stack, %a, %n), kind=kLoop, calls=%nested", 3),
        (
            f"(f32[6,8,128]{STACK}, f32[8,128]{CHIP}) fusion"
            "(%stack, %b, %n), kind=kLoop, calls=%store",
            1,
        ),
    ],
)
def test_bytes_are_those_of_main_memory(line, reads_and_writes):
    found = program(f"{OPERANDS}ROOT %x = {line}", *FUSIONS)
    assert found.cost()["bytes"] == reads_and_writes * KILO


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[1,3]<=[3]", 3),
        ("mesh['data'=2,'fsdp'=4,'model'=3] {'data','model'}", 6),
        ("{}", 4),
    ],
)
def test_the_size_of_a_group_is_read_in_every_notation(groups, members):
    line = f"f32[32,128]{MAIN} all-gather(%b), replica_groups={groups}"
    found = program(f"{OPERANDS}ROOT %x = {line}").cost()
    assert found["sent all-gather"] == (members - 1) * KILO
    # What it is given is on the chip, what it makes is not.
    assert found["bytes"] == 4 * KILO


SCATTER = f"""
%all-reduce-scatter (whole: f32[8,128]) -> f32[2,128] {{
  %whole = f32[8,128]{MAIN} parameter(0)
  %sum = f32[8,128]{MAIN} all-reduce(%whole), replica_groups={{{{0,1,2,3}}}}
  %zero = u32[] constant(0)
  %me = u32[] partition-id()
  ROOT %mine = f32[2,128]{MAIN} dynamic-slice(%sum, %me, %zero)
}}"""


def test_a_sum_of_which_a_slice_is_kept_is_a_reduce_scatter():
    line = f"f32[2,128]{MAIN} fusion(%a), kind=kCustom, calls=%all-reduce-scatter"
    found = program(f"{OPERANDS}ROOT %x = {line}", SCATTER)
    assert found.collectives == {"reduce-scatter": 1}
    assert found.cost()["sent reduce-scatter"] == 3 / 4 * KILO
    assert found.cost()["bytes"] == (1 + 1 / 4) * KILO


def gathering(name, result):
    return f"""
%{name} (p.{name}: f32[8,128]) -> f32[32,128] {{
  %p.{name} = f32[8,128]{MAIN} parameter(0)
  %g.{name} = f32[32,128]{MAIN} all-gather(%p.{name}), channel_id=5, replica_groups={{}}
  ROOT %r.{name} = {result}
}}"""


def test_a_collective_in_several_steps_runs_once():
    whole, kept = f"f32[32,128]{MAIN}", f"f32[8,128]{MAIN}"
    fusions = (
        gathering(
            "begin",
            f"({kept}, {whole}) custom-call(%g.begin), "
            'custom_call_target="AsyncCollectiveStart"',
        ),
        gathering("step", f"({kept}, {whole}) tuple(%p.step, %g.step)"),
        gathering(
            "end",
            f"{whole} custom-call(%p.end, %g.end), "
            'custom_call_target="AsyncCollectiveDone"',
        ),
    )
    inside = f"  %s = ({kept}, {whole}) fusion(%x), kind=kOutput, calls=%step"
    around = f"""%f = ({kept}, {whole}) fusion(%a), kind=kCustom, calls=%begin
%e = {whole} fusion(%a), kind=kCustom, calls=%end"""
    found = program(looped(0, around), *fusions, *loop("LT", 1, inside))
    assert found.collectives == {"all-gather": 1}
    cost = found.cost()
    assert cost["all-gather"] == 1
    assert cost["sent all-gather"] == 3 * KILO
    # One block read and four written; the loop reads one in each of its ten turns, and
    # its counters take a few bytes.
    assert cost["bytes"] // KILO == 1 + 4 + 10


@pytest.mark.parametrize(
    ("left", "right", "result", "window", "labels", "products"),
    [
        ("16,128", "128,64", "16,64", "", "bf_io->bf", 16 * 128 * 64),
        # A batch of four products, by a window that meets every fourth place.
        (
            "4,16,128",
            "4,128,64",
            "4,16,64",
            "window={size=4 stride=3 lhs_dilate=4}, ",
            "0bf_0io->0bf",
            4 * 16 * 128 * 64,
        ),
        # Ninety-six columns as places of a window over padding.
        (
            "16,128,2,256,1",
            "96,128,2,256,1",
            "16,128,96,128,1",
            "window={size=1x96x2 pad=0_0x95_95x0_0 rhs_reversal=0x1x0}, ",
            "0b2f1_1o2i0->0b1f2",
            16 * 128 * 96 * 128 * 2 * 256,
        ),
        # A true convolution of length 3 over 8 places, padded by one on either side.
        (
            "2,8,4",
            "3,4,5",
            "2,8,5",
            "window={size=3 pad=1_1}, ",
            "b0f_0io->b0f",
            2 * 4 * 5 * (8 * 3 - 2),
        ),
    ],
)
def test_products_written_as_convolutions(
    left, right, result, window, labels, products
):
    lines = f"""
%l = bf16[{left}] parameter(0)
%r = bf16[{right}] parameter(1)
ROOT %c = bf16[{result}] convolution(%l, %r), {window}dim_labels={labels}
"""
    assert program(lines).cost()["products"] == 2 * products
