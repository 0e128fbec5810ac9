"""Reading files: what comes out of one clip, of keyframes and of windows, and that nothing stays open."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from operators.errors import SourceError
from operators.media.bitstream import is_unreferenced
from operators.media.container import Decoder
from operators.media.decode import ReadLimits, missing_decoders
from operators.media.view import Viewer
from operators.records import FrameBatch, clip_id, source_id
from tests.media.reading import SIDE, batches, code_of, reader, the_batch
from tests.support.video_files import BITS, number_in, numbered_frame, numbered_frames, plain

# One clip of the whole file


def test_a_video_gives_one_batch_with_one_window(movie):
    batch = the_batch(movie, num_frames=6)
    (window,) = batch.windows
    # 60/6/2 = 5, then every tenth.
    assert batch.frame_index.tolist() == [5, 15, 25, 35, 45, 55]
    assert [number_in(view) for view in batch.pixels] == [5, 15, 25, 35, 45, 55]
    assert batch.pts_s.tolist() == pytest.approx([0.2, 0.6, 1.0, 1.4, 1.8, 2.2])
    assert batch.pixels.dtype == np.uint8
    assert batch.pixels.shape == (6, SIDE, SIDE, 3)
    assert window.glance_rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert window.candidate_rows is window.glance_rows
    assert (window.start_s, window.end_s) == (0.0, pytest.approx(2.4))
    assert window.clip_id == clip_id(source_id(str(movie)), 0.0)
    assert window.coverage == 1.0
    assert batch.view_yxhw == (0.0, 0.0, 1.0, 1.0)
    assert (batch.facts.width, batch.facts.height, batch.facts.num_frames) == (160, 160, 60)
    assert batch.facts.num_corrupt == 0


class WatchedContext:
    """A decoder's context that notes the packets which it is given."""

    def __init__(self, context: Any, given: list[tuple[int, bytes]]) -> None:
        vars(self).update(context=context, given=given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.context, name, value)

    def decode(self, packet: Any) -> Any:
        if packet is not None:
            self.given.append((packet.pts, bytes(packet)))
        return self.context.decode(packet)


def test_pictures_that_nothing_refers_to_are_not_even_given_to_the_decoder(movie, monkeypatch):
    given: list[tuple[int, bytes]] = []
    group = Decoder.decode_group

    def watched(decoder: Any, *args: Any, **how: Any) -> Any:
        decoder.context = WatchedContext(decoder.context, given)
        return group(decoder, *args, **how)

    monkeypatch.setattr(Decoder, "decode_group", watched)
    batch = the_batch(movie, num_frames=2)
    # 60/2/2 = 15 and 45, each in a group of 12 frames with two B-frames between others.
    assert [number_in(view) for view in batch.pixels] == [15, 45]
    with av.open(str(movie)) as container:
        stream = container.streams.video[0]
        extradata = stream.codec_context.extradata
        packets = {packet.pts: bytes(packet) for packet in container.demux(stream) if packet.size}
    wanted = [sorted(packets)[15], sorted(packets)[45]]
    needless = {pts for pts, data in packets.items() if is_unreferenced("h264", memoryview(data), extradata)}
    assert len(needless) >= 20 and len(given) >= 4
    assert not {pts for pts, _ in given} & (needless - {*wanted})


def test_a_short_video_repeats_rows_and_not_pixels(tmp_path):
    path = plain(tmp_path / "short.mp4", 3)
    batch = the_batch(path, num_frames=5)
    assert batch.frame_index.tolist() == [0, 1, 2]
    assert batch.windows[0].glance_rows.tolist() == [0, 1, 2, 2, 2]
    assert batch.windows[0].coverage == 1.0
    assert the_batch(path, num_frames=5, pad="first").windows[0].glance_rows.tolist() == [0] * 5


def test_the_second_sample_has_rows_of_its_own(movie):
    batch = the_batch(movie, num_frames=3, num_focus_frames=2)
    # 60/3/2 = 10, 30, 50 and 60/2/2 = 15, 45.
    assert batch.frame_index.tolist() == [10, 15, 30, 45, 50]
    assert batch.windows[0].glance_rows.tolist() == [0, 2, 4]
    assert batch.windows[0].candidate_rows.tolist() == [1, 3]


def test_views_are_those_of_the_published_preprocessing(tmp_path):
    path = plain(tmp_path / "view.mp4", 4, width=320, height=180)
    batch = the_batch(path, num_frames=1, viewer=Viewer())
    with av.open(str(path)) as container:
        frame = list(container.decode(video=0))[2].to_ndarray(format="rgb24")
    shown = Image.fromarray(frame).resize((455, 256), Image.Resampling.BILINEAR).crop((116, 16, 340, 240))
    assert np.abs(batch.pixels[0].astype(int) - np.asarray(shown).astype(int)).max() <= 1


def test_the_reader_gives_signs_of_life_while_it_decodes(tmp_path):
    path = plain(tmp_path / "one_group.mp4", gop=250, b_frames=0)
    with reader(path, num_frames=1, limits=ReadLimits()) as reading:
        items = list(reading.read())
    # The one wanted frame is number 30: 31 packets from the only keyframe, a None for every eight of them.
    assert sum(item is None for item in items) >= 4
    assert isinstance(items[-1], FrameBatch)


def test_no_frame_is_left_to_the_garbage_collector(movie):
    # Full-size frames in a cycle pile up by the hundred: 300 MB of 1080p for every 100.
    gc.collect()
    gc.disable()
    try:
        the_batch(movie, num_frames=8)
        frames = [thing for thing in gc.get_objects() if type(thing) is av.VideoFrame and thing.width]
    finally:
        gc.enable()
    assert frames == []


def test_decode_s_counts_the_readers_own_time_only(movie):
    with reader(movie, num_frames=4) as reading:
        for item in reading.read():
            time.sleep(0.02)
            if item is not None:
                batch = item
        waited = 0.02 * 3
    assert 0 < batch.decode_s < time.time() - batch.opened_unix_s - waited


# Keyframes only


@pytest.mark.parametrize("num_threads", [1, 2])
def test_keyframe_sampling_shows_the_nearest_keyframes(movie, num_threads):
    batch = the_batch(movie, num_frames=6, seek="keyframe", num_threads=num_threads)
    # Wanted 5, 15, 25, 35, 45, 55; keyframes 0, 12, 24, 36, 48.
    assert batch.frame_index.tolist() == [0, 12, 24, 36, 48]
    assert [number_in(view) for view in batch.pixels] == [0, 12, 24, 36, 48]
    assert batch.windows[0].glance_rows.tolist() == [0, 1, 2, 3, 4, 4]
    assert batch.pts_s.tolist() == pytest.approx([0.0, 0.48, 0.96, 1.44, 1.92])
    assert batch.windows[0].coverage == 1.0


def test_a_keyframe_that_does_not_decode_is_replaced_and_counted(movie):
    data = bytearray(movie.read_bytes())
    with av.open(str(movie)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.size and packet.is_keyframe]
    data[keys[2].pos + 4 : keys[2].pos + keys[2].size] = bytes(keys[2].size - 4)
    path = movie.with_name("no_third_key.mp4")
    path.write_bytes(data)
    for num_threads in (1, 2):
        batch = the_batch(path, num_frames=6, seek="keyframe", num_threads=num_threads)
        assert batch.frame_index.tolist() == [0, 12, 36, 48]
        assert batch.windows[0].glance_rows.tolist() == [0, 1, 1, 2, 3, 3]
        assert batch.windows[0].coverage == 0.8
        assert batch.facts.num_corrupt == 1


@pytest.mark.parametrize("ending", ["mkv", "ts", "avi", "webm"])
def test_keyframe_sampling_works_in_every_container(tmp_path, ending):
    codec = {"avi": "mpeg4", "webm": "libvpx"}.get(ending, "libx264")
    path = plain(tmp_path / f"keys.{ending}", codec=codec, gop=12, b_frames=0, bit_rate=900_000)
    batch = the_batch(path, num_frames=6, seek="keyframe")
    assert [number_in(view) for view in the_views(path, batch)] == batch.frame_index.tolist()
    assert len(batch.frame_index) == 5


def the_views(path: Path, batch: FrameBatch) -> list[np.ndarray]:
    """Full-size frames of a file at the numbers of a batch."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    seen = [frames[number] for number in batch.frame_index.tolist()]
    viewer = Viewer(resize_px=SIDE, crop_px=SIDE)
    for frame, view in zip(seen, batch.pixels, strict=True):
        assert np.array_equal(viewer(frame), view)
    return seen


def test_a_file_whose_every_frame_is_a_keyframe_gives_the_frames_themselves(tmp_path):
    path = plain(tmp_path / "intra.avi", 30, codec="mjpeg", pix_fmt="yuvj420p", bit_rate=2_000_000)
    exact, keys = the_batch(path, num_frames=5), the_batch(path, num_frames=5, seek="keyframe")
    assert keys.frame_index.tolist() == exact.frame_index.tolist()
    assert np.array_equal(keys.pixels, exact.pixels)


# Windows


def test_windows_are_cut_by_time(movie):
    batch = the_batch(movie, kind="window", window_s=1.0, stride_s=1.0, num_frames=2)
    assert [(w.start_s, w.end_s) for w in batch.windows] == [(0.0, 1.0), (1.0, 2.0), (2.0, pytest.approx(2.4))]
    # 25 frames: 25/2/2 = 6.25 and 18.75; the last window has 10: 2.5 and 7.5.
    assert batch.frame_index.tolist() == [6, 18, 31, 43, 52, 57]
    assert [w.glance_rows.tolist() for w in batch.windows] == [[0, 1], [2, 3], [4, 5]]
    assert [w.clip_id for w in batch.windows] == [clip_id(source_id(str(movie)), float(k)) for k in range(3)]
    assert [number_in(view) for view in batch.pixels] == [6, 18, 31, 43, 52, 57]


def test_frames_that_windows_share_are_there_once(movie):
    batch = the_batch(movie, kind="window", window_s=0.8, stride_s=0.4, num_frames=2)
    # 20 frames, every 10: 5 and 15, 15 and 25, ...
    assert batch.frame_index.tolist() == [5, 15, 25, 35, 45, 55]
    assert [w.glance_rows.tolist() for w in batch.windows] == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]


@pytest.mark.parametrize("ending", ["mp4", "avi"])
def test_small_batches_hold_the_same_windows_as_a_large_one(tmp_path, ending):
    codec = "mpeg4" if ending == "avi" else "libx264"
    path = plain(tmp_path / f"many.{ending}", codec=codec, gop=12, b_frames=2, bit_rate=900_000)
    how = {"kind": "window", "window_s": 0.8, "stride_s": 0.4, "num_frames": 2}
    (large,) = batches(path, **how)
    small = batches(path, **how, limits=ReadLimits(max_batch_bytes=3 * SIDE * SIDE * 3))
    assert [len(batch.windows) for batch in small] == [2, 2, 1]
    assert all(len(batch.pixels) <= 3 for batch in small)

    def views(found: list[FrameBatch]) -> dict[str, list[tuple[int, bytes]]]:
        return {
            window.clip_id: [
                (int(batch.frame_index[row]), batch.pixels[row].tobytes()) for row in window.glance_rows.tolist()
            ]
            for batch in found
            for window in batch.windows
        }

    assert views(small) == views([large])


def test_reading_goes_on_at_the_window_where_it_stopped(movie):
    how = {"kind": "window", "window_s": 1.0, "stride_s": 1.0, "num_frames": 2}
    whole, rest = the_batch(movie, **how), the_batch(movie, **how, first_window=2)
    assert [w.clip_id for w in rest.windows] == [whole.windows[2].clip_id]
    assert rest.frame_index.tolist() == [52, 57]
    assert np.array_equal(rest.pixels, whole.pixels[-2:])


def test_windows_of_a_variable_frame_rate_go_by_time_and_not_by_count(tmp_path):
    # 10 frames in the first second, 2 in the next.
    path = plain(tmp_path / "vfr.mkv", 12, pts=[*range(0, 1000, 100), 1000, 1500])
    batch = the_batch(path, kind="window", window_s=1.0, stride_s=1.0, num_frames=2)
    assert [batch.frame_index[w.glance_rows].tolist() for w in batch.windows] == [[2, 7], [10, 11]]


# What stays behind


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_nothing_stays_open(movie, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(movie.read_bytes()[:2000])
    avi = plain(tmp_path / "all.avi", codec="mpeg4", b_frames=2, bit_rate=900_000)
    before, threads = open_files(), threading.active_count()
    for _ in range(4):
        the_batch(movie, num_threads=3)
        the_batch(movie, seek="keyframe")
        the_batch(avi, num_threads=2)
        code_of(broken)
    assert open_files() == before
    assert threading.active_count() == threads


def test_a_reader_that_is_left_early_stops_its_threads(movie):
    threads = threading.active_count()
    with reader(movie, num_frames=16, num_threads=2) as reading:
        items = reading.read()
        for _ in range(6):
            next(items)
    assert threading.active_count() == threads


def test_a_source_error_survives_the_way_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(SourceError("x.mp4 is empty", "empty")))
    assert (str(error), error.code) == ("x.mp4 is empty", "empty")


def test_decoders_that_are_not_there_are_named():
    assert missing_decoders(["h264", "no_such_codec"]) == ["no_such_codec"]


def test_numbers_survive_the_way_into_a_view():
    """The tests' own measure: a number is read back from the smallest view that is used here."""
    for number in (0, 1, 513, 2**BITS - 1):
        view = Viewer(resize_px=SIDE, crop_px=SIDE)(numbered_frame(number, width=160, height=160))
        assert number_in(view) == number
    assert number_in(next(numbered_frames(1, start=42))) == 42
