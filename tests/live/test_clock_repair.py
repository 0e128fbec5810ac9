"""A camera's time stamps become Unix times that can be relied on, whatever its clock does."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.live.clock_repair import ClockRepair, Stamp

TICK = Fraction(1, 90_000)
WRAP = 1 << 32
START_S = 1_700_000_000.0
STEP_S = 0.1
"""Between two frames: 9000 ticks."""


def stamps(
    ticks: Callable[[int], int | None],
    *,
    count: int,
    delay_s: Callable[[int], float] = lambda n: 0.0,
    repair: ClockRepair | None = None,
) -> list[Stamp]:
    """Of frames 0, 1, ... which are taken every STEP_S and arrive `delay_s` later."""
    repair = repair or settled_repair()
    return [repair.stamp(ticks(n), TICK, START_S + n * STEP_S + delay_s(n)) for n in range(count)]


def settled_repair() -> ClockRepair:
    return ClockRepair(settle_s=0)


def since_start(found: list[Stamp]) -> list[float]:
    return [round(stamp.time_unix_s - START_S, 3) for stamp in found]


def every_step(count: int) -> list[float]:
    return [round(n * STEP_S, 3) for n in range(count)]


def test_a_steady_camera_keeps_its_own_spacing_from_the_arrival_of_its_first_frame():
    assert since_start(stamps(lambda n: 777 + n * 9000, count=5)) == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_uneven_arrival_does_not_show_in_the_times():
    late = {3: 0.04, 4: 0.02, 7: 0.3}
    assert since_start(stamps(lambda n: n * 9000, count=10, delay_s=lambda n: late.get(n, 0.0))) == every_step(10)


def test_a_32_bit_clock_may_wrap():
    # 32 bits of 90 kHz end at 4294967296: the third frame is past it.
    found = stamps(lambda n: (WRAP - 10_000 + n * 9000) % WRAP, count=6)
    assert since_start(found) == every_step(6)
    assert not any(stamp.is_restamped for stamp in found)


def test_a_wrap_that_the_library_has_undone_already_looks_the_same():
    assert since_start(stamps(lambda n: WRAP - 10_000 + n * 9000, count=6)) == every_step(6)


def test_a_clock_of_nanoseconds_is_not_wrapped_after_four_seconds():
    repair = settled_repair()
    times = [repair.stamp(n * 5_000_000_000, Fraction(1, 10**9), START_S + 5 * n).time_unix_s for n in range(4)]
    assert [round(time - START_S, 3) for time in times] == [0.0, 5.0, 10.0, 15.0]


def test_a_clock_that_starts_again_at_zero_is_followed_without_a_jump():
    repair = settled_repair()
    found = stamps(lambda n: 500_000_000 + n * 9000 if n < 10 else (n - 10) * 9000, count=20, repair=repair)
    assert since_start(found) == every_step(20)
    assert repair.num_timelines == 1
    # The first two of the new clock are not believed yet; the third is where it is taken up.
    assert [n for n, stamp in enumerate(found) if stamp.is_restamped] == [10, 11]


def test_a_clock_that_starts_again_during_an_outage_goes_on_at_the_time_of_arrival():
    gap = {n: 3.0 for n in range(5, 12)}
    found = stamps(lambda n: 90_000_000 + n * 9000 if n < 5 else n, count=12, delay_s=lambda n: gap.get(n, 0.0))
    assert since_start(found)[4:7] == [0.4, 3.5, 3.6]


@pytest.mark.parametrize("hours", [3, -3, 6.7, 12])
def test_a_single_frame_hours_off_is_stamped_by_its_arrival_and_the_rest_is_unharmed(hours):
    off = round(hours * 3600 * 90_000)
    found = stamps(lambda n: 10**9 + n * 9000 + (off if n == 4 else 0), count=8)
    assert since_start(found) == every_step(8)
    assert [stamp.is_restamped for stamp in found] == [False] * 4 + [True] + [False] * 3


def test_two_wild_frames_in_a_row_do_not_make_a_new_clock():
    wild = {4: 10**10, 5: 5 * 10**9}
    repair = settled_repair()
    assert since_start(stamps(lambda n: wild.get(n, n * 9000), count=8, repair=repair)) == every_step(8)
    assert repair.num_timelines == 0


def test_frames_without_a_stamp_are_placed_by_arrival_between_their_neighbours():
    found = stamps(lambda n: None if n in (2, 3) else n * 9000, count=6)
    assert since_start(found) == every_step(6)
    assert [stamp.is_restamped for stamp in found] == [False, False, True, True, False, False]


def test_a_camera_without_stamps_at_all_is_placed_by_arrival_once_that_is_clear():
    found = stamps(lambda n: None, count=5, repair=ClockRepair())
    assert since_start(found) == every_step(5)
    assert [stamp.is_settled for stamp in found] == [False, False, True, True, True]


def test_a_clock_that_stands_still_is_placed_by_arrival():
    found = stamps(lambda n: 4711, count=60, repair=ClockRepair())
    assert since_start(found) == every_step(60)
    assert found[-1].is_settled


def test_a_burst_at_the_join_is_not_settled_and_leaves_the_clock_right():
    # Frames 0..6 lay in a buffer and arrive together with frame 7; the others come as they are taken.
    found = stamps(lambda n: n * 9000, count=14, delay_s=lambda n: max(0, 7 - n) * STEP_S, repair=ClockRepair())
    assert [n for n, stamp in enumerate(found) if stamp.is_settled] == [11, 12, 13]
    assert since_start(found)[8:] == every_step(14)[8:]


def test_frames_sent_in_another_order_than_shown_keep_their_times():
    # One of four frames comes when it is taken; the three shown before it come after it, one by one.
    delay = {0: 0.0, 1: 0.4, 2: 0.4, 3: 0.4}
    found = stamps(lambda n: n * 9000, count=16, delay_s=lambda n: delay[n % 4], repair=ClockRepair())
    settled = [n for n, stamp in enumerate(found) if stamp.is_settled]
    assert settled[0] <= 8
    assert [since_start(found)[n] for n in settled] == [every_step(16)[n] for n in settled]


def test_a_camera_clock_that_is_slow_by_200_ppm_stays_tied_to_the_wall_clock():
    # After an hour such a clock is 0.72 s behind.
    repair = settled_repair()
    for n in range(36_000):
        stamp = repair.stamp(round(n * 9000 * (1 - 200e-6)), TICK, START_S + n * STEP_S)
    assert START_S + 3599.9 - 0.03 <= stamp.time_unix_s <= START_S + 3599.9


def test_a_wall_clock_set_back_begins_anew_at_the_lower_time():
    repair = settled_repair()
    repair.stamp(0, TICK, START_S)
    stamp = repair.stamp(9000, TICK, START_S - 3600 + 0.1)
    assert stamp.starts_anew and stamp.time_unix_s == START_S - 3600 + 0.1


def test_a_wall_clock_set_forward_is_followed():
    found = stamps(lambda n: n * 9000, count=6, delay_s=lambda n: 3600.0 if n >= 3 else 0.0)
    assert since_start(found)[3:] == [3600.3, 3600.4, 3600.5]
    assert not any(stamp.starts_anew for stamp in found)


def test_a_stall_after_which_all_frames_come_at_once_keeps_the_camera_times():
    # Frames 5..24 are stuck for up to two seconds and arrive together.
    found = stamps(lambda n: n * 9000, count=30, delay_s=lambda n: (24 - n) * STEP_S if 5 <= n <= 24 else 0.0)
    assert since_start(found) == every_step(30)


ticks_of_anything = st.one_of(st.none(), st.integers(0, WRAP * 3))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ticks_of_anything, st.floats(0, 2)), max_size=60), st.booleans())
def test_times_rise_strictly_and_are_never_after_arrival_whatever_comes(frames, is_settled):
    repair = settled_repair() if is_settled else ClockRepair()
    now_s, before_s = START_S, 0.0
    for count, (ticks, wait_s) in enumerate(frames):
        now_s += wait_s
        time_s = repair.stamp(ticks, TICK, now_s).time_unix_s
        assert time_s > before_s
        # Frames that arrive in the same instant are a microsecond apart.
        assert time_s <= now_s + 2e-6 * (count + 1)
        before_s = time_s


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, WRAP - 1),
    st.lists(st.integers(10, 90), max_size=6, unique=True),
    st.lists(st.floats(0, 0.09), min_size=100, max_size=100),
)
def test_strays_and_a_wrap_anywhere_change_no_other_time(first_ticks, strays, delays_s):
    strays = [n for n in strays if n - 1 not in strays]
    delays_s[0] = 0.0

    def ticks(n: int) -> int:
        return (first_ticks + n * 9000 + (n % 7 + 1) * 500_000_000 * (n in strays)) % WRAP

    found = stamps(ticks, count=100, delay_s=lambda n: delays_s[n])
    wrong = [n for n, time_s in enumerate(since_start(found)) if time_s != every_step(100)[n]]
    assert set(wrong) <= set(strays)
    assert all(abs(since_start(found)[n] - every_step(100)[n]) < STEP_S for n in strays)
