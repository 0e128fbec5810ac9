"""Reading files, images and folders: what comes out, what a broken source is called, and that nothing stays open."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet
from PIL import Image

from operators.errors import ErrorCode, SourceError
from operators.media.bitstream import is_unreferenced
from operators.media.container import Decoder
from operators.media.decode import FileReader, ReadLimits, missing_decoders
from operators.media.encode import write_video
from operators.media.sampling import SamplingRule
from operators.media.view import Viewer
from operators.records import FrameBatch, Media, Source, clip_id, source_id
from tests.support.video_files import (
    BITS,
    copied,
    ffmpeg,
    needs_ffmpeg,
    number_in,
    numbered_frame,
    numbered_frames,
    patched,
    plain,
    png_header,
    source_of,
)

SIDE = 96


def reader(path: Path, *, media: Media = Media.VIDEO, limits: ReadLimits | None = None, **how) -> FileReader:
    num_threads, first_window = how.pop("num_threads", 1), how.pop("first_window", 0)
    viewer = how.pop("viewer", None) or Viewer(resize_px=SIDE, crop_px=SIDE)
    return FileReader(
        source=how.pop("source", None) or source_of(path, media),
        sampling=SamplingRule(**how),
        viewer=viewer,
        limits=limits,
        num_threads=num_threads,
        clock=time.time,
        first_window=first_window,
    )


def batches(path: Path, **how) -> list[FrameBatch]:
    with reader(path, **how) as reading:
        return [item for item in reading.read() if item is not None]


def the_batch(path: Path, **how) -> FrameBatch:
    (batch,) = batches(path, **how)
    return batch


def code_of(path: Path, **how) -> str:
    with pytest.raises(SourceError) as caught:
        batches(path, **how)
    assert isinstance(caught.value.code, ErrorCode)
    assert str(path) in str(caught.value)
    return caught.value.code


@pytest.fixture(scope="module")
def movie(tmp_path_factory) -> Path:
    """60 numbered frames, a keyframe every 12, 25 frames a second; square, so that the view shows all of it."""
    path = tmp_path_factory.mktemp("movie") / "movie.mp4"
    return plain(path, gop=12, b_frames=2, width=160, height=160, fps=25)


def damaged(path: Path, name: str, *, begin: float, end: float, num_bytes: int) -> Path:
    """A copy with random bytes between two shares of its length."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(3)
    for at in rng.integers(int(len(data) * begin), int(len(data) * end), num_bytes):
        data[at] = int(rng.integers(0, 256))
    target = path.with_name(name)
    target.write_bytes(data)
    return target


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
    group = Decoder.group

    def watched(decoder: Any, *args: Any, **how: Any) -> Any:
        decoder.context = WatchedContext(decoder.context, given)
        return group(decoder, *args, **how)

    monkeypatch.setattr(Decoder, "group", watched)
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


# Colour, rotation, pixels that are not square


def solid(path: Path, rgb: tuple[int, int, int], **how) -> np.ndarray:
    """The colour that comes out of a file of one colour."""
    write_video(path, [np.full((64, 64, 3), rgb, np.uint8)] * 2, crf=1, **how)
    return the_batch(path, num_frames=1).pixels[0].reshape(-1, 3).mean(0)


@pytest.mark.parametrize("rgb", [(200, 40, 40), (30, 180, 60), (40, 60, 200), (255, 255, 255), (0, 0, 0)])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"color": "bt601"},
        {"color": "bt709"},
        {"color": "bt709", "is_full_range": True},
        {"color": "bt601", "is_full_range": True},
        {"color": "bt709", "pix_fmt": "yuv420p10le"},
        {"pix_fmt": "yuv444p"},
    ],
    ids=str,
)
def test_colours_come_out_as_they_went_in(tmp_path, how, rgb):
    assert solid(tmp_path / "solid.mkv", rgb, **how) == pytest.approx(rgb, abs=4)


def test_an_untagged_stream_is_bt601_limited_however_large(tmp_path):
    path = tmp_path / "large.mp4"
    # Red in BT.601, limited range: Y 81.5, Cb 90, Cr 240. Read as BT.709 it would be (255, 24, 0).
    red = np.zeros((720, 1280, 3), np.uint8)
    red[..., 0] = 255
    write_video(path, [red], crf=1)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.colorspace == 2  # unspecified
    assert the_batch(path, num_frames=1).pixels[0].reshape(-1, 3).mean(0) == pytest.approx((255, 0, 0), abs=4)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_turned_video_is_shown_upright(tmp_path, rotation, is_mirrored):
    upright = [numbered_frame(number, width=160, height=160) for number in range(8)]
    # As a camera does that was held the other way: turned back, and mirrored before the display turns it.
    coded = [np.rot90(frame, rotation // 90) for frame in upright]
    coded = [frame[:, ::-1] if is_mirrored else frame for frame in coded]
    path = tmp_path / "turned.mp4"
    write_video(path, coded, rotation=rotation, is_mirrored=is_mirrored, crf=10)
    batch = the_batch(path, num_frames=8)
    assert [number_in(view) for view in batch.pixels] == list(range(8))
    assert batch.facts.rotation == rotation
    lower = slice(SIDE // 2 + 2, SIDE)
    small = np.asarray(Image.fromarray(upright[3]).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    assert np.abs(batch.pixels[3][lower].astype(int) - small[lower].astype(int)).mean() < 12


def test_wide_pixels_are_made_square_unless_the_published_way_is_asked_for(tmp_path):
    path = plain(tmp_path / "wide.mp4", 2, width=96, height=96, pixel_aspect=Fraction(2, 1))
    square = the_batch(path, num_frames=1)
    # Shown 192x96, the middle half of the width is seen.
    assert square.view_yxhw == pytest.approx((0.0, 0.25, 1.0, 0.5))
    as_coded = the_batch(path, num_frames=1, viewer=Viewer(resize_px=SIDE, crop_px=SIDE, square_pixels=False))
    assert as_coded.view_yxhw == pytest.approx((0.0, 0.0, 1.0, 1.0))
    assert number_in(as_coded.pixels[0]) == 1


def test_the_first_stream_that_is_no_attached_picture_is_read(movie, tmp_path):
    other = plain(tmp_path / "other.mp4", 10, width=64, height=64)
    both = tmp_path / "both.mp4"
    with av.open(str(both), "w") as output, av.open(str(other)) as first, av.open(str(movie)) as second:
        pairs = [(one, output.add_stream_from_template(one.streams.video[0])) for one in (first, second)]
        for one, stream in pairs:
            for packet in one.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
    assert the_batch(both, num_frames=1).facts.num_frames == 10


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


# Images


def image(path: Path, pixels: np.ndarray, orientation: int | None = None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=92, exif=exif)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_still_image_is_a_clip_of_one_frame(tmp_path, ending):
    path = image(tmp_path / f"still.{ending}", numbered_frame(77, width=128, height=128))
    batch = the_batch(path, media=Media.IMAGE, num_frames=4)
    assert batch.frame_index.tolist() == [0]
    assert batch.windows[0].glance_rows.tolist() == [0, 0, 0, 0]
    assert number_in(batch.pixels[0]) == 77
    assert (batch.facts.width, batch.facts.height, batch.facts.num_frames) == (128, 128, 1)


def test_a_jpeg_has_the_pixels_that_pillow_reads(tmp_path):
    path = image(tmp_path / "still.jpg", numbered_frame(5, width=480, height=360))
    expected = np.asarray(Image.open(path).convert("RGB").resize((341, 256), Image.Resampling.BILINEAR))
    view = the_batch(path, media=Media.IMAGE, num_frames=1, viewer=Viewer()).pixels[0]
    assert np.abs(view.astype(int) - expected[16:240, 58:282].astype(int)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_exif_orientations_are_shown_upright(tmp_path, orientation):
    from PIL import ImageOps

    path = image(tmp_path / "turned.png", numbered_frame(9, width=SIDE, height=SIDE), orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    batch = the_batch(path, media=Media.IMAGE, num_frames=1)
    assert np.array_equal(batch.pixels[0], upright)


@pytest.mark.parametrize("pattern", ["image_{:05d}.jpg", "{}.jpg", "img_{:05d}.png", "{:06d}.jpg"])
def test_a_folder_of_numbered_images_is_one_video(tmp_path, pattern):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 13):
        image(folder / pattern.format(number), numbered_frame(number, width=128, height=128))
    (folder / "notes.txt").write_text("not a frame")
    batch = the_batch(folder, media=Media.FRAMES, num_frames=4)
    # 12/4/2 = 1.5, then every third: 1, 4, 7, 10, counted from 0.
    assert batch.frame_index.tolist() == [1, 4, 7, 10]
    assert [number_in(view) for view in batch.pixels] == [2, 5, 8, 11]
    assert batch.facts.num_frames == 12


def test_a_broken_image_of_a_folder_is_replaced_by_the_one_before(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(8):
        image(folder / f"image_{number:05d}.jpg", numbered_frame(number, width=128, height=128))
    broken = folder / "image_00003.jpg"
    broken.write_bytes(broken.read_bytes()[:-40])
    batch = the_batch(folder, media=Media.FRAMES, num_frames=4)
    assert batch.frame_index.tolist() == [1, 2, 5, 7]
    assert batch.windows[0].coverage == 0.75
    assert batch.facts.num_corrupt == 1


def test_a_folder_without_a_single_good_image_is_corrupt(tmp_path):
    for number in range(3):
        (tmp_path / f"image_{number:05d}.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    assert code_of(tmp_path, media=Media.FRAMES) == "corrupt"


# What can be wrong


def test_a_path_that_is_not_there_is_missing(tmp_path):
    assert code_of(tmp_path / "gone.mp4") == "missing"
    assert code_of(tmp_path / "gone", media=Media.FRAMES) == "missing"


def test_an_address_is_missing_and_its_password_is_not_told():
    with pytest.raises(SourceError) as caught:
        batches(Path("x"), source=Source(source_id="0" * 32, uri="http://me:secret@host/a.mp4", video_id="a"))
    assert caught.value.code == "missing"
    assert "me:***@host" in str(caught.value)


def test_a_name_that_is_not_utf8_can_be_read(movie, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    Path(os.fsdecode(path)).write_bytes(movie.read_bytes())
    assert the_batch(Path(os.fsdecode(path)), num_frames=1).facts.num_frames == 60


def test_a_pipe_is_not_media(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert code_of(tmp_path / "pipe.mp4") == "not_media"


def test_a_file_without_a_byte_is_empty(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    assert code_of(path) == "empty"


def test_a_folder_without_images_has_no_frames(tmp_path):
    (tmp_path / "readme.txt").write_text("no frames")
    assert code_of(tmp_path, media=Media.FRAMES) == "no_frames"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.mp4", b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 40),
        ("text.txt", b"hello world\n" * 100),
        ("noise.mp4", np.random.default_rng(0).integers(0, 256, 20000).astype(np.uint8).tobytes()),
        ("one.mp4", b"\0"),
    ],
)
def test_what_is_no_video_is_not_media(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert code_of(path) == "not_media"


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat", "list.sdp", "list.xspf", "list.mpd"])
def test_a_file_that_names_others_opens_none_of_them(movie, tmp_path, name):
    contents = {
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\n{movie}\n#EXT-X-ENDLIST\n",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\nfile://{movie}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{movie}'\n",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "list.xspf": f"<playlist><track><location>{movie}</location></track></playlist>",
        "list.mpd": f'<?xml version="1.0"?><MPD type="static"><BaseURL>{movie}</BaseURL></MPD>',
    }
    path = tmp_path / name
    path.write_text(contents[name])
    assert code_of(path) == "not_media"


def test_a_name_that_looks_like_an_address_is_a_file_name(movie, tmp_path):
    path = tmp_path / "concat:a|b.mp4"
    path.write_bytes(movie.read_bytes())
    assert the_batch(path, num_frames=1).facts.num_frames == 60


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=48000)
        for start in range(0, 48000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48000, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert code_of(path) == "no_video"


@needs_ffmpeg
def test_cover_art_beside_sound_is_no_video(tmp_path):
    picture = image(tmp_path / "cover.png", numbered_frame(1, width=64, height=64))
    path = tmp_path / "song.m4a"
    ffmpeg(
        "-f", "lavfi", "-i", "sine=d=1", "-i", picture, "-map", "0", "-map", "1", "-c:v", "png",
        "-disposition:v:0", "attached_pic", "-f", "mp4", path,
    )  # fmt: skip
    assert code_of(path) == "no_video"


def test_a_codec_that_nobody_knows_is_unsupported(movie, tmp_path):
    path = tmp_path / "unknown.mp4"
    path.write_bytes(movie.read_bytes())
    assert code_of(patched(path, b"avc1", b"zzzz")) == "unsupported_codec"


@needs_ffmpeg
def test_an_encrypted_file_is_called_so(movie):
    path = copied(
        movie, "locked.mp4", "-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "76" * 16,
        "-encryption_kid", "a7" * 16,
    )  # fmt: skip
    assert code_of(path) == "encrypted"
    assert code_of(path, seek="keyframe") == "encrypted"


@needs_ffmpeg
def test_a_video_stream_without_a_picture_has_no_frames(movie):
    pieces = copied(movie, "pieces.mp4", "-movflags", "frag_keyframe+empty_moov")
    data = pieces.read_bytes()
    path = movie.with_name("header.mp4")
    path.write_bytes(data[: data.index(b"moof") - 4])
    assert code_of(path) == "no_frames"


def test_a_file_whose_index_was_never_written_is_corrupt(movie, tmp_path):
    path = tmp_path / "half.mp4"
    data = movie.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov") - 4])
    assert code_of(path) == "corrupt"


def test_a_file_of_which_nothing_decodes_is_corrupt(movie, tmp_path):
    path = tmp_path / "nothing.mp4"
    data = bytearray(movie.read_bytes())
    begin = data.index(b"mdat") + 4
    end = data.rindex(b"moov") - 4
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    assert code_of(path) == "corrupt"


def test_a_broken_still_image_is_corrupt(tmp_path):
    path = image(tmp_path / "still.jpg", numbered_frame(1))
    path.write_bytes(path.read_bytes()[:-50])
    assert code_of(path, media=Media.IMAGE) == "corrupt"


@pytest.mark.parametrize(
    "limits", [ReadLimits(max_pixels=160 * 160 - 1), ReadLimits(max_duration_s=2.0), ReadLimits(max_streams=0)], ids=str
)
@pytest.mark.parametrize("how", [{}, {"seek": "keyframe"}, {"kind": "window"}], ids=str)
def test_what_exceeds_a_limit_is_too_large(movie, limits, how):
    assert code_of(movie, limits=limits, **how) == "too_large"


def test_an_image_that_claims_to_be_huge_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(60_000, 60_000))
    assert code_of(path, media=Media.IMAGE) == "too_large"


def test_a_file_far_too_long_for_its_picture_is_refused_before_it_is_read(tmp_path):
    path = image(tmp_path / "endless.png", numbered_frame(1))
    os.truncate(path, 600_000_000)
    tracemalloc.start()
    try:
        assert code_of(path, media=Media.IMAGE) == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_size_and_an_orientation_behind_a_long_header_are_found(tmp_path):
    path = image(tmp_path / "profile.jpg", numbered_frame(5, width=128, height=64), orientation=6)
    data = path.read_bytes()
    # Two application segments of 60 kB each, as colour profiles are stored, and something behind the picture.
    segment = b"\xff\xe2" + (60_002).to_bytes(2, "big") + bytes(60_000)
    path.write_bytes(data[:2] + 2 * segment + data[2:] + bytes(1000))
    batch = the_batch(path, media=Media.IMAGE, num_frames=1)
    assert (batch.facts.width, batch.facts.height, batch.facts.rotation) == (128, 64, 90)


# Damage


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
    # 36 of 60 frames, as far as bytes tell.
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
