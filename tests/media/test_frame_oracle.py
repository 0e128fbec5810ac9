"""The frame oracle: files of many codecs whose frames carry their number, read as the program reads them, against a
decode of the whole file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from operators.media.decode import FileReader
from operators.media.frame_plan import Sampling
from operators.media.view import Orientation, Viewer
from operators.records import FrameBatch
from tests.support.video_files import FFMPEG_MAKERS, HAS_FFMPEG, MAKERS, number_in, source_of

TURNED = {"h264_rotated": Orientation(rotation=90)}
COUNTS = {"prores": 30, "two_frames": 2, "edit_list": None, "cut_open_group": None, "xvid_avi": None}
"""Frames of each file where they are not 60; None where only the whole decode tells."""
PLANNED = {
    "h264_b_frames", "h264_with_audio", "h264_no_b", "h264_one_group", "h264_mkv", "h264_ts", "h264_10_bit",
    "h264_444_odd", "h264_full_range", "h264_vfr", "h264_late_start", "h264_rotated", "h264_wide_pixels",
    "false_keyframes", "hevc", "hevc_10_bit", "vp8", "vp9", "mpeg4_mp4", "mpeg2_ts", "prores", "mjpeg", "flv",
    "vp8_hidden", "vp9_hidden", "av1",
    "open_groups_h264", "open_groups_h264_ts", "open_groups_hevc", "fragmented", "cover_art", "edit_list",
}  # fmt: skip
"""Files where seeking must do: decoding everything would be right, but slow."""


class WholeFrame(Viewer):
    """Shows the frame as it is, so that every pixel of the full-size picture can be compared."""

    def __init__(self, size: int) -> None:
        super().__init__(resize_px=size, crop_px=size)

    def __call__(self, frame: np.ndarray, orientation: Orientation = Orientation()) -> np.ndarray:  # noqa: B008
        return frame.copy()


def whole_decode(path: Path) -> list[np.ndarray]:
    """All frames in full size, as the decoder gives them from the first packet to the last."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        stream.thread_count, stream.thread_type = 1, "NONE"
        frames = []
        for packet in container.demux(stream):
            try:
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
            except av.FFmpegError:
                continue
    return frames


def read_whole(path: Path, *, num_threads: int = 1, num_frames: int = 8, viewer: Viewer | None = None) -> FrameBatch:
    with FileReader(
        source=source_of(path),
        sampling=Sampling(num_frames=num_frames, num_focus_frames=5),
        viewer=viewer or WholeFrame(32),
        clock=time.time,
        num_threads=num_threads,
    ) as reader:
        (batch,) = [item for item in reader.read() if item is not None]
    return batch


def published(n: int, steps: int) -> list[int]:
    """The validation rule, written once more."""
    if n > steps:
        return [int(n / steps / 2 + n / steps * i) for i in range(steps)]
    return list(range(n)) + [n - 1] * (steps - n)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("oracle")


def all_makers() -> list:
    needs = pytest.mark.skipif(not HAS_FFMPEG, reason="needs Debian's ffmpeg")
    return [pytest.param(name, maker, id=name) for name, maker in MAKERS.items()] + [
        pytest.param(name, maker, id=name, marks=needs) for name, maker in FFMPEG_MAKERS.items()
    ]


@pytest.mark.parametrize(("name", "maker"), all_makers())
def test_chosen_frames_are_those_of_a_whole_decode(
    name: str, maker: Callable[[Path], Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = maker(folder)
    truth = whole_decode(path)
    expected = COUNTS.get(name, 60)
    if expected is not None:
        assert len(truth) == expected
        assert [number_in(frame) for frame in truth] == list(range(expected))
    if name in PLANNED:
        monkeypatch.setattr(FileReader, "_everything", lambda *_: pytest.fail("decoded everything"))

    glance, focus = published(len(truth), 8), published(len(truth), 5)
    for num_threads in (1, 2):
        batch = read_whole(path, num_threads=num_threads)
        (window,) = batch.windows
        assert batch.frame_index[window.glance_rows].tolist() == glance
        assert batch.frame_index[window.candidate_rows].tolist() == focus
        assert batch.frame_index.tolist() == sorted(set(glance) | set(focus))
        assert batch.facts.num_frames == len(truth)
        assert (batch.facts.width, batch.facts.height) == (truth[0].shape[1], truth[0].shape[0])
        assert batch.facts.rotation == TURNED.get(name, Orientation()).rotation
        assert window.coverage == 1.0
        for row, index in enumerate(batch.frame_index.tolist()):
            assert np.array_equal(batch.pixels[row], truth[index]), f"frame {index} with {num_threads} threads"
        assert np.all(np.diff(batch.pts_s) > 0)
        assert batch.pts_s[0] >= 0
