"""A reference frame that was lost as a whole shows in the frame numbers, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from operators.media.encode import write_video
from operators.media.h264 import FrameNumbers


def packets(
    path: Path, *, options: dict[str, str], gop: int, b_frames: int, width: int = 64
) -> list[tuple[bytes, bool]]:
    """(Annex B bytes, whether others refer to it) of 40 frames of noise, in decoding order."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, width, 3)).astype(np.uint8)
    write_video(path, iter(noise), fps=25, gop=gop, b_frames=b_frames, options=options, container="h264")
    with av.open(str(path)) as container:
        return [(bytes(packet), is_reference(bytes(packet))) for packet in container.demux(video=0) if packet.size]


def is_reference(packet: bytes) -> bool:
    """By the importance that its first slice carries."""
    headers = [nal[0] for nal in packet.split(b"\0\0\1")[1:]]
    return next(header >> 5 & 3 for header in headers if header & 31 in (1, 5)) > 0


def gaps(coded: list[bytes]) -> list[int]:
    numbers = FrameNumbers()
    return [i for i, packet in enumerate(coded) if numbers.has_gap(packet)]


STREAMS = {
    "baseline": {"options": {"profile": "baseline"}, "gop": 40, "b_frames": 0},
    "main with B-frames": {"options": {"profile": "main", "b-pyramid": "none"}, "gop": 40, "b_frames": 2},
    "high with a pyramid": {"options": {"profile": "high", "b-pyramid": "normal"}, "gop": 40, "b_frames": 3},
    "short groups": {"options": {}, "gop": 5, "b_frames": 0},
    "custom matrices": {"options": {"x264-params": "cqm=jvt"}, "gop": 40, "b_frames": 0},
    "many references": {"options": {"refs": "8"}, "gop": 40, "b_frames": 0},
    "interlaced": {"options": {"x264-params": "interlaced=1"}, "gop": 40, "b_frames": 0},
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_a_whole_stream_has_no_gaps(tmp_path, stream):
    assert gaps([packet for packet, _ in packets(tmp_path / "a.h264", **stream)]) == []


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_after_a_lost_reference_frame_the_next_frame_tells(tmp_path, stream):
    coded = packets(tmp_path / "a.h264", **stream)
    lost = next(i for i, (_, matters) in enumerate(coded) if i >= 12 and matters)
    left = [packet for i, (packet, _) in enumerate(coded) if i != lost]
    assert gaps(left)[:1] == [lost]


def test_a_lost_frame_to_which_no_other_refers_is_no_gap(tmp_path):
    coded = packets(tmp_path / "a.h264", **STREAMS["main with B-frames"])
    left = [packet for packet, matters in coded if matters]
    assert len(left) < len(coded)
    assert gaps(left) == []


def test_a_keyframe_after_a_loss_is_no_gap(tmp_path):
    coded = [packet for packet, _ in packets(tmp_path / "a.h264", **STREAMS["short groups"])]
    assert gaps(coded[:3] + coded[10:]) == []


def test_noise_is_survived():
    rng = np.random.default_rng(1)
    numbers = FrameNumbers()
    for _ in range(300):
        start = bytes([0, 0, 1, int(rng.choice([0x67, 0x65, 0x41, 0x68]))])
        numbers.has_gap(start + rng.integers(0, 256, int(rng.integers(0, 30))).astype(np.uint8).tobytes())
    assert numbers.has_gap(b"") is False
