"""Frames of live cameras: the right ones at the right times, and whole.

The cameras speak real RTSP: a scripted one for the faults, GStreamer's server for the rest.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest

from operators.media.encode import write_video
from pipeline.live.clock_repair import ClockRepair
from tests.media.camera_http import http_server, jpeg
from tests.media.camera_reading import AWAY_S, FPS, GOP, STEP, Read, serve
from tests.support.gstreamer import Server, serving
from tests.support.numbered_h264 import numbered_frame, write_numbered


def test_frames_are_taken_by_time_and_show_the_numbers_that_the_clock_says(videos):
    with serve(videos["plain"], num_frames=80) as camera:
        read = Read(camera.url, analysis_fps=10)
    read.assert_on_time(camera)
    assert read.segments == 1
    # 60 frames a second, 10 ticks: every sixth frame.
    first = read.frames[0]
    for frame, number in zip(read.frames, read.numbers, strict=True):
        assert abs(number - read.numbers[0] - 6 * (frame.tick - first.tick)) <= 1
    assert len(read.frames) >= 10
    assert read.error is None and read.counts.num_decoded == 80
    assert first.pixels.shape == (224, 224, 3) and (first.facts.width, first.facts.height) == (320, 180)


def test_a_reader_that_joins_between_keyframes_waits_for_one(videos):
    with serve(videos["plain"], joins_at_keyframe=False) as camera:
        read = Read(camera.url, repair=ClockRepair(settle_s=0))
    assert read.numbers[0] % GOP == 0
    assert read.counts.num_before_keyframe > 0 and read.counts.num_after_loss == 0
    read.assert_on_time(camera)


def test_a_burst_at_the_join_is_dropped_and_what_follows_is_on_time(videos):
    with serve(videos["plain"], burst=30, num_frames=50) as camera:
        camera.started_unix_s -= 1.0
        read = Read(camera.url)
    read.assert_on_time(camera)
    assert read.counts.num_joining >= 20


@pytest.mark.parametrize("packet", [0, 1, 3, 6], ids=["parameters", "more parameters", "a part", "another part"])
def test_after_a_keyframe_with_a_hole_frames_wait_for_the_next_keyframe(videos, packet):
    with serve(videos["plain"], loses=lambda n, i: n % 30 == 20 and i == packet, num_frames=45) as camera:
        read = Read(camera.url)
    # Parameter sets were sent in the description and do not change: without them nothing is lost.
    if packet > 1:
        assert not [n for n in read.numbers if n % 30 >= 20]
        assert read.counts.num_corrupt >= 2 and read.segments >= 2
    else:
        assert [n for n in read.numbers if n % 30 >= 20]
    read.assert_on_time(camera)


def test_after_a_frame_with_a_hole_frames_wait_for_a_keyframe(videos):
    with serve(videos["large"], loses=lambda n, i: n % 30 == 13 and i == 2, num_frames=50) as camera:
        read = Read(camera.url)
    assert not [n for n in read.numbers if 13 <= n % 30 < 20]
    assert [n for n in read.numbers if n % 30 == 12] and [n for n in read.numbers if n % 30 == 20]
    assert read.counts.num_corrupt >= 1 and read.counts.num_after_loss >= 5
    read.assert_on_time(camera)


def test_after_a_frame_that_was_lost_as_a_whole_frames_wait_for_a_keyframe(videos):
    with serve(videos["plain"], loses=lambda n, i: n % 30 == 13, num_frames=50) as camera:
        read = Read(camera.url)
    assert not [n for n in read.numbers if 13 <= n % 30 < 20]
    assert [n for n in read.numbers if n % 30 == 12] and [n for n in read.numbers if n % 30 == 20]
    assert read.counts.num_after_loss >= 6 and read.counts.num_before_keyframe == 0
    read.assert_on_time(camera)


def test_a_loss_is_a_gap_although_a_frame_from_before_it_is_shown_after_it(videos):
    with serve(videos["b_frames"], loses=lambda n, i: n % 30 == 13, num_frames=60) as camera:
        read = Read(camera.url)
    assert read.counts.num_after_loss >= 3 and read.counts.num_before_keyframe == 0
    assert read.segments == 2
    read.assert_on_time(camera)


WRAP = 1 << 32
CLOCKS = {
    "wraps": lambda n: WRAP - 30 * STEP + n * STEP,
    "starts again at zero": lambda n: 2_000_000_000 + n * STEP if n < 30 else (n - 30) * STEP,
    "is hours off once": lambda n: n * STEP + (3 * 3600 * 90_000 if n == 27 else 0),
    "is hours off once the other way": lambda n: WRAP // 2 + n * STEP - (3 * 3600 * 90_000 if n == 27 else 0),
    "stands still": lambda n: 90_000,
}


@pytest.mark.parametrize("ticks", CLOCKS.values(), ids=CLOCKS.keys())
def test_times_are_right_although_the_clock(videos, ticks):
    with serve(videos["plain"], ticks=ticks, num_frames=40) as camera:
        read = Read(camera.url, repair=ClockRepair(settle_s=0.3))
    read.assert_on_time(camera)
    assert read.segments == 1
    assert read.numbers == sorted(read.numbers)


def test_b_frames_come_in_the_order_of_display(videos):
    with serve(videos["b_frames"], num_frames=60) as camera:
        read = Read(camera.url)
    read.assert_on_time(camera)
    # With as many ticks as frames a frame may fall between two ticks.
    assert {b - a for a, b in itertools.pairwise(read.numbers)} <= {1, 2}
    assert read.segments == 1


def test_the_resolution_may_change_on_the_way(videos):
    with serve(videos["plain"], videos["large"], switch_every=30, num_frames=60) as camera:
        read = Read(camera.url)
    read.assert_on_time(camera)
    assert {frame.facts.width for frame in read.frames} == {320, 640}
    for frame, number in zip(read.frames, read.numbers, strict=True):
        assert frame.facts.width == (640 if number // 30 % 2 else 320)
    assert read.segments == 1


def test_motion_jpeg_over_http_is_timed_by_arrival():
    sent: dict[int, float] = {}

    def parts(_path: str) -> Iterator[bytes]:
        for number in range(20):
            sent[number] = time.time()
            data = jpeg(number)
            yield b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data + b"\r\n"
            time.sleep(0.05)

    with http_server("multipart/x-mixed-replace;boundary=frame", parts) as url:
        read = Read(url, analysis_fps=50)
    assert read.numbers[-1] >= 15 and len(read.frames) >= 10
    for frame, number in zip(read.frames, read.numbers, strict=True):
        assert abs(frame.time_unix_s - sent[number]) < AWAY_S


class OwnTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0
        self.slept_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


def test_a_file_is_played_at_its_own_pace(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", num_frames=61, fps=30, gop=GOP, b_frames=2)
    own = OwnTime()
    read = Read(str(path), analysis_fps=10, repair=ClockRepair(settle_s=0), clock=own.clock, sleep=own.sleep)
    # 61 frames at 30 a second: the last one is due after two seconds; every third frame is taken.
    assert own.slept_s == pytest.approx(2.0)
    assert read.numbers == list(range(0, 61, 3))
    assert [frame.tick for frame in read.frames] == list(range(21))
    assert [round(frame.time_unix_s - 1_700_000_000.0, 3) for frame in read.frames[:3]] == [0.0, 0.1, 0.2]
    assert read.error is None


def test_rotation_of_a_file_is_undone(tmp_path):
    def frames() -> Iterator[np.ndarray]:
        for number in range(3):
            yield np.rot90(numbered_frame(number, width=180, height=180)).copy()

    write_video(tmp_path / "a.mp4", frames(), fps=FPS, rotation=90)
    own = OwnTime()
    read = Read(str(tmp_path / "a.mp4"), repair=ClockRepair(settle_s=0), clock=own.clock, sleep=own.sleep)
    assert read.numbers == [0, 1, 2] and read.frames[0].facts.rotation == 90


@pytest.fixture(scope="module")
def gstreamer(tmp_path_factory) -> Iterator[Server]:
    path = write_numbered(tmp_path_factory.mktemp("rtsp") / "a.mp4", num_frames=60, fps=FPS, gop=GOP)
    with serving(path, cameras=2) as server:
        yield server


@pytest.mark.rtsp
@pytest.mark.parametrize("transport", ["tcp", "udp", "auto"])
def test_a_real_server_is_read_and_its_frames_are_those_that_the_clock_says(gstreamer, transport):
    read = Read(gstreamer.url(1), analysis_fps=10, num_frames=15, transport=transport)
    assert read.error is None and len(read.frames) == 15
    assert read.segments == 1
    for frame, number in zip(read.frames, read.numbers, strict=True):
        assert abs(gstreamer.seconds_off(1, number, frame.time_unix_s)) < AWAY_S


@pytest.mark.rtsp
def test_a_real_server_without_the_stream_says_so(gstreamer):
    read = Read(gstreamer.url(1).replace("cam1", "nothing"))
    assert read.error is not None and read.error.code == "missing" and "no such stream" in str(read.error)
