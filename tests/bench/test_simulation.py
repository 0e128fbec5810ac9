from __future__ import annotations

import pytest

from pipeline.bench.schedule import EXITS as SHIPPED_EXITS
from pipeline.bench.simulation import ServiceTimes, simulate, workers_to_feed
from pipeline.steering.in_flight import FlowLimits

EXITS = (0.20, 0.22, 0.16, 0.10, 0.07, 0.05, 0.04, 0.03, 0.02, 0.02, 0.02, 0.01, 0.01, 0.01, 0.01, 0.03)
"""Shares of clips that stop after each of 16 steps: most are easy, some never stop."""


@pytest.mark.parametrize(("exits", "steps_per_round"), [(EXITS, 1), (EXITS, 4), (SHIPPED_EXITS, 1)])
@pytest.mark.parametrize("num_focus_workers", [1, 4, 16])
def test_focus_workers_are_busy_and_their_batches_full_while_clips_leave_at_any_step(
    num_focus_workers: int, exits: tuple[float, ...], steps_per_round: int
) -> None:
    run = simulate(
        exits=exits,
        num_clips=200 * num_focus_workers + 500,
        num_focus_workers=num_focus_workers,
        steps_per_round=steps_per_round,
    )
    assert run.occupancy >= 0.95
    assert run.idle_while_waiting < 0.02


def test_workers_that_are_not_given_are_half_as_many_again_as_the_focus_workers_need() -> None:
    # A clip of two rounds: its focusing 2 * 0.5, its reading 0.3 + 0.1, its steps 0.2 + 2 * 0.1 + 3 * 0.1 / 8.
    times = ServiceTimes(call_s=0.1, read_s=0.3, open_s=0.2, step_s=0.1, patch_s=0.5)
    sources, streams = workers_to_feed(10, exits=(0, 1), steps_per_round=1, times=times)
    assert (sources, streams) == (6, 7)


def test_too_few_stream_workers_show_as_small_passes() -> None:
    run = simulate(exits=SHIPPED_EXITS, num_clips=2000, num_focus_workers=4)
    hungry = simulate(exits=SHIPPED_EXITS, num_clips=2000, num_focus_workers=4, num_stream_workers=2)
    assert hungry.mean_batch < run.mean_batch / 2
    assert hungry.focus_busy_share < run.focus_busy_share


def test_every_clip_is_labelled_and_pays_for_whole_rounds() -> None:
    # Half of the clips stop after step 1 and half after step 3: with rounds of 2 they pay for 2 and for 4 steps.
    run = simulate(exits=(1.0, 0.0, 1.0, 0.0), num_clips=400, steps_per_round=2, seed=3)
    assert run.clips == 400
    assert run.patches % 2 == 0
    assert 400 * 2.7 < run.patches < 400 * 3.3


def test_time_is_added_up_as_by_hand() -> None:
    # One clip: read 0.4, open 0.1, focus 2.0 + 3 * 0.5, step 0.05, write 0.05, and 0.01 before each of the 5 calls.
    times = ServiceTimes(
        call_s=0.01, read_s=0.4, open_s=0.1, step_s=0.05, pass_s=2.0, patch_s=0.5, write_s=0.05, jitter=0.0
    )
    run = simulate(exits=(0, 0, 1), num_clips=1, steps_per_round=3, shapes=(), times=times)
    assert run.virtual_s == pytest.approx(0.4 + 0.1 + 3.5 + 0.05 + 0.05 + 5 * 0.01)
    assert run.focus_busy_share == pytest.approx(3.5 / 4.15)
    assert (run.calls, run.patches, run.mean_batch, run.occupancy) == (5, 3, 3.0, 1.0)
    assert (run.mean_wait_s, run.idle_while_waiting) == (0.0, 0.0)


def test_one_open_clip_at_a_time_shows_as_small_batches() -> None:
    run = simulate(exits=(0, 0, 0, 1), num_clips=50, limits=FlowLimits(max_open_clips=1))
    assert run.mean_batch == 1.0
    assert run.focus_busy_share < 0.9


def test_the_clock_is_looked_at_for_decisions_only() -> None:
    # Each look is a second later, so every decision takes one second: 4 calls and 5 times of asking what is next.
    seconds = iter(range(10_000))
    run = simulate(exits=(1.0,), num_clips=1, clock=lambda: float(next(seconds)))
    assert run.clips_per_s == pytest.approx(1 / run.control_s)
    assert run.decisions_per_s == pytest.approx(run.calls / run.control_s)
    assert run.control_s == int(run.control_s) > run.calls


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="0 clips"):
        simulate(exits=EXITS, num_clips=0)
    with pytest.raises(ValueError, match="exits"):
        simulate(exits=(0.0, 0.0))
