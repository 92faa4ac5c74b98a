import math
from types import SimpleNamespace

import pytest

from lt_mia_jax.errors import (
    AT_LEAST_1,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    InputError,
    check_fields,
    check_ranges,
)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (POSITIVE, [1e-9, 7], [0, -1]),
        (NOT_NEGATIVE, [0, 7], [-1e-9]),
        (AT_LEAST_1, [1, 2.5], [0, 0.99]),
        (FRACTION, [0.1, 1], [0, 1.1]),
    ],
)
def test_ranges_have_their_ends_and_no_nan(allowed, inside, outside):
    check_ranges("here", **{f"x{i}": (x, allowed) for i, x in enumerate(inside)})
    for x in (*outside, math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match=f"^here: x = {x:g}, "):
            check_ranges("here", x=(x, allowed))


def test_every_number_out_of_range_is_named_and_none_is_not_a_number():
    with pytest.raises(InputError) as caught:
        check_ranges(
            "audit", k=(0, AT_LEAST_1), rate=(None, POSITIVE), share=(1.5, FRACTION)
        )
    assert str(caught.value) == (
        "audit: k = 0, expected at least 1; share = 1.5, expected more than 0, at most "
        "1"
    )


def test_fields_of_a_config_are_checked_by_name():
    config = SimpleNamespace(epochs=0, seed=-3, rate=0.1)
    check_fields("finetune", config, {"rate": FRACTION})
    with pytest.raises(
        InputError, match=r"^finetune: epochs = 0, expected at least 1$"
    ):
        check_fields("finetune", config, {"epochs": AT_LEAST_1, "rate": POSITIVE})
