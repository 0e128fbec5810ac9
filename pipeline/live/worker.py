"""The worker that watches cameras: it owns their readers as child processes, so that pixels never pass the driver.

It gets one slice of time after another, and answers each with the labels made and the state of its cameras.
"""

from __future__ import annotations

import random
import select
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

import torch

from operators.media.view import place_in_frame
from operators.passwords import without_password
from operators.records import CameraCounts, CameraFrame, ClipLabel, PatchPlace, clip_id, source_id
from pipeline.families.clip import LabelForm
from pipeline.live.camera_process import CameraSpec, ReaderHandle, start
from pipeline.live.camera_state import (
    CameraLimits,
    CameraStatus,
    Ended,
    Event,
    Gone,
    Kill,
    Open,
    Preparing,
    ReaderProgress,
    Stop,
    Wait,
    step,
)
from pipeline.live.camera_state import CameraState as State
from pipeline.live.frames_and_windows import CutWindow, FairBuffer, WindowCutter
from pipeline.live.gaze import LiveGaze, Seen, Stream
from pipeline.steering.messages import CallCost, Reply

_MAX_WAIT_S = 0.05
_MAX_GOING_S = 2.0
_FEW = 4
"""At most so many frames are looked at together where few wait. More would make the first ones wait for little:
published networks in bf16 on one Zen 4 core take 27 ms for one frame, 85 for 4, 160 for 8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraPlan:
    """One camera, and how its stream is cut into windows."""

    spec: CameraSpec
    window_s: float
    stride_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraNews:
    """The state of a camera after a slice. Its counts begin with the worker; those of a summary begin with the run."""

    state: State = State.WAITING
    num_connects: int = 0
    num_misses: int = 0
    """The camera was opened in vain so often."""
    last_error: str | None = None
    counts: CameraCounts = field(default_factory=CameraCounts)
    """The sums over all its readers."""
    num_looked: int = 0
    """Frames that were glanced at."""
    dropped: int = 0
    """So many frames had come and were not analysed, because newer ones came."""
    waiting: int = 0
    analysed: tuple[tuple[float, bool], ...] = ()
    """(time_unix_s, whether it was focused) of every frame of this slice."""

    @property
    def num_reconnects(self) -> int:
        return max(0, self.num_connects - 1)

    @property
    def num_behind(self) -> int:
        """Counts the frames that were dropped because the machine is too slow, in the worker or in the reader."""
        return self.dropped + self.counts.num_behind

    def after(self, former: CameraNews) -> CameraNews:
        """Gives the news with the counts of a former worker, which died, added."""
        return replace(
            self,
            num_connects=former.num_connects + self.num_connects,
            num_misses=former.num_misses + self.num_misses,
            last_error=self.last_error or former.last_error,
            counts=add_counts(former.counts, self.counts),
            num_looked=former.num_looked + self.num_looked,
            dropped=former.dropped + self.dropped,
        )


def add_counts(one: CameraCounts, other: CameraCounts) -> CameraCounts:
    return CameraCounts(**{f.name: getattr(one, f.name) + getattr(other, f.name) for f in fields(CameraCounts)})


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveNews:
    labels: tuple[ClipLabel, ...]
    cameras: Mapping[str, CameraNews]
    is_over: bool
    """Whether every camera is stopped and no frame waits."""


@dataclass(slots=True, eq=False)
class _Watched:
    """A camera as this worker holds it."""

    plan: CameraPlan
    camera: CameraStatus
    stream: Stream
    cutter: WindowCutter[int]
    handle: ReaderHandle | None = None
    wake_s: float = 0.0
    counts: CameraCounts = field(default_factory=CameraCounts)
    """The counts of the present reader."""
    former: CameraCounts = field(default_factory=CameraCounts)
    """The sums over the readers before it."""
    dropped: int = 0
    seen: dict[int, Seen] = field(default_factory=dict)
    corrupt_before: dict[int, int] = field(default_factory=dict)
    """For each frame in `seen`, the corrupt frames of all readers up to the frame that was analysed before it."""
    num_corrupt: int = 0
    """The corrupt frames of all readers up to the newest frame that was analysed."""
    num_corrupt_labelled: int = 0
    """The corrupt frames of all readers up to the newest window: no later window counts them."""
    num_seen: int = 0
    facts: Any = None
    analysed: list[tuple[float, bool]] = field(default_factory=list)


class LiveWorker:
    """Watches cameras that share networks, in one thread; nothing in the loop waits for a camera."""

    def __init__(
        self,
        *,
        gaze: LiveGaze,
        form: LabelForm,
        limits: CameraLimits,
        max_waiting: int,
        max_batch: int = 32,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
        open_reader: Callable[[CameraSpec], ReaderHandle] = start,
    ) -> None:
        self._gaze = gaze
        self._form = form
        self._limits = limits
        self._max_batch = max_batch
        self._clock = clock
        self._unix_clock = unix_clock
        self._draw = draw
        self._open_reader = open_reader
        self._buffer: FairBuffer[CameraFrame] = FairBuffer(capacity=max_waiting)
        self._labels: list[ClipLabel] = []
        self._watched: dict[str, _Watched] = {}
        self._is_stopping = False

    def begin(self, requests: tuple[CameraPlan, ...], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        """Warms the networks up for the cameras to watch, which the first slice opens."""
        self._gaze.warm_up(
            num_cameras=min(len(requests), self._max_batch),
            window_frames=[max(1, round(plan.window_s * plan.spec.analysis_fps)) for plan in requests],
        )
        for plan in requests:
            spec = plan.spec
            self._watched[spec.name] = _Watched(
                plan=plan,
                camera=CameraStatus(since_s=self._clock()),
                stream=Stream(name=spec.name),
                cutter=WindowCutter(
                    analysis_fps=spec.analysis_fps, window_s=plan.window_s, stride_s=plan.stride_s
                ),
            )
        return Reply(rows=()), None

    def watch(self, requests: tuple[float], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        """Goes on for so many seconds, or until there are labels to hand over."""
        until_s = self._clock() + requests[0]
        busy_s = 0.0
        num_frames = 0
        while self._clock() < until_s and not self._labels and not self._is_over():
            self._attend()
            begun_s = self._clock()
            num = self._analyse()
            num_frames += num
            if num:
                busy_s += self._clock() - begun_s
            else:
                self._sleep(until_s)
        return Reply(rows=(self._news(),), work=CallCost(busy_s=busy_s, num_items=num_frames)), None

    def stop(self, requests: tuple[Any, ...], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        """Lets the cameras go; what has arrived is still analysed by the slices that follow."""
        self._is_stopping = True
        return Reply(rows=()), None

    def shutdown(self) -> None:
        """Ends all readers, and waits for that."""
        handles = [watched.handle for watched in self._watched.values() if watched.handle is not None]
        for handle in handles:
            handle.kill()
        until_s = self._clock() + _MAX_GOING_S
        while any(not handle.is_gone() for handle in handles) and self._clock() < until_s:
            time.sleep(0.01)

    def _is_over(self) -> bool:
        is_let_go = all(w.camera.state is State.STOPPED and w.handle is None for w in self._watched.values())
        return is_let_go and not len(self._buffer)

    def _attend(self) -> None:
        """Takes what readers have sent, and does what each camera's state asks for."""
        for name, watched in self._watched.items():
            events: list[Event] = []
            handle = watched.handle
            if handle is not None and handle.is_open:
                try:
                    events += self._received(name, watched, handle)
                except Exception as exc:  # whatever a broken reader sends: the other cameras go on
                    events.append(Ended(reason=f"its reader cannot be understood: {_shown(exc)}"))
            if self._is_stopping and not watched.camera.is_stopping:
                # Behind what the reader has sent: the reason why a camera never lived may be in it.
                events.append(Stop())
            if handle is not None and not handle.is_open and handle.is_gone():
                watched.handle = None
                events.append(Gone())
            self._step(watched, events)

    def _received(self, name: str, watched: _Watched, handle: ReaderHandle) -> list[Event]:
        """Keeps the frames that a reader has sent, and gives what else it reports as events."""
        polled = handle.poll()
        counts = watched.counts = polled.counts
        for frame in polled.frames:
            # The frame may wait until another reader counts from 0.
            num_corrupt = watched.former.num_corrupt + frame.facts.num_corrupt
            frame = replace(frame, facts=replace(frame.facts, num_corrupt=num_corrupt))
            watched.dropped += self._buffer.put(name, frame) is not None
        events: list[Event] = [
            ReaderProgress(num_packets=counts.num_packets, num_decoded=counts.num_decoded)
            if handle.is_ready
            else Preparing()
        ]
        if polled.ended is not None:
            events.append(Ended(reason=without_password(polled.ended), is_final=polled.is_final))
        return events

    def _step(self, watched: _Watched, events: Sequence[Event]) -> None:
        watched.camera, action = step(
            watched.camera, events, now_s=self._clock(), draw=self._draw(), limits=self._limits
        )
        match action:
            case Open():
                watched.former = add_counts(watched.former, watched.counts)
                watched.counts = CameraCounts()
                watched.wake_s = self._clock() + _MAX_WAIT_S
                try:
                    watched.handle = self._open_reader(watched.plan.spec)
                except OSError as exc:  # no more files, processes or memory: this camera waits, the others go on
                    self._step(watched, [Ended(reason=f"its reader cannot be started: {_shown(exc)}"), Gone()])
            case Kill():
                if watched.handle is not None:
                    watched.handle.kill()
                watched.wake_s = self._clock() + 0.01
            case Wait():
                watched.wake_s = action.until_s

    def _sleep(self, until_s: float) -> None:
        """Waits until a reader has sent something, or until then."""
        poll = select.poll()
        for watched in self._watched.values():
            if watched.handle is not None and watched.handle.is_open:
                poll.register(watched.handle.fileno(), select.POLLIN)
        wake_s = min([until_s, self._clock() + _MAX_WAIT_S, *(w.wake_s for w in self._watched.values())])
        poll.poll(max(0.0, (wake_s - self._clock()) * 1000))

    def _analyse(self) -> int:
        """Looks at the oldest waiting frame of each camera, and gives the number of frames looked at.

        It is one frame per camera, because a policy takes them in order and readers are attended to in between.
        """
        num_waiting = sum(size > 0 for size in self._buffer.sizes().values())
        # With many cameras, what is saved by going together counts for more.
        num_together = _FEW if num_waiting <= 2 * _FEW else self._max_batch
        taken = self._buffer.take(min(num_waiting, num_together, self._max_batch))
        if not taken:
            return 0
        members = [(self._watched[name], frame) for name, frame in taken]
        seen = self._gaze.look([watched.stream for watched, _ in members], [frame for _, frame in members])
        cut: list[tuple[_Watched, CutWindow[int], list[Seen], int]] = []
        for (watched, frame), one in zip(members, seen, strict=True):
            key = watched.num_seen
            watched.num_seen += 1
            watched.seen[key] = one
            watched.corrupt_before[key] = watched.num_corrupt
            watched.num_corrupt = frame.facts.num_corrupt
            watched.facts = frame.facts
            watched.analysed.append((frame.time_unix_s, one.box_yxyx is not None))
            for window in watched.cutter.push(segment_start_s=frame.segment_start_s, tick=frame.tick, key=key):
                # From the frame before its first one on; but none that came since the last window is left out.
                since = min(watched.corrupt_before[window.keys[0]], watched.num_corrupt_labelled)
                watched.num_corrupt_labelled = watched.num_corrupt
                cut.append((watched, window, [watched.seen[k] for k in window.keys], watched.num_corrupt - since))
            for unwanted in watched.cutter.forget():
                watched.seen.pop(unwanted, None)
                watched.corrupt_before.pop(unwanted, None)
        logits = self._gaze.classify([frames for _, _, frames, _ in cut])
        for (watched, window, frames, num_corrupt), found in zip(cut, logits, strict=True):
            self._labels.append(self._label(watched, window, frames, found, num_corrupt))
        return len(taken)

    def _label(
        self,
        watched: _Watched,
        window: CutWindow[int],
        members: list[Seen],
        logits: torch.Tensor,
        num_corrupt: int,
    ) -> ClipLabel:
        spec, facts = watched.plan.spec, watched.facts
        shown = without_password(spec.uri)
        spent, full = self._gaze.gmacs(members, window.num_fresh)
        received_s = max(seen.received_unix_s for seen in members)
        focused = sum(seen.box_yxyx is not None for seen in members)
        return ClipLabel(
            video_id=spec.name,
            clip_id=clip_id(source_id(f"{spec.name} {shown}"), window.start_s),
            source_uri=shown,
            camera=spec.name,
            received_at=datetime.fromtimestamp(received_s, UTC),
            start_s=window.start_s,
            end_s=window.end_s,
            **self._form.answer(logits),
            frames_total=len(members),
            frames_focused=focused,
            frames_skipped=len(members) - focused,
            stopped_at=len(members),
            patches=tuple(_place(seen) for seen in members if seen.box_yxyx is not None),
            gmacs=spent,
            gmacs_full=full,
            latency_s=max(0.0, self._unix_clock() - received_s),
            width=facts.width,
            height=facts.height,
            rotation=facts.rotation,
            num_corrupt=num_corrupt,
            coverage=window.coverage,
        )

    def _news(self) -> LiveNews:
        sizes = self._buffer.sizes()
        cameras = {}
        for name, watched in self._watched.items():
            cameras[name] = CameraNews(
                state=watched.camera.state,
                num_connects=watched.camera.num_connects,
                num_misses=watched.camera.num_misses,
                last_error=watched.camera.last_error,
                counts=add_counts(watched.former, watched.counts),
                num_looked=watched.num_seen,
                dropped=watched.dropped,
                waiting=sizes.get(name, 0),
                analysed=tuple(watched.analysed),
            )
            watched.analysed = []
        labels, self._labels = tuple(self._labels), []
        return LiveNews(labels=labels, cameras=cameras, is_over=self._is_over())


def _shown(exc: Exception) -> str:
    return without_password(" ".join(f"{type(exc).__name__}: {exc}".split()))


def _place(seen: Seen) -> PatchPlace:
    assert seen.box_yxyx is not None
    y, x, h, w = place_in_frame(seen.box_yxyx, seen.view_yxhw)
    return PatchPlace(frame=seen.frame_index, pts_s=seen.time_unix_s, y=y, x=x, h=h, w=w)
