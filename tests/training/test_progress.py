import logging
import re

import pytest

from lt_mia_jax.training import progress
from lt_mia_jax.training.progress import Progress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_without_a_terminal_lines_say_speed_and_time_left(clock, caplog):
    caplog.set_level(logging.INFO, "lt_mia_jax")
    with Progress("scoring", 2000, "text", done=500) as bar:
        clock.now += 10
        bar.update(100)
        assert not caplog.messages
        clock.now += 30
        bar.update(100, loss="3.1")
        # 200 texts in 40 s; 1,300 are left
        expected = "scoring: 700 of 2,000 texts, 5 texts/s, 4 min 20 s left, loss 3.1"
        assert caplog.messages == [expected]
        clock.now += 40
        bar.update(1300)  # the end needs no line
    assert bar.done == 2000
    assert caplog.messages == [expected]


def test_a_terminal_gets_a_bar_and_no_lines(clock, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "lt_mia_jax")
    written = []

    class Terminal:
        encoding = "utf-8"

        def isatty(self):
            return True

        def write(self, text):
            written.append(text)

        def flush(self):
            pass

    monkeypatch.setattr("sys.stderr", Terminal())
    with Progress("scoring", 4, "text") as bar:
        clock.now += 60
        bar.update(4)
    assert not caplog.messages
    assert re.search(r"scoring: 100%.* 4/4 .*text/s", "".join(written))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (7860.0, "2 h 11 min"),
        (float("inf"), "unknown time"),
    ],
)
def test_durations(seconds, shown):
    assert progress._duration(seconds) == shown
