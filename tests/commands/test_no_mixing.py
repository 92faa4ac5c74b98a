"""Kills at any moment, and two commands at once: what is left is that of one run.

`LT_MIA_LONG=1` kills every command (`LT_MIA_LONG_KILLS` times in all, default 200) and
starts pairs of them (`LT_MIA_LONG_PAIRS`, default 50); otherwise a few runs of one
quick command have to do. A third of the kills falls directly before or after a rename.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from fork_server import Server

from lt_mia_jax.cli import main
from lt_mia_jax.files import sha256_file
from lt_mia_jax.process import BAD_INPUT, UNAVAILABLE

LONG = bool(os.environ.get("LT_MIA_LONG"))
KILLS = int(os.environ.get("LT_MIA_LONG_KILLS", "200"))
PAIRS = int(os.environ.get("LT_MIA_LONG_PAIRS", "50"))
KILLS_A_ROUND = 4

SYNTOFU = (
    "--data.background 2 --data.fictitious 4 --data.forget-percent 25 "
    "--data.retain-evaluated 2 --seeds 0 --width 16 --layers 1 --pretrain-epochs 1 "
    "--finetune-epochs 1 --batch-size 16 --executor single"
).split()
QUICK = ["--length", "16", "--bootstraps", "10"]
PARTS = {
    "privleak_forget": "privleak/forget",
    "privleak_holdout": "privleak/holdout",
    "privleak_retain": "privleak/retain",
}


@pytest.fixture(scope="module")
def server():
    with Server(everything=LONG) as started:
        yield started


@pytest.fixture(scope="module")
def commands(request, server, tmp_path_factory) -> dict[str, list[str]]:
    """Every command, as small as it can be, without --out."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "copy" / "privleak").mkdir(parents=True)
    for path in PARTS.values():
        rows = [{"text": f"{path} {n}"} for n in range(5)]
        (root / "copy" / f"{path}.json").write_text(json.dumps(rows))
    local = ["--local", str(root / "copy"), "--parts", *PARTS]
    found = {"benchmark": ["benchmark", "--name", "muse_news", *local]}
    if not LONG:
        return found
    world = request.getfixturevalue("world")
    pair, log = world.arguments(), root / "log"
    quick = ["audit", *pair, "--texts", str(world.mixed), *QUICK]
    page = root / "run"
    assert main([*quick, "--attack", "none", "--out", str(page)]) == 0
    files = ["--members", str(world.members), "--nonmembers", str(world.nonmembers)]
    extract = ["extract", *pair, *files, "--k", "20", "--length", "16"]
    store, made = str(root / "store"), root / "syntofu"
    own = [*extract, "--out", store]
    assert server.run(own, root, log) == 0, log.read_text()
    own = ["syntofu", *SYNTOFU, "--out", made]
    assert server.run(own, root, log) == 0, log.read_text()
    saving = ["--save-seconds", "0", "--epochs", "2"]
    return found | {
        "report": ["report", "--runs", str(page)],
        "audit": [*quick, "--nonmembers", str(world.others)],
        "evaluate": ["evaluate", "--features", store, "--bootstraps", "10"],
        "extract": [*extract, "--block-texts", "8", "--batch-size", "8"],
        "train": [
            *("train", "--features", store, "--recipe.epochs", "3"),
            *("--recipe.warmup-epochs", "1"),
            *("--classifier.width", "16", "--classifier.heads", "2"),
            *("--recipe.batch-size", "8", "--recipe.save-seconds", "0"),
        ],
        "finetune": [
            *("finetune", "--model", str(world.base), "--length", "16"),
            *("--texts", str(world.members), *saving, "--batch-size", "8"),
        ],
        "unlearn": [
            *("unlearn", "--model", str(made / "models" / "full"), *saving),
            *("--forget", str(made / "data" / "forget25.jsonl"), "--length", "28"),
            *("--retain", str(made / "data" / "retain75.jsonl")),
            *("--template.prompt", "{question}", "--template.begin"),
            *("--executor", "single", "--evaluated", "6"),
        ],
        "demo": ["demo", "--full", "--pretrain-steps", "2", "--bootstraps", "10"],
        "syntofu": ["syntofu", *SYNTOFU],
    }


def out_of(command: str) -> list[str]:
    """Relative, so that records of runs in several folders are alike."""
    return ["--out", "out/page.html" if command == "report" else "out"]


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 by path, without times; of checkpoints the names of steps alone.

    Of runs that were continued the record names the beginnings, which are left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        inside = parts.index("state") + 2 if "state" in parts else len(parts)
        name = "/".join(parts[:inside])
        if len(parts) > inside or path.is_dir():
            found[name] = "a folder"
            assert not path.name.endswith(".tmp"), path
        elif path.name == "run.json":
            run = json.loads(path.read_text())
            del run["started"]
            run.pop("continues", None)
            found[name] = json.dumps(run, sort_keys=True)
        else:
            found[name] = sha256_file(path)
    return found


def check_bound(out: Path) -> None:
    """What a kill leaves are files of one run, or it says that they are not whole."""
    if (out / "summary.json").exists():
        summary = json.loads((out / "summary.json").read_text())
        assert summary["scores_sha256"] == sha256_file(out / "scores.jsonl")
        if (out / "config.json").exists():
            assert json.loads((out / "config.json").read_text()) == summary["config"]
    else:
        assert not (out / "report.html").exists()


def kill_at_random(server, rng, arguments, folder, log, seconds) -> bool:
    """Whether the kill came before the end."""
    pid = server.start(arguments, folder, log)
    time.sleep(rng.random() * seconds)
    os.kill(pid, signal.SIGKILL)
    return server.wait(pid) == -signal.SIGKILL


NAMES = (
    *("benchmark", "report", "audit", "evaluate", "extract", "train", "finetune"),
    *("unlearn", "demo", "syntofu"),
)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("command", NAMES if LONG else NAMES[:1])
def test_kills(command, commands, request, server, tmp_path):
    kills = KILLS // len(NAMES) if LONG else 4
    arguments = [*commands[command], *out_of(command)]
    count, log = tmp_path / "count", tmp_path / "log"
    other = None  # a finished run that the killed one replaces
    if command in ("audit", "evaluate"):
        other = [*arguments, "--seed", "7"]
        if command == "audit":
            world = request.getfixturevalue("world")
            other[other.index("--target") + 1] = str(world.base)
            other[other.index("--reference") + 1] = str(world.target)
    whole = tmp_path / "whole"
    whole.mkdir()
    code = server.run(arguments, whole, log)  # fills the cache of compiled programs
    assert code == 0, log.read_text()
    shutil.rmtree(whole / "out")
    began = time.monotonic()
    assert server.run(arguments, whole, log, count=count) == 0
    seconds, renames = time.monotonic() - began, int(count.read_text())
    wanted = contents(whole / "out")

    rng = random.Random(command)
    done = dict.fromkeys(("random", "rename", "too late"), 0)
    rounds = -(-kills // KILLS_A_ROUND)
    for number in range(rounds):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        if other is not None and number % 2:
            assert server.run(other, folder, log) == 0
        for kill in range(min(KILLS_A_ROUND, kills - number * KILLS_A_ROUND)):
            log.write_text("")
            if (number * KILLS_A_ROUND + kill) % 3 == 0:
                rename = (rng.randint(1, renames), rng.random() < 0.5)
                code = server.run(arguments, folder, log, rename=rename)
                kind = "rename" if code == -signal.SIGKILL else "too late"
            else:
                hit = kill_at_random(server, rng, arguments, folder, log, seconds)
                kind = "random" if hit else "too late"
            done[kind] += 1
            assert "Traceback" not in log.read_text(), log.read_text()
            if other is not None and (folder / "out").exists():
                check_bound(folder / "out")
        assert server.run(arguments, folder, log) == 0, log.read_text()
        assert contents(folder / "out") == wanted, number
        shutil.rmtree(folder)
    print(f"\n{command}: {seconds:.1f} s, {renames} renames, kills {done}")


@pytest.mark.timeout(7200)
def test_pairs(commands, server, tmp_path):
    """Two at once: one wins, the other says so in one line."""
    names = NAMES if LONG else NAMES[:1]
    rng, tally = random.Random(0), {}
    wanted = {}
    for number in range(PAIRS if LONG else 1):
        first = names[number % len(names)]
        second = first
        if LONG and number >= 30 and first != "report":
            second = rng.choice([n for n in names if n not in ("report", first)])
        folder = tmp_path / f"pair-{number}"
        folder.mkdir()
        started = []
        for place, command in enumerate((first, second)):
            log = folder / f"log-{place}"
            run = [*commands[command], *out_of(command)]
            started.append((command, log, server.start(run, folder, log)))
        codes = [server.wait(pid) for _, _, pid in started]
        said = [log.read_text() for _, log, _ in started]
        assert not any("Traceback" in each for each in said), said
        found = tuple(sorted(codes))
        tally[found] = tally.get(found, 0) + 1
        assert found[0] == 0, said
        for code, text in zip(codes, said, strict=True):
            if code:
                (line,) = text.splitlines()
                assert code in (UNAVAILABLE, BAD_INPUT)
                reason = "holds" if code == BAD_INPUT else "another command is writing"
                assert reason in line
        if found == (0, 0):
            assert first == second  # one after the other
        assert second != first or BAD_INPUT not in codes
        winner = started[codes.index(0)][0]
        if winner not in wanted:
            alone = tmp_path / f"alone-{winner}"
            alone.mkdir()
            run = [*commands[winner], *out_of(winner)]
            assert server.run(run, alone, tmp_path / "log") == 0
            wanted[winner] = contents(alone / "out")
        assert contents(folder / "out") == wanted[winner]
        shutil.rmtree(folder)
    print(f"\npairs by exit codes: {tally}")
