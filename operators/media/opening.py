"""Opening files safely: local ones of known kinds only, within limits, and a code for what is wrong with the others."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

import av
from av.container.input import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from operators.errors import ErrorCode, SourceError
from operators.media.container_headers import file_shape
from operators.passwords import without_password

# PyAV's log callback wants the interpreter lock from inside native code: with it off, nothing can wait on it.
av.logging.set_level(None)

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,dv,ivf,nut,gif,h264,hevc,m4v,"
    "obu,yuv4mpegpipe,rm,wtv"
)
"""Containers that may be opened: none of them names other files. Playlists, scripts and session descriptions do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadLimits:
    """The most that a source may demand of its reader; more is `too_large`."""

    max_pixels: int = 1 << 26
    max_duration_s: float = 86_400.0
    max_streams: int = 64
    max_batch_bytes: int = 64 << 20
    """Views in one FrameBatch; a single clip's views may exceed it."""


def open_media(path: str, limits: ReadLimits) -> InputContainer:
    """Opens a local file and nothing else, whatever is written in it. Raises SourceError."""
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "max_streams": str(limits.max_streams),
        "max_pixels": str(limits.max_pixels),
    }
    try:
        # The prefix keeps a name like "concat:a|b" a name.
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except FileNotFoundError as exc:
        raise SourceError(f"{path} does not exist", ErrorCode.MISSING) from exc
    except MemoryError as exc:
        raise SourceError(f"{path} has more than {limits.max_streams} streams", ErrorCode.TOO_LARGE) from exc
    except OSError as exc:
        raise SourceError(f"{path} cannot be read: {exc.strerror}", ErrorCode.MISSING) from exc
    except (av.FFmpegError, UnicodeError) as exc:
        if file_shape(path).is_media:
            raise SourceError(f"{path} is a container whose index is missing or broken", ErrorCode.CORRUPT) from exc
        raise SourceError(f"{path} is not a video of a known kind", ErrorCode.NOT_MEDIA) from exc


def missing_decoders(names: Iterable[str]) -> list[str]:
    """Those of the codecs, by FFmpeg's names, that cannot be decoded here."""
    missing = []
    for name in names:
        try:
            av.Codec(name, "r")
        except ValueError:
            missing.append(name)
    return missing


def head_of(path: str) -> bytes:
    """The first bytes of a file that is there and has some. Raises SourceError."""
    if "://" in path:
        raise SourceError(f"{without_password(path)} is not a local file; download it first", ErrorCode.MISSING)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SourceError(f"{path} is not a file", ErrorCode.NOT_MEDIA)
        with open(path, "rb") as file:
            head = file.read(64)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise SourceError(f"{path} does not exist", ErrorCode.MISSING) from exc
    except (OSError, ValueError) as exc:
        raise SourceError(f"{path} cannot be read: {exc}", ErrorCode.MISSING) from exc
    if not head:
        raise SourceError(f"{path} is empty", ErrorCode.EMPTY)
    return head


def first_video(container: InputContainer, path: str, limits: ReadLimits) -> VideoStream:
    """The first video stream that is not an attached picture. Raises SourceError."""
    if len(container.streams) > limits.max_streams:
        raise SourceError(
            f"{path} has {len(container.streams)} streams, more than {limits.max_streams}", ErrorCode.TOO_LARGE
        )
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        context = stream.codec_context
        if context is None:
            raise SourceError(
                f"{path} holds video in a codec that FFmpeg cannot decode here", ErrorCode.UNSUPPORTED_CODEC
            )
        if context.width * context.height > limits.max_pixels:
            raise SourceError(
                f"{path} is {context.width}x{context.height}, more than {limits.max_pixels} pixels",
                ErrorCode.TOO_LARGE,
            )
        return stream
    raise SourceError(f"{path} has no video, only {_kinds(container)}", ErrorCode.NO_VIDEO)


def _kinds(container: InputContainer) -> str:
    kinds = sorted({"cover art" if stream.type == "video" else stream.type for stream in container.streams})
    return " and ".join(kinds) or "no streams at all"
