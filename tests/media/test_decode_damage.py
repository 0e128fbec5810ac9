"""Damaged and broken-off files are read as far as they go, and what is missing is counted."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator

import av
import pytest
from av.packet import Packet

from operators.media.container import Decoder
from tests.media.reading import code_of, damaged, the_batch
from tests.support.video_files import copied, needs_ffmpeg, number_in, plain


@pytest.mark.parametrize("num_threads", [1, 2])
def test_damage_in_the_middle_is_counted_and_the_rest_is_read(movie, num_threads):
    path = damaged(movie, "damaged.mp4", begin=0.35, end=0.5, num_bytes=60)
    batch = the_batch(path, num_frames=16, num_threads=num_threads)
    assert batch.facts.num_corrupt > 0
    assert 0.5 < batch.windows[0].coverage < 1.0
    assert len(batch.windows[0].glance_rows) == 16
    # What is far from the damage is what it was.
    assert number_in(batch.pixels[0]) == 1
    assert batch.frame_index[0] == 1


@needs_ffmpeg
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_file_that_breaks_off_is_not_called_complete(tmp_path, ending):
    codec = "mpeg4" if ending == "avi" else "libx264"
    whole = plain(tmp_path / f"whole.{ending}", codec=codec, gop=12, b_frames=0, bit_rate=900_000)
    if ending == "mp4":
        whole = copied(whole, "front.mp4", "-movflags", "+faststart")
    path = tmp_path / f"half.{ending}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    batch = the_batch(path, num_frames=16)
    there = batch.facts.num_frames
    assert 20 < there < 45
    # Spread over all that is there, and honest about what is not.
    assert batch.frame_index[-1] > there * 0.9
    assert batch.windows[0].coverage == pytest.approx(there / 60, abs=0.13)


@pytest.fixture
def unreadable(monkeypatch) -> Callable[..., None]:
    """Reading fails behind so many packets, as of a disk or a server that does not answer."""

    def fail_after(num_packets: int, *, times: int = 1000) -> None:
        demux, failures = Decoder._demux, itertools.count(1)

        def failing(decoder: Decoder) -> Iterator[Packet]:
            for number, packet in enumerate(demux(decoder)):
                if number == num_packets and next(failures) <= times:
                    raise av.FFmpegError(errno.EIO, "Input/output error")
                yield packet

        monkeypatch.setattr(Decoder, "_demux", failing)

    return fail_after


@needs_ffmpeg
@pytest.mark.parametrize("seek", ["exact", "keyframe"])
@pytest.mark.parametrize("name", ["movie.mkv", "movie.ts", "movie.avi", "pieces.mp4"])
def test_a_file_that_cannot_be_read_to_its_end_is_not_called_complete(tmp_path, unreadable, name, seek):
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = plain(tmp_path / name, codec=codec, gop=6, b_frames=0, bit_rate=900_000)
    if name == "pieces.mp4":
        path = copied(path, "fragments.mp4", "-movflags", "frag_keyframe+empty_moov")
    unreadable(36)
    batch = the_batch(path, num_frames=10, seek=seek)
    assert batch.frame_index[-1] < 36
    assert batch.facts.num_corrupt == 1
    # 36 of 60 frames, as estimated from bytes.
    assert batch.windows[0].coverage == pytest.approx(0.6, abs=0.11)


@needs_ffmpeg
def test_a_file_that_can_be_read_the_second_time_lacks_nothing(movie, unreadable):
    path = copied(movie, "flaky.mkv")
    unreadable(20, times=1)
    batch = the_batch(path, num_frames=16)
    assert (batch.facts.num_frames, batch.facts.num_corrupt, batch.windows[0].coverage) == (60, 0, 1.0)


@needs_ffmpeg
def test_a_file_of_which_not_one_picture_can_be_read_is_corrupt(movie, unreadable):
    path = copied(movie, "unreadable.mkv")
    unreadable(0)
    assert code_of(path) == code_of(path, seek="keyframe") == "corrupt"


@needs_ffmpeg
def test_keyframes_of_a_file_that_breaks_off_are_not_called_all(movie):
    whole = copied(movie, "whole.mkv")
    path = movie.with_name("half.mkv")
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert the_batch(path, num_frames=16, seek="keyframe").windows[0].coverage == pytest.approx(0.5, abs=0.13)
