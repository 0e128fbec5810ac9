"""The table of a file's packets is made by reading it through, or from its own index. Nothing is decoded."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence

import numpy as np
from av.packet import Packet

from operators.errors import ErrorCode, SourceError
from operators.media import bitstream
from operators.media.container import SEEKS_BY_BYTE, Decoder, Irregular
from operators.media.container_headers import FileShape
from operators.media.frame_plan import groups_of_pictures
from operators.media.packet_table import NO_PTS, PacketTable, Restart, irregularity

_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_SEEKS_BY_TIME = frozenset((_MOV, "matroska,webm", "avi", "flv"))
PROGRESSIVE = (0, 1)
"""FFmpeg's field orders: unknown, progressive."""


def unplannable(decoder: Decoder) -> str | None:
    """Why packets of this container and codec cannot be planned with; None if they can."""
    name = decoder.container.format.name
    if not bitstream.can_plan(decoder.codec):
        return f"{decoder.codec} is not known well enough"
    if name not in _SEEKS_BY_TIME and name not in SEEKS_BY_BYTE:
        return f"{name} is not known well enough"
    if name == "avi" and bitstream.reorders(decoder.codec):
        return "AVI does not say when reordered frames are shown"
    if decoder.codec in ("h264", "hevc") and decoder.context.field_order not in PROGRESSIVE:
        return "a frame may be two packets, one for each field"
    return None


def read_table(decoder: Decoder) -> Generator[None, None, tuple[PacketTable, str | None]]:
    """(all packets of the stream, why they cannot be planned with or None), by reading the file once."""
    why_not = unplannable(decoder)
    codec, extradata = decoder.codec, decoder.context.extradata
    needs_data = not bitstream.shows_by_size(codec)
    columns: list[tuple[int, int, int, int, bool]] = []
    for packet in decoder.remaining_packets():
        if not columns:
            _refuse_encrypted(decoder, packet)
        data = memoryview(packet) if packet.is_keyframe or needs_data else None
        shows = bitstream.gives_frame(codec, packet.size, data)
        if shows is None:
            why_not = why_not or "a packet may give no frame"
        if packet.is_corrupt:
            why_not = why_not or "a packet is corrupt"
        start = bitstream.restart(codec, packet.is_keyframe, data, extradata)
        columns.append(
            (
                NO_PTS if packet.pts is None else packet.pts,
                NO_PTS if packet.dts is None else packet.dts,
                -1 if packet.pos is None else packet.pos,
                int(start),
                bool(shows is not False and not packet.is_discard),
            )
        )
        if len(columns) % 1000 == 0:
            yield None
    if decoder.has_failed:
        why_not = why_not or "reading it fails before its end"
    return _table(columns), why_not


def index_table(decoder: Decoder, shape: FileShape) -> Generator[None, None, PacketTable | None]:
    """The table from the file's own index; None where the index is not enough.

    Only MP4 and MOV list every packet, and with the time of decoding only: `read_times` adds that of showing.
    """
    if decoder.container.format.name != _MOV or shape.is_fragmented or unplannable(decoder) is not None:
        return None
    if not bitstream.shows_by_size(decoder.codec):
        return None
    is_intra_only = bitstream.restart(decoder.codec, False, None, None) == Restart.CLOSED
    may_be_empty = bitstream.gives_frame(decoder.codec, 0, None) is None
    columns, stop = [], 0
    for entry in decoder.stream.index_entries:
        flags, pos, size = entry.flags, entry.pos, entry.size
        if may_be_empty and bitstream.gives_frame(decoder.codec, size, None) is None:
            return None
        columns.append((NO_PTS, entry.timestamp, pos, flags & 1, not flags & 2))
        if pos + size > stop:
            stop = pos + size
    yield None
    table = _table(columns)
    # `read_times` looks for the true kind of what the container calls a keyframe, where it is needed.
    table.restart[(table.restart > 0) | is_intra_only] = Restart.CLOSED
    if table.num_frames == 0 or stop > os.path.getsize(decoder.path) or np.any(np.diff(table.dts) <= 0):
        return None
    if not table.restart.any():
        return None
    try:
        for _, packet in decoder.packets_until(table, 1):
            _refuse_encrypted(decoder, packet)
            table.pts[0] = NO_PTS if packet.pts is None else packet.pts
    except Irregular:
        return None
    return table


def read_times(decoder: Decoder, table: PacketTable, frames: Sequence[int]) -> Generator[None, None, bool]:
    """Gives the packets of a table from the index their times, in the groups of pictures that hold these frames.

    Returns whether the table can then be trusted to have those frames.
    """
    try:
        spans = groups_of_pictures(table, [0, *frames])
        begins = {begin for begin, _ in spans}
        for begin, end in spans:
            decoder.seek(table, begin)
            # With the keyframe that follows: its group is shown after this one only if it cuts.
            for place, packet in decoder.packets_until(table, min(end + (end not in begins), len(table))):
                if place in (begin, end):
                    data = memoryview(packet)
                    if bitstream.restart(decoder.codec, True, data, decoder.context.extradata) != Restart.CLOSED:
                        return False
                if place < end:
                    table.pts[place] = NO_PTS if packet.pts is None else packet.pts
                if place % 1000 == 0:
                    yield None
    except Irregular:
        return False
    return irregularity(table) is None


def times_promised(decoder: Decoder, shape: FileShape, num_packets: int) -> float:
    """The packets of the whole file, by its headers, over the `num_packets` that were read.

    1 where the file was not cut short and was read to its end.
    """
    if decoder.container.format.name == _MOV and not shape.is_fragmented:
        return max(1.0, len(decoder.stream.index_entries) / num_packets)
    size = os.path.getsize(decoder.path)
    there = decoder.num_bytes_read if decoder.has_failed and decoder.num_bytes_read else size
    return max(1.0, max(shape.promised_bytes, size) / there)


def _refuse_encrypted(decoder: Decoder, packet: Packet) -> None:
    if packet.has_sidedata("encryption_info") or packet.has_sidedata("encryption_init_info"):
        raise SourceError(f"{decoder.path} is encrypted", ErrorCode.ENCRYPTED)


def _table(columns: Sequence[tuple[int, int, int, int, bool]]) -> PacketTable:
    """The table of rows of (pts, dts, pos, restart, is_shown)."""
    values = np.array(columns, np.int64).reshape(-1, 5)
    return PacketTable(
        pts=values[:, 0].copy(),
        dts=values[:, 1].copy(),
        pos=values[:, 2].copy(),
        restart=values[:, 3].astype(np.int8),
        is_shown=values[:, 4].astype(bool),
    )
