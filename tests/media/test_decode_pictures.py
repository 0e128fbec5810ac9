"""Pictures of files come out as they are to be shown: colour, rotation, pixels that are not square."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from operators.media.encode import write_video
from operators.media.view import Viewer
from tests.media.reading import SIDE, the_batch
from tests.support.video_files import number_in, numbered_frame, plain


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
