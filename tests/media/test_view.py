"""The view of a frame: Pillow's resize within one grey level, the published crop, all eight orientations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from operators.media.view import (
    Orientation,
    Region,
    Viewer,
    crop_between_pixels,
    crop_patches,
    place_in_frame,
)
from pipeline.families.gfnet.published import FORMS
from tests.parity.files import HERE as PARITY
from tests.parity.frames import frames


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [H,W,3]: a ramp, hard edges and noise, so that every wrong tap shows."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    y, x = np.mgrid[0:height, 0:width]
    stripes = ((x // 7 + y // 5) % 2 * 255)[..., None]
    ramp = (x * 255 // max(1, width - 1))[..., None]
    even = np.where(x[..., None] % 2 == 0, stripes, ramp)
    return np.where(y[..., None] % 3 == 0, noise, even).astype(np.uint8)


def by_pillow(frame: np.ndarray, resize_px: int, crop_px: int, resample: int = Image.Resampling.BILINEAR):
    """The published preprocessing, as its Pillow code does it."""
    image = Image.fromarray(frame)
    w, h = image.size
    if w < h:
        size = (resize_px, int(resize_px * h / w))
    else:
        size = (int(resize_px * w / h), resize_px)
    if size != image.size:
        image = image.resize(size, resample)
    left, top = round((image.width - crop_px) / 2), round((image.height - crop_px) / 2)
    return np.asarray(image.crop((left, top, left + crop_px, top + crop_px)))


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize(
    ("height", "width"),
    [(720, 1280), (1080, 1920), (240, 320), (1280, 720), (257, 255), (256, 341), (64, 96), (97, 1001)],
)
def test_a_view_equals_pillows_within_one_grey_level(height, width):
    frame = picture(height, width)
    assert largest_difference(Viewer()(frame), by_pillow(frame, 256, 224)) <= 1


@pytest.mark.parametrize(("resize_px", "crop_px"), [(128, 112), (96, 96), (256, 200)])
def test_other_sizes_of_view_equal_pillows_too(resize_px, crop_px):
    frame = picture(201, 333)
    viewer = Viewer(resize_px=resize_px, crop_px=crop_px)
    assert largest_difference(viewer(frame), by_pillow(frame, resize_px, crop_px)) <= 1


@pytest.mark.parametrize(("height", "width"), [(720, 1280), (320, 400), (640, 480), (97, 333), (256, 341), (256, 90)])
def test_a_bicubic_view_equals_pillows_within_one_grey_level_on_hard_edges(height, width):
    frame = picture(height, width)
    view = Viewer(resize_px=297, crop_px=260, interpolation="bicubic")(frame)
    expected = by_pillow(frame, 297, 260, Image.Resampling.BICUBIC)
    assert largest_difference(view, expected) <= 1
    # Nothing but ties may differ, which Pillow's fixed-point weights break their own way.
    assert np.mean(view != expected) < 1e-3


@pytest.mark.parametrize("name", ["efficientnet_b2", "efficientnet_b3", "densenet121"])
@pytest.mark.parametrize(("height", "width", "seed"), [(320, 400, 66), (640, 480, 67)])
def test_views_equal_those_of_the_published_preprocessing(name, height, width, seed):
    expected = np.load(PARITY / "gfnet_views.npz")
    form = FORMS[name]
    viewer = Viewer(resize_px=form.resize_px, crop_px=form.crop_px, interpolation=form.interpolation)
    view = viewer(frames(1, height, width, seed=seed)[0])
    assert largest_difference(view[:48, :48], expected[f"{name}_{height}x{width}_first"]) <= 1
    assert largest_difference(view[-48:, -48:], expected[f"{name}_{height}x{width}_last"]) <= 1


def test_a_frame_whose_short_side_is_right_is_only_cropped():
    frame = picture(256, 340)
    # (340 - 224) / 2 = 58, (256 - 224) / 2 = 16
    assert np.array_equal(Viewer()(frame), frame[16:240, 58:282])


def test_the_crop_offset_is_rounded_to_even():
    frame = picture(256, 341)
    # (341 - 224) / 2 = 58.5, which the banker rounds to 58; 343 gives 59.5, which becomes 60.
    assert np.array_equal(Viewer()(frame), frame[16:240, 58:282])
    frame = picture(256, 343)
    assert np.array_equal(Viewer()(frame), frame[16:240, 60:284])


def test_a_flat_picture_stays_exactly_flat():
    for level in (0, 1, 127, 254, 255):
        for size in ((720, 1280), (123, 77)):
            assert np.all(Viewer()(np.full((*size, 3), level, np.uint8)) == level)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_turning_before_or_after_the_resize_gives_the_same_view(rotation, is_mirrored, interpolation):
    coded = picture(150, 231)
    shown = np.rot90(coded[:, ::-1] if is_mirrored else coded, -rotation // 90)
    view = Viewer(interpolation=interpolation)(coded, Orientation(rotation=rotation, is_mirrored=is_mirrored))
    expected = by_pillow(shown, 256, 224, Image.Resampling[interpolation.upper()])
    assert largest_difference(view, expected) <= 1
    assert view.flags.c_contiguous


def test_rotation_is_clockwise():
    coded = np.zeros((256, 256, 3), np.uint8)
    coded[:128] = 255  # the upper half is white: turned a quarter clockwise, the right half is
    view = Viewer()(coded, Orientation(rotation=90))
    assert view[:, -1].min() == 255
    assert view[:, 0].max() == 0


def test_wide_pixels_are_made_square_in_the_same_resize():
    coded = picture(1080, 960)
    wide = Orientation(pixel_aspect=Fraction(2, 1))
    # Shown as 1920x1080: 256 high, int(256 * 1920 / 1080) = 455 wide.
    assert Viewer().resized_size(1080, 960, wide) == (256, 455)
    view = Viewer()(coded, wide)
    once = np.asarray(Image.fromarray(coded).resize((455, 256), Image.Resampling.BILINEAR))
    assert largest_difference(view, once[16:240, 116:340]) <= 1  # (455 - 224) / 2 = 115.5, rounded to 116


def test_pixels_stay_as_they_are_coded_where_square_pixels_is_false():
    coded = picture(100, 120)
    wide = Orientation(pixel_aspect=Fraction(2, 1))
    viewer = Viewer(square_pixels=False)
    assert np.array_equal(viewer(coded, wide), viewer(coded))


def test_the_box_is_where_the_view_lies_in_the_displayed_frame():
    # 256 x 455 shown: top 16, left 116 of them.
    assert Viewer().box(720, 1280) == pytest.approx((16 / 256, 116 / 455, 224 / 256, 224 / 455))
    y, x, h, w = Viewer().box(720, 1280, Orientation(rotation=90))
    assert (y, x, h, w) == pytest.approx((116 / 455, 16 / 256, 224 / 455, 224 / 256))


def test_the_region_is_all_that_the_view_depends_on():
    viewer = Viewer()
    turned = Orientation(rotation=90, is_mirrored=True)
    frame = picture(360, 640)
    at = viewer.region(360, 640, turned)
    poisoned = np.full_like(frame, 77)
    inside = (slice(at.top, at.bottom), slice(at.left, at.right))
    poisoned[inside] = frame[inside]
    assert np.array_equal(viewer(poisoned, turned), viewer(frame, turned))
    assert np.array_equal(viewer.view_region(frame[inside], 360, 640, turned), viewer(frame, turned))


def test_the_region_of_a_frame_of_the_right_size_is_the_crop():
    assert Viewer().region(256, 300) == Region(top=16, bottom=240, left=38, right=262)


def test_sizes_that_cannot_be_are_bugs():
    with pytest.raises(ValueError, match="crop_px"):
        Viewer(resize_px=200, crop_px=224)
    with pytest.raises(ValueError, match="interpolation"):
        Viewer(interpolation="lanczos")
    with pytest.raises(ValueError, match="rotation"):
        Orientation(rotation=45)


def test_a_patch_is_a_plain_slice_of_its_row():
    views = np.stack([picture(20, 20, seed) for seed in range(3)])
    patches = crop_patches(views, np.array([2, 0, 2]), np.array([[0, 0], [12, 5], [3, 12]]), patch_px=8)
    assert patches.shape == (3, 8, 8, 3)
    assert np.array_equal(patches[0], views[2, 0:8, 0:8])
    assert np.array_equal(patches[1], views[0, 12:20, 5:13])
    assert np.array_equal(patches[2], views[2, 3:11, 12:20])


def test_a_patch_that_leaves_the_view_is_a_bug():
    with pytest.raises(ValueError, match="leaves a view"):
        crop_patches(np.zeros((1, 20, 20, 3), np.uint8), np.array([0]), np.array([[13, 0]]), patch_px=8)


def test_a_patch_between_pixels_is_cut_with_what_it_is_mixed_of():
    views = np.stack([picture(20, 20, seed) for seed in range(3)])
    corners = np.array([[0.0, 0.25], [11.5, 5.0], [12.0, 12.0]])
    pixels, shifts = crop_between_pixels(views, np.array([2, 0, 2]), corners, patch_px=8)
    assert (pixels.dtype, shifts.dtype) == (np.uint8, np.float32)
    assert np.array_equal(pixels[0], views[2, 0:9, 0:9])
    assert np.array_equal(pixels[1], views[0, 11:20, 5:14])
    # At the very end it is the last of the nine pixels that the patch begins after.
    assert np.array_equal(pixels[2], views[2, 11:20, 11:20])
    assert shifts.tolist() == [[0, 0.25], [0.5, 0], [1, 1]]


@pytest.mark.parametrize("corner", [(12.01, 0), (0, -0.01)])
def test_a_patch_between_pixels_that_leaves_the_view_is_a_bug(corner: tuple[float, float]):
    with pytest.raises(ValueError, match="leaves a view"):
        crop_between_pixels(np.zeros((1, 20, 20, 3), np.uint8), np.array([0]), np.array([corner]), patch_px=8)


def test_a_box_of_the_view_is_placed_in_the_displayed_frame():
    view = (0.1, 0.25, 0.8, 0.5)
    assert place_in_frame((0.0, 0.5, 0.5, 1.0), view) == pytest.approx((0.1, 0.5, 0.4, 0.25))
