"""How much is measured in the time that there is."""

from __future__ import annotations

import pytest

from pipeline.bench.sizes import Cost, Sizes, fitting

# What a machine without bf16 takes, and one with it.
SLOW = Cost(
    mix_s=0.97, alone_s=1.58, long_s=2.5, short_s=0.8, plain_long_s=13.5, plain_short_s=1.64,
    group=6, lead=16, readers=2, scale=1, start_s=36.0,
)  # fmt: skip

FAST = Cost(
    mix_s=0.48, alone_s=0.9, long_s=1.7, short_s=0.27, plain_long_s=9.0, plain_short_s=0.97,
    group=6, lead=16, readers=2, scale=1, start_s=13.0,
)  # fmt: skip


def test_a_round_costs_its_bursts_and_what_is_measured_beside_them() -> None:
    sizes = Sizes(stretches=2, groups=1, long=3, short=4, near=8, plain_short=5)
    # The mix and its limit, long ones exactly, by keyframes and plainly, short ones and plainly.
    by_hand = (2 * 6 + 6 + 32) * 0.97 + 2 * 6 * 1.58 + (2 * 3 + 2 + 4) * 2.5 + (2 * 8 + 4 + 32) * 0.8
    by_hand += 2 * 13.5 + (2 * 4 + 4 + 32) * 0.8 + 2 * 5 * 1.64
    assert SLOW.round_s(sizes) == pytest.approx(by_hand)


def test_sizes_are_the_largest_for_which_there_is_time() -> None:
    assert fitting(FAST, 370.0) == Sizes(), "with all that can be left out"
    assert fitting(FAST, 350.0).groups == 2
    assert fitting(SLOW, 900.0) == Sizes()
    small = fitting(SLOW, 350.0)
    assert small.stretches >= 4 and 1.1 * SLOW.round_s(small) < 350.0
    budgets = [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 900.0]
    took = [SLOW.round_s(fitting(SLOW, budget_s)) for budget_s in budgets]
    assert took == sorted(took)
    assert fitting(SLOW, 0.0).stretches == 1, "every name has a value"
