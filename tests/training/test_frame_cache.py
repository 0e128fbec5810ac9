"""The frame cache: which frames it keeps, that it survives a kill, and that it is shared."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from operators.errors import ConfigError, SourceError, StageError
from operators.file_lock import take_lock
from operators.records import Source
from pipeline.training.frame_cache import ClipFrames, choose_candidates, open_cache

SIZE = 4


def make_sources(folder: Path, lengths: list[int]) -> list[Source]:
    """Files that stand for videos of these lengths."""
    sources = []
    for i, length in enumerate(lengths):
        path = folder / f"clip{i}.mp4"
        path.write_text(str(length))
        sources.append(Source(source_id=f"{i:032x}", uri=str(path), video_id=f"clip{i}"))
    return sources


def read(source: Source) -> ClipFrames:
    """Frame i of a video is filled with the number i; a video of length 0 cannot be read."""
    length = int(Path(source.uri).read_text())
    if length == 0:
        raise SourceError(f"{source.video_id} is empty", code="empty")
    pixels = np.broadcast_to(np.arange(length, dtype=np.uint8)[:, None, None, None], (length, SIZE, SIZE, 3))
    return ClipFrames(
        pixels=pixels, frame_index=np.arange(length), num_frames=length, view_yxhw=(0.0, 0.1, 1.0, 0.8)
    )


def cached(folder: Path, sources: list[Source], reader=read, **changes):
    sizes = dict(num_steps=4, candidates=3, size_px=SIZE)
    return open_cache(folder / "cache", sources, reader, **(sizes | changes))


def test_every_step_keeps_its_validation_frame_and_others_of_its_segment():
    # 20 frames in 4 segments of 5: validation frames 2.5 + 5 i, truncated; the others at 1/4 and 3/4 of a segment.
    rows = choose_candidates(np.arange(20), 20, num_steps=4, candidates=3)
    assert rows.tolist() == [[2, 1, 3], [7, 6, 8], [12, 11, 13], [17, 16, 18]]


def test_a_video_no_longer_than_the_sample_repeats_its_last_frame_or_its_first():
    assert choose_candidates(np.arange(2), 2, num_steps=4, candidates=1).T.tolist() == [[0, 1, 1, 1]]
    assert choose_candidates(np.arange(2), 2, num_steps=4, candidates=1, pad="first").T.tolist() == [[0] * 4]


def test_of_frames_that_were_not_decoded_the_nearest_stands_in():
    rows = choose_candidates(np.array([0, 10, 20, 30]), 40, num_steps=2, candidates=1)
    # Wanted: 10 and 30.
    assert rows.T.tolist() == [[1, 3]]
    rows = choose_candidates(np.array([0, 9, 20]), 24, num_steps=2, candidates=1)
    # Wanted: 6 and 18; the nearest decoded are 9 and 20.
    assert rows.T.tolist() == [[1, 2]]


def test_the_cache_holds_the_chosen_frames_of_every_video(tmp_path):
    cache = cached(tmp_path, make_sources(tmp_path, [20, 8]))
    assert cache.pixels.shape == (2, 4, 3, SIZE, SIZE, 3)
    assert cache.pixels[0, :, 0, 0, 0, 0].tolist() == [2, 7, 12, 17]
    assert cache.pixels[1, :, 0, 0, 0, 0].tolist() == [1, 3, 5, 7]
    assert cache.frame_index[0, 1].tolist() == [7, 6, 8]
    assert cache.num_frames.tolist() == [20, 8]
    assert cache.view_yxhw[0].tolist() == [0.0, 0.1, 1.0, 0.8]


def test_videos_are_decoded_once(tmp_path):
    sources = make_sources(tmp_path, [20, 8])
    first = cached(tmp_path, sources)

    def fail(source: Source) -> ClipFrames:
        raise AssertionError("decoded again")

    again = cached(tmp_path, sources, fail)
    assert np.array_equal(first.pixels, again.pixels)
    assert again.fingerprint == first.fingerprint


def test_other_videos_or_another_view_make_another_cache(tmp_path):
    sources = make_sources(tmp_path, [20, 8])
    first = cached(tmp_path, sources)
    Path(sources[1].uri).write_text("16")
    assert cached(tmp_path, sources).fingerprint != first.fingerprint
    assert cached(tmp_path, sources, num_steps=2).fingerprint != first.fingerprint
    looks = [{"square_pixels": True}, {"square_pixels": False}, {"interpolation": "bicubic"}, {"resize_px": 8}]
    assert len({cached(tmp_path, sources, look=look).fingerprint for look in looks}) == 4


def test_an_unreadable_video_is_left_out_and_told(tmp_path):
    cache = cached(tmp_path, make_sources(tmp_path, [20, 0, 8]))
    assert cache.readable.tolist() == [0, 2]
    assert cache.errors == {1: "clip1 is empty"}


def test_videos_of_which_none_can_be_read_are_an_error_with_the_reason(tmp_path):
    with pytest.raises(StageError, match=r"none of 2 videos.*clip0 is empty"):
        cached(tmp_path, make_sources(tmp_path, [0, 0]))


def test_a_cache_beyond_its_bound_is_refused_before_anything_is_decoded(tmp_path):
    sources = make_sources(tmp_path, [20])
    with pytest.raises(ConfigError, match=r"frame cache of 1 videos .*train\.max_cache_gb"):
        cached(tmp_path, sources, max_bytes=100)
    assert not (tmp_path / "cache").exists()


def test_a_cache_whose_making_was_cut_short_goes_on_where_it_was(tmp_path):
    sources = make_sources(tmp_path, [20] * 70)
    seen: list[str] = []

    def dies(source: Source) -> ClipFrames:
        if source.video_id == "clip67":
            raise KeyboardInterrupt
        seen.append(source.video_id)
        return read(source)

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, sources, dies)
    again: list[str] = []

    def goes_on(source: Source) -> ClipFrames:
        again.append(source.video_id)
        return read(source)

    cache = cached(tmp_path, sources, goes_on)
    # Synced after 64 clips: of the others only what came after that is decoded again.
    assert seen[:64] == [f"clip{i}" for i in range(64)]
    assert again == [f"clip{i}" for i in range(64, 70)]
    assert (cache.pixels[:, :, 0, 0, 0, 0] == [2, 7, 12, 17]).all()


def test_whoever_waits_for_a_cache_that_another_process_makes_says_so(tmp_path):
    sources = make_sources(tmp_path, [20])
    cached(tmp_path, sources)
    (home,) = (tmp_path / "cache").iterdir()
    (home / "done.json").unlink()
    maker, said = take_lock(home / "lock", folder=home), []

    def end_the_other(message: str) -> None:
        said.append(message)
        os.close(maker)

    cached(tmp_path, sources, on_wait=end_the_other)
    assert said == [f"waiting for the lock: process {os.getpid()} on {os.uname().nodename} writes to {home}"]


def slow_read(source: Source) -> ClipFrames:
    with open(Path(source.uri).with_suffix(".count"), "a") as file:
        file.write("x")
    return read(source)


def open_in_another_process(folder: str) -> None:
    path = Path(folder)
    sources = [
        Source(source_id=f"{i:032x}", uri=str(path / f"clip{i}.mp4"), video_id=f"clip{i}") for i in range(20)
    ]
    cached(path, sources, slow_read)


def test_two_processes_that_want_the_same_cache_make_it_once(tmp_path):
    make_sources(tmp_path, [20] * 20)
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=open_in_another_process, args=(str(tmp_path),)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert [len((tmp_path / f"clip{i}.count").read_text()) for i in range(20)] == [1] * 20
