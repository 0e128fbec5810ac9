"""The times at which frames are shown, repaired where they are damaged. Pure: numbers in, numbers out."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from operators.media.packet_table import NO_PTS, PacketTable

_UNKNOWN_FRAME_S = 1 / 25
"""The time that a frame is shown where it is not known: that of an ordinary video."""
_OUTLIER_STEPS = 100
"""Frames by which a time must leave the order of all others before it counts as damaged."""


def known_ticks(table: PacketTable) -> np.ndarray:
    """int64 [len]: pts where all shown packets have one, else dts, else places.

    The dts of a stream, sorted, are as many as its pts and as far apart.
    """
    for ticks in (table.pts, table.dts):
        if not np.any(ticks[table.is_shown] == NO_PTS):
            return ticks
    return np.arange(len(table), dtype=np.int64)


def table_times(table: PacketTable, seconds_per_tick: float) -> tuple[np.ndarray, float]:
    """(float64 [num_frames]: times in the order of showing, 0 first; how long the stream lasts)."""
    ticks = known_ticks(table)
    if ticks is not table.pts and ticks is not table.dts:
        seconds_per_tick = _UNKNOWN_FRAME_S
    times = np.sort(ticks[table.is_shown])
    times = (times - times[0]) * seconds_per_tick
    return times, float(times[-1]) + frame_seconds(times)


def monotone_seconds(pts: Sequence[int | None], seconds_per_tick: float) -> np.ndarray:
    """float64: times of frames in the decoder's order, 0 for the first, never falling; unknown ones are filled in.

    The order counts and the times are repaired: sorted, so that times which were merely swapped all survive, after
    those that damage has sent hours away were taken out.
    """
    places = np.array([i for i, value in enumerate(pts) if value is not None], np.int64)
    if not len(places):
        return np.arange(len(pts)) * _UNKNOWN_FRAME_S
    known = np.array([float(value) for value in pts if value is not None])
    slopes = np.diff(known) / np.diff(places)
    slopes = slopes[slopes > 0]
    step = float(np.median(slopes)) if len(slopes) else _UNKNOWN_FRAME_S / seconds_per_tick
    rising = _longest_rise(known)
    if len(rising) < len(known):
        expected = _fill(places[rising], known[rising], places, step)
        sound = np.abs(known - expected) <= _OUTLIER_STEPS * step
        places, known = places[sound], known[sound]
    times = np.sort(_fill(places, known, np.arange(len(pts)), step))
    return (times - times[0]) * seconds_per_tick


def _fill(places: np.ndarray, times: np.ndarray, wanted: np.ndarray, step: float) -> np.ndarray:
    """Times at the wanted places: in between the known ones, and a step per place beyond them."""
    inner = np.interp(wanted, places, times)
    beyond = np.minimum(wanted - places[0], 0) + np.maximum(wanted - places[-1], 0)
    return inner + beyond * step


def _longest_rise(values: np.ndarray) -> np.ndarray:
    """int64: places of a longest subsequence that never falls. What is not in it is out of order."""
    if np.all(np.diff(values) >= 0):
        return np.arange(len(values))
    tails: list[float] = []
    ends: list[int] = []
    before = np.full(len(values), -1, np.int64)
    for place, value in enumerate(values.tolist()):
        length = bisect.bisect_right(tails, value)
        if length:
            before[place] = ends[length - 1]
        if length == len(tails):
            tails.append(value)
            ends.append(place)
        else:
            tails[length] = value
            ends[length] = place
    chain = [ends[-1]]
    while before[chain[-1]] >= 0:
        chain.append(int(before[chain[-1]]))
    return np.array(chain[::-1], np.int64)


def frame_seconds(times: np.ndarray) -> float:
    """The seconds that one frame is shown: the median step of all times."""
    steps = np.diff(times)
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else _UNKNOWN_FRAME_S
