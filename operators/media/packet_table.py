"""The table of a stream's packets, and whether it can be trusted. Pure: numbers in, numbers out.

A packet's place is its number in the file's order of decoding, a frame's number is its place in the order of showing.
Where one packet does not stand for one frame nothing can be planned: everything is decoded then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

NO_PTS = np.iinfo(np.int64).min
"""The value in a PacketTable that says that the time of a packet is not known."""


class Restart(enum.IntEnum):
    """How much can be decoded from a packet on."""

    NONE = 0
    """Nothing can, whatever the container says: an ordinary packet, or one that is falsely called a keyframe."""
    OPEN = 1
    """Everything that is shown after it can; what is shown before it needs an earlier packet."""
    CLOSED = 2
    """Everything that follows can."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PacketTable:
    """The packets of one stream, in the file's order. Arrays of one length."""

    pts: np.ndarray
    """int64, in the stream's time base; NO_PTS where unknown"""
    dts: np.ndarray
    """int64; NO_PTS where unknown"""
    pos: np.ndarray
    """int64: byte in the file, -1 where unknown"""
    restart: np.ndarray
    """int8: Restart"""
    is_shown: np.ndarray
    """bool: gives a frame. False for hidden reference frames and for what an edit list cuts away."""

    def __len__(self) -> int:
        return len(self.pts)

    def is_at(self, place: int, *, pts: int | None, dts: int | None, pos: int | None) -> bool:
        """Whether this is the packet at `place`: by pts if the table has it, as a demuxer may guess another dts."""
        if self.pts[place] != NO_PTS:
            return pts == int(self.pts[place])
        if self.pos[place] >= 0 and pos is not None and pos >= 0:
            return pos == int(self.pos[place])
        return dts is not None and dts == int(self.dts[place])

    def is_after(self, place: int, *, dts: int | None) -> bool:
        """Whether a packet of this dts lies behind the one at `place`, as far as that is known."""
        return dts is not None and self.dts[place] != NO_PTS and dts > int(self.dts[place])

    @property
    def num_frames(self) -> int:
        return int(np.count_nonzero(self.is_shown))


def irregularity(table: PacketTable) -> str | None:
    """Why the table cannot be trusted to have one packet per frame and times that order them; None if it can.

    Packets with unknown pts are taken to lie in groups of pictures that are not needed.
    """
    if len(table) == 0:
        return "no packets"
    if table.num_frames == 0:
        return "no packet is shown"
    if table.restart[0] == Restart.NONE:
        return "does not begin with a keyframe"
    starts = np.flatnonzero(table.restart)
    if table.pts[0] == NO_PTS:
        return "times are missing"
    latest = NO_PTS
    for begin, end in zip(starts, np.append(starts[1:], len(table)), strict=True):
        pts = table.pts[begin:end][table.is_shown[begin:end]]
        known = pts != NO_PTS
        if not known.any():
            latest = NO_PTS  # a group of pictures that was not read
            continue
        if not known.all() or table.pts[begin] == NO_PTS:
            return "times are missing"
        if len(np.unique(pts)) != len(pts):
            return "two frames have one time"
        low = int(pts.min())
        # A keyframe's group is shown after everything before it: only so can frames be numbered group by group.
        if latest != NO_PTS and low <= latest:
            return "times of two groups of pictures overlap"
        if low < table.pts[begin]:
            if begin == 0:
                return "frames are shown before the first keyframe"
            if table.restart[begin] == Restart.CLOSED:
                return "frames are shown before a keyframe that cuts them off"
        latest = int(pts.max())
    return None


def show_order(table: PacketTable, begin: int = 0, end: int | None = None) -> np.ndarray:
    """int64: places of the shown packets among begin..end, in the order of showing."""
    places = np.arange(begin, len(table) if end is None else end, dtype=np.int64)
    places = places[table.is_shown[places]]
    return places[np.argsort(table.pts[places], kind="stable")]


def frames_before(table: PacketTable) -> np.ndarray:
    """int64 [len + 1]: how many packets before each place are shown."""
    return np.concatenate([[0], np.cumsum(table.is_shown, dtype=np.int64)])
