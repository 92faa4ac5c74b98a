"""Thousands of bad inputs: each ends with one line, and touches nothing.

A sample runs with the suite; LT_MIA_LONG=1 runs all of them.
"""

import collections
import os
import random
from pathlib import Path

import pytest
from bad_folders import folder_cases, model_cases, other_cases
from bad_inputs import Case, build, commands, flag_cases, run, text_cases

SAMPLE = 40


def every_case(sandbox: Path, seed: int = 0) -> list[Case]:
    """All cases, in an order that the seed decides."""
    rng, base = random.Random(seed), commands(sandbox)
    cases = [
        *flag_cases(base),
        *text_cases(base),
        *model_cases(base, sandbox, rng),
        *folder_cases(base, sandbox, rng),
        *other_cases(base, sandbox),
    ]
    rng.shuffle(cases)
    return cases


def test_bad_input_ends_with_one_line(tmp_path, golden):
    sandbox = tmp_path / "sandbox"
    build(sandbox, golden)
    cases = every_case(sandbox)
    assert len(cases) >= 500
    if not os.environ.get("LT_MIA_LONG"):
        cases = sample(cases)
    outcomes = [run(case, tmp_path / "case", sandbox) for case in cases]
    faults = {each.case.name: each.fault for each in outcomes if each.fault}
    assert not faults, f"{len(faults)} of {len(cases)}: {faults}"


def sample(cases: list[Case]) -> list[Case]:
    """Some cases of every command, in the order given."""
    of_command: dict[str, list[Case]] = collections.defaultdict(list)
    for case in cases:
        of_command[case.arguments[0]].append(case)
    each = SAMPLE // len(of_command)
    return [case for found in of_command.values() for case in found[:each]]


@pytest.mark.skipif(not os.environ.get("LT_MIA_LONG"), reason="needs LT_MIA_LONG=1")
@pytest.mark.parametrize("command", ["audit", "extract", "evaluate", "merge", "report"])
def test_without_the_change_the_command_works(tmp_path, golden, command):
    sandbox = tmp_path / "sandbox"
    build(sandbox, golden)
    case = Case(command, commands(sandbox)[command], bad=False)
    assert run(case, tmp_path / "case", sandbox).code == 0
