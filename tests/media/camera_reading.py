"""A camera is read until it ends: its frames, their numbers, and the error that ended it."""

from __future__ import annotations

import itertools

from operators.errors import SourceError
from operators.media.camera import CameraReader
from operators.media.view import Viewer
from operators.records import CameraCounts, CameraFrame
from pipeline.live.clock_repair import ClockRepair
from pipeline.live.frames_and_windows import FrameSampler
from tests.support.numbered_h264 import CodedVideo, shown_number
from tests.support.scripted_rtsp import Script, ScriptedCamera

FPS = 60
GOP = 10
STEP = 90_000 // FPS
"""RTP's ticks from one frame to the next."""
AWAY_S = 0.4
"""The most by which a frame's time may differ from when it was sent. It is generous, as the machine may be busy."""


class Read:
    """The frames that a camera gave until it ended, or until enough had come."""

    def __init__(
        self,
        uri: str,
        *,
        num_frames: int = 10_000,
        analysis_fps: float = FPS,
        timeout_s: float = 5.0,
        transport: str = "tcp",
        repair: ClockRepair | None = None,
        **more,
    ) -> None:
        self.frames: list[CameraFrame] = []
        self.error: SourceError | None = None
        reader = CameraReader(
            uri=uri,
            viewer=Viewer(),
            repair=repair or ClockRepair(),
            sampler=FrameSampler(analysis_fps=analysis_fps),
            transport=transport,
            open_timeout_s=timeout_s,
            read_timeout_s=timeout_s,
            **more,
        )
        try:
            with reader:
                found = (frame for frame in reader.read() if frame is not None)
                self.frames.extend(itertools.islice(found, num_frames))
        except SourceError as exc:
            self.error = exc
        self.counts: CameraCounts = reader.counts

    @property
    def numbers(self) -> list[int]:
        return [shown_number(frame.pixels) for frame in self.frames]

    @property
    def segments(self) -> int:
        return len({frame.segment_start_s for frame in self.frames})

    def assert_on_time(self, camera: ScriptedCamera) -> None:
        """The numbers that the frames show are those that were sent at the frames' times."""
        assert self.frames
        for frame, number in zip(self.frames, self.numbers, strict=True):
            assert abs(frame.time_unix_s - camera.taken_unix_s(number)) < AWAY_S
            assert frame.time_unix_s <= frame.received_unix_s + 0.001


def serve(*videos: CodedVideo, switch_every: int = 0, **script) -> ScriptedCamera:
    script = {"num_frames": 40} | script
    return ScriptedCamera(*videos, script=Script(**script), switch_every=switch_every)
