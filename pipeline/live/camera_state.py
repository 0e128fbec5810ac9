"""A live camera's state: when to open it, when to give it up, when to try again.

All of it is pure. Times come in as numbers, randomness as a number in [0,1); nothing waits, reads a clock or starts
anything. The actions are values that the live worker carries out.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace


class CameraState(enum.StrEnum):
    CONNECTING = "connecting"
    """A reader runs and has decoded nothing yet."""
    LIVE = "live"
    LOST = "lost"
    """The reader failed or fell silent; its process is being ended."""
    WAITING = "waiting"
    """No reader; it is not yet time to try again."""
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraLimits:
    """How long a run waits for a camera in each of its states, in seconds."""

    start_s: float = 30.0
    """A reader's process may take so long to be ready: on a busy machine that is longer than any camera takes."""
    open_s: float = 5.0
    """The first packet has to come so long after the reader was ready."""
    silence_s: float = 5.0
    """A camera may be so long without a decoded frame, or before its first frame without a packet."""
    keyframe_s: float = 30.0
    """The first frame has to be decoded so long after the reader was ready, while packets do come: a keyframe may be
    many seconds away."""
    backoff_s: float = 0.5
    """The first wait before a camera is opened again. Each further one is twice as long."""
    max_backoff_s: float = 30.0
    jitter: float = 0.5
    """The share of a wait that is random, so that cameras behind one switch do not all come back at once."""
    stable_s: float = 10.0
    """The earlier failures of a camera that has been live for so long are forgotten."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparing:
    """The reader's process is not ready yet: it has not begun to open the camera."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderProgress:
    """The present reader has received and decoded so much since it was opened."""

    num_packets: int
    num_decoded: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """The reader reports that the stream is over. After a final end nothing is to be opened again."""

    reason: str
    is_final: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Gone:
    """The reader's process is gone, and nothing of it is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """The camera is not wanted any more."""


Event = Preparing | ReaderProgress | Ended | Gone | Stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Open:
    """Start a reader."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """End the reader's process, and report when it is Gone. The action is repeated until then."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Do nothing before `until_s`, unless an event comes."""

    until_s: float


ReaderAction = Open | Kill | Wait


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraStatus:
    """Where a camera stands. A value: `step` makes the next one."""

    state: CameraState = CameraState.WAITING
    since_s: float = 0.0
    """When it came into this state."""
    retry_s: float = 0.0
    """When it is to be opened, while it is WAITING."""
    opened_s: float = 0.0
    """When the reader began to open it, as far as is known, while it is CONNECTING."""
    progress_s: float = 0.0
    """When the reader was last seen to get on: a packet before the first frame, a decoded frame after it."""
    num_packets: int = 0
    num_decoded: int = 0
    num_failures: int = 0
    """So many failures came in a row: the backoff goes by it."""
    num_connects: int = 0
    """It went live so often. All but the first time are reconnects."""
    num_misses: int = 0
    """It was opened in vain so often."""
    last_error: str | None = None
    """Why it was last lost. A stop replaces it only where the camera is live: else the reason is still the one why it
    is not."""
    is_stopping: bool = False

    @property
    def has_reader(self) -> bool:
        return self.state in (CameraState.CONNECTING, CameraState.LIVE, CameraState.LOST)

    @property
    def num_reconnects(self) -> int:
        return max(0, self.num_connects - 1)


def step(
    camera: CameraStatus, events: Iterable[Event], *, now_s: float, draw: float, limits: CameraLimits
) -> tuple[CameraStatus, ReaderAction]:
    """Takes in what happened and says what to do. `draw` in [0,1) is the randomness of a backoff, if one begins.

    A camera is opened again for ever, never twice at once: after a Kill nothing is opened before Gone.
    """
    for event in events:
        camera = _observe(camera, event, now_s, draw, limits)
    if camera.state is CameraState.STOPPED:
        return camera, Wait(until_s=math.inf)
    if camera.state is CameraState.WAITING:
        if now_s < camera.retry_s:
            return camera, Wait(until_s=camera.retry_s)
        return _opened(camera, now_s), Open()
    if camera.state is CameraState.LOST:
        return camera, Kill(reason=camera.last_error or "stopped")
    due_s, reason = _deadline(camera, limits)
    if now_s < due_s:
        return camera, Wait(until_s=due_s)
    camera = _lost(camera, reason, now_s)
    return camera, Kill(reason=reason)


def backoff_s(num_failures: int, draw: float, limits: CameraLimits) -> float:
    """Gives the wait after so many failures in a row: doubled each time up to the cap, less a random share."""
    doublings = min(max(num_failures - 1, 0), 64)
    longest_s = min(limits.max_backoff_s, limits.backoff_s * 2.0**doublings)
    return longest_s * (1.0 - limits.jitter * draw)


def _observe(camera: CameraStatus, event: Event, now_s: float, draw: float, limits: CameraLimits) -> CameraStatus:
    match event:
        case Preparing():
            if camera.state is CameraState.CONNECTING and now_s - camera.since_s < limits.start_s:
                return replace(camera, opened_s=now_s)
            return camera
        case ReaderProgress():
            return _progressed(camera, event, now_s, limits)
        case Ended():
            if camera.state in (CameraState.CONNECTING, CameraState.LIVE):
                camera = _lost(camera, event.reason, now_s)
                return replace(camera, is_stopping=camera.is_stopping or event.is_final)
            return camera
        case Gone():
            if not camera.has_reader:
                return camera
            if camera.state is not CameraState.LOST:
                camera = _lost(camera, "the reader's process died", now_s)
            if camera.is_stopping:
                return replace(camera, state=CameraState.STOPPED, since_s=now_s)
            wait_s = backoff_s(camera.num_failures, draw, limits)
            return replace(camera, state=CameraState.WAITING, since_s=now_s, retry_s=now_s + wait_s)
        case Stop():
            if camera.state is CameraState.LIVE:
                camera = replace(camera, state=CameraState.LOST, since_s=now_s, last_error="stopped")
            elif camera.state is CameraState.CONNECTING:
                camera = replace(camera, state=CameraState.LOST, since_s=now_s)
            elif camera.state is CameraState.WAITING:
                camera = replace(camera, state=CameraState.STOPPED, since_s=now_s)
            return replace(camera, is_stopping=True)


def _opened(camera: CameraStatus, now_s: float) -> CameraStatus:
    return replace(
        camera,
        state=CameraState.CONNECTING,
        since_s=now_s,
        opened_s=now_s,
        progress_s=now_s,
        num_packets=0,
        num_decoded=0,
    )


def _progressed(camera: CameraStatus, event: ReaderProgress, now_s: float, limits: CameraLimits) -> CameraStatus:
    if camera.state not in (CameraState.CONNECTING, CameraState.LIVE):
        return camera
    if event.num_decoded > camera.num_decoded:
        if camera.state is CameraState.CONNECTING:
            camera = replace(camera, state=CameraState.LIVE, since_s=now_s, num_connects=camera.num_connects + 1)
        elif camera.num_failures and now_s - camera.since_s >= limits.stable_s:
            camera = replace(camera, num_failures=0)
        return replace(camera, progress_s=now_s, num_packets=event.num_packets, num_decoded=event.num_decoded)
    if camera.state is CameraState.CONNECTING and event.num_packets > camera.num_packets:
        return replace(camera, progress_s=now_s, num_packets=event.num_packets)
    return camera


def _deadline(camera: CameraStatus, limits: CameraLimits) -> tuple[float, str]:
    if camera.state is CameraState.LIVE:
        return camera.progress_s + limits.silence_s, f"no frame for {limits.silence_s:g} s"
    if not camera.num_packets:
        return camera.opened_s + limits.open_s, f"nothing received within {limits.open_s:g} s"
    silent_s = camera.progress_s + limits.silence_s
    keyless_s = camera.opened_s + limits.keyframe_s
    if silent_s <= keyless_s:
        return silent_s, f"no packet for {limits.silence_s:g} s"
    return keyless_s, f"no keyframe within {limits.keyframe_s:g} s"


def _lost(camera: CameraStatus, reason: str, now_s: float) -> CameraStatus:
    return replace(
        camera,
        state=CameraState.LOST,
        since_s=now_s,
        num_failures=camera.num_failures + 1,
        num_misses=camera.num_misses + (camera.state is CameraState.CONNECTING),
        last_error=reason,
    )
