"""A packet of coded video is looked at before it is decoded: whether decoding can begin at it, and whether it gives a
frame that others need. Every function is pure: it takes the codec's name and bytes."""

from __future__ import annotations

from collections.abc import Iterator

from operators.media.packet_table import Restart

_INTRA_ONLY = frozenset(
    [
        "prores",
        "mjpeg",
        "dnxhd",
        "dvvideo",
        "png",
        "huffyuv",
        "ffvhuff",
        "utvideo",
        "rawvideo",
        "v210",
        "jpeg2000",
        "cfhd",
        "magicyuv",
    ]
)
_KEYS_CUT = frozenset(("vp8", "vp9", "av1", "libdav1d", "libaom-av1", "ffv1"))
"""Codecs whose keyframes reset everything, and that show frames in the order of decoding."""
_KEYS_OPEN = frozenset(("mpeg1video", "mpeg2video", "mpeg4"))
MAY_SKIP = {
    "h264": True,
    "hevc": True,  # In streams of one temporal layer.
    "mpeg1video": True,
    "mpeg2video": True,
    "mpeg4": True,
    "libdav1d": False,  # It reads the request once, when it is opened, and then leaves out the wanted frames too.
    "vp8": False,  # Such a frame may still bring the map of segments that later frames go on with.
    "vp9": False,  # FFmpeg's decoder leaves nothing out.
}
"""Whether a codec's decoder may be set, packet by packet, to leave out frames that nothing refers to. True only where
the tests' frame oracle has shown that all other frames stay exact; False for codecs that are not named."""
_SEARCHED_BYTES = 65536
_SAYS_NOTHING = frozenset((9, 12))
"""H.264 units without which nothing is missed: delimiter, filler. SEI may hold film grain for later pictures too."""
_TINY_VOP_BYTES = 32
"""MPEG-4 pictures below this size may be "not coded": packets that give no frame."""


def _nal_units(data: memoryview, length_size: int) -> Iterator[memoryview]:
    """The units of an H.264 or HEVC packet; `length_size` 0 means start codes."""
    if length_size:
        at = 0
        while at + length_size < len(data):
            length = int.from_bytes(data[at : at + length_size], "big")
            at += length_size
            yield data[at : at + length]
            at += length
        return
    # Whatever restarts decoding stands at the packet's beginning: no need to search megabytes.
    head = bytes(data[:_SEARCHED_BYTES])
    at = head.find(b"\0\0\x01")
    while at >= 0:
        following = head.find(b"\0\0\x01", at + 3)
        yield data[at + 3 : following if following >= 0 else len(data)]
        at = following


def _length_size(codec: str, extradata: bytes | None) -> int:
    """Bytes of the lengths before NAL units, from the decoder's configuration; 0 for start codes."""
    if not extradata or extradata[0] != 1:
        return 0
    place = 4 if codec == "h264" else 21
    return (extradata[place] & 3) + 1 if len(extradata) > place else 0


def _is_exact_recovery_point(sei: bytes) -> bool:
    """Whether an H.264 SEI unit says: from this very picture on, everything shown later is exact."""
    body = sei[1:].replace(b"\0\0\x03", b"\0\0")
    at = 0
    while at + 2 < len(body):
        kind = size = 0
        while at < len(body) and body[at] == 0xFF:
            kind, at = kind + 255, at + 1
        kind, at = kind + body[at], at + 1
        while at < len(body) and body[at] == 0xFF:
            size, at = size + 255, at + 1
        if at >= len(body):
            return False
        size, at = size + body[at], at + 1
        if kind == 6 and at < len(body):
            # Exp-Golomb 0 (no frames until recovery) is the bit 1, then comes exact_match_flag, then broken_link.
            return body[at] & 0b1110_0000 == 0b1100_0000
        at += size
    return False


def restart(codec: str, is_keyframe: bool, data: memoryview | None, extradata: bytes | None) -> Restart:
    """Says how much can be decoded from this packet on. `codec` is FFmpeg's name of the codec or its decoder.

    Containers call more packets keyframes than are, so H.264 and HEVC packets are looked into.
    """
    if codec in _INTRA_ONLY:
        return Restart.CLOSED
    if not is_keyframe or data is None:
        return Restart.NONE
    if codec in _KEYS_CUT:
        return Restart.CLOSED
    if codec in _KEYS_OPEN:
        return Restart.OPEN
    recovers = False
    for unit in _nal_units(data, _length_size(codec, extradata)):
        if not len(unit):
            continue
        if codec == "h264":
            kind = unit[0] & 31
            if kind == 5:
                return Restart.CLOSED
            if kind == 6:
                recovers = recovers or _is_exact_recovery_point(bytes(unit))
            elif kind in (1, 2):
                return Restart.OPEN if recovers else Restart.NONE
        elif codec == "hevc":
            kind = unit[0] >> 1 & 63
            if kind == 20:
                return Restart.CLOSED
            if kind in (19, 21):
                return Restart.OPEN
            if kind < 32:
                # A broken link does not count either: what is shown before it cannot be decoded.
                return Restart.NONE
    return Restart.NONE


def can_plan(codec: str) -> bool:
    """Whether this module knows the codec well enough to say what a packet gives."""
    return codec in _INTRA_ONLY or codec in _KEYS_CUT or codec in _KEYS_OPEN or codec in ("h264", "hevc")


def reorders(codec: str) -> bool:
    """Whether the codec may show frames in another order than it decodes them."""
    return codec not in _INTRA_ONLY and codec not in _KEYS_CUT


def shows_by_size(codec: str) -> bool:
    """Whether `gives_frame` needs no more than a packet's size."""
    return codec not in ("vp8", "vp9")


def gives_frame(codec: str, size: int, data: memoryview | None) -> bool | None:
    """Whether a packet of `size` bytes gives a frame; None where only a decoder could say."""
    if codec == "mpeg4" and size < _TINY_VOP_BYTES:
        return None
    if data is not None and codec == "vp8":
        return bool(len(data)) and bool(data[0] >> 4 & 1)
    if data is not None and codec == "vp9":
        return _vp9_shows(data)
    return True


def _vp9_shows(data: memoryview) -> bool | None:
    """A VP9 packet may be a superframe: hidden frames, then the shown one, then an index."""
    if not len(data):
        return False
    start = 0
    marker = data[-1]
    if marker & 0xE0 == 0xC0:
        count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index = len(data) - 2 - count * width
        if index >= 0 and data[index] == marker:
            sizes = [
                int.from_bytes(data[index + 1 + i * width : index + 1 + (i + 1) * width], "little")
                for i in range(count)
            ]
            shows = 0
            for size in sizes:
                shows += bool(size) and _vp9_frame_shows(data, start)
                start += size
            # Two shown frames in one packet would be two frames of one time.
            return bool(shows) if shows < 2 else None
    return _vp9_frame_shows(data, start)


def _vp9_frame_shows(data: memoryview, at: int) -> bool:
    if at >= len(data):
        return False
    bits = data[at]
    profile = (bits >> 5 & 1) | (bits >> 4 & 1) << 1
    shift = 3 if profile < 3 else 2
    if bits >> shift & 1:
        return True  # show_existing_frame
    return bool(bits >> (shift - 2) & 1) if shift >= 2 else True


def may_skip_unreferenced(codec: str, extradata: bytes | None) -> bool:
    """Whether the decoder may be set to leave out frames that nothing refers to, with all others staying exact."""
    if codec != "hevc":
        return MAY_SKIP.get(codec, False)
    # In HEVC a picture that nothing in its own temporal layer refers to may still serve a higher layer.
    if not extradata:
        return False
    if extradata[0] == 1 and len(extradata) > 21:
        return (extradata[21] >> 3 & 7) == 1
    for unit in _nal_units(memoryview(extradata), 0):
        if len(unit) > 2 and unit[0] >> 1 & 63 == 33:
            return (unit[2] >> 1 & 7) == 0
    return False


def is_unreferenced(codec: str, data: memoryview, extradata: bytes | None) -> bool:
    """Whether an H.264 packet is for certain nothing but a picture that no other refers to. False for other codecs.

    Where its units do not add up, or settings or messages come along with it, it must go to the decoder.
    """
    length_size = _length_size(codec, extradata)
    # Without lengths only the head of a packet is searched for units.
    if codec != "h264" or (not length_size and len(data) > _SEARCHED_BYTES):
        return False
    has_picture = False
    end = 0
    for unit in _nal_units(data, length_size):
        if not len(unit) or (length_size and int.from_bytes(data[end : end + length_size], "big") != len(unit)):
            return False
        kind, is_referred_to = unit[0] & 31, unit[0] & 0x60
        end += length_size + len(unit)
        if kind in (1, 5):
            has_picture = True
        elif kind not in _SAYS_NOTHING:
            return False
        if is_referred_to:
            return False
    return has_picture and (not length_size or end == len(data))
