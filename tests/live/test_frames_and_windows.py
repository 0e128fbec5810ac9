"""Frames are taken by time, windows never span a gap, the oldest goes first and every camera has its turn."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.live.frames_and_windows import CutWindow, FairBuffer, FrameSampler, GridPlace, WindowCutter

START_S = 1_700_000_000.0


def taken(sampler: FrameSampler, times_s: list[float], lost_before: tuple[float, ...] = ()) -> dict[float, GridPlace]:
    """Time of a frame since the start -> its place, of those that are taken."""
    places = {time_s: sampler.take(START_S + time_s, after_loss=time_s in lost_before) for time_s in times_s}
    return {time_s: place for time_s, place in places.items() if place is not None}


def ticks(places: dict[float, GridPlace]) -> dict[float, int]:
    return {time_s: place.tick for time_s, place in places.items()}


def at_fps(fps: float, count: int) -> list[float]:
    return [n / fps for n in range(count)]


def test_of_15_frames_a_second_the_first_at_or_after_each_quarter_is_taken():
    frames = at_fps(15, 16)
    # Ticks at 0, 0.25, 0.5, 0.75, 1: frames 0, 4 (0.267), 8 (0.533), 12 (0.8; frame 11 at 0.733 is early by 17 ms,
    # which is taken), 15.
    assert ticks(taken(FrameSampler(analysis_fps=4), frames)) == {
        frames[0]: 0,
        frames[4]: 1,
        frames[8]: 2,
        frames[11]: 3,
        frames[15]: 4,
    }


def test_a_camera_as_fast_as_the_grid_has_every_frame_taken_although_its_times_tremble():
    frames = [n / 4 + (0.01 if n % 2 else -0.01) * (n > 0) for n in range(20)]
    assert list(ticks(taken(FrameSampler(analysis_fps=4), frames)).values()) == list(range(20))


def test_a_camera_slower_than_the_grid_leaves_ticks_out_and_that_is_no_gap():
    places = taken(FrameSampler(analysis_fps=4, gap_s=1.0), at_fps(2, 5))
    assert list(ticks(places).values()) == [0, 2, 4, 6, 8]
    assert {place.segment_start_s for place in places.values()} == {START_S}


def test_a_gap_starts_a_segment_with_the_first_frame_after_it():
    places = taken(FrameSampler(analysis_fps=4, gap_s=1.0), [0.0, 0.25, 0.5, 1.6, 1.85])
    assert places[1.6] == GridPlace(segment_start_s=START_S + 1.6, tick=0)
    assert places[1.85] == GridPlace(segment_start_s=START_S + 1.6, tick=1)


def test_a_loss_that_cost_a_tick_is_a_gap():
    places = taken(FrameSampler(analysis_fps=4), [0.0, 0.25, 0.8, 1.05], lost_before=(0.8,))
    assert places[0.8] == GridPlace(segment_start_s=START_S + 0.8, tick=0)


def test_a_loss_between_two_ticks_is_none():
    places = taken(FrameSampler(analysis_fps=4), [0.0, 0.1, 0.24, 0.5], lost_before=(0.24,))
    assert ticks(places) == {0.0: 0, 0.24: 1, 0.5: 2}


def test_a_clock_that_starts_anew_starts_a_segment():
    sampler = FrameSampler(analysis_fps=4)
    sampler.take(START_S)
    assert sampler.take(START_S - 3600, starts_anew=True) == GridPlace(segment_start_s=START_S - 3600, tick=0)


def test_cameras_that_begin_at_one_moment_are_analysed_one_after_the_other():
    frames = at_fps(1000, 3000)
    taken_at = [list(taken(FrameSampler(analysis_fps=4, phase=i / 4), frames)) for i in range(4)]
    for i, times_s in enumerate(taken_at):
        for mine_s, first_s in zip(times_s[1:], taken_at[0][1:], strict=False):
            # The first segment begins on its tick with the first frame of all, the others a tenth of one before it.
            assert mine_s - first_s == pytest.approx(i / 16, abs=0.03)
        # A tick every quarter of three seconds, the first within the first of them.
        assert len(times_s) in (12, 13) and times_s[0] < 0.25


def test_a_segment_in_phase_begins_behind_a_gap_with_the_next_whole_tick():
    sampler = FrameSampler(analysis_fps=2, gap_s=1.0, phase=0.5)
    times_s = [0.0, 0.1, 0.2, 0.3, 0.7, 0.8, 2.0, 2.2, 2.4]
    places = taken(sampler, times_s)
    # Ticks of this phase lie at 0.25, 0.75, ...; 0.2 and 0.7 are a tenth of a tick early, which is taken.
    assert places == {
        0.2: GridPlace(segment_start_s=START_S + 0.2, tick=0),
        0.7: GridPlace(segment_start_s=START_S + 0.2, tick=1),
        2.2: GridPlace(segment_start_s=START_S + 2.2, tick=0),
    }


def test_a_segment_begins_however_often_a_camera_stalls_before_its_tick():
    # The tick of this phase lies at 0.8 of each second: the camera is never there then.
    times_s = [second + n / 15 for second in range(0, 20, 2) for n in range(9)]
    places = taken(FrameSampler(analysis_fps=1, gap_s=1.0, phase=0.8), times_s)
    assert ticks(places) == {float(second): 0 for second in range(2, 20, 4)}


def test_a_phase_is_a_share_of_a_tick():
    with pytest.raises(ValueError, match=r"phase must be in \[0,1\), not 1"):
        FrameSampler(analysis_fps=4, phase=1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0.001, 2.0), min_size=1, max_size=100),
    st.sampled_from([1.0, 4.0, 7.5, 15.0]),
    st.none() | st.floats(0, 0.999),
)
def test_each_tick_is_taken_once_and_no_frame_lies_off_its_tick(gaps_s, fps, phase):
    sampler, now_s, seen = FrameSampler(analysis_fps=fps, gap_s=1.0, phase=phase), START_S, set()
    taken_s = START_S
    for gap_s in gaps_s:
        now_s += gap_s
        place = sampler.take(now_s)
        if place is not None:
            assert (place.segment_start_s, place.tick) not in seen
            seen.add((place.segment_start_s, place.tick))
            taken_s = now_s
            # At most a tenth of a tick early, and less than a tick late.
            assert -0.1001 <= (now_s - place.segment_start_s) * fps - place.tick <= 1.0
        # However frames come, one is taken again before long.
        assert now_s - taken_s <= 2 / fps + 2 * max(gaps_s)


def cut(cutter: WindowCutter[int], numbers: list[int], start_s: float = START_S) -> list[CutWindow[int]]:
    """The windows after frames with these ticks, whose keys are the ticks."""
    return [window for tick in numbers for window in cutter.push(segment_start_s=start_s, tick=tick, key=tick)]


def cutter(fps: float = 4, window_s: float = 1, stride_s: float = 0.5) -> WindowCutter[int]:
    return WindowCutter(analysis_fps=fps, window_s=window_s, stride_s=stride_s)


def test_windows_of_a_second_every_half_second():
    windows = cut(cutter(), list(range(8)))
    assert [window.keys for window in windows] == [(0, 1, 2, 3), (2, 3, 4, 5), (4, 5, 6, 7)]
    assert [(window.start_s - START_S, window.end_s - START_S) for window in windows] == [(0, 1), (0.5, 1.5), (1, 2)]


def test_a_window_is_complete_with_its_last_frame():
    one = cutter()
    assert cut(one, [0, 1, 2]) == []
    assert [window.keys for window in cut(one, [3])] == [(0, 1, 2, 3)]


def test_what_a_frame_costs_counts_in_the_first_window_that_has_it():
    assert [window.num_fresh for window in cut(cutter(), list(range(10)))] == [4, 2, 2, 2]


def test_a_dropped_frame_lowers_the_coverage_and_holds_nothing_up():
    windows = cut(cutter(), [0, 1, 2, 4, 5])
    assert [window.keys for window in windows] == [(0, 1, 2), (2, 4, 5)]
    assert [window.coverage for window in windows] == [0.75, 0.75]
    assert [window.num_fresh for window in windows] == [3, 2]


def test_a_window_whose_frames_were_all_dropped_is_not_made():
    windows = cut(cutter(stride_s=1), [0, 1, 2, 3, 8, 9, 10, 11])
    assert [window.start_s - START_S for window in windows] == [0, 2]


def test_a_window_that_a_gap_cuts_off_is_not_made_and_the_next_segment_begins_its_own():
    one = cutter()
    assert cut(one, [0, 1, 2]) == []
    windows = cut(one, [0, 1, 2, 3], start_s=START_S + 60)
    assert [(window.start_s, window.keys) for window in windows] == [(START_S + 60, (0, 1, 2, 3))]


def test_frames_are_forgotten_when_no_window_can_ask_for_them_any_more():
    one = cutter()
    cut(one, [0, 1, 2, 3])
    assert one.forget() == [0, 1]
    cut(one, [4])
    assert one.forget() == []
    cut(one, [0], start_s=START_S + 60)
    assert one.forget() == [2, 3, 4]


def test_windows_further_apart_than_they_are_long_leave_frames_out():
    one = cutter(window_s=0.5, stride_s=1)
    assert [window.keys for window in cut(one, list(range(8)))] == [(0, 1), (4, 5)]
    assert one.forget() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_stride_shorter_than_a_tick_is_refused():
    with pytest.raises(ValueError, match="shorter than a tick"):
        cutter(fps=4, stride_s=0.2)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 24),
    st.integers(1, 24),
    st.lists(st.booleans(), min_size=1, max_size=80),
)
def test_every_window_is_cut_once_from_exactly_its_ticks(fps, window_ticks, stride_ticks, is_there):
    one = cutter(fps=fps, window_s=window_ticks / fps, stride_s=stride_ticks / fps)
    there = [tick for tick, here in enumerate(is_there) if here]
    windows = cut(one, there)
    expected = []
    for first in range(0, len(is_there), stride_ticks):
        stop = first + window_ticks
        if there and there[-1] >= stop - 1:
            expected.append(tuple(tick for tick in there if first <= tick < stop))
    assert [window.keys for window in windows] == [keys for keys in expected if keys]
    fresh = [key for window in windows for key in window.keys[len(window.keys) - window.num_fresh :]]
    assert fresh == sorted(set(key for window in windows for key in window.keys))


def test_beyond_its_capacity_a_camera_loses_its_oldest_frame():
    buffer: FairBuffer[int] = FairBuffer(capacity=2)
    assert [buffer.put("a", n) for n in range(4)] == [None, None, 0, 1]
    assert buffer.put("b", 9) is None
    assert buffer.take(9) == [("a", 2), ("b", 9), ("a", 3)]


def test_cameras_take_turns_over_several_calls():
    buffer: FairBuffer[int] = FairBuffer(capacity=9)
    for n in range(3):
        for camera in "abc":
            buffer.put(camera, n)
    assert [[camera for camera, _ in buffer.take(2)] for _ in range(5)] == [
        ["a", "b"],
        ["c", "a"],
        ["b", "c"],
        ["a", "b"],
        ["c"],
    ]


def test_a_camera_with_little_does_not_wait_behind_one_with_much():
    buffer: FairBuffer[int] = FairBuffer(capacity=100)
    for n in range(100):
        buffer.put("busy", n)
    buffer.take(10)
    buffer.put("quiet", 0)
    assert ("quiet", 0) in buffer.take(2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from("abc"), st.integers(1, 4)), max_size=100))
def test_each_frame_is_taken_once_or_dropped_once_in_order_and_shares_differ_by_at_most_one(steps):
    buffer: FairBuffer[int] = FairBuffer(capacity=3)
    put: dict[str, list[int]] = {name: [] for name in "abc"}
    gone: dict[str, list[int]] = {name: [] for name in "abc"}
    for number, one in enumerate(steps):
        if isinstance(one, str):
            put[one].append(number)
            dropped = buffer.put(one, number)
            if dropped is not None:
                gone[one].append(dropped)
        else:
            before = buffer.sizes()
            served = buffer.take(one)
            assert len(served) == min(one, sum(before.values()))
            counts = {name: sum(camera == name for camera, _ in served) for name in before}
            left = [name for name in before if buffer.sizes()[name] > 0]
            # Who still has something waiting was served at most one time less than anybody.
            assert all(counts[name] >= max(counts.values()) - 1 for name in left)
            for camera, item in served:
                gone[camera].append(item)
    for camera, item in buffer.take(1000):
        gone[camera].append(item)
    assert gone == put
