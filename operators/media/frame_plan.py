"""The packets that must be decoded for the wanted frames, in groups that begin at a keyframe. Pure: numbers in, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from operators.media.frame_times import known_ticks
from operators.media.packet_table import PacketTable, Restart, frames_before, show_order


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Wanted frames that are decoded from one packet on: seek to it, decode packets up to `stop`, drain the decoder."""

    first: int
    """Place of the packet where decoding begins."""
    stop: int
    """Place after the last packet that is handed to the decoder."""
    places: tuple[int, ...]
    """Places of the packets whose frames are wanted."""
    frames: tuple[int, ...]
    """Their frame numbers, ascending with the time of showing; as many."""


def groups_of_pictures(table: PacketTable, frames: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    """Places (begin, end) of the groups of pictures that hold these frame numbers, and of those before them that an
    open group needs; ascending, without repetition."""
    starts = np.flatnonzero(table.restart)
    ends = np.append(starts[1:], len(table))
    # Groups are shown one after another, so a group holds as many frame numbers as it has shown packets.
    stops = frames_before(table)[ends]
    needed: set[int] = set()
    for frame in frames:
        group = int(np.searchsorted(stops, frame, side="right"))
        needed.add(group)
        if group and table.restart[starts[group]] == Restart.OPEN:
            needed.add(group - 1)
    return [(int(starts[i]), int(ends[i])) for i in sorted(needed)]


def decode_plan(table: PacketTable, frames: Sequence[int] | np.ndarray) -> tuple[Group, ...]:
    """Groups that give these frame numbers, ascending and distinct. The table must be regular."""
    starts = np.flatnonzero(table.restart)
    before = frames_before(table)
    governed: dict[int, list[tuple[int, int]]] = {}
    spans = groups_of_pictures(table, frames)
    numbers = np.asarray(frames, np.int64)
    for begin, end in spans:
        here = numbers[(numbers >= before[begin]) & (numbers < before[end])]
        if not len(here):
            continue
        order = show_order(table, begin, end)
        for frame in here:
            place = int(order[frame - before[begin]])
            first = begin
            if table.pts[place] < table.pts[begin]:
                # Shown before its keyframe: it may refer to pictures of the group before.
                first = int(starts[np.searchsorted(starts, begin) - 1])
            governed.setdefault(first, []).append((int(frame), place))
    groups = []
    for first, wanted in sorted(governed.items()):
        wanted.sort()
        groups.append(
            Group(
                first=first,
                stop=max(place for _, place in wanted) + 1,
                places=tuple(place for _, place in wanted),
                frames=tuple(frame for frame, _ in wanted),
            )
        )
    return tuple(groups)


def keyframe_plan(
    table: PacketTable, frames: Sequence[int] | np.ndarray, *, packets_per_frame: int = 1
) -> tuple[dict[int, int], tuple[Group, ...]]:
    """({wanted frame: frame shown instead}, groups of one keyframe each): the keyframes nearest in time.

    Works on any table that has keyframes: where times are missing, places stand for them.
    """
    keys = np.flatnonzero((table.restart != Restart.NONE) & table.is_shown)
    if not len(keys):
        return {}, ()
    ticks = known_ticks(table)
    ordered = np.sort(ticks[table.is_shown])
    key_times = ticks[keys]
    numbers = np.searchsorted(ordered, key_times) if ticks is table.pts else frames_before(table)[keys]
    by_time = np.argsort(key_times, kind="stable")
    instead: dict[int, int] = {}
    chosen: dict[int, int] = {}
    for frame in frames:
        at = ordered[min(int(frame), len(ordered) - 1)]
        right = int(np.searchsorted(key_times[by_time], at))
        near = [i for i in (right - 1, right) if 0 <= i < len(by_time)]
        # Of two as near as each other, the earlier.
        best = int(by_time[min(near, key=lambda i: abs(int(key_times[by_time[i]]) - int(at)))])
        instead[int(frame)] = int(numbers[best])
        chosen[int(numbers[best])] = int(keys[best])
    groups = tuple(
        Group(
            first=place,
            stop=min(place + packets_per_frame, len(table)),
            places=(place,),
            frames=(frame,),
        )
        for frame, place in sorted(chosen.items())
    )
    return instead, groups
