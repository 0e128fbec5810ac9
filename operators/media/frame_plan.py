"""Which frames of a source are wanted, and which packets must be decoded for them. Pure: numbers in, numbers out.

A packet's place is its number in the file's order of decoding, a frame's number is its place in the order of showing.
Where one packet does not stand for one frame there is no plan, and the reason is a text: decode everything then.
"""

from __future__ import annotations

import bisect
import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

NO_PTS = np.iinfo(np.int64).min
"""In a PacketTable: the time of this packet is not known."""
_UNKNOWN_FRAME_S = 1 / 25
"""How long a frame is shown where nothing says it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Which frames of a source make its clips."""

    kind: str = "whole"
    """whole: one clip, frames spread over everything. window: a clip every stride_s, each window_s long."""
    num_frames: int = 16
    num_focus_frames: int | None = None
    """Frames to focus on, chosen by the same rule apart from the glanced ones; None: the glanced ones."""
    seek: str = "exact"
    """exact: the frames that the rule names. keyframe: the keyframes nearest to them, which is far cheaper."""
    pad: str = "last"
    """What a video shorter than the sample repeats. last: its last frame, at the end. first: nothing but its
    first frame."""
    window_s: float = 10.0
    stride_s: float = 10.0

    def __post_init__(self) -> None:
        if self.kind not in ("whole", "window"):
            raise ValueError(f"kind must be whole or window, not {self.kind!r}")
        if self.seek not in ("exact", "keyframe"):
            raise ValueError(f"seek must be exact or keyframe, not {self.seek!r}")
        if self.pad not in ("last", "first"):
            raise ValueError(f"pad must be last or first, not {self.pad!r}")
        if self.num_frames < 1 or (self.num_focus_frames is not None and self.num_focus_frames < 1):
            raise ValueError(f"a sample has frames, not {self.num_frames} and {self.num_focus_frames}")
        if self.kind == "window" and not (self.window_s > 0 and self.stride_s > 0):
            raise ValueError(f"windows need positive seconds, not {self.window_s} every {self.stride_s}")


def sample_indices(num_frames_in_source: int, num_steps: int, pad: str = "last") -> np.ndarray:
    """int64 [num_steps]: the frames that the published validation rule takes out of `num_frames_in_source`."""
    n, steps = num_frames_in_source, num_steps
    if n < 1 or steps < 1:
        raise ValueError(f"cannot take {steps} frames out of {n}")
    if n > steps:
        # The published expression, in its order of operations: 300 frames and 16 steps give 9, 28, 46, ...
        return np.array([int(n / steps / 2 + n / steps * i) for i in range(steps)], np.int64)
    if pad == "first":
        # AdaFocus-TSM takes its frames by the rule only where there are more than it wants.
        return np.zeros(steps, np.int64)
    return np.minimum(np.arange(steps, dtype=np.int64), n - 1)


class Restart(enum.IntEnum):
    """What decoding can begin at a packet."""

    NONE = 0
    """Nothing, whatever the container says: an ordinary packet, or a keyframe that is none."""
    OPEN = 1
    """Everything that is shown after it; what is shown before it needs an earlier packet."""
    CLOSED = 2
    """Everything that follows."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PacketTable:
    """The packets of one stream, in the file's order. Arrays of one length."""

    pts: np.ndarray
    """int64, in the stream's time base; NO_PTS where unknown"""
    dts: np.ndarray
    """int64; NO_PTS where unknown"""
    pos: np.ndarray
    """int64: byte in the file, -1 where unknown"""
    restart: np.ndarray
    """int8: Restart"""
    is_shown: np.ndarray
    """bool: gives a frame. False for hidden reference frames and for what an edit list cuts away."""

    def __len__(self) -> int:
        return len(self.pts)

    def is_at(self, place: int, *, pts: int | None, dts: int | None, pos: int | None) -> bool:
        """Whether this is the packet at `place`: by pts if the table has it, as a demuxer may guess another dts."""
        if self.pts[place] != NO_PTS:
            return pts == int(self.pts[place])
        if self.pos[place] >= 0 and pos is not None and pos >= 0:
            return pos == int(self.pos[place])
        return dts is not None and dts == int(self.dts[place])

    def is_after(self, place: int, *, dts: int | None) -> bool:
        """Whether a packet of this dts lies behind the one at `place`, as far as that is known."""
        return dts is not None and self.dts[place] != NO_PTS and dts > int(self.dts[place])

    @property
    def num_frames(self) -> int:
        return int(np.count_nonzero(self.is_shown))


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Wanted frames that one packet governs: seek to it, hand over packets up to `stop`, drain the decoder."""

    first: int
    """Place of the packet where decoding begins."""
    stop: int
    """Place after the last packet that is handed to the decoder."""
    places: tuple[int, ...]
    """Places of the packets whose frames are wanted."""
    frames: tuple[int, ...]
    """Their frame numbers, ascending with the time of showing; as many."""


def irregularity(table: PacketTable) -> str | None:
    """Why the table cannot be trusted to have one packet per frame and times that order them; None if it can.

    Packets with unknown pts are taken to lie in groups of pictures that are not needed.
    """
    if len(table) == 0:
        return "no packets"
    if table.num_frames == 0:
        return "no packet is shown"
    if table.restart[0] == Restart.NONE:
        return "does not begin with a keyframe"
    starts = np.flatnonzero(table.restart)
    if table.pts[0] == NO_PTS:
        return "times are missing"
    latest = NO_PTS
    for begin, end in zip(starts, np.append(starts[1:], len(table)), strict=True):
        pts = table.pts[begin:end][table.is_shown[begin:end]]
        known = pts != NO_PTS
        if not known.any():
            latest = NO_PTS  # a group of pictures that was not read
            continue
        if not known.all() or table.pts[begin] == NO_PTS:
            return "times are missing"
        if len(np.unique(pts)) != len(pts):
            return "two frames have one time"
        low = int(pts.min())
        # A keyframe's group is shown after everything before it: only so can frames be numbered group by group.
        if latest != NO_PTS and low <= latest:
            return "times of two groups of pictures overlap"
        if low < table.pts[begin]:
            if begin == 0:
                return "frames are shown before the first keyframe"
            if table.restart[begin] == Restart.CLOSED:
                return "frames are shown before a keyframe that cuts them off"
        latest = int(pts.max())
    return None


def show_order(table: PacketTable, begin: int = 0, end: int | None = None) -> np.ndarray:
    """int64: places of the shown packets among begin..end, in the order of showing."""
    places = np.arange(begin, len(table) if end is None else end, dtype=np.int64)
    places = places[table.is_shown[places]]
    return places[np.argsort(table.pts[places], kind="stable")]


def frames_before(table: PacketTable) -> np.ndarray:
    """int64 [len + 1]: how many packets before each place are shown."""
    return np.concatenate([[0], np.cumsum(table.is_shown, dtype=np.int64)])


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


def known_ticks(table: PacketTable) -> np.ndarray:
    """int64 [len]: pts where all shown packets have one, else dts, else places.

    Sorted, the dts of a stream run beside its pts: as many, and as far apart.
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


_OUTLIER_STEPS = 100
"""Frames by which a time must leave the order of all others before it counts as damaged."""


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
    """How long one frame is shown, as far as the times of all can tell."""
    steps = np.diff(times)
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else _UNKNOWN_FRAME_S


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowPlan:
    """One clip before it is read: its time and the frame numbers that its steps show."""

    start_s: float
    end_s: float
    glance: np.ndarray
    """int64 [T]"""
    focus: np.ndarray
    """int64 [T']; the same array as `glance` where they do not differ"""

    @property
    def frames(self) -> np.ndarray:
        """int64: the distinct frame numbers, ascending."""
        return np.union1d(self.glance, self.focus)

    def showing(self, instead: dict[int, int]) -> WindowPlan:
        """The same clip with other frames in the place of its own."""
        glance = np.array([instead[frame] for frame in self.glance.tolist()], np.int64)
        focus = glance
        if self.focus is not self.glance:
            focus = np.array([instead[frame] for frame in self.focus.tolist()], np.int64)
        return replace(self, glance=glance, focus=focus)


def whole_plan(num_frames: int, duration_s: float, sampling: Sampling) -> WindowPlan:
    """The one clip of a source of `num_frames` frames."""
    glance = sample_indices(num_frames, sampling.num_frames, sampling.pad)
    focus = glance
    if sampling.num_focus_frames is not None:
        focus = sample_indices(num_frames, sampling.num_focus_frames, sampling.pad)
    return WindowPlan(start_s=0.0, end_s=duration_s, glance=glance, focus=focus)


def window_plans(
    times: np.ndarray, duration_s: float, sampling: Sampling, first_window: int = 0
) -> Iterator[WindowPlan]:
    """The clips of a source whose frames are shown at `times`, float64 seconds, never falling."""
    beyond = max(0.0, duration_s - sampling.window_s) / sampling.stride_s
    # A hair of rounding must not make a window of nothing.
    count = 1 + math.ceil(beyond - 1e-9)
    for k in range(first_window, count):
        start_s = k * sampling.stride_s
        end_s = min(start_s + sampling.window_s, duration_s)
        begin, end = np.searchsorted(times, [start_s - 1e-9, end_s - 1e-9])
        if k == 0:
            begin = 0
        if end <= begin:
            # Nothing begins in here: the frame that is still on the screen is what there is to see.
            begin = max(int(begin) - 1, 0)
            end = begin + 1
        inner = whole_plan(int(end - begin), 0.0, sampling)
        glance = inner.glance + begin
        focus = glance if inner.focus is inner.glance else inner.focus + begin
        yield WindowPlan(start_s=start_s, end_s=end_s, glance=glance, focus=focus)
