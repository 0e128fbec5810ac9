"""A camera's time stamps become Unix times that can be relied on. Arrival times come in; no clock is read.

Camera clocks wrap (32 bits of 90 kHz last 13 h 15 min), start again at zero, drift, skip a stamp, or send a single
one that is hours off. What comes out is strictly increasing, keeps the camera's own spacing of frames, and lies
never after the frame's arrival.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

_WRAP_TICKS = 1 << 32
_LEAST_STEP_S = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    time_unix_s: float
    is_settled: bool = True
    """False at the join, while frames arrive that had been waiting somewhere: their times are not yet to be used."""
    is_restamped: bool = False
    """The frame's own stamp was missing or wrong; its time is made of its arrival."""
    starts_anew: bool = False
    """The wall clock was set back: times begin again, lower than those before."""


@dataclass(slots=True)
class _Stray:
    ticks: int
    received_s: float
    num_agreeing: int = 1


class ClockRepair:
    """Stamps the frames of one connection, in the order in which they are shown.

    The camera's clock plus an offset is Unix time. The offset is the least (arrival - camera's time) of the last
    half minute or so: the frame that waited least in networks and buffers. It falls at once, since no frame arrives
    before it is taken, and rises slowly enough that the spacing of frames keeps.
    """

    def __init__(
        self,
        *,
        max_late_s: float = 10.0,
        max_early_s: float = 0.1,
        settle_s: float = 2.0,
        num_settling: int = 4,
        num_agreeing: int = 3,
        least_over_s: float = 30.0,
        slew: float = 0.002,
    ) -> None:
        """A stamp that says that its frame was taken more than `max_late_s` before it arrived, or more than
        `max_early_s` after, is not believed, until `num_agreeing` in a row agree on one new clock.

        The join is over after `num_settling` frames in a row that came at their own pace, or after `settle_s`
        whatever came; 0 is for sources that are played at their own pace from the first frame on.
        """
        self._max_late_s = max_late_s
        self._max_early_s = max_early_s
        self._settle_s = settle_s
        self._num_settling = num_settling
        self._num_agreeing = num_agreeing
        self._least_over_s = least_over_s
        self._slew = slew
        self.num_timelines = 0
        """The camera's clock began anew so often."""
        self._forget()

    def _forget(self) -> None:
        self._is_settled = self._settle_s <= 0
        self._num_paced = self._num_missing = 0
        self._joined_s: float | None = None
        self._last: Stamp | None = None
        self._last_received_s = 0.0
        self._ticks: int | None = None
        self._media_s = 0.0
        """The camera's time at `_ticks`, counted from the start of the timeline."""
        self._offset_s = 0.0
        self._stray: _Stray | None = None
        self._bucket_start_s = 0.0
        self._bucket_least_s = self._previous_least_s = float("inf")

    def stamp(self, ticks: int | None, tick_s: Fraction, received_s: float) -> Stamp:
        """The time of the next frame: its own stamp in units of `tick_s`, or None, and its arrival in Unix time."""
        starts_anew = self._last is not None and received_s < self._last_received_s - 1.0
        if starts_anew:
            self._forget()
            self._is_settled = True
        if self._joined_s is None:
            self._joined_s = received_s
        time_s = None
        if ticks is None:
            self._num_missing += 1
            self._is_settled = self._is_settled or self._num_missing >= self._num_agreeing
        elif self._is_settled:
            time_s = self._stamp_settled(ticks, tick_s, received_s)
        else:
            time_s = self._stamp_joining(ticks, tick_s, received_s)
        is_restamped = time_s is None
        if time_s is None:
            time_s = self._by_arrival(received_s)
        if self._last is not None:
            time_s = max(time_s, self._last.time_unix_s + _LEAST_STEP_S)
        if not self._is_settled and received_s - self._joined_s > self._settle_s:
            self._is_settled = True
        stamp = Stamp(
            time_unix_s=time_s,
            is_settled=self._is_settled,
            is_restamped=is_restamped,
            starts_anew=starts_anew,
        )
        self._last, self._last_received_s = stamp, received_s
        return stamp

    def _by_arrival(self, received_s: float) -> float:
        if self._last is None:
            return received_s
        return min(received_s, self._last.time_unix_s + max(0.0, received_s - self._last_received_s))

    def _begin(self, ticks: int, time_s: float, received_s: float) -> float:
        """Begins a timeline on which `ticks` is `time_s`."""
        self._ticks, self._media_s, self._offset_s = ticks, 0.0, time_s
        self._bucket_start_s = received_s
        self._bucket_least_s, self._previous_least_s = received_s, float("inf")
        self._stray = None
        return time_s

    def _stamp_joining(self, ticks: int, tick_s: Fraction, received_s: float) -> float:
        """At the join frames may come in a burst. The clock is tied to those that come at their own pace.

        More than one is needed where frames are sent in another order than shown: a frame that others refer to
        comes first, and only it says how little a frame waits.
        """
        if self._ticks is None:
            return self._begin(ticks, received_s, received_s)
        step_s = _step(ticks - self._ticks, tick_s)
        if not 0.0 < step_s <= self._max_late_s:
            return self._begin(ticks, received_s, received_s)
        early_s = self._media_s + step_s + self._offset_s - received_s
        self._num_paced = self._num_paced + 1 if early_s <= step_s / 2 else 0
        self._is_settled = self._num_paced >= self._num_settling
        self._advance(ticks, step_s, received_s)
        return self._media_s + self._offset_s

    def _stamp_settled(self, ticks: int, tick_s: Fraction, received_s: float) -> float | None:
        if self._ticks is None:
            return self._begin(ticks, self._by_arrival(received_s), received_s)
        step_s = _step(ticks - self._ticks, tick_s)
        early_s = self._media_s + step_s + self._offset_s - received_s
        if step_s > 0.0 and -self._max_late_s <= early_s <= self._max_early_s:
            self._stray = None
            self._advance(ticks, step_s, received_s)
            return self._media_s + self._offset_s
        stray = self._stray
        if stray is not None:
            between_s = _step(ticks - stray.ticks, tick_s)
            agrees = between_s > 0.0 and abs(between_s - (received_s - stray.received_s)) < 1.0
            num = stray.num_agreeing + 1 if agrees else 1
            self._stray = _Stray(ticks, received_s, num)
            if num >= self._num_agreeing:
                self.num_timelines += 1
                return self._begin(ticks, self._by_arrival(received_s), received_s)
        else:
            self._stray = _Stray(ticks, received_s)
        return None

    def _advance(self, ticks: int, step_s: float, received_s: float) -> None:
        self._ticks, self._media_s = ticks, self._media_s + step_s
        least_s = received_s - self._media_s
        if received_s - self._bucket_start_s >= self._least_over_s:
            self._previous_least_s, self._bucket_least_s = self._bucket_least_s, least_s
            self._bucket_start_s = received_s
        self._bucket_least_s = min(self._bucket_least_s, least_s)
        rise_s = min(self._bucket_least_s, self._previous_least_s) - self._offset_s
        self._offset_s += min(rise_s, self._slew * step_s)


def _step(ticks: int, tick_s: Fraction) -> float:
    """Gives the seconds between two stamps. Clocks of 32 bits that last for an hour or more wrap."""
    if tick_s * _WRAP_TICKS > 3600:
        ticks = (ticks + _WRAP_TICKS // 2) % _WRAP_TICKS - _WRAP_TICKS // 2
    return float(ticks * tick_s)
