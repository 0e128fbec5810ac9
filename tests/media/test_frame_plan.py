"""Packets are planned for the wanted frames, and frames have their times, on tables written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from operators.media.frame_plan import Group, decode_plan, groups_of_pictures, keyframe_plan
from operators.media.frame_times import monotone_seconds, table_times
from operators.media.packet_table import NO_PTS, PacketTable, Restart, irregularity, show_order

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
