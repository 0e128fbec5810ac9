"""Video files whose frames carry their own number, in many codecs and with many quirks.

The number is painted as black and white blocks big enough to survive any codec: it is read back from decoded pixels.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from operators.media.encode import write_video
from operators.records import Media, Source, source_id

HAS_FFMPEG = shutil.which("ffmpeg") is not None
needs_ffmpeg = pytest.mark.skipif(not HAS_FFMPEG, reason="needs Debian's ffmpeg to make what PyAV cannot")
BITS = 10


def numbered_frame(number: int, *, width: int = 160, height: int = 96, seed: int = 0) -> np.ndarray:
    """uint8 RGB [H,W,3]: the number in binary in the upper half, something that moves in the lower."""
    frame = np.empty((height, width, 3), np.uint8)
    block = width // BITS
    for bit in range(BITS):
        frame[: height // 2, bit * block : (bit + 1) * block] = 235 if number >> bit & 1 else 20
    frame[: height // 2, BITS * block :] = 128
    y, x = np.mgrid[0 : height - height // 2, 0:width]
    frame[height // 2 :, :, 0] = (x * 3 + number * 5) % 200 + 20
    frame[height // 2 :, :, 1] = (y * 4 + number * 3 + seed) % 180 + 30
    frame[height // 2 :, :, 2] = ((x // 8 + y // 8 + number) % 2) * 120 + 60
    return frame


def number_in(frame: np.ndarray) -> int:
    """The number that a frame, uint8 RGB [H,W,3], carries."""
    height, width = frame.shape[:2]
    block = width / BITS
    rows = slice(height // 8, height * 3 // 8)
    number = 0
    for bit in range(BITS):
        columns = slice(int((bit + 0.25) * block), max(int((bit + 0.75) * block), int((bit + 0.25) * block) + 1))
        number |= int(frame[rows, columns].mean() > 127) << bit
    return number


def numbered_frames(count: int, *, width: int = 160, height: int = 96, start: int = 0) -> Iterator[np.ndarray]:
    return (numbered_frame(start + i, width=width, height=height) for i in range(count))


def ffmpeg(*arguments: str | Path) -> None:
    """Runs Debian's ffmpeg on one thread."""
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")


def source_of(path: Path | str, media: Media = Media.VIDEO) -> Source:
    return Source(source_id=source_id(str(path)), uri=str(path), video_id=Path(path).stem, media=media)


def plain(path: Path, count: int = 60, **how) -> Path:
    """A file as write_video makes it, with numbered frames; `width` and `height` go to the frames."""
    size = {key: how.pop(key) for key in ("width", "height") if key in how}
    how.setdefault("crf", 23 if how.get("codec", "libx264") in ("libx264", "libx265", "libvpx-vp9") else None)
    write_video(path, numbered_frames(count, **size), **how)
    return path


def patched(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def x264(folder: Path, name: str, *arguments: str, count: int = 60, settings: str = "", **how) -> Path:
    """Encodes by Debian's ffmpeg, out of a lossless file of numbered frames."""
    lossless = folder / f"lossless_{count}.mkv"
    if not lossless.exists():
        plain(lossless, count, codec="ffv1", pix_fmt="yuv420p")
    path = folder / name
    codec = how.get("codec", "libx264")
    extra = ["-x264-params", settings] if settings and codec == "libx264" else []
    extra = ["-x265-params", f"log-level=none:pools=none:frame-threads=1:{settings}"] if codec == "libx265" else extra
    ffmpeg("-i", lossless, "-c:v", codec, "-threads", "1", *extra, *arguments, path)
    return path


def copied(path: Path, name: str, *arguments: str, before: tuple[str, ...] = ()) -> Path:
    """The same packets in another container or with other tables."""
    target = path.with_name(name)
    ffmpeg(*before, "-i", path, "-map", "0", "-c", "copy", *arguments, target)
    return target


# Every maker gives a file with the number of frames that it was made of, by name.

GOP = 12


def h264_b_frames(folder: Path) -> Path:
    return plain(folder / "b.mp4", gop=GOP, b_frames=3)


def h264_with_audio(folder: Path) -> Path:
    return plain(folder / "audio.mp4", gop=GOP, b_frames=2, audio="aac")


def h264_no_b(folder: Path) -> Path:
    return plain(folder / "no_b.mp4", gop=GOP, b_frames=0)


def h264_one_group(folder: Path) -> Path:
    return plain(folder / "one_group.mkv", gop=250, b_frames=2)


def h264_mkv(folder: Path) -> Path:
    return plain(folder / "b.mkv", gop=GOP, b_frames=2)


def h264_ts(folder: Path) -> Path:
    return plain(folder / "b.ts", gop=GOP, b_frames=2)


def h264_10_bit(folder: Path) -> Path:
    return plain(folder / "ten.mkv", gop=GOP, pix_fmt="yuv420p10le")


def h264_444_odd(folder: Path) -> Path:
    return plain(folder / "odd.mkv", gop=GOP, pix_fmt="yuv444p", width=161, height=97)


def h264_full_range(folder: Path) -> Path:
    return plain(folder / "full.mp4", gop=GOP, color="bt709", is_full_range=True)


def h264_vfr(folder: Path) -> Path:
    steps = np.random.default_rng(7).integers(5, 90, 60)
    return plain(folder / "vfr.mp4", gop=GOP, b_frames=2, pts=np.cumsum(steps).tolist())


def h264_late_start(folder: Path) -> Path:
    return plain(folder / "late.mkv", gop=GOP, b_frames=2, pts=[5000 + 40 * i for i in range(60)])


def h264_rotated(folder: Path) -> Path:
    return plain(folder / "turned.mp4", gop=GOP, rotation=90)


def h264_wide_pixels(folder: Path) -> Path:
    return plain(folder / "wide.mp4", gop=GOP, pixel_aspect=Fraction(2, 1))


def hevc(folder: Path) -> Path:
    return plain(folder / "hevc.mp4", codec="libx265", gop=GOP)


def hevc_10_bit(folder: Path) -> Path:
    return plain(folder / "hevc10.mkv", codec="libx265", gop=GOP, pix_fmt="yuv420p10le")


def vp8(folder: Path) -> Path:
    return plain(folder / "vp8.webm", codec="libvpx", gop=GOP, bit_rate=400_000)


def vp8_hidden(folder: Path) -> Path:
    """With reference frames that are never shown, in packets of their own: VP8 makes them in a second pass only."""
    how = ["-b:v", "200k", "-g", "30", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-arnr-maxframes", "5",
           "-deadline", "good", "-cpu-used", "4", "-passlogfile", str(folder / "vp8")]  # fmt: skip
    x264(folder, "first_pass.webm", *how, "-pass", "1", codec="libvpx")
    return x264(folder, "vp8_hidden.webm", *how, "-pass", "2", codec="libvpx")


def vp9(folder: Path) -> Path:
    return plain(folder / "vp9.webm", codec="libvpx-vp9", gop=GOP, bit_rate=400_000)


def vp9_hidden(folder: Path) -> Path:
    return x264(
        folder, "vp9_hidden.mp4", "-b:v", "200k", "-g", "30", "-auto-alt-ref", "1", "-lag-in-frames", "16",
        "-deadline", "good", "-cpu-used", "5", codec="libvpx-vp9",
    )  # fmt: skip


def av1(folder: Path) -> Path:
    return x264(
        folder, "av1.mp4", "-g", "30", "-cpu-used", "8", "-usage", "realtime", "-crf", "30", "-b:v", "0",
        codec="libaom-av1",
    )  # fmt: skip


def vp9_layers(folder: Path) -> Path:
    """With reference frames that are never shown in several layers, and small ones between them."""
    return x264(
        folder, "vp9_layers.webm", "-b:v", "200k", "-g", "60", "-auto-alt-ref", "6", "-lag-in-frames", "25",
        "-deadline", "good", "-cpu-used", "5", codec="libvpx-vp9",
    )  # fmt: skip


def _temporal_layers(folder: Path, name: str, codec: str) -> Path:
    layers = (
        "ts_number_layers=3:ts_target_bitrate=50,100,200:ts_rate_decimator=4,2,1:ts_periodicity=4:"
        "ts_layer_id=0,2,1,2:ts_layering_mode=3"
    )
    return x264(
        folder, name, "-b:v", "200k", "-g", "60", "-deadline", "realtime", "-cpu-used", "8", "-lag-in-frames", "0",
        "-error-resilient", "1", "-ts-parameters", layers, codec=codec,
    )  # fmt: skip


def vp8_temporal_layers(folder: Path) -> Path:
    """Every second frame is referred to by none, as in video calls."""
    return _temporal_layers(folder, "vp8_temporal.webm", "libvpx")


def vp9_temporal_layers(folder: Path) -> Path:
    return _temporal_layers(folder, "vp9_temporal.webm", "libvpx-vp9")


def av1_pyramid(folder: Path) -> Path:
    """Frames in layers, the upper ones referred to by none, and packets that only show what was decoded before."""
    return plain(folder / "av1_pyramid.mkv", codec="libsvtav1", gop=60, bit_rate=300_000)


def av1_lookahead(folder: Path) -> Path:
    return x264(
        folder, "av1_lookahead.mkv", "-g", "60", "-cpu-used", "8", "-lag-in-frames", "19", "-crf", "40", "-b:v", "0",
        codec="libaom-av1",
    )  # fmt: skip


def av1_tuned(folder: Path) -> Path:
    return x264(
        folder, "av1_tuned.mp4", "-g", "30", "-cpu-used", "8", "-lag-in-frames", "25", "-tune", "ssim", "-crf", "40",
        "-b:v", "0", codec="libaom-av1",
    )  # fmt: skip


def hevc_pyramid(folder: Path) -> Path:
    return x264(folder, "hevc_pyr.mp4", codec="libx265", settings="keyint=30:bframes=7:b-adapt=0:b-pyramid=1")


def hevc_temporal_layers(folder: Path) -> Path:
    """Two temporal layers: what is marked as referred to by none is so in its own layer only."""
    settings = "keyint=30:bframes=7:b-adapt=0:b-pyramid=1:scenecut=0:open-gop=0:temporal-layers=1"
    return x264(folder, "hevc_layers.mp4", codec="libx265", settings=settings)


def hevc_flat(folder: Path) -> Path:
    return x264(folder, "hevc_flat.mkv", codec="libx265", settings="keyint=30:bframes=3:b-adapt=0:b-pyramid=0")


def h264_pyramid(folder: Path) -> Path:
    settings = "keyint=30:bframes=7:b-adapt=0:b-pyramid=normal:scenecut=0:ref=4"
    return x264(folder, "h264_pyramid.mp4", settings=settings)


def h264_direct_temporal(folder: Path) -> Path:
    settings = "keyint=30:bframes=5:b-adapt=0:b-pyramid=strict:scenecut=0:direct=temporal"
    return x264(folder, "h264_direct.ts", "-tune", "animation", settings=settings)


def mpeg1(folder: Path) -> Path:
    return plain(folder / "mpeg1.mkv", codec="mpeg1video", gop=GOP, b_frames=2, bit_rate=900_000)


def mpeg4_mp4(folder: Path) -> Path:
    return plain(folder / "mpeg4.mp4", codec="mpeg4", gop=GOP, b_frames=2, bit_rate=600_000)


def mpeg4_avi(folder: Path) -> Path:
    return plain(folder / "mpeg4.avi", codec="mpeg4", gop=GOP, b_frames=2, bit_rate=600_000)


def xvid_avi(folder: Path) -> Path:
    return x264(folder, "xvid.avi", "-b:v", "600k", "-g", "12", "-bf", "2", codec="libxvid")


def mpeg2_ts(folder: Path) -> Path:
    return plain(folder / "mpeg2.ts", codec="mpeg2video", gop=GOP, b_frames=2, bit_rate=900_000)


def mpeg2_ps(folder: Path) -> Path:
    return x264(folder, "mpeg2.mpg", "-b:v", "900k", "-g", "12", "-bf", "2", codec="mpeg2video")


def prores(folder: Path) -> Path:
    return plain(folder / "prores.mov", count=30, codec="prores_ks", pix_fmt="yuv422p10le")


def mjpeg(folder: Path) -> Path:
    return plain(folder / "mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p", bit_rate=2_000_000)


def open_groups_h264(folder: Path) -> Path:
    return x264(folder, "open.mp4", settings="open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0")


def open_groups_h264_ts(folder: Path) -> Path:
    return x264(folder, "open.ts", settings="open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0")


def open_groups_hevc(folder: Path) -> Path:
    settings = "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"
    return x264(folder, "open_hevc.mp4", "-tag:v", "hvc1", codec="libx265", settings=settings)


def cut_open_group(folder: Path) -> Path:
    """A stream that was cut at an open group: its first pictures lean on what is no longer there."""
    whole = open_groups_h264_ts(folder)
    return copied(whole, "cut_open.ts", before=("-ss", "1.0"))


def intra_refresh(folder: Path) -> Path:
    """Keyframes that are none: a stripe of fresh pixels that wanders over the picture."""
    return x264(folder, "refresh.ts", settings="intra-refresh=1:keyint=12:bframes=0:scenecut=0")


def interlaced(folder: Path) -> Path:
    return x264(folder, "interlaced.mp4", settings="tff=1:keyint=12:bframes=2:scenecut=0")


def edit_list(folder: Path) -> Path:
    """Cut in between two keyframes without encoding: an edit list hides what is before."""
    return copied(h264_b_frames(folder), "edited.mp4", before=("-ss", "0.9"))


def false_keyframes(folder: Path) -> Path:
    """Every picture is called a keyframe: the table that lists the true ones is gone."""
    path = folder / "false_keys.mp4"
    path.write_bytes(h264_b_frames(folder).read_bytes())
    return patched(path, b"stss", b"free")


def fragmented(folder: Path) -> Path:
    return copied(h264_b_frames(folder), "pieces.mp4", "-movflags", "frag_keyframe+empty_moov")


def cover_art(folder: Path) -> Path:
    """An attached picture as the first video stream."""
    movie = h264_b_frames(folder)
    picture = folder / "cover.png"
    plain(folder / "cover.mkv", 1, codec="ffv1", pix_fmt="bgr0", width=64, height=64)
    ffmpeg("-i", folder / "cover.mkv", picture)
    target = folder / "cover_art.mp4"
    ffmpeg(
        "-i", picture, "-i", movie, "-map", "0", "-map", "1:v", "-c:v:0", "png", "-c:v:1", "copy",
        "-disposition:v:0", "attached_pic", target,
    )  # fmt: skip
    return target


def two_frames(folder: Path) -> Path:
    return plain(folder / "two.mp4", 2)


def flv(folder: Path) -> Path:
    return plain(folder / "b.flv", gop=GOP, b_frames=2)


MAKERS = {
    maker.__name__: maker
    for maker in (
        h264_b_frames, h264_with_audio, h264_no_b, h264_one_group, h264_mkv, h264_ts, h264_10_bit, h264_444_odd,
        h264_full_range, h264_vfr, h264_late_start, h264_rotated, h264_wide_pixels, false_keyframes, hevc,
        hevc_10_bit, vp8, vp9, av1_pyramid, mpeg1,
        mpeg4_mp4, mpeg4_avi, mpeg2_ts, prores, mjpeg, two_frames, flv,
    )
}  # fmt: skip
"""Makers that need PyAV alone."""

FFMPEG_MAKERS = {
    maker.__name__: maker
    for maker in (
        vp8_hidden, vp8_temporal_layers, vp9_hidden, vp9_layers, vp9_temporal_layers, av1, av1_lookahead, av1_tuned,
        hevc_pyramid, hevc_temporal_layers, hevc_flat, h264_pyramid, h264_direct_temporal, xvid_avi,
        mpeg2_ps, open_groups_h264, open_groups_h264_ts, open_groups_hevc, cut_open_group, intra_refresh, interlaced,
        edit_list, fragmented, cover_art,
    )
}  # fmt: skip
"""Makers that need Debian's ffmpeg."""
