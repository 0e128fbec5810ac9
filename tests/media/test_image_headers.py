"""The headers of images say their size and orientation, and an image that breaks off is noticed."""

from __future__ import annotations

import struct

import pytest

from operators.media.image_headers import exif_orientation, image_kind, image_size, is_whole_image
from tests.support.video_files import png_header


def jpeg(*, exif: bytes = b"", body: bytes = b"\x01\x02\xff\xd9") -> bytes:
    size = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 30, 40, 3) + bytes(9)
    application = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif if exif else b""
    return b"\xff\xd8" + application + size + b"\xff\xda" + struct.pack(">H", 4) + bytes(2) + body


def tiff(value: int, order: str) -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, value, 0)
    return head + struct.pack(order + "IH", 8, 1) + entry


def test_images_are_known_by_their_first_bytes():
    assert image_kind(jpeg()) == "jpeg"
    assert image_kind(png_header(3, 4)) == "png"
    assert image_kind(b"RIFF....AVI ") is None


def test_the_size_of_an_image_is_read_without_decoding():
    assert image_size(png_header(60_000, 7)) == (60_000, 7)
    assert image_size(jpeg()) == (40, 30)
    assert image_size(jpeg()[:12]) is None


def test_an_image_that_breaks_off_is_noticed():
    assert is_whole_image(jpeg())
    assert not is_whole_image(jpeg(body=b"\x01\x02"))
    # The end of a thumbnail inside the header is not the end of the picture.
    assert not is_whole_image(jpeg(exif=tiff(1, "<") + b"\xff\xd9", body=b"\x01\x02"))
    assert is_whole_image(png_header(3, 4))
    assert not is_whole_image(png_header(3, 4)[:-12])


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_read_in_both_byte_orders(order):
    assert exif_orientation(jpeg(exif=tiff(6, order))) == 6
    assert exif_orientation(jpeg(exif=tiff(9, order))) == 1
    assert exif_orientation(jpeg()) == 1
