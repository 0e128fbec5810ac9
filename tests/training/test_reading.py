"""Training videos are read in processes that can be ended, so one that hangs or kills its decoder costs itself only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from operators.errors import SourceError
from operators.media.encode import write_video
from operators.media.view import Viewer
from operators.records import Source
from pipeline.training.frame_cache import ClipFrames, open_cache
from pipeline.training.read_clips import ClipReader, ReadInProcesses
from tests.run.test_pools import is_alive
from tests.support.processes import wait_for

FRAMES = ClipFrames(
    pixels=np.zeros((2, 4, 4, 3), np.uint8), frame_index=np.arange(2), num_frames=2, view_yxhw=(0.0, 0.0, 1.0, 1.0)
)


def sources(*names: object) -> list[Source]:
    return [Source(source_id=f"{n:032x}", uri=str(name), video_id=str(n)) for n, name in enumerate(names)]


class FaultyReader:
    """Reads by the video's name: it hangs, ends its process, is slow but makes progress, or works."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, source: Source) -> ClipFrames:
        raise AssertionError("read in this process")

    def steps(self, source: Source) -> Iterator[ClipFrames | None]:
        (self.folder / f"{os.getpid()}").touch()
        match source.uri:
            case "hangs":
                time.sleep(1000)
            case "kills":
                os._exit(1)
            case "kills once" if not (self.folder / "was killed").exists():
                (self.folder / "was killed").touch()
                os._exit(1)
            case "breaks":
                raise ZeroDivisionError("by nothing")
            case "refuses":
                raise SourceError("refuses: not a video", code="not_media")
            case "slow":
                for _ in range(8):
                    time.sleep(0.4)
                    yield None
            case "endless":
                while True:
                    time.sleep(0.05)
                    yield None
        yield FRAMES


def read_plainly(source: Source) -> ClipFrames:
    return FRAMES


def read_all(folder: Path, *names: str, workers: int = 2, **limits: float) -> list[str]:
    """What became of each video: its error, or `frames`."""
    many = ReadInProcesses(workers, **({"timeout_s": 2.0} | limits))
    results = many(FaultyReader(folder), sources(*names))
    return [str(result) if isinstance(result, SourceError) else "frames" for result in results]


def test_a_video_that_hangs_is_given_up_by_name_and_the_others_are_read_in_their_order(tmp_path: Path) -> None:
    found = read_all(tmp_path, "a", "hangs", "b", "refuses", "c", "d", "e", "f", "g", "h", "i", "j")
    assert found[1] == "hangs: the decoder made no progress within 2 s and was ended"
    assert found[3] == "refuses: not a video"
    assert [n for n, result in enumerate(found) if result != "frames"] == [1, 3]


def test_one_reader_survives_a_video_that_hangs_too(tmp_path: Path) -> None:
    found = read_all(tmp_path, "a", "hangs", "b", workers=1, timeout_s=1.0)
    assert (found[0], found[1][:6], found[2]) == ("frames", "hangs:", "frames")


def test_a_video_that_kills_its_process_is_left_out_by_name_after_three_tries(tmp_path: Path) -> None:
    assert read_all(tmp_path, "a", "kills", "b", workers=1, timeout_s=30.0) == [
        "frames",
        "kills: reading it ended 3 processes",
        "frames",
    ]


def test_a_process_that_was_killed_by_somebody_else_costs_no_video(tmp_path: Path) -> None:
    assert read_all(tmp_path, "a", "kills once", "b", workers=1) == ["frames"] * 3


def test_an_exception_of_a_library_is_that_videos_failure(tmp_path: Path) -> None:
    found = read_all(tmp_path, "a", "breaks", "b")
    assert found == ["frames", "breaks: ZeroDivisionError: by nothing", "frames"]


def test_a_slow_video_that_makes_progress_is_not_given_up_before_its_time_in_all_is_over(tmp_path: Path) -> None:
    assert read_all(tmp_path, "slow", workers=1, timeout_s=1.5) == ["frames"]
    found = read_all(tmp_path, "endless", "a", workers=1, max_total_s=2.5)
    assert found == ["endless: reading took longer than 2.5 s", "frames"]


def test_no_process_is_left_when_reading_is_broken_off(tmp_path: Path) -> None:
    results = ReadInProcesses(2, timeout_s=60.0)(FaultyReader(tmp_path), sources("a", "hangs", "hangs", "b"))
    next(results)
    results.close()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert pids and wait_for(lambda: not any(map(is_alive, pids)), within_s=5)


def test_a_pipe_in_the_place_of_a_video_is_left_out_of_the_frame_cache(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [np.full((32, 32, 3), 9 * n, np.uint8) for n in range(12)], fps=10)
    os.mkfifo(tmp_path / "pipe.mp4")
    reader = ClipReader(num_steps=4, candidates=1, viewer=Viewer(resize_px=32, crop_px=32))
    cache = open_cache(
        tmp_path / "cache",
        sources(tmp_path / "pipe.mp4", tmp_path / "a.mp4"),
        reader,
        num_steps=4,
        candidates=1,
        size_px=32,
        read_many=ReadInProcesses(1, timeout_s=3.0),
    )
    assert cache.readable.tolist() == [1]
    assert cache.errors.keys() == {0} and "pipe.mp4" in cache.errors[0]


def test_a_plain_function_reads_too(tmp_path: Path) -> None:
    (found,) = ReadInProcesses(1, timeout_s=30.0)(read_plainly, sources("a"))
    assert isinstance(found, ClipFrames) and found.num_frames == 2


def test_a_reader_without_candidates_takes_the_frames_that_are_the_first_candidates_of_others(tmp_path: Path) -> None:
    viewer = Viewer(resize_px=32, crop_px=32, square_pixels=True)
    for num_frames in (3, 5, 29, 64):
        path = tmp_path / f"{num_frames}.mp4"
        write_video(path, [np.full((32, 32, 3), 3 * n, np.uint8) for n in range(num_frames)], fps=10)
        kept = []
        for candidates in (1, 3):
            read = ClipReader(num_steps=8, candidates=candidates, viewer=viewer)
            folder = tmp_path / f"cache {num_frames} {candidates}"
            cache = open_cache(folder, sources(path), read, num_steps=8, candidates=candidates, size_px=32)
            kept.append((cache.frame_index[:, :, 0], cache.pixels[:, :, 0], cache.num_frames))
        assert all(np.array_equal(*pair) for pair in zip(*kept, strict=True))
