"""A camera's address is classified, opened safely and closed, and its errors are put into plain words."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
from collections.abc import Callable
from typing import Any

import av
import av.error

from operators.errors import ErrorCode, SourceError
from operators.media.redirects import Redirected, no_redirects
from operators.passwords import without_password

# PyAV's log callback wants the interpreter lock from inside native code: with it off, nothing can wait on it. And
# FFmpeg logs addresses with their passwords.
av.logging.set_level(None)


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
# following no redirect, see CameraConnection._open().
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
"""The formats among which FFmpeg may guess; for the other kinds of camera the format is known."""
_REDIRECT = "a redirect to another address, which is not followed; give the address of the stream itself"
_CLOCKLESS = {"mpjpeg", "mjpeg", "jpeg_pipe"}
"""Formats whose stamps FFmpeg makes up from a frame rate that nobody announced."""


def camera_kind(uri: str) -> CameraKind:
    """The kind of camera that an address means: by its scheme, else a device below /dev, else a file."""
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


class CameraConnection:
    """One open camera and its video stream: a context manager. Every call may block until the process is killed."""

    def __init__(
        self,
        *,
        uri: str,
        transport: str,
        open_timeout_s: float,
        read_timeout_s: float,
        num_threads: int,
        clock: Callable[[], float],
    ) -> None:
        """`clock` gives Unix time. The timeouts are what the library is asked to keep; it does not always."""
        self._uri = uri
        self.shown = without_password(uri)
        self.kind = camera_kind(uri)
        self._transport = transport
        self._timeouts_s = (open_timeout_s, read_timeout_s)
        self._num_threads = num_threads
        self._clock = clock
        self.container: av.container.InputContainer | None = None
        """None before the connection is opened, and after it is closed."""

    @property
    def has_clock(self) -> bool:
        """Whether the time stamps of the open stream are the camera's own."""
        return self.container is not None and self.container.format.name not in _CLOCKLESS

    def __enter__(self) -> CameraConnection:
        began_s = self._clock()
        try:
            container = self._open()
        except (av.error.FFmpegError, OSError, ValueError) as exc:
            # FFmpeg calls an answer that did not come in time invalid data.
            is_late = self._clock() - began_s >= self._timeouts_s[0]
            raise self.source_error(TimeoutError() if is_late else exc, "cannot be opened") from None
        self.container = container
        try:
            stream = next(
                (one for one in container.streams.video if not one.disposition & av.stream.Disposition.attached_pic),
                None,
            )
            if stream is None:
                raise SourceError(f"{self.shown}: has no video; check what the camera sends", ErrorCode.NO_VIDEO)
            context = stream.codec_context
            context.thread_count = self._num_threads
            # Threads that work on one frame each would hold frames back.
            context.thread_type = "SLICE"
            self.stream = stream
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        container, self.container = self.container, None
        if container is not None:
            container.close()

    def _open(self) -> av.container.InputContainer:
        """Opens the address that was given, and no other that the camera may answer with."""
        with no_redirects() if self.kind is CameraKind.RTSP else contextlib.nullcontext():
            return av.open(self._uri, timeout=self._timeouts_s, **self._open_arguments())

    def _open_arguments(self) -> dict[str, Any]:
        kind = self.kind
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

    def source_error(self, exc: Exception, what: str) -> SourceError:
        """An error of the library in the words of this project; `what` says what happened to the connection."""
        # The library's own exception is not kept as the cause: its text has the address with the password.
        match exc:
            case av.error.HTTPUnauthorizedError() | av.error.HTTPForbiddenError():
                return SourceError(f"{self.shown}: the camera refuses; check user and password", ErrorCode.MISSING)
            case av.error.HTTPNotFoundError():
                return SourceError(f"{self.shown}: the camera has no such stream; check the path", ErrorCode.MISSING)
            case Redirected():
                return SourceError(f"{self.shown}: {what}: {_REDIRECT}", ErrorCode.MISSING)
            case av.error.ExitError() | TimeoutError():
                return SourceError(f"{self.shown}: {what}: no answer in time", ErrorCode.TIMEOUT)
            case av.error.ArgumentError():
                return SourceError(
                    f"{self.shown}: {what}: it sends a format that cameras do not use", ErrorCode.NOT_MEDIA
                )
            case av.error.InvalidDataError():
                return SourceError(f"{self.shown}: {what}: it sends nothing that is understood", ErrorCode.NOT_MEDIA)
            case av.error.ProtocolNotFoundError() | av.error.DemuxerNotFoundError():
                return SourceError(f"{self.shown}: {what}: this build of FFmpeg cannot read it", ErrorCode.NOT_MEDIA)
        number = getattr(exc, "errno", None)
        if self.kind is CameraKind.HTTP and number == errno.EIO:
            # FFmpeg has no other word for a redirect that it may not follow.
            return SourceError(f"{self.shown}: {what}: it sends no stream, or {_REDIRECT}", ErrorCode.MISSING)
        text = os.strerror(number) if isinstance(number, int) and number in errno.errorcode else type(exc).__name__
        return SourceError(f"{self.shown}: {what}: {text}", ErrorCode.MISSING)
