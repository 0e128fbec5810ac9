"""Chooses the frames of a camera that are analysed, the windows that they make, and the camera whose turn it is.

All of it is pure. A segment is a stretch of a stream without a gap; its tick j lies at its start + j / analysis_fps.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key")

_EARLY_TICKS = 0.1
"""A frame this much before its tick is taken for it: a camera as fast as the grid would else slip now and then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridPlace:
    """A frame's place on the grid of analysis."""

    segment_start_s: float
    tick: int


class FrameSampler:
    """Takes frames by time: for each tick the first frame that is there. Never by counting frames."""

    def __init__(self, *, analysis_fps: float, gap_s: float = 1.0, phase: float | None = None) -> None:
        """`gap_s`: good frames further apart than this have a gap between them; so have frames between which others
        were lost or broken, if that cost a tick.

        `phase`: a segment begins with the first frame that is this share of a tick behind a whole tick of Unix time, so
        that cameras with phases of their own are not all analysed at one moment. None: with the first frame.
        """
        if analysis_fps <= 0 or gap_s <= 0:
            raise ValueError(f"analysis_fps and gap_s must be positive, not {analysis_fps} and {gap_s}")
        if phase is not None and not 0 <= phase < 1:
            raise ValueError(f"phase must be in [0,1), not {phase}")
        self._analysis_fps = analysis_fps
        self._gap_s = gap_s
        self._phase = phase
        self._begin_s: float | None = None
        """The next segment begins here; None where there is one."""
        self._start_s = 0.0
        self._last_s: float | None = None
        self._next_tick = 0
        self._has_loss = False

    def take(self, time_s: float, *, after_loss: bool = False, starts_anew: bool = False) -> GridPlace | None:
        """The place of the next good frame; None where its tick has been taken already.

        `after_loss`: frames were lost or dropped as broken since the last call. `starts_anew`: the clock did.
        """
        last_s, self._last_s = self._last_s, time_s
        if last_s is None or starts_anew or time_s <= last_s:
            return self._begin(time_s)
        if self._begin_s is not None:
            # No gap can cut off what has not begun.
            return self._begin(time_s, self._begin_s)
        if time_s - last_s > self._gap_s:
            return self._begin(time_s)
        tick = math.floor((time_s - self._start_s) * self._analysis_fps + _EARLY_TICKS)
        self._has_loss = self._has_loss or after_loss
        if self._has_loss and tick > self._next_tick:
            return self._begin(time_s)
        self._has_loss = False
        if tick < self._next_tick:
            return None
        self._next_tick = tick + 1
        return GridPlace(segment_start_s=self._start_s, tick=tick)

    def _begin(self, time_s: float, begin_s: float | None = None) -> GridPlace | None:
        """A segment with this frame, unless it is to begin later: then at `begin_s`, or at the next moment in phase."""
        if begin_s is None:
            begin_s = time_s if self._phase is None else self._next_in_phase_s(time_s, self._phase)
        if time_s < begin_s - _EARLY_TICKS / self._analysis_fps:
            self._begin_s = begin_s
            return None
        self._begin_s = None
        self._start_s, self._next_tick, self._has_loss = time_s, 1, False
        return GridPlace(segment_start_s=time_s, tick=0)

    def _next_in_phase_s(self, time_s: float, phase: float) -> float:
        ticks = math.ceil(time_s * self._analysis_fps - phase - _EARLY_TICKS)
        return (ticks + phase) / self._analysis_fps


@dataclass(frozen=True, kw_only=True, slots=True)
class CutWindow(Generic[Key]):
    """A window that is complete: [start_s, end_s) of one segment."""

    start_s: float
    end_s: float
    keys: tuple[Key, ...]
    """The keys of the frames that were analysed, in the order of time."""
    num_fresh: int
    """The number of keys, at the end, that were in no window before: what they cost counts here."""
    coverage: float
    """The share of the window's ticks that have a frame."""


class WindowCutter(Generic[Key]):
    """Cuts a camera's analysed frames into windows of `window_s`, one every `stride_s` of a segment.

    A window is complete with the frame of its last tick, so that its label need not wait for the next frame. A window
    that a gap cuts off is not made.
    """

    def __init__(self, *, analysis_fps: float, window_s: float, stride_s: float) -> None:
        self._fps = Fraction(analysis_fps).limit_denominator(10_000)
        self._window = Fraction(window_s).limit_denominator(10_000)
        self._stride = Fraction(stride_s).limit_denominator(10_000)
        if self._fps <= 0 or self._window <= 0:
            raise ValueError(f"analysis_fps and window_s must be positive, not {analysis_fps} and {window_s}")
        if self._stride * self._fps < 1:
            raise ValueError(f"stride_s={stride_s} is shorter than a tick at analysis_fps={analysis_fps}")
        self._start_s: float | None = None
        self._window_index = 0
        self._frames: deque[tuple[int, Key]] = deque()
        self._seen_tick = 0
        """Ticks before this one were in a window already."""
        self._unwanted: list[Key] = []

    def push(self, *, segment_start_s: float, tick: int, key: Key) -> list[CutWindow[Key]]:
        """The windows that the next frame completes. Within a segment ticks must rise."""
        if segment_start_s != self._start_s:
            self._begin(segment_start_s)
        elif self._frames and tick <= self._frames[-1][0]:
            raise ValueError(f"tick {tick} after tick {self._frames[-1][0]}")
        windows = []
        # Windows whose last tick has no frame are complete as soon as a later one comes.
        while self._stop_tick() <= tick:
            windows.append(self._cut())
        self._frames.append((tick, key))
        if self._stop_tick() == tick + 1:
            windows.append(self._cut())
        self._release()
        return [window for window in windows if window is not None]

    def forget(self) -> list[Key]:
        """The keys, since the last call, that no window can ask for any more."""
        unwanted, self._unwanted = self._unwanted, []
        return unwanted

    def close(self) -> None:
        """The stream has ended here: what is not complete never will be."""
        self._unwanted.extend(key for _, key in self._frames)
        self._frames.clear()
        self._start_s = None

    def _begin(self, segment_start_s: float) -> None:
        self.close()
        self._start_s, self._window_index, self._seen_tick = segment_start_s, 0, 0

    def _start_tick(self) -> int:
        return math.ceil(self._window_index * self._stride * self._fps)

    def _stop_tick(self) -> int:
        return math.ceil((self._window_index * self._stride + self._window) * self._fps)

    def _cut(self) -> CutWindow[Key] | None:
        start_tick, stop_tick = self._start_tick(), self._stop_tick()
        begin = self._window_index * self._stride
        self._window_index += 1
        inside = [(tick, key) for tick, key in self._frames if start_tick <= tick < stop_tick]
        fresh = sum(tick >= self._seen_tick for tick, _ in inside)
        self._seen_tick = max(self._seen_tick, stop_tick)
        self._release()
        if not inside:
            return None
        assert self._start_s is not None
        return CutWindow(
            start_s=self._start_s + float(begin),
            end_s=self._start_s + float(begin + self._window),
            keys=tuple(key for _, key in inside),
            num_fresh=fresh,
            coverage=len(inside) / (stop_tick - start_tick),
        )

    def _release(self) -> None:
        while self._frames and self._frames[0][0] < self._start_tick():
            self._unwanted.append(self._frames.popleft()[1])


class FairBuffer(Generic[Item]):
    """Holds what waits to be analysed: at most `capacity` frames of each camera, the newest ones.

    Being behind shows nowhere but in how full it is. Cameras take turns, so that one with much waiting does not
    delay the others.
    """

    def __init__(self, *, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self._capacity = capacity
        self._waiting: dict[str, deque[Item]] = {}
        """The cameras are in the order of their turns: one that was served moves to the end."""

    def put(self, camera: str, item: Item) -> Item | None:
        """Adds a camera's newest; returns its oldest where that had to go."""
        waiting = self._waiting.setdefault(camera, deque())
        waiting.append(item)
        return waiting.popleft() if len(waiting) > self._capacity else None

    def take(self, limit: int) -> list[tuple[str, Item]]:
        """The next items, one camera after the other, of each the oldest first."""
        taken: list[tuple[str, Item]] = []
        while len(taken) < limit:
            camera = next((name for name, waiting in self._waiting.items() if waiting), None)
            if camera is None:
                break
            waiting = self._waiting.pop(camera)
            taken.append((camera, waiting.popleft()))
            self._waiting[camera] = waiting
        return taken

    def sizes(self) -> dict[str, int]:
        return {camera: len(waiting) for camera, waiting in self._waiting.items()}

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._waiting.values())
