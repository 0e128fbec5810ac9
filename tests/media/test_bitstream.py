"""Packets say by themselves: keyframes that are none, hidden frames, pictures that nothing refers to."""

from __future__ import annotations

import struct

import pytest

from operators.media.bitstream import gives_frame, is_unreferenced, may_skip_unreferenced, restart
from operators.media.packet_table import Restart

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
