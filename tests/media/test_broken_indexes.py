"""Files whose index is damaged: the reader goes without the index, or says what is wrong; it never fails by itself."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from operators.errors import SourceError
from operators.media.decode import FileReader
from operators.media.sampling import SamplingRule
from operators.media.view import Viewer
from operators.records import FrameBatch
from tests.media.test_frame_oracle import WholeFrame, whole_decode
from tests.support.video_files import MAKERS, number_in, source_of

SAMPLINGS = {
    "whole": SamplingRule(num_frames=8),
    "keyframe": SamplingRule(num_frames=8, seek="keyframe"),
    "window": SamplingRule(kind="window", num_frames=4, window_s=1.0, stride_s=1.0),
}
BOXES = ("stss", "stts", "ctts", "stco", "stsz", "stsc", "elst")


def read(path: Path, sampling: SamplingRule, *, viewer: Viewer | None = None, num_threads: int = 1) -> list[FrameBatch]:
    with FileReader(
        source=source_of(path),
        sampling=sampling,
        viewer=viewer or WholeFrame(32),
        clock=time.time,
        num_threads=num_threads,
    ) as reader:
        return [item for item in reader.read() if item is not None]


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return MAKERS["h264_b_frames"](tmp_path_factory.mktemp("index")).read_bytes()


def box(data: bytes, kind: str) -> tuple[int, int]:
    """(where the entries of a box begin, where it ends)"""
    at = data.rindex(kind.encode()) - 4
    (length,) = struct.unpack_from(">I", data, at)
    return at + 16, at + length


def mutations(data: bytes, kind: str) -> list[bytes]:
    """Entries made nothing, as great as can be, and the same everywhere; in another order; fewer and more of them."""
    begin, end = box(data, kind)
    entries = data[begin:end]
    words = [entries[i : i + 4] for i in range(0, len(entries), 4)]
    rng = np.random.default_rng(5)
    changed = [
        bytes(len(entries)),
        b"\xff" * len(entries),
        b"\x7f\xff\xff\xff" * len(words),
        struct.pack(">I", 7) * len(words),
        b"".join(words[::-1]),
        b"".join(words[i] for i in rng.permutation(len(words))),
        rng.bytes(len(entries)),
    ]
    mutants = [data[:begin] + new[: len(entries)] + data[end:] for new in changed]
    for count in (0, 1, 3, 1 << 31):
        mutants.append(data[: begin - 4] + struct.pack(">I", count) + data[begin:])
    return mutants


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("kind", BOXES)
def test_a_damaged_index_is_no_error_of_ours(kind: str, how: str, movie: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    for number, data in enumerate(mutations(movie, kind)):
        path.write_bytes(data)
        try:
            batches = read(path, SAMPLINGS[how], num_threads=1 + number % 2)
        except SourceError as exc:
            assert exc.code != "internal"
            continue
        # Where times are wrong in a way that times can be (ctts), nothing says which frame is meant by a number.
        if kind == "ctts" or how == "keyframe" or any(batch.facts.num_corrupt for batch in batches):
            continue
        # What is called complete is what a decode of everything gives.
        truth = whole_decode(path)
        for batch in batches:
            assert batch.facts.num_frames == len(truth)
            for row, frame in enumerate(batch.frame_index.tolist()):
                assert np.array_equal(batch.pixels[row], truth[frame]), f"mutation {number}, frame {frame}"


@pytest.mark.parametrize("how", ["whole", "keyframe"])
def test_a_file_whose_index_has_no_keyframe_is_read_without_the_index(how: str, movie: bytes, tmp_path: Path) -> None:
    begin, end = box(movie, "stss")
    path = tmp_path / "no_keyframes.mp4"
    path.write_bytes(movie[:begin] + b"\xff" * (end - begin) + movie[end:])
    (batch,) = read(path, SAMPLINGS[how])
    assert batch.windows[0].coverage == 1.0
    assert [number_in(view) for view in batch.pixels] == batch.frame_index.tolist() == [3, 11, 18, 26, 33, 41, 48, 56]
