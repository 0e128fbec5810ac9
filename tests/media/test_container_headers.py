"""The outermost headers of a file say what it is and how long it should be."""

from __future__ import annotations

import struct

import pytest

from operators.media.container_headers import file_shape


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
