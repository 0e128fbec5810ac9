"""One open file and its decoder: its table of packets, frames of groups of packets, and of everything.

What to do with the frames says decode.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.packet import Packet
from av.stream import Discard
from av.video.frame import VideoFrame

from operators import bitstream
from operators.cut import Shot
from operators.errors import SourceError
from operators.opening import Limits, first_video, open_media
from operators.painter import Painter, orientation_of
from operators.plan import (
    NO_PTS,
    Group,
    PacketTable,
    Restart,
    Sampling,
    groups_of_pictures,
    irregularity,
    whole_plan,
)
from operators.view import Viewer

_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_SEEKS_BY_TIME = frozenset((_MOV, "matroska,webm", "avi", "flv"))
_SEEKS_BY_BYTE = frozenset(("mpegts",))
"""Their packets say where they begin. MPEG program streams do too, but not in the middle of a pack: after a seek times
come out on other packets (tried)."""
_FRAMES_PER_TICK = 8
PROGRESSIVE = (0, 1)
"""FFmpeg's field orders: unknown, progressive."""


class Irregular(Exception):
    """The file is not what the plan took it for. decode.py then takes the other way."""


@dataclass(kw_only=True, slots=True)
class Tally:
    """What came of decoding everything, and what went wrong."""

    num_packets: int = 0
    num_errors: int = 0
    num_corrupt: int = 0


class Decoder:
    """One open file with one decoder. Used by one thread at a time, closed by whoever opened it."""

    def __init__(self, path: str, limits: Limits, viewer: Viewer, *, num_threads: int) -> None:
        self.path = path
        self.limits = limits
        self.container = open_media(path, limits)
        try:
            self.stream = first_video(self.container, path, limits)
            for other in self.container.streams:
                # What is not wanted is not even read, where the container allows that.
                if other.index != self.stream.index:
                    other.discard = Discard.all
            self.context = self.stream.codec_context
            self.codec = self.context.name
            self._extradata = self.context.extradata
            self.may_skip = bitstream.may_skip_unreferenced(self.codec, self._extradata)
            self.use_threads(num_threads)
            self._paint = Painter(viewer=viewer)
            self._packets = self._demux()
            self._peeked: Packet | None = None
            self._at: int | None = 0
            """Place of the next packet in the table; None where only a seek would tell."""
            self.has_failed = False
            """An error in reading has ended the file before its end."""
            self._num_bytes = 0
            """Where the farthest packet that was read ends, as far as packets say where they are."""
        except BaseException:
            self.container.close()
            raise

    def close(self) -> None:
        self.container.close()

    def use_threads(self, num_threads: int) -> None:
        """Threads that work on neighbouring frames; from the first frame on or not at all."""
        if self.context.is_open:
            return
        # Never left to FFmpeg, whose default is all cores in every worker.
        self.context.thread_count = num_threads
        self.context.thread_type = "FRAME" if num_threads > 1 else "NONE"  # type: ignore[assignment]

    @property
    def seconds_per_tick(self) -> float:
        return float(self.stream.time_base or Fraction(1, 1_000_000))

    def _demux(self) -> Iterator[Packet]:
        for packet in self.container.demux(self.stream):
            if packet.size:
                yield packet

    def next_packet(self) -> Packet | None:
        """The next one of the stream. An error in reading ends the file, as its end does."""
        packet, self._peeked = self._peeked, None
        return packet if packet is not None else self._read()

    def _read(self) -> Packet | None:
        try:
            packet = next(self._packets, None)
        except av.FFmpegError:
            self.has_failed = True
            return None
        if packet is not None and packet.pos is not None:
            self._num_bytes = max(self._num_bytes, packet.pos + packet.size)
        return packet

    def shot(self, frame: VideoFrame, wanted: int, shown: int, unix_s: float) -> Shot:
        if frame.width * frame.height > self.limits.max_pixels:
            raise SourceError(f"{self.path} grows to {frame.width}x{frame.height}", "too_large")
        aspect = self.stream.sample_aspect_ratio or self.context.sample_aspect_ratio
        orientation = orientation_of(frame, aspect if aspect and aspect > 0 else None)
        return Shot(
            wanted=wanted,
            shown=shown,
            pixels=self._paint(frame, orientation),
            pts=frame.pts,
            unix_s=unix_s,
            size=(frame.height, frame.width),
            orientation=orientation,
        )

    def seek(self, table: PacketTable, place: int) -> None:
        """Lets the next packet be the one at `place`, which is a keyframe."""
        if self._at == place:
            return
        if self.container.format.name in _SEEKS_BY_BYTE:
            targets, by_byte = [int(table.pos[place])], True
        else:
            keys = np.flatnonzero(table.restart[:place])
            shift = int(table.pts[0] - table.dts[0]) if NO_PTS not in (table.pts[0], table.dts[0]) else 0
            # Some demuxers search by the time of showing and some by that of decoding, and one of them goes to a
            # keyframe before; reading on from an earlier one costs little, as nothing is decoded on the way.
            earlier = [int(keys[-1])] if len(keys) else []
            targets = [
                int(table.pts[i]) if table.pts[i] != NO_PTS else int(table.dts[i]) + shift for i in [place, *earlier]
            ]
            by_byte = False
        for target in targets:
            try:
                if by_byte:
                    self.container.seek(target, unsupported_byte_offset=True, stream=self.stream)
                else:
                    self.container.seek(target, stream=self.stream)
            except (av.FFmpegError, OSError, OverflowError) as exc:
                raise Irregular(f"cannot seek: {exc}") from exc
            self._packets, self._peeked, self._at = self._demux(), None, None
            while (packet := self.next_packet()) is not None:
                if _is_at(table, place, packet):
                    self._peeked, self._at = packet, place
                    return
                if table.is_after(place, dts=packet.dts):
                    break
        raise Irregular("the keyframe is not where the index says")

    def take(self, table: PacketTable, stop: int) -> Iterator[tuple[int, Packet]]:
        """(place, packet) from where the file stands to `stop`, each checked against the table."""
        if self._at is None:
            raise ValueError("seek first")
        while self._at < stop:
            packet = self.next_packet()
            if packet is None or not _is_at(table, self._at, packet):
                self._at = None
                raise Irregular("packets are not those of the table")
            self._at += 1
            yield self._at - 1, packet

    def group(
        self, table: PacketTable, group: Group, clock: Callable[[], float], *, is_strict: bool
    ) -> Iterator[Shot | None]:
        """Shots of the wanted frames in the order of showing, None between them as a sign of life.

        Raises Irregular when anything is not as planned; without `is_strict` missing frames are just not given.
        """
        wanted = dict(zip(group.places, group.frames, strict=True))
        awaited: dict[int | None, int] = {}
        handed: set[int | None] = set()
        leading: set[int | None] = set()
        self.seek(table, group.first)
        try:
            start_pts: int | None = None
            for place, packet in self.take(table, group.stop):
                if place == group.first:
                    start_pts = packet.pts
                number = wanted.get(place)
                if number is not None:
                    awaited[packet.pts] = number
                if (place - group.first) % _FRAMES_PER_TICK == 0:
                    yield None
                if number is None and self._is_needless(packet):
                    continue
                handed.add(packet.pts)
                is_leading = start_pts is not None and packet.pts is not None and packet.pts < start_pts
                if is_leading:
                    leading.add(packet.pts)
                # What is left of such frames, in codecs where telling takes more than a look, the decoder leaves out
                # by itself. Containers may say so too, but not all do, and the word of those that do is not as good.
                skips = self.may_skip and number is None
                self.context.skip_frame = "NONREF" if skips else "DEFAULT"
                try:
                    frames = self.context.decode(packet)
                except av.FFmpegError as exc:
                    # Pictures that lean on what was before the start cannot be decoded, and are not wanted.
                    if is_strict and not is_leading:
                        raise Irregular(f"does not decode: {exc}") from exc
                    frames = []
                yield from self._wanted(frames, awaited, handed, leading, clock, is_strict=is_strict)
            try:
                frames = self.context.decode(None)
            except av.FFmpegError as exc:
                if is_strict:
                    raise Irregular(f"does not decode: {exc}") from exc
                frames = []
            yield from self._wanted(frames, awaited, handed, leading, clock, is_strict=is_strict)
        finally:
            # After draining a decoder takes nothing more until it is reset.
            self.context.flush_buffers()
            self.context.skip_frame = "DEFAULT"
        if awaited and is_strict:
            raise Irregular(f"{len(awaited)} wanted frames did not come out")

    def _is_needless(self, packet: Packet) -> bool:
        """Whether the decoder need not be given a packet whose frame is not wanted: nothing refers to it."""
        if packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change"):
            return False
        return bitstream.is_unreferenced(self.codec, memoryview(packet), self._extradata)

    def _wanted(
        self,
        frames: Sequence[VideoFrame],
        awaited: dict[int | None, int],
        handed: set[int | None],
        leading: set[int | None],
        clock: Callable[[], float],
        *,
        is_strict: bool,
    ) -> Iterator[Shot]:
        for frame in frames:
            if is_strict and frame.pts not in leading and (frame.is_corrupt or frame.pts not in handed):
                raise Irregular("a frame is corrupt or of a time that no packet has")
            number = awaited.pop(frame.pts, None)
            if number is None and not is_strict and len(awaited) == 1:
                # The one packet's one frame, whatever its time became.
                _, number = awaited.popitem()
            if number is not None:
                yield self.shot(frame, number, number, clock())

    def trouble(self) -> str | None:
        """Why packets of this container and codec cannot be planned with; None if they can."""
        name = self.container.format.name
        if not bitstream.can_plan(self.codec):
            return f"{self.codec} is not known well enough"
        if name not in _SEEKS_BY_TIME and name not in _SEEKS_BY_BYTE:
            return f"{name} is not known well enough"
        if name == "avi" and bitstream.reorders(self.codec):
            return "AVI does not say when reordered frames are shown"
        if self.codec in ("h264", "hevc") and self.context.field_order not in PROGRESSIVE:
            return "a frame may be two packets, one for each field"
        return None

    def read_table(self) -> Generator[None, None, tuple[PacketTable, str | None]]:
        """(all packets of the stream, why they cannot be planned with or None), by reading the file once."""
        trouble = self.trouble()
        codec, extradata = self.codec, self.context.extradata
        needs_data = not bitstream.shows_by_size(codec)
        columns: list[tuple[int, int, int, int, bool]] = []
        while (packet := self.next_packet()) is not None:
            if not columns:
                self.refuse_encrypted(packet)
            data = memoryview(packet) if packet.is_keyframe or needs_data else None
            shows = bitstream.gives_frame(codec, packet.size, data)
            if shows is None:
                trouble = trouble or "a packet may give no frame"
            if packet.is_corrupt:
                trouble = trouble or "a packet is corrupt"
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
        self._at = None
        if self.has_failed:
            trouble = trouble or "reading it fails before its end"
        return _table(columns), trouble

    def index_table(self, shape: bitstream.FileShape, sampling: Sampling) -> Generator[None, None, PacketTable | None]:
        """The table from the file's own index, with times only where one clip of the whole file needs them.

        Only MP4 and MOV list every packet, and with the time of decoding only: the groups of pictures that matter
        are read for the time of showing. None where the index will not do.
        """
        if self.container.format.name != _MOV or shape.is_fragmented or self.trouble() is not None:
            return None
        if not bitstream.shows_by_size(self.codec):
            return None
        is_intra_only = bitstream.restart(self.codec, False, None, None) == Restart.CLOSED
        may_be_empty = bitstream.gives_frame(self.codec, 0, None) is None
        columns, stop = [], 0
        for entry in self.stream.index_entries:
            flags, pos, size = entry.flags, entry.pos, entry.size
            if may_be_empty and bitstream.gives_frame(self.codec, size, None) is None:
                return None
            columns.append((NO_PTS, entry.timestamp, pos, flags & 1, not flags & 2))
            if pos + size > stop:
                stop = pos + size
        yield None
        table = _table(columns)
        # What the container calls keyframes is asked for its true kind where it is needed.
        table.restart[(table.restart > 0) | is_intra_only] = Restart.CLOSED
        if table.num_frames == 0 or stop > os.path.getsize(self.path) or np.any(np.diff(table.dts) <= 0):
            return None
        try:
            for _, packet in self.take(table, 1):
                self.refuse_encrypted(packet)
                table.pts[0] = NO_PTS if packet.pts is None else packet.pts
            if sampling.seek == "keyframe":
                return table
            frames = whole_plan(table.num_frames, 0.0, sampling).frames
            spans = groups_of_pictures(table, [0, *frames.tolist()])
            begins = {begin for begin, _ in spans}
            for begin, end in spans:
                self.seek(table, begin)
                # With the keyframe that follows: its group is shown after this one only if it cuts.
                for place, packet in self.take(table, min(end + (end not in begins), len(table))):
                    if place in (begin, end):
                        data = memoryview(packet)
                        if bitstream.restart(self.codec, True, data, self.context.extradata) != Restart.CLOSED:
                            return None
                    if place < end:
                        table.pts[place] = NO_PTS if packet.pts is None else packet.pts
                    if place % 1000 == 0:
                        yield None
        except Irregular:
            return None
        return table if irregularity(table) is None else None

    def promised(self, shape: bitstream.FileShape, num_packets: int) -> float:
        """How many times as many packets as the `num_packets` that were read there would be in the whole file.

        1 where it was neither cut short nor failed to be read to its end.
        """
        if self.container.format.name == _MOV and not shape.is_fragmented:
            return max(1.0, len(self.stream.index_entries) / num_packets)
        size = os.path.getsize(self.path)
        there = self._num_bytes if self.has_failed and self._num_bytes else size
        return max(1.0, max(shape.promised_bytes, size) / there)

    def refuse_encrypted(self, packet: Packet) -> None:
        if packet.has_sidedata("encryption_info") or packet.has_sidedata("encryption_init_info"):
            raise SourceError(f"{self.path} is encrypted", "encrypted")

    def everything(self, tally: Tally) -> Iterator[tuple[int, VideoFrame] | None]:
        """(number, frame) of all frames from the file's start, None as a sign of life; errors go to the tally."""
        number = 0

        def decoded(packet: Packet | None) -> list[VideoFrame]:
            try:
                return self.context.decode(packet)
            except av.FFmpegError:
                tally.num_errors += 1
                return []

        while True:
            packet = self._read()
            if packet is None and self.has_failed:
                tally.num_errors += 1
            for frame in decoded(packet):
                yield number, frame
                number += 1
            if packet is None:
                return
            tally.num_packets += 1
            if tally.num_packets % _FRAMES_PER_TICK == 0:
                yield None


def _table(columns: Sequence[tuple[int, int, int, int, bool]]) -> PacketTable:
    """Of (pts, dts, pos, restart, is_shown)."""
    values = np.array(columns, np.int64).reshape(-1, 5)
    return PacketTable(
        pts=values[:, 0].copy(),
        dts=values[:, 1].copy(),
        pos=values[:, 2].copy(),
        restart=values[:, 3].astype(np.int8),
        is_shown=values[:, 4].astype(bool),
    )


def _is_at(table: PacketTable, place: int, packet: Packet) -> bool:
    return table.is_at(place, pts=packet.pts, dts=packet.dts, pos=packet.pos)
