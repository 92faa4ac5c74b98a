import threading
import time

import numpy as np
import pytest

from lt_mia_jax.errors import InputError
from lt_mia_jax.training.prefetch import AHEAD, Prefetcher


def draw(step):
    return {"x": np.random.default_rng(step).normal(size=(4, 3))}


def others():
    return [t for t in threading.enumerate() if t is not threading.main_thread()]


def test_steps_come_in_order_from_any_start():
    for start in (0, 7, 19, 20):
        with Prefetcher(draw, 20, start=start) as reader:
            for step in range(start, 20):
                assert reader.state() == {"next_index": step}
                np.testing.assert_array_equal(next(reader)["x"], draw(step)["x"])
            assert reader.state() == {"next_index": 20}


def test_later_steps_are_read_meanwhile_but_not_all():
    asked = []

    def batch_at(step):
        asked.append(step)
        return step

    with Prefetcher(batch_at, 100) as reader:
        assert asked == []
        assert next(reader) == 0
        until = time.monotonic() + 30
        while len(asked) < 2 + AHEAD and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.05)
        assert asked == list(range(2 + AHEAD))


def test_an_error_is_raised_for_its_step_and_the_thread_ends():
    before = others()
    error = InputError("text 5 is broken")

    def batch_at(step):
        if step == 5:
            raise error
        return step

    with (
        pytest.raises(InputError) as caught,
        Prefetcher(batch_at, 9, start=2) as reader,
    ):
        found = [next(reader) for _ in range(4)]
    assert caught.value is error
    with Prefetcher(batch_at, 9, start=2) as reader:
        found = [next(reader) for _ in range(3)]
    assert found == [2, 3, 4]
    assert others() == before


@pytest.mark.parametrize("read", [0, 1, 50])
def test_leaving_early_ends_the_thread(read):
    before = others()
    with Prefetcher(draw, 50) as reader:
        for _ in range(read):
            next(reader)
    assert others() == before


def test_a_state_of_another_step_is_refused():
    with Prefetcher(draw, 9) as reader:
        next(reader)
        state = reader.state()
    with Prefetcher(draw, 9, start=1, state=state) as reader:
        np.testing.assert_array_equal(next(reader)["x"], draw(1)["x"])
    with pytest.raises(InputError, match="step 2 has read input up to"):
        Prefetcher(draw, 9, start=2, state=state)
