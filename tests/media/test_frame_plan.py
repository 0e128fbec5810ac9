"""Which frames are wanted and which packets that takes, on tables written by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.media.frame_plan import Group, decode_plan, groups_of_pictures, keyframe_plan
from operators.media.frame_times import monotone_seconds, table_times
from operators.media.packet_table import NO_PTS, PacketTable, Restart, irregularity, show_order
from operators.media.sampling import SamplingRule, sample_indices, whole_plan, window_plans

OPEN, CLOSED = Restart.OPEN, Restart.CLOSED


def packets(*pts: int | None, keys: dict[int, Restart] | None = None, hidden: tuple[int, ...] = ()) -> PacketTable:
    """A table with these times of showing, in the order of decoding; the first packet is a keyframe."""
    starts = {0: CLOSED} if keys is None else keys
    return PacketTable(
        pts=np.array([NO_PTS if value is None else value for value in pts], np.int64),
        dts=np.arange(len(pts), dtype=np.int64) - 2,
        pos=np.arange(len(pts), dtype=np.int64) * 1000,
        restart=np.array([starts.get(i, Restart.NONE) for i in range(len(pts))], np.int8),
        is_shown=np.array([i not in hidden for i in range(len(pts))]),
    )


def i_p_b_b(num_groups: int, *, kind: Restart = CLOSED) -> PacketTable:
    """Groups of I P B B, decoded in that order, shown I B B P."""
    pts = [group * 4 + shown for group in range(num_groups) for shown in (0, 3, 1, 2)]
    return packets(*pts, keys={group * 4: kind if group else CLOSED for group in range(num_groups)})


def open_groups() -> PacketTable:
    """I P B B, then I B B P B B: the second keyframe's first B frames are shown before it."""
    #       I  P  B  B  I  B  B  P  B  B
    return packets(0, 3, 1, 2, 6, 4, 5, 9, 7, 8, keys={0: CLOSED, 4: OPEN})


# Which frames


def test_frames_are_spread_by_the_published_rule():
    published = [10, 29, 47, 66, 85, 104, 122, 141, 160, 179, 197, 216, 235, 254, 272, 291]  # counted from 1
    assert (sample_indices(300, 16) + 1).tolist() == published


def test_a_short_video_repeats_its_last_frame_at_the_end():
    assert sample_indices(10, 16).tolist() == [*range(10), 9, 9, 9, 9, 9, 9]
    assert sample_indices(16, 16).tolist() == list(range(16))
    assert sample_indices(1, 3).tolist() == [0, 0, 0]


def test_a_short_video_repeats_its_first_frame_where_the_model_was_trained_so():
    assert sample_indices(8, 8, "first").tolist() == [0] * 8
    assert sample_indices(9, 8, "first").tolist() == [
        0,
        1,
        2,
        3,
        5,
        6,
        7,
        8,
    ]  # 9/8/2 = 0.5625, then steps of 1.125


@given(st.integers(1, 5000), st.integers(1, 64))
def test_samples_never_leave_the_video_and_never_go_back(n, steps):
    indices = sample_indices(n, steps)
    assert len(indices) == steps
    assert indices[0] >= 0
    assert indices[-1] <= n - 1
    assert np.all(np.diff(indices) >= 0)


def test_glance_and_focus_are_sampled_apart():
    plan = whole_plan(24, 1.0, SamplingRule(num_frames=8, num_focus_frames=12))
    assert plan.glance.tolist() == [1, 4, 7, 10, 13, 16, 19, 22]  # 24/8/2 = 1.5, then steps of 3
    assert plan.focus.tolist() == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    assert plan.frames.tolist() == [1, 3, 4, 5, 7, 9, 10, 11, 13, 15, 16, 17, 19, 21, 22, 23]


def test_without_a_second_sample_focus_is_the_glance():
    plan = whole_plan(24, 1.0, SamplingRule(num_frames=8))
    assert plan.focus is plan.glance


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "all"},
        {"seek": "fast"},
        {"pad": "zero"},
        {"num_frames": 0},
        {"kind": "window", "stride_s": 0.0},
    ],
)
def test_a_sampling_that_cannot_be_is_a_bug(wrong):
    with pytest.raises(ValueError):
        SamplingRule(**wrong)


# Windows


def windows(duration_s: float, window_s: float, stride_s: float, first: int = 0, fps: int = 10):
    sampling = SamplingRule(kind="window", num_frames=2, window_s=window_s, stride_s=stride_s)
    times = np.arange(round(duration_s * fps)) / fps
    return list(window_plans(times, duration_s, sampling, first))


def test_windows_start_at_every_stride_and_the_last_is_cut_short():
    spans = [(plan.start_s, plan.end_s) for plan in windows(25.0, 10.0, 10.0)]
    assert spans == [(0.0, 10.0), (10.0, 20.0), (20.0, 25.0)]


def test_a_video_as_long_as_whole_windows_has_no_empty_one():
    assert len(windows(20.0, 10.0, 10.0)) == 2


def test_a_video_shorter_than_a_window_is_one():
    assert [(plan.start_s, plan.end_s) for plan in windows(3.0, 10.0, 5.0)] == [(0.0, 3.0)]


def test_overlapping_windows_share_frames():
    first, second, _ = windows(4.0, 2.0, 1.0)
    # 20 frames each: 20/2/2 = 5, then 15; the second begins at frame 10.
    assert first.glance.tolist() == [5, 15]
    assert second.glance.tolist() == [15, 25]


def test_windows_that_were_done_before_are_left_out():
    assert [plan.start_s for plan in windows(40.0, 10.0, 10.0, first=2)] == [20.0, 30.0]


def test_a_window_in_which_no_frame_begins_shows_the_one_that_still_stands():
    times = np.array([0.0, 1.0, 9.0])
    plans = list(window_plans(times, 10.0, SamplingRule(kind="window", num_frames=1, window_s=2.0, stride_s=2.0)))
    assert [plan.glance.tolist() for plan in plans] == [[1], [1], [1], [1], [2]]


# Times


def test_swapped_times_of_reordered_frames_are_put_in_order():
    assert monotone_seconds([4, 8, 16, 12], 0.01).tolist() == pytest.approx([0.0, 0.04, 0.08, 0.12])


def test_unknown_times_are_filled_in_one_frame_apart():
    assert monotone_seconds([None, 2, None, None, 8, 10], 1.0).tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


def test_times_that_nobody_knows_are_those_of_an_ordinary_video():
    assert monotone_seconds([None, None, None], 1.0).tolist() == pytest.approx([0.0, 0.04, 0.08])


def test_a_single_frame_sent_hours_away_does_not_make_the_video_long():
    ticks: list[int | None] = list(range(100))
    for hours_away in (3_600_000, -3_600_000):
        ticks[50] = hours_away
        assert monotone_seconds(ticks, 1.0).tolist() == list(range(100))


def test_a_picture_that_stands_for_long_keeps_its_time():
    assert monotone_seconds([*range(100), 5000, 5001], 1.0)[-2:].tolist() == [5000.0, 5001.0]


def test_a_table_lasts_until_its_last_frame_has_been_shown():
    times, duration_s = table_times(i_p_b_b(3), 0.5)
    assert times.tolist() == [0.5 * i for i in range(12)]
    assert duration_s == 6.0


# Which packets


def test_a_frame_is_reached_from_its_keyframe_and_nothing_behind_it_is_decoded():
    # Frame 5 is the first B of the second group: packets I P B, places 4, 5, 6.
    assert decode_plan(i_p_b_b(4), [5]) == (Group(first=4, stop=7, places=(6,), frames=(5,)),)


def test_frames_of_one_group_need_one_seek():
    plan = decode_plan(i_p_b_b(4), [0, 2, 13, 15])
    assert plan == (
        Group(first=0, stop=4, places=(0, 3), frames=(0, 2)),
        Group(first=12, stop=15, places=(14, 13), frames=(13, 15)),
    )


def test_frames_shown_before_an_open_keyframe_are_reached_from_the_one_before():
    plan = decode_plan(open_groups(), [4, 6])
    assert plan == (
        Group(first=0, stop=6, places=(5,), frames=(4,)),
        Group(first=4, stop=5, places=(4,), frames=(6,)),
    )


def test_hidden_packets_are_not_counted_as_frames():
    # VP8 with a hidden reference at place 2.
    table = packets(0, 1, 1, 2, 3, 4, keys={0: CLOSED, 3: CLOSED}, hidden=(2,))
    assert irregularity(table) is None
    assert table.num_frames == 5
    assert decode_plan(table, [2, 4]) == (Group(first=3, stop=6, places=(3, 5), frames=(2, 4)),)


def test_every_frame_can_be_planned_and_is_planned_once():
    for table in (i_p_b_b(5), open_groups()):
        plan = decode_plan(table, range(table.num_frames))
        frames = [frame for group in plan for frame in group.frames]
        assert frames == list(range(table.num_frames))
        order = show_order(table)
        assert [place for group in plan for place in group.places] == order.tolist()


def test_only_the_groups_that_hold_wanted_frames_are_read_for_their_times():
    assert groups_of_pictures(i_p_b_b(6), [0, 9, 10]) == [(0, 4), (8, 12)]
    assert groups_of_pictures(i_p_b_b(6, kind=OPEN), [9]) == [(4, 8), (8, 12)]


def test_a_table_with_unread_groups_is_planned_as_the_whole_one_is():
    table = i_p_b_b(6)
    partly = PacketTable(
        pts=np.where((np.arange(24) < 4) | (np.arange(24) // 4 == 3), table.pts, NO_PTS),
        dts=table.dts,
        pos=table.pos,
        restart=table.restart,
        is_shown=table.is_shown,
    )
    assert irregularity(partly) is None
    assert decode_plan(partly, [0, 13]) == decode_plan(table, [0, 13])


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (packets(), "no packets"),
        (packets(0, 1, 2, hidden=(0, 1, 2)), "no packet is shown"),
        (packets(0, 1, 2, keys={1: CLOSED}), "begin with a keyframe"),
        (packets(0, None, 2), "times are missing"),
        (packets(None, 1, 2), "times are missing"),
        (packets(0, 2, 2), "one time"),
        (packets(3, 1, 2), "before the first keyframe"),
        (packets(0, 1, 2, 4, 3, 5, keys={0: CLOSED, 3: CLOSED}), "cuts them off"),
        (packets(0, 5, 2, 3, 4, 6, keys={0: CLOSED, 3: CLOSED}), "overlap"),
    ],
)
def test_a_table_that_cannot_be_planned_with_says_why(table, reason):
    assert reason in (irregularity(table) or "regular")


@pytest.mark.parametrize("table", [i_p_b_b(3), i_p_b_b(3, kind=OPEN), open_groups()])
def test_ordinary_tables_are_regular(table):
    assert irregularity(table) is None


# Keyframes only


def test_the_nearest_keyframe_stands_for_a_frame():
    instead, groups = keyframe_plan(i_p_b_b(4), [1, 3, 7, 15])
    # Keyframes are frames 0, 4, 8, 12.
    assert instead == {1: 0, 3: 4, 7: 8, 15: 12}
    assert groups == (
        Group(first=0, stop=1, places=(0,), frames=(0,)),
        Group(first=4, stop=5, places=(4,), frames=(4,)),
        Group(first=8, stop=9, places=(8,), frames=(8,)),
        Group(first=12, stop=13, places=(12,), frames=(12,)),
    )


def test_of_two_keyframes_as_near_as_each_other_the_earlier_is_taken():
    instead, _ = keyframe_plan(i_p_b_b(4), [2, 6])
    assert instead == {2: 0, 6: 4}


def test_an_open_keyframe_has_its_number_in_the_order_of_showing():
    instead, groups = keyframe_plan(open_groups(), [7])
    assert instead == {7: 6}
    assert groups == (Group(first=4, stop=5, places=(4,), frames=(6,)),)


def test_keyframes_are_found_by_the_order_of_decoding_where_no_other_time_is_known():
    table = packets(*[None] * 12, keys={0: CLOSED, 4: CLOSED, 8: CLOSED})
    instead, _ = keyframe_plan(table, [1, 7])
    assert instead == {1: 0, 7: 8}


def test_a_table_without_keyframes_has_no_keyframe_plan():
    assert keyframe_plan(packets(0, 1, 2, keys={}), [0]) == ({}, ())


def test_shown_instead_keeps_the_two_samples_apart():
    plan = whole_plan(16, 1.0, SamplingRule(num_frames=2, num_focus_frames=4))
    shown = plan.showing({2: 0, 4: 4, 6: 4, 10: 12, 12: 12, 14: 12})
    assert plan.glance.tolist() == [4, 12]
    assert shown.glance.tolist() == [4, 12]
    assert shown.focus.tolist() == [0, 4, 12, 12]
