"""A live source gives the frames that are analysed: an RTSP, RTMP or HTTP camera, a device, a file at its own pace.

A reader says when its stream is lost; it neither retries nor judges how long silence may last. Its calls block for
as long as the library takes, so it belongs in a process that can be killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Protocol, cast

import av
import av.error

from operators.errors import ErrorCode, SourceError
from operators.media.camera_connection import CameraConnection, CameraKind
from operators.media.h264 import FrameNumbers
from operators.media.painter import Painter, orientation_of
from operators.media.view import Viewer
from operators.records import CameraCounts, CameraFrame, SourceFacts

MAX_PIXELS = 8192 * 8192
_PARSED = {"h264", "hevc", "mpeg4", "mpeg2video"}
"""Codecs of which FFmpeg's RTP and MPEG-TS readers hold each frame back until the next one begins."""


class Stamp(Protocol):
    """The time of a frame, as a clock repair gives it."""

    @property
    def time_unix_s(self) -> float: ...
    @property
    def is_settled(self) -> bool: ...
    @property
    def is_restamped(self) -> bool: ...
    @property
    def starts_anew(self) -> bool: ...


class ClockRepair(Protocol):
    @property
    def num_timelines(self) -> int: ...
    def stamp(self, ticks: int | None, tick_s: Fraction, received_s: float) -> Stamp: ...


class Place(Protocol):
    @property
    def segment_start_s(self) -> float: ...
    @property
    def tick(self) -> int: ...


class FrameSampler(Protocol):
    def take(self, time_s: float, *, after_loss: bool, starts_anew: bool) -> Place | None: ...


class CameraReader:
    """One connection to one camera: a context manager. Not shared; every call may block until killed."""

    def __init__(
        self,
        *,
        uri: str,
        viewer: Viewer,
        repair: ClockRepair,
        sampler: FrameSampler,
        transport: str = "tcp",
        open_timeout_s: float = 5.0,
        read_timeout_s: float = 5.0,
        num_threads: int = 1,
        max_pixels: int = MAX_PIXELS,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`clock` gives Unix time. The timeouts are what the library is asked to keep; it does not always."""
        self._connection = CameraConnection(
            uri=uri,
            transport=transport,
            open_timeout_s=open_timeout_s,
            read_timeout_s=read_timeout_s,
            num_threads=num_threads,
            clock=clock,
        )
        self._viewer = viewer
        self._painter = Painter(viewer=viewer)
        self._repair = repair
        self._sampler = sampler
        self._max_pixels = max_pixels
        self._clock = clock
        self._pace = _Pace(clock, sleep) if self._connection.kind is CameraKind.FILE else None
        self._losses = _Losses()
        self.counts = CameraCounts()

    def __enter__(self) -> CameraReader:
        self._connection.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()

    def read(self) -> Iterator[CameraFrame | None]:
        """Frames to analyse, as they come. None after a packet that gave none: a sign of life; `counts` has news.

        Ends when the source ends; a stream that is lost is a SourceError.
        """
        container = self._connection.container
        if container is None:
            raise ValueError("read() outside of the context")
        try:
            yield from self._read(container)
        except (av.error.FFmpegError, OSError) as exc:
            raise self._connection.source_error(exc, "was lost") from None

    def _read(self, container: av.container.InputContainer) -> Iterator[CameraFrame | None]:
        stream = self._connection.stream
        context = stream.codec_context
        # Frames come out of the decoder with the number and the arrival of the packet they were made of.
        context.flags |= int(av.codec.context.Flags.copy_opaque)
        from_network = self._connection.kind in (CameraKind.RTSP, CameraKind.STREAM)
        is_held_back = from_network and context.name in _PARSED
        numbers = FrameNumbers() if from_network and context.name == "h264" else None
        if numbers is not None and context.extradata:
            numbers.has_gap(bytes(context.extradata))
        has_keyframe = False
        before_s: float | None = None
        for packet in container.demux(stream):
            now_s = self._clock()
            # A packet that is held back until the next one begins had itself begun when the one before came out.
            arrived_s = now_s if before_s is None or not is_held_back else before_s
            before_s = now_s
            if packet.size:
                self._count(num_packets=1)
                packet.opaque = (self.counts.num_packets, arrived_s)
                if packet.is_corrupt or (numbers is not None and numbers.has_gap(bytes(packet))):
                    self._losses.distrust_from(self.counts.num_packets)
                has_keyframe = has_keyframe or packet.is_keyframe
                if not has_keyframe:
                    self._count(num_before_keyframe=1)
                    yield None
                    continue
            try:
                frames = context.decode(packet)
            except av.error.InvalidDataError:
                self._count(num_corrupt=1)
                self._losses.distrust_from(self.counts.num_packets)
                frames = []
            views = [view for frame in frames if (view := self._analyse(frame, arrived_s)) is not None]
            yield from views or (None,)

    def _analyse(self, frame: av.VideoFrame, arrived_s: float) -> CameraFrame | None:
        packet, received_s = cast(tuple[int, float] | None, frame.opaque) or (self.counts.num_packets, arrived_s)
        index = self.counts.num_decoded
        self._count(num_decoded=1)
        if frame.width * frame.height > self._max_pixels:
            raise SourceError(
                f"{self._connection.shown}: frames of {frame.width}x{frame.height} are larger than "
                f"{self._max_pixels} pixels",
                ErrorCode.TOO_LARGE,
            )
        if self._pace is not None:
            received_s = self._pace.wait(frame.time)
        # Broken frames have a time too: it keeps the clock repair in step.
        ticks = frame.pts if self._connection.has_clock else None
        stamp = self._repair.stamp(ticks, frame.time_base or Fraction(1), received_s)
        self.counts = replace(
            self.counts,
            num_restamped=self.counts.num_restamped + stamp.is_restamped,
            num_timelines=self._repair.num_timelines,
        )
        if frame.is_corrupt:
            self._count(num_corrupt=1)
            self._losses.distrust_from(packet)
            return None
        if not self._losses.may_show(packet, is_keyframe=bool(frame.key_frame)):
            self._count(**{"num_after_loss" if self._losses.has_gap else "num_before_keyframe": 1})
            return None
        if not stamp.is_settled:
            self._count(num_joining=1)
            return None
        is_after_loss = self._losses.end_gap()
        place = self._sampler.take(stamp.time_unix_s, after_loss=is_after_loss, starts_anew=stamp.starts_anew)
        if place is None:
            return None
        return self._camera_frame(frame, stamp, place, index=index, received_s=received_s)

    def _camera_frame(
        self, frame: av.VideoFrame, stamp: Stamp, place: Place, *, index: int, received_s: float
    ) -> CameraFrame:
        orientation = orientation_of(frame, self._connection.stream.codec_context.sample_aspect_ratio)
        pixels = self._painter(frame, orientation)
        self._count(num_analysed=1)
        return CameraFrame(
            pixels=pixels,
            time_unix_s=stamp.time_unix_s,
            received_unix_s=received_s,
            frame_index=index,
            segment_start_s=place.segment_start_s,
            tick=place.tick,
            view_yxhw=self._viewer.box(frame.height, frame.width, orientation),
            facts=SourceFacts(
                width=frame.width,
                height=frame.height,
                rotation=orientation.rotation,
                num_frames=self.counts.num_decoded,
                num_corrupt=self.counts.num_corrupt,
            ),
        )

    def _count(self, **more: int) -> None:
        self.counts = replace(self.counts, **{name: getattr(self.counts, name) + n for name, n in more.items()})


class _Losses:
    """It knows which frames can be trusted: none from a loss up to the next keyframe."""

    def __init__(self) -> None:
        self.has_gap = False
        """Something was lost since the last frame that went to the sampler."""
        self._distrusted_from: int | None = 0
        """The number of the packet from which on frames wait for a keyframe; None where none waits."""

    def distrust_from(self, packet: int) -> None:
        """What is decoded of this packet and of those after it is not to be trusted up to the next keyframe."""
        self.has_gap = True
        self._distrusted_from = max(packet, self._distrusted_from or 0)

    def may_show(self, packet: int, *, is_keyframe: bool) -> bool:
        """Whether the frame that was made of this packet can be trusted; a keyframe ends the distrust."""
        if self._distrusted_from is None or packet < self._distrusted_from:
            return True
        if is_keyframe:
            self._distrusted_from = None
        return is_keyframe

    def end_gap(self) -> bool:
        """Whether the frame that goes to the sampler now is the first one after a gap."""
        # A frame from before a loss may be shown while those behind it still wait for their keyframe.
        is_after_gap = self.has_gap and self._distrusted_from is None
        self.has_gap = self.has_gap and not is_after_gap
        return is_after_gap


class _Pace:
    """A file is made as slow as it is to be watched."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._clock = clock
        self._sleep = sleep
        self._ahead_s: float | None = None

    def wait(self, media_s: float | None) -> float:
        """Waits until the frame is due, and returns the time then."""
        now_s = self._clock()
        if media_s is None:
            return now_s
        if self._ahead_s is None:
            self._ahead_s = now_s - media_s
        due_s = self._ahead_s + media_s
        while now_s < due_s:
            self._sleep(due_s - now_s)
            now_s = self._clock()
        return now_s
