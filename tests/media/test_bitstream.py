"""What bytes say by themselves: keyframes that are none, hidden frames, broken images, files that break off."""

from __future__ import annotations

import struct

import pytest

from operators.media.bitstream import gives_frame, is_unreferenced, may_skip_unreferenced, restart
from operators.media.container_headers import file_shape
from operators.media.image_headers import exif_orientation, image_kind, image_size, is_whole_image
from operators.media.packet_table import Restart
from tests.support.video_files import png_header

AVCC = bytes([1, 100, 0, 31, 0xFF])
"""The beginning of H.264 configuration: lengths of four bytes."""


def units(*parts: bytes) -> memoryview:
    """NAL units with their lengths before them."""
    return memoryview(b"".join(struct.pack(">I", len(part)) + part for part in parts))


def start_codes(*parts: bytes) -> memoryview:
    return memoryview(b"".join(b"\0\0\0\x01" + part for part in parts))


def recovery_point(bits: int) -> bytes:
    """An SEI unit: a message of kind 5 that does not matter, then the recovery point."""
    return bytes([6, 5, 3, 1, 2, 3, 6, 1, bits, 0x80])


IDR, SLICE, PARAMETERS = b"\x65\x88", b"\x41\x9a", b"\x67\x64"
RECOVERS_AT_ONCE, RECOVERS_LATER, RECOVERS_ROUGHLY = 0b1100_0000, 0b0101_1000, 0b1000_0000


@pytest.mark.parametrize("wrap", [units, start_codes])
def test_h264_restarts_at_an_idr_picture(wrap):
    extradata = AVCC if wrap is units else b"\0\0\0\x01\x67\x64"
    assert restart("h264", True, wrap(PARAMETERS, IDR), extradata) is Restart.CLOSED


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(RECOVERS_AT_ONCE, Restart.OPEN), (RECOVERS_LATER, Restart.NONE), (RECOVERS_ROUGHLY, Restart.NONE)],
)
def test_h264_restarts_at_a_recovery_point_only_if_it_is_exact_and_at_once(bits, expected):
    assert restart("h264", True, units(recovery_point(bits), SLICE), AVCC) is expected


NOT_REFERRED_TO, DELIMITER, MESSAGE = b"\x01\x9a", b"\x09\xf0", bytes([6, 5, 1, 0, 0x80])


@pytest.mark.parametrize("wrap", [units, start_codes])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([NOT_REFERRED_TO], True),
        ([DELIMITER, NOT_REFERRED_TO, NOT_REFERRED_TO], True),
        ([SLICE], False),
        ([IDR], False),
        # What comes along may be for others: settings, and messages such as film grain.
        ([PARAMETERS, NOT_REFERRED_TO], False),
        ([MESSAGE, NOT_REFERRED_TO], False),
        ([NOT_REFERRED_TO, SLICE], False),
        ([DELIMITER], False),
        ([], False),
    ],
)
def test_an_h264_picture_says_whether_others_refer_to_it(wrap, parts, expected):
    extradata = AVCC if wrap is units else b"\0\0\0\x01\x67\x64"
    assert is_unreferenced("h264", wrap(*parts), extradata) is expected


def test_what_is_broken_or_of_another_codec_is_for_the_decoder_to_judge():
    whole = units(NOT_REFERRED_TO)
    assert not is_unreferenced("h264", whole[:-1], AVCC) and not is_unreferenced("hevc", whole, AVCC)
    assert not is_unreferenced("h264", memoryview(bytes(whole) + b"\0\0"), AVCC)
    assert not is_unreferenced("h264", units(NOT_REFERRED_TO, b""), AVCC)
    assert not is_unreferenced("h264", start_codes(NOT_REFERRED_TO + bytes(70_000)), None)


def test_h264_does_not_restart_because_the_container_says_so():
    assert restart("h264", True, units(SLICE), AVCC) is Restart.NONE
    assert restart("h264", False, units(IDR), AVCC) is Restart.NONE


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(20, Restart.CLOSED), (19, Restart.OPEN), (21, Restart.OPEN), (16, Restart.NONE), (1, Restart.NONE)],
)
def test_hevc_restarts_by_the_kind_of_its_picture(kind, expected):
    assert restart("hevc", True, start_codes(b"\x40\x01", bytes([kind << 1, 1])), None) is expected


def test_every_picture_of_an_intra_codec_is_a_restart():
    assert restart("prores", False, None, None) is Restart.CLOSED


@pytest.mark.parametrize(
    ("codec", "data", "expected"),
    [
        ("vp8", b"\x10\0\0", True),
        ("vp8", b"\x00\0\0", False),
        ("vp9", bytes([0b1000_0010]), True),  # marker, profile 0, a frame of its own, shown
        ("vp9", bytes([0b1000_0000]), False),
        ("vp9", bytes([0b1000_1000]), True),  # shows a frame that is there already
        ("h264", b"", True),
        ("mpeg4", bytes(20), None),
        ("mpeg4", bytes(200), True),
    ],
)
def test_a_packet_says_whether_it_gives_a_frame(codec, data, expected):
    assert gives_frame(codec, len(data), memoryview(data)) is expected


def test_a_vp9_superframe_gives_the_one_frame_that_it_shows():
    hidden, shown = bytes([0b1000_0000, 1, 2]), bytes([0b1000_0010, 3])

    def superframe(*frames: bytes) -> memoryview:
        marker = bytes([0b1100_0000 | (len(frames) - 1)])
        return memoryview(b"".join(frames) + marker + bytes(len(frame) for frame in frames) + marker)

    assert gives_frame("vp9", 9, superframe(hidden, shown)) is True
    assert gives_frame("vp9", 9, superframe(hidden, hidden)) is False
    assert gives_frame("vp9", 9, superframe(shown, shown)) is None


@pytest.mark.parametrize(("layers", "expected"), [(1, True), (2, False), (0, False)])
def test_hevc_pictures_may_be_skipped_only_where_there_is_one_temporal_layer(layers, expected):
    extradata = bytes([1, *[0] * 20, layers << 3])
    assert may_skip_unreferenced("hevc", extradata) is expected
    assert may_skip_unreferenced("hevc", None) is False
    assert may_skip_unreferenced("h264", None) is True


def test_codecs_that_are_not_proven_to_skip_well_are_decoded_in_full():
    for codec in ("libdav1d", "av1", "vp8", "vp9", "ffv1", "unheard_of"):
        assert may_skip_unreferenced(codec, None) is False


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


def box(kind: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">I", 8 + len(body) if length is None else length) + kind + body


@pytest.mark.parametrize(
    ("content", "is_media", "is_fragmented", "promised"),
    [
        (box(b"ftyp", b"isom") + box(b"mdat", bytes(20)) + box(b"moov"), True, False, 48),
        (box(b"ftyp", b"isom") + box(b"mdat", bytes(20), length=1000), True, False, 1012),
        (box(b"ftyp", b"isom") + box(b"moov") + box(b"moof") + box(b"mdat", length=500), True, True, 0),
        (b"\x1a\x45\xdf\xa3\x82ab\x18\x53\x80\x67\x84" + bytes(4), True, False, 16),
        (b"\x1a\x45\xdf\xa3\x82ab\x18\x53\x80\x67\xff" + bytes(4), True, False, 0),
        (b"RIFF" + struct.pack("<I", 992) + b"AVI " + bytes(4), True, False, 1000),
        (b"FLV\x01" + bytes(9), True, False, 0),
        (b"<html>", False, False, 0),
        (b"Good morning", False, False, 0),
    ],
)
def test_a_container_is_known_by_its_outermost_headers(tmp_path, content, is_media, is_fragmented, promised):
    path = tmp_path / "file"
    path.write_bytes(content)
    shape = file_shape(str(path))
    assert (shape.is_media, shape.is_fragmented, shape.promised_bytes) == (is_media, is_fragmented, promised)
