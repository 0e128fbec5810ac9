"""Frames are written as video files: for the synthetic archive, for measuring and for tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from operators.errors import PipelineError

# PyAV's log callback wants the interpreter lock from inside native code: with it off, nothing can wait on it.
av.logging.set_level(None)

_COLORS: dict[str, tuple[Colorspace, int, ColorPrimaries, ColorTrc]] = {
    # name: (swscale's matrix, the tag in the stream, primaries, transfer)
    "bt601": (Colorspace.ITU601, 6, ColorPrimaries.SMPTE170M, ColorTrc.SMPTE170M),
    "bt709": (Colorspace.ITU709, 1, ColorPrimaries.BT709, ColorTrc.BT709),
    "bt2020": (Colorspace.BT2020, 9, ColorPrimaries.BT2020, ColorTrc.BT2020_10),
}
_AUDIO_RATE_HZ = 48_000


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    *,
    fps: Fraction | float = 25,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    container: str | None = None,
    gop: int | None = None,
    b_frames: int | None = None,
    crf: float | None = None,
    bit_rate: int | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    color: str | None = None,
    is_full_range: bool = False,
    rotation: int = 0,
    is_mirrored: bool = False,
    pixel_aspect: Fraction | None = None,
    audio: str | None = None,
    num_threads: int = 1,
) -> int:
    """Writes frames, uint8 RGB [H,W,3] all of one size, as one video; returns how many.

    `pts`: one time per frame in units of `time_base` (1/1000 s by default), for a variable frame rate or a
    start other than zero; without it frame i is shown at i/fps. `container` is FFmpeg's name of the format
    where the path's ending does not say it. `gop`: frames from one keyframe to the next at most. `b_frames`:
    between two others. `color` tags the stream and chooses the matrix: bt601, bt709, bt2020; None leaves it
    untagged, which is BT.601. `rotation` (degrees clockwise, multiples of 90) and `is_mirrored` say how the
    picture is to be shown, mirrored first; the container must be able to hold that (MP4, MOV). `audio` adds a
    quiet tone in this codec ("aac"). The same arguments give the same bytes as long as `num_threads` is 1.
    """
    rate = Fraction(fps).limit_denominator(100_000)
    clock = time_base or (Fraction(1, 1000) if pts is not None else 1 / rate)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"no frames to write to {path}")
    height, width = first.shape[:2]
    muxer_options = {"fflags": "+bitexact", **(container_options or {})}
    try:
        output = av.open(str(path), "w", format=container, options=muxer_options)
    except (av.FFmpegError, OSError, ValueError) as exc:
        raise PipelineError(f"cannot write {path}: {exc}; check the folder and the file's ending") from exc
    try:
        with output:
            settings = _codec_options(codec, crf=crf, options=options)
            stream = _added_stream(output, path, codec, rate, settings)
            context = stream.codec_context
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.time_base = context.time_base = clock
            context.thread_count = num_threads
            if gop is not None:
                context.gop_size = gop
            if b_frames is not None:
                context.max_b_frames = b_frames
            if bit_rate is not None:
                context.bit_rate = bit_rate
            if pixel_aspect is not None:
                context.sample_aspect_ratio = pixel_aspect
            if rotation or is_mirrored:
                # PyAV turns anticlockwise, then mirrors: a mirror that comes after turns the other way.
                stream.set_display_rotation(float(rotation if is_mirrored else -rotation), hflip=is_mirrored)
            to_coded = _color_arguments(stream, color, is_full_range)
            tone: AudioStream | None = None
            if audio is not None:
                tone = cast(AudioStream, output.add_stream(cast(Any, audio), rate=_AUDIO_RATE_HZ))
            count = 0
            for image in itertools.chain([first], iterator):
                if image.shape != first.shape:
                    raise ValueError(f"frame {count} is {image.shape}, the first was {first.shape}")
                frame = _coded_frame(image, pix_fmt, to_coded)
                frame.pts = count if pts is None else int(pts[count])
                frame.time_base = clock
                output.mux(stream.encode(frame))
                count += 1
            output.mux(stream.encode(None))
            if tone is not None:
                seconds = count / rate if pts is None else (pts[count - 1] - pts[0]) * clock
                _write_tone(output, tone, float(seconds))
    except (av.FFmpegError, OSError) as exc:
        raise PipelineError(f"cannot write {path} with {codec} in {pix_fmt}: {exc}") from exc
    return count


def _coded_frame(image: np.ndarray, pix_fmt: str, to_coded: dict[str, Any]) -> av.VideoFrame:
    """A frame in the pixel format of the stream, of uint8 RGB [H,W,3]."""
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return rgb.reformat(format=pix_fmt, **to_coded)


def _added_stream(
    output: av.container.OutputContainer, path: str | Path, codec: str, rate: Fraction, settings: dict[str, str]
) -> VideoStream:
    """The new video stream of a file, which will hold the same bytes whenever it is written."""
    try:
        stream = cast(VideoStream, output.add_stream(cast(Any, codec), rate=rate, options=settings))
    except ValueError as exc:
        # No such encoder here, or a container that cannot hold what it makes.
        raise PipelineError(f"cannot write {path} with {codec}: {exc}") from exc
    # The flag, not an option: an encoder that ignores it must not make the file fail.
    stream.codec_context.flags |= int(av.codec.context.Flags.bitexact)
    return stream


def _codec_options(codec: str, *, crf: float | None, options: dict[str, str] | None) -> dict[str, str]:
    """The options that an encoder gets beside those that the caller has given."""
    settings: dict[str, str] = {}
    if crf is not None:
        settings["crf"] = f"{crf:g}"
    if codec == "libx264":
        # Scene cuts move keyframes about; fixtures and the synthetic archive want them where `gop` says.
        settings["sc_threshold"] = "0"
        # Its macroblock tree reads memory that nothing wrote: at 192x192 five runs of 25 gave other bytes.
        settings["mbtree"] = "0"
    elif codec == "libx265":
        settings["x265-params"] = "log-level=none:pools=none:frame-threads=1:scenecut=0:info=0"
    elif codec == "libsvtav1":
        settings["svtav1-params"] = "lp=1"
    elif codec.startswith("libvpx"):
        settings |= {"deadline": "realtime", "cpu-used": "8"}
    settings.update(options or {})
    return settings


def _color_arguments(stream: VideoStream, color: str | None, is_full_range: bool) -> dict[str, Any]:
    """Tags the stream, and returns the arguments with which reformat makes coded pixels of RGB."""
    if color is not None and color not in _COLORS:
        raise ValueError(f"color must be one of {', '.join(_COLORS)}, not {color!r}")
    context = stream.codec_context
    is_full_range = is_full_range or (stream.pix_fmt or "").startswith("yuvj")
    if color is not None or is_full_range:
        context.color_range = int(ColorRange.JPEG if is_full_range else ColorRange.MPEG)
    matrix, tag, primaries, transfer = _COLORS[color or "bt601"]
    if color is not None:
        context.colorspace, context.color_primaries, context.color_trc = tag, int(primaries), int(transfer)
    if "rgb" in (stream.pix_fmt or "") or "gbr" in (stream.pix_fmt or ""):
        return {}
    return {
        "dst_colorspace": matrix,
        "dst_color_range": ColorRange.JPEG if is_full_range else ColorRange.MPEG,
    }


def _write_tone(output: av.container.OutputContainer, stream: AudioStream, seconds: float) -> None:
    """Writes a quiet 440 Hz tone: enough that a second stream lies between the video's packets."""
    samples = np.arange(max(1, round(seconds * _AUDIO_RATE_HZ)))
    wave = (np.sin(2 * np.pi * 440 * samples / _AUDIO_RATE_HZ) * 1000).astype(np.int16)
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = _AUDIO_RATE_HZ, start, Fraction(1, _AUDIO_RATE_HZ)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))
