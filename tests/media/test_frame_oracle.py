"""The frame oracle: files of many codecs whose frames carry their number, read as the program reads them, against a
decode of the whole file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from operators.media import bitstream
from operators.media.container import Decoder
from operators.media.decode import FileReader
from operators.media.frame_plan import decode_plan
from operators.media.indexing import read_table
from operators.media.opening import ReadLimits
from operators.media.packet_table import PacketTable, irregularity
from operators.media.sampling import SamplingRule
from operators.media.view import Orientation, Viewer
from operators.records import FrameBatch
from tests.support.video_files import FFMPEG_MAKERS, HAS_FFMPEG, MAKERS, number_in, source_of

TURNED = {"h264_rotated": Orientation(rotation=90)}
COUNTS = {"prores": 30, "two_frames": 2, "edit_list": None, "cut_open_group": None, "xvid_avi": None}
"""Frames of each file where they are not 60; None where only the whole decode shows it."""
PLANNED = {
    "h264_b_frames", "h264_with_audio", "h264_no_b", "h264_one_group", "h264_mkv", "h264_ts", "h264_10_bit",
    "h264_444_odd", "h264_full_range", "h264_vfr", "h264_late_start", "h264_rotated", "h264_wide_pixels",
    "false_keyframes", "hevc", "hevc_10_bit", "vp8", "vp9", "mpeg4_mp4", "mpeg2_ts", "prores", "mjpeg", "flv",
    "vp8_hidden", "vp8_temporal_layers", "vp9_hidden", "vp9_layers", "vp9_temporal_layers",
    "av1", "av1_pyramid", "av1_lookahead", "av1_tuned", "hevc_pyramid", "hevc_temporal_layers", "hevc_flat",
    "h264_pyramid", "h264_direct_temporal", "mpeg1",
    "open_groups_h264", "open_groups_h264_ts", "open_groups_hevc", "fragmented", "cover_art", "edit_list",
}  # fmt: skip
"""Files where seeking must do: decoding everything would be right, but slow."""
LAYERED = {
    "h264_b_frames": "h264", "h264_pyramid": "h264", "h264_direct_temporal": "h264", "open_groups_h264": "h264",
    "hevc": "hevc", "hevc_pyramid": "hevc", "hevc_flat": "hevc", "open_groups_hevc": "hevc",
    "hevc_temporal_layers": None, "mpeg1": "mpeg1video", "mpeg2_ts": "mpeg2video", "mpeg4_mp4": "mpeg4",
    "vp8_temporal_layers": None, "vp9_layers": None, "vp9_temporal_layers": None,
    "av1_pyramid": None, "av1_lookahead": None, "av1_tuned": None,
}  # fmt: skip
"""Files with frames that nothing refers to, and the codec whose skipping they prove; None where nothing is skipped."""


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
        sampling=SamplingRule(num_frames=num_frames, num_focus_frames=5),
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
        monkeypatch.setattr(FileReader, "_read_everything", lambda *_: pytest.fail("decoded everything"))

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


def table_of(decoder: Decoder) -> PacketTable:
    """The packets of a file, which are as regular as a plan wants them."""
    reading = read_table(decoder)
    while True:
        try:
            next(reading)
        except StopIteration as done:
            table, trouble = done.value
            break
    assert trouble is None and irregularity(table) is None
    return table


class NotedContext:
    """A decoder's context that notes whether it was ever set to leave out frames."""

    def __init__(self, context: Any) -> None:
        vars(self).update(context=context, was_asked_to_skip=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "skip_frame" and value == "NONREF":
            vars(self).update(was_asked_to_skip=True)
        setattr(self.context, name, value)


def samples_of(num_frames: int) -> list[list[int]]:
    """Every frame alone, with all others left out where they may be; and every second, third and fifth frame."""
    combs = [list(range(start, num_frames, step)) for step in (2, 3, 5) for start in range(step)]
    return [[frame] for frame in range(num_frames)] + combs


@pytest.mark.parametrize(("name", "maker"), [some for some in all_makers() if some.id in LAYERED])
def test_frames_that_nothing_refers_to_are_given_and_skipping_them_changes_no_other(
    name: str, maker: Callable[[Path], Path], folder: Path
) -> None:
    path = maker(folder)
    truth = whole_decode(path)
    reading = Decoder(str(path), ReadLimits(), WholeFrame(32), num_threads=1)
    table = table_of(reading)
    reading.close()
    was_asked_to_skip = False
    # A decoder takes one sample after the other as it does in a run; a new one begins with an ordinary frame, or not.
    for samples in (samples_of(len(truth)), [[len(truth) // 2]], [[0, len(truth) // 2 + 1]]):
        decoder = Decoder(str(path), ReadLimits(), WholeFrame(32), num_threads=1)
        decoder.context = noted = NotedContext(decoder.context)  # type: ignore[assignment]
        for frames in samples:
            shots = [
                shot
                for group in decode_plan(table, frames)
                for shot in decoder.decode_group(table, group, is_strict=True)
                if shot is not None
            ]
            assert [shot.wanted for shot in shots] == frames
            for shot in shots:
                assert np.array_equal(shot.pixels, truth[shot.wanted]), f"frame {shot.wanted} of {frames}"
        was_asked_to_skip |= noted.was_asked_to_skip
        decoder.close()
    assert was_asked_to_skip == (LAYERED[name] is not None)


def test_every_codec_whose_frames_may_be_skipped_is_proven_above() -> None:
    proven = {codec for codec in LAYERED.values() if codec is not None}
    assert {codec for codec, may_skip in bitstream.MAY_SKIP.items() if may_skip} == proven


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_decoder_that_leaves_out_wanted_frames_makes_the_reader_decode_everything(
    num_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = MAKERS["av1_pyramid"](tmp_path)
    truth = whole_decode(path)
    # dav1d keeps to its first setting.
    monkeypatch.setattr(bitstream, "may_skip_unreferenced", lambda codec, extradata: True)
    batch = read_whole(path, num_threads=num_threads, num_frames=16)
    assert batch.windows[0].coverage == 1.0
    assert batch.facts.num_frames == 60
    for row, index in enumerate(batch.frame_index.tolist()):
        assert np.array_equal(batch.pixels[row], truth[index])
