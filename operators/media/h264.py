"""The numbers in H.264 packets show that whole frames were lost on the way.

A decoder marks a frame of which a part was lost, but after a frame that was lost as a whole it shows wrong pictures
and says nothing. Reference frames are numbered, and a missing number shows the loss. Annex B byte streams only, as RTP
and MPEG-TS give them.
"""

from __future__ import annotations

_WITH_CHROMA = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}
"""Profiles whose sequence parameter sets have fields for chroma and scaling."""


class _Bits:
    """Reads a NAL unit's payload bit by bit."""

    def __init__(self, payload: bytes) -> None:
        self._data = payload.replace(b"\0\0\3", b"\0\0")
        self._at = 0

    def take(self, count: int) -> int:
        first, last = self._at // 8, (self._at + count + 7) // 8
        if last > len(self._data):
            raise EOFError
        word = int.from_bytes(self._data[first:last], "big")
        self._at += count
        return word >> (last * 8 - self._at) & ((1 << count) - 1)

    def golomb(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise EOFError
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_golomb(self) -> int:
        code = self.golomb()
        return (code + 1) // 2 if code % 2 else -(code // 2)


class FrameNumbers:
    """Follows the frame numbers of one stream, packet by packet in decoding order."""

    def __init__(self) -> None:
        self._num_bits: int | None = None
        """The bits that a frame number has; None before the first sequence parameter set."""
        self._has_planes = False
        self._may_have_gaps = False
        self._last: int | None = None
        """The number of the last reference frame."""

    def has_gap(self, packet: bytes) -> bool:
        """Whether reference frames were lost between the packet before and this one."""
        at = packet.find(b"\0\0\1")
        while 0 <= at < len(packet) - 4:
            kind, importance = packet[at + 3] & 31, packet[at + 3] >> 5 & 3
            if kind in (1, 5):
                return self._slice(packet[at + 4 : at + 36], kind == 5, importance > 0)
            following = packet.find(b"\0\0\1", at + 3)
            if kind == 7:
                self._parameters(packet[at + 4 : following if following > 0 else len(packet)])
            at = following
        return False

    def _slice(self, payload: bytes, is_idr: bool, is_reference: bool) -> bool:
        if self._num_bits is None:
            return False
        try:
            bits = _Bits(payload)
            bits.golomb()  # first macroblock
            bits.golomb()  # type
            bits.golomb()  # picture parameter set
            if self._has_planes:
                bits.take(2)
            number = bits.take(self._num_bits)
        except EOFError:
            return False
        last = self._last
        if is_reference or is_idr:
            self._last = number
        if is_idr or last is None or self._may_have_gaps:
            return False
        return number not in (last, (last + 1) % (1 << self._num_bits))

    def _parameters(self, payload: bytes) -> None:
        try:
            bits = _Bits(payload)
            profile = bits.take(8)
            bits.take(16)  # constraints, level
            bits.golomb()  # id
            has_planes = False
            if profile in _WITH_CHROMA:
                chroma = bits.golomb()
                has_planes = chroma == 3 and bool(bits.take(1))
                bits.golomb()  # bits of luma
                bits.golomb()  # bits of chroma
                bits.take(1)
                if bits.take(1):
                    _skip_scaling(bits, 12 if chroma == 3 else 8)
            num_bits = bits.golomb() + 4
            order = bits.golomb()
            if order == 0:
                bits.golomb()
            elif order == 1:
                bits.take(1)
                bits.signed_golomb()
                bits.signed_golomb()
                for _ in range(min(bits.golomb(), 255)):
                    bits.signed_golomb()
            bits.golomb()  # reference frames
            may_have_gaps = bool(bits.take(1))
        except EOFError:
            return
        if num_bits != self._num_bits:
            self._last = None
        self._num_bits, self._has_planes, self._may_have_gaps = num_bits, has_planes, may_have_gaps


def _skip_scaling(bits: _Bits, num_lists: int) -> None:
    for i in range(num_lists):
        if not bits.take(1):
            continue
        last = following = 8
        for _ in range(16 if i < 6 else 64):
            if following:
                following = (last + bits.signed_golomb()) % 256
            last = following or last
