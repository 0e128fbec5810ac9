"""Still images and folders of numbered images are read as videos are."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from operators.media.view import Viewer
from operators.records import Media
from tests.media.reading import SIDE, code_of, image, the_batch
from tests.support.video_files import number_in, numbered_frame, png_header


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


def test_a_broken_still_image_is_corrupt(tmp_path):
    path = image(tmp_path / "still.jpg", numbered_frame(1))
    path.write_bytes(path.read_bytes()[:-50])
    assert code_of(path, media=Media.IMAGE) == "corrupt"


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
