"""H.264 files whose frames show their own number with a checksum, and their NAL units for a camera to send."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from operators.media.encode import write_video

_BLOCK_PX = 32
_BITS = 16


def numbered_frame(number: int, *, width: int = 320, height: int = 180) -> np.ndarray:
    """uint8 RGB [H,W,3] that shows 12 bits of `number` and 4 of a checksum as 4x4 black and white blocks.

    The blocks take 128 of 180 lines in the centre, so that the usual centre crop has them; larger frames scale.
    """
    scale = height // 180
    # Noise around the blocks, so that coded frames are long enough to take several packets.
    frame = np.random.default_rng(number).integers(64, 160, (height, width, 3)).astype(np.uint8)
    side = _BLOCK_PX * scale
    top, left = (height - 4 * side) // 2, (width - 4 * side) // 2
    for bit, is_set in enumerate(_bits(number)):
        y, x = top + bit // 4 * side, left + bit % 4 * side
        frame[y : y + side, x : x + side] = 255 if is_set else 0
    return frame


def shown_number(view: np.ndarray, *, resize_px: int = 256) -> int:
    """The number that a view [S,S,3] of such a frame shows; an error where the picture is not clean."""
    side = _BLOCK_PX * resize_px / 180
    corner = view.shape[0] / 2 - 2 * side
    means = []
    for bit in range(_BITS):
        y, x = corner + (bit // 4 + 0.25) * side, corner + (bit % 4 + 0.25) * side
        block = view[round(y) : round(y + side / 2), round(x) : round(x + side / 2)]
        means.append(float(block.mean()))
    assert all(mean < 60 or mean > 195 for mean in means), f"a smeared frame: {[round(m) for m in means]}"
    bits = [mean > 128 for mean in means]
    number = sum(1 << i for i, is_set in enumerate(bits[:12]) if is_set)
    assert bits == _bits(number), f"no number: {bits}"
    return number


def _bits(number: int) -> list[bool]:
    number %= 1 << 12
    word = number | (number * 7 + 5) % 13 << 12
    return [bool(word >> bit & 1) for bit in range(_BITS)]


def write_numbered(
    path: Path,
    *,
    num_frames: int,
    fps: float = 15,
    gop: int = 5,
    b_frames: int = 0,
    width: int = 320,
    height: int = 180,
) -> Path:
    """An MP4 of numbered frames; for one that is repeated, `gop` should divide `num_frames`."""
    write_video(
        path,
        (numbered_frame(n, width=width, height=height) for n in range(num_frames)),
        fps=fps,
        gop=gop,
        b_frames=b_frames,
        crf=23,
        options={"preset": "superfast"},
    )
    return path


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """A coded frame in decoding order."""

    nals: tuple[bytes, ...]
    number: int
    """Its place in the order of display."""
    is_keyframe: bool


@dataclass(frozen=True, slots=True)
class CodedVideo:
    units: tuple[AccessUnit, ...]
    parameter_sets: tuple[bytes, ...]
    """SPS and PPS."""
    fps: Fraction


def load_coded(path: Path) -> CodedVideo:
    """The NAL units of an MP4 file's H.264."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        extradata = bytes(stream.codec_context.extradata or b"")
        fps = Fraction(stream.average_rate or 25)
        packets = [(packet.pts, bytes(packet), packet.is_keyframe) for packet in container.demux(stream) if packet.size]
    ranks = {pts: rank for rank, pts in enumerate(sorted(pts for pts, _, _ in packets if pts is not None))}
    units = []
    for pts, data, is_keyframe in packets:
        nals, at = [], 0
        while at < len(data):
            (size,) = struct.unpack_from(">I", data, at)
            nals.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        assert pts is not None
        units.append(AccessUnit(nals=tuple(nals), number=ranks[pts], is_keyframe=is_keyframe))
    return CodedVideo(units=tuple(units), parameter_sets=_parameter_sets(extradata), fps=fps)


def _parameter_sets(avcc: bytes) -> tuple[bytes, ...]:
    sets, at = [], 6
    for count in (avcc[5] & 31, None):
        if count is None:
            count, at = avcc[at], at + 1
        for _ in range(count):
            (size,) = struct.unpack_from(">H", avcc, at)
            sets.append(avcc[at + 2 : at + 2 + size])
            at += 2 + size
    return tuple(sets)
