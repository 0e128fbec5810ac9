"""One open file and its decoder: packets, frames of groups of packets, and of everything.

indexing.py finds out which packets there are; decode.py decides which frames are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.packet import Packet
from av.stream import Discard
from av.video.frame import VideoFrame

from operators.errors import ErrorCode, SourceError
from operators.media import bitstream
from operators.media.cut import Shot
from operators.media.frame_plan import Group
from operators.media.opening import ReadLimits, first_video, open_media
from operators.media.packet_table import NO_PTS, PacketTable
from operators.media.painter import Painter, orientation_of
from operators.media.view import Viewer

SEEKS_BY_BYTE = frozenset(("mpegts",))
"""Their packets say where they begin. MPEG program streams do too, but not in the middle of a pack: after a seek times
come out on other packets (tried)."""
_FRAMES_PER_TICK = 8


class Irregular(Exception):
    """The file is not what the plan took it for; decode.py then decodes all of it instead."""


@dataclass(kw_only=True, slots=True)
class DecodeTally:
    """The numbers of packets read and of failures met while a whole file is decoded."""

    num_packets: int = 0
    num_errors: int = 0
    num_corrupt: int = 0


class Decoder:
    """One open file with one decoder. Used by one thread at a time, closed by whoever opened it."""

    def __init__(self, path: str, limits: ReadLimits, viewer: Viewer, *, num_threads: int) -> None:
        self.path = path
        self.limits = limits
        self.container = open_media(path, limits)
        try:
            self.stream = first_video(self.container, path, limits)
            for other in self.container.streams:
                # Other streams are not even read, where the container allows that.
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
            """Place of the next packet in the table; None where it is unknown until the next seek."""
            self.has_failed = False
            """An error in reading has ended the file before its end."""
            self.num_bytes_read = 0
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

    def _next_packet(self) -> Packet | None:
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
            self.num_bytes_read = max(self.num_bytes_read, packet.pos + packet.size)
        return packet

    def shot(self, frame: VideoFrame, wanted: int, shown: int) -> Shot:
        if frame.width * frame.height > self.limits.max_pixels:
            raise SourceError(f"{self.path} grows to {frame.width}x{frame.height}", ErrorCode.TOO_LARGE)
        aspect = self.stream.sample_aspect_ratio or self.context.sample_aspect_ratio
        orientation = orientation_of(frame, aspect if aspect and aspect > 0 else None)
        return Shot(
            wanted=wanted,
            shown=shown,
            pixels=self._paint(frame, orientation),
            pts=frame.pts,
            size=(frame.height, frame.width),
            orientation=orientation,
        )

    def seek(self, table: PacketTable, place: int) -> None:
        """Lets the next packet be the one at `place`, which is a keyframe."""
        if self._at == place:
            return
        if self.container.format.name in SEEKS_BY_BYTE:
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
            while (packet := self._next_packet()) is not None:
                if _is_at(table, place, packet):
                    self._peeked, self._at = packet, place
                    return
                if table.is_after(place, dts=packet.dts):
                    break
        raise Irregular("the keyframe is not where the index says")

    def remaining_packets(self) -> Iterator[Packet]:
        """The packets from where the file stands to its end. A seek must follow before others are read."""
        self._at = None
        while (packet := self._next_packet()) is not None:
            yield packet

    def packets_until(self, table: PacketTable, stop: int) -> Iterator[tuple[int, Packet]]:
        """(place, packet) from where the file stands to `stop`, each checked against the table."""
        if self._at is None:
            raise ValueError("seek first")
        while self._at < stop:
            packet = self._next_packet()
            if packet is None or not _is_at(table, self._at, packet):
                self._at = None
                raise Irregular("packets are not those of the table")
            self._at += 1
            yield self._at - 1, packet

    def decode_group(self, table: PacketTable, group: Group, *, is_strict: bool) -> Iterator[Shot | None]:
        """Shots of the wanted frames in the order of showing, None between them as a sign of life.

        Raises Irregular when anything is not as planned; without `is_strict` missing frames are just not given.
        """
        wanted = dict(zip(group.places, group.frames, strict=True))
        due = iter(group.frames)
        awaited: dict[int | None, int] = {}
        handed: set[int | None] = set()
        leading: set[int | None] = set()
        self.seek(table, group.first)
        try:
            start_pts: int | None = None
            for place, packet in self.packets_until(table, group.stop):
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
                # In codecs where a look at the packet does not show whether others refer to it, the decoder itself
                # leaves such frames out. Some containers mark them too, but not all do, and their marks are less
                # reliable.
                skips = self.may_skip and number is None
                self.context.skip_frame = "NONREF" if skips else "DEFAULT"
                try:
                    frames = self.context.decode(packet)
                except av.FFmpegError as exc:
                    # Pictures that lean on what was before the start cannot be decoded, and are not wanted.
                    if is_strict and not is_leading:
                        raise Irregular(f"does not decode: {exc}") from exc
                    frames = []
                yield from self._wanted(frames, due, awaited, handed, leading, is_strict=is_strict)
            try:
                frames = self.context.decode(None)
            except av.FFmpegError as exc:
                if is_strict:
                    raise Irregular(f"does not decode: {exc}") from exc
                frames = []
            yield from self._wanted(frames, due, awaited, handed, leading, is_strict=is_strict)
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
        due: Iterator[int],
        awaited: dict[int | None, int],
        handed: set[int | None],
        leading: set[int | None],
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
            if number is None:
                continue
            # Checked here and not at the group's end: a caller that has its last frame reads no further.
            if is_strict and number != next(due):
                raise Irregular("a wanted frame did not come out in its turn")
            yield self.shot(frame, number, number)

    def decode_everything(self, tally: DecodeTally) -> Iterator[tuple[int, VideoFrame] | None]:
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


def _is_at(table: PacketTable, place: int, packet: Packet) -> bool:
    return table.is_at(place, pts=packet.pts, dts=packet.dts, pos=packet.pos)
