"""Live sources -> the frames that are analysed: RTSP, HTTP MJPEG, RTMP, a local device, a file at its own pace (PyAV).

A reader says when its stream is lost; it neither retries nor judges how long silence may last. Its calls block for
as long as the library pleases, so it belongs in a process that can be killed.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, Protocol, cast

import av
import av.error

from operators.errors import ErrorCode, SourceError
from operators.media.h264 import FrameNumbers
from operators.media.painter import Painter, orientation_of
from operators.media.redirects import Redirected, no_redirects
from operators.media.view import Viewer
from operators.passwords import without_password
from operators.records import CameraCounts, CameraFrame, SourceFacts

# PyAV's log callback wants the interpreter lock from inside native code: with it off, nothing can wait on it. And
# FFmpeg logs addresses with their passwords.
av.logging.set_level(None)

MAX_PIXELS = 8192 * 8192


class CameraKind(enum.StrEnum):
    RTSP = "rtsp"
    RTMP = "rtmp"
    HTTP = "http"
    STREAM = "stream"
    """MPEG-TS over UDP, TCP or SRT."""
    DEVICE = "device"
    FILE = "file"


_KINDS = {
    "rtsp": CameraKind.RTSP,
    "rtsps": CameraKind.RTSP,
    "rtmp": CameraKind.RTMP,
    "rtmps": CameraKind.RTMP,
    "http": CameraKind.HTTP,
    "https": CameraKind.HTTP,
    "udp": CameraKind.STREAM,
    "tcp": CameraKind.STREAM,
    "srt": CameraKind.STREAM,
    "file": CameraKind.FILE,
}

_NETWORK = "tcp,udp,tls"
# What each kind may open: a camera must not be able to make its reader open files. Other addresses are kept from it by
# following no redirect, see _open().
_PROTOCOLS = {
    CameraKind.RTSP: f"rtsp,rtsps,rtp,srtp,{_NETWORK}",
    CameraKind.RTMP: f"rtmp,rtmps,rtmpt,http,https,{_NETWORK}",
    CameraKind.HTTP: f"http,https,httpproxy,{_NETWORK}",
    CameraKind.STREAM: f"{_NETWORK},srt",
    CameraKind.DEVICE: "file",
    CameraKind.FILE: "file",
}
_FORMATS = {
    CameraKind.HTTP: "mpjpeg,mjpeg,jpeg_pipe,mpegts,flv,live_flv,matroska,webm",
    CameraKind.FILE: (
        "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,h264,hevc,"
        "ogg,asf,mjpeg,mpjpeg,ivf,obu,mxf,m4v,nut,dv,swf,rm,y4m,yuv4mpegpipe,gif"
    ),
}
"""What may be guessed; of the other kinds the format is known."""
_REDIRECT = "a redirect to another address, which is not followed; give the address of the stream itself"
_CLOCKLESS = {"mpjpeg", "mjpeg", "jpeg_pipe"}
"""Formats whose stamps FFmpeg makes up from a frame rate that nobody announced."""

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


def camera_kind(uri: str) -> CameraKind:
    """What a camera's address is: by its scheme, else a device below /dev, else a file."""
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", uri)
    if scheme is not None:
        kind = _KINDS.get(scheme[1].lower())
        if kind is None:
            raise SourceError(
                f"{without_password(uri)}: {scheme[1]} is no kind of camera; use one of {', '.join(_KINDS)}",
                ErrorCode.MISSING,
            )
        return kind
    return CameraKind.DEVICE if uri.startswith("/dev/") else CameraKind.FILE


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
        self._uri = uri
        self._shown = without_password(uri)
        self._kind = camera_kind(uri)
        self._viewer = viewer
        self._painter = Painter(viewer=viewer)
        self._repair = repair
        self._sampler = sampler
        self._transport = transport
        self._timeouts_s = (open_timeout_s, read_timeout_s)
        self._num_threads = num_threads
        self._max_pixels = max_pixels
        self._clock = clock
        self._sleep = sleep
        self._container: av.container.InputContainer | None = None
        self._has_loss = False
        """Something was lost since the last frame that went to the sampler."""
        self._lost_packet: int | None = 0
        """Number of the packet from which on frames wait for a keyframe; None: they do not."""
        self.counts = CameraCounts()

    @property
    def is_file(self) -> bool:
        """The end of a file is the end; a network stream that ends may come back."""
        return self._kind is CameraKind.FILE

    def __enter__(self) -> CameraReader:
        began_s = self._clock()
        try:
            container = self._open()
        except (av.error.FFmpegError, OSError, ValueError) as exc:
            # FFmpeg calls an answer that did not come in time invalid data.
            is_late = self._clock() - began_s >= self._timeouts_s[0]
            raise self._source_error(TimeoutError() if is_late else exc, "cannot be opened") from None
        self._container = container
        try:
            stream = next(
                (one for one in container.streams.video if not one.disposition & av.stream.Disposition.attached_pic),
                None,
            )
            if stream is None:
                raise SourceError(f"{self._shown}: has no video; check what the camera sends", ErrorCode.NO_VIDEO)
            context = stream.codec_context
            context.thread_count = self._num_threads
            # Threads that work on one frame each would hold frames back.
            context.thread_type = "SLICE"
            self._stream = stream
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _open(self) -> av.container.InputContainer:
        """Opens the address that was given, and no other that the camera may answer with."""
        with no_redirects() if self._kind is CameraKind.RTSP else contextlib.nullcontext():
            return av.open(self._uri, timeout=self._timeouts_s, **self._open_arguments())

    def _open_arguments(self) -> dict[str, Any]:
        kind = self._kind
        options = {"protocol_whitelist": _PROTOCOLS[kind]}
        arguments: dict[str, Any] = {"options": options}
        match kind:
            case CameraKind.RTSP:
                if self._transport != "auto":
                    options["rtsp_transport"] = self._transport
                options["allowed_media_types"] = "video"
                # Nothing is learned from packets before the first is handed over: what must be known comes with
                # the keyframe, and frames that lie in a queue while FFmpeg guesses have lost their arrival.
                options |= {"probesize": "32", "fpsprobesize": "0", "analyzeduration": "1000000"}
                arguments["format"] = "rtsp"
            case CameraKind.RTMP:
                options |= {"rtmp_live": "live", "fpsprobesize": "0", "analyzeduration": "1000000"}
                arguments["format"] = "flv"
            case CameraKind.DEVICE:
                arguments["format"] = "v4l2"
            case CameraKind.STREAM:
                arguments["format"] = "mpegts"
                options |= {"fpsprobesize": "0", "analyzeduration": "1000000"}
            case CameraKind.HTTP:
                options |= {"fpsprobesize": "0", "analyzeduration": "1000000"}
                options |= {"format_whitelist": _FORMATS[kind], "max_redirects": "0"}
            case CameraKind.FILE:
                options["format_whitelist"] = _FORMATS[kind]
        return arguments

    def read(self) -> Iterator[CameraFrame | None]:
        """Frames to analyse, as they come. None after a packet that gave none: a sign of life; `counts` has news.

        Ends when the source ends; a stream that is lost is a SourceError.
        """
        if self._container is None:
            raise ValueError("read() outside of the context")
        try:
            yield from self._read(self._container)
        except (av.error.FFmpegError, OSError) as exc:
            raise self._source_error(exc, "was lost") from None

    def _read(self, container: av.container.InputContainer) -> Iterator[CameraFrame | None]:
        context = self._stream.codec_context
        # Frames come out of the decoder with the number and the arrival of the packet they were made of.
        context.flags |= int(av.codec.context.Flags.copy_opaque)
        self._has_clock = container.format.name not in _CLOCKLESS
        from_network = self._kind in (CameraKind.RTSP, CameraKind.STREAM)
        is_held_back = from_network and context.name in _PARSED
        numbers = FrameNumbers() if from_network and context.name == "h264" else None
        if numbers is not None and context.extradata:
            numbers.has_gap(bytes(context.extradata))
        self._pace = _Pace(self._clock, self._sleep) if self.is_file else None
        has_keyframe = False
        before_s: float | None = None
        for packet in container.demux(self._stream):
            now_s = self._clock()
            # A packet that is held back until the next one begins had itself begun when the one before came out.
            arrived_s = now_s if before_s is None or not is_held_back else before_s
            before_s = now_s
            if packet.size:
                self._count(num_packets=1)
                packet.opaque = (self.counts.num_packets, arrived_s)
                if packet.is_corrupt or (numbers is not None and numbers.has_gap(bytes(packet))):
                    self._lose(self.counts.num_packets)
                has_keyframe = has_keyframe or packet.is_keyframe
                if not has_keyframe:
                    self._count(num_before_keyframe=1)
                    yield None
                    continue
            try:
                frames = context.decode(packet)
            except av.error.InvalidDataError:
                self._count(num_corrupt=1)
                self._lose(self.counts.num_packets)
                frames = []
            views = [view for frame in frames if (view := self._analyse(frame, arrived_s)) is not None]
            yield from views or (None,)

    def _lose(self, packet: int) -> None:
        """What was decoded of this packet and of those after it is not to be trusted up to the next keyframe."""
        self._has_loss = True
        self._lost_packet = max(packet, self._lost_packet or 0)

    def _analyse(self, frame: av.VideoFrame, arrived_s: float) -> CameraFrame | None:
        packet, received_s = cast(tuple[int, float] | None, frame.opaque) or (self.counts.num_packets, arrived_s)
        index = self.counts.num_decoded
        self._count(num_decoded=1)
        if frame.width * frame.height > self._max_pixels:
            raise SourceError(
                f"{self._shown}: frames of {frame.width}x{frame.height} are larger than {self._max_pixels} pixels",
                ErrorCode.TOO_LARGE,
            )
        if self._pace is not None:
            received_s = self._pace.wait(frame.time)
        # Broken frames have a time too: it keeps the clock repair in step.
        ticks = frame.pts if self._has_clock else None
        stamp = self._repair.stamp(ticks, frame.time_base or Fraction(1), received_s)
        self.counts = replace(
            self.counts,
            num_restamped=self.counts.num_restamped + stamp.is_restamped,
            num_timelines=self._repair.num_timelines,
        )
        if frame.is_corrupt:
            self._count(num_corrupt=1)
            self._lose(packet)
            return None
        if self._lost_packet is not None and packet >= self._lost_packet:
            if not frame.key_frame:
                self._count(**{"num_after_loss" if self._has_loss else "num_before_keyframe": 1})
                return None
            self._lost_packet = None
        if not stamp.is_settled:
            self._count(num_joining=1)
            return None
        # A frame from before a loss may be shown while those behind it still wait for their keyframe.
        is_after_loss = self._has_loss and self._lost_packet is None
        place = self._sampler.take(stamp.time_unix_s, after_loss=is_after_loss, starts_anew=stamp.starts_anew)
        self._has_loss = self._has_loss and not is_after_loss
        if place is None:
            return None
        orientation = orientation_of(frame, self._stream.codec_context.sample_aspect_ratio)
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

    def _source_error(self, exc: Exception, what: str) -> SourceError:
        # The library's own exception is not kept as the cause: its text has the address with the password.
        match exc:
            case av.error.HTTPUnauthorizedError() | av.error.HTTPForbiddenError():
                return SourceError(f"{self._shown}: the camera refuses; check user and password", ErrorCode.MISSING)
            case av.error.HTTPNotFoundError():
                return SourceError(f"{self._shown}: the camera has no such stream; check the path", ErrorCode.MISSING)
            case Redirected():
                return SourceError(f"{self._shown}: {what}: {_REDIRECT}", ErrorCode.MISSING)
            case av.error.ExitError() | TimeoutError():
                return SourceError(f"{self._shown}: {what}: no answer in time", ErrorCode.TIMEOUT)
            case av.error.ArgumentError():
                return SourceError(
                    f"{self._shown}: {what}: it sends a format that cameras do not use", ErrorCode.NOT_MEDIA
                )
            case av.error.InvalidDataError():
                return SourceError(f"{self._shown}: {what}: it sends nothing that is understood", ErrorCode.NOT_MEDIA)
            case av.error.ProtocolNotFoundError() | av.error.DemuxerNotFoundError():
                return SourceError(f"{self._shown}: {what}: this build of FFmpeg cannot read it", ErrorCode.NOT_MEDIA)
        number = getattr(exc, "errno", None)
        if self._kind is CameraKind.HTTP and number == errno.EIO:
            # FFmpeg has no other word for a redirect that it may not follow.
            return SourceError(f"{self._shown}: {what}: it sends no stream, or {_REDIRECT}", ErrorCode.MISSING)
        text = os.strerror(number) if isinstance(number, int) and number in errno.errorcode else type(exc).__name__
        return SourceError(f"{self._shown}: {what}: {text}", ErrorCode.MISSING)


class _Pace:
    """Makes a file as slow as it is to be watched."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._clock = clock
        self._sleep = sleep
        self._ahead_s: float | None = None

    def wait(self, media_s: float | None) -> float:
        """Waits until the frame is due; the time then."""
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
