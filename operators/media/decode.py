"""Files, still images and folders of images are read: views of the wanted frames, window by window.

Two ways lead to a frame of a video. The planned one seeks to the groups of pictures that hold wanted frames, and only
where a file is as regular as the plan assumes; every frame that comes out is checked against the plan. At the first
surprise the other way is taken, which decodes everything and counts: slow, and always right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from operators.errors import ErrorCode, SourceError
from operators.media import stills
from operators.media.container import Decoder, DecodeTally, Irregular
from operators.media.container_headers import FileShape, file_shape
from operators.media.cut import Shot, Timeline, cut_batches
from operators.media.frame_plan import Group, decode_plan, groups_of_pictures, keyframe_plan
from operators.media.frame_times import frame_seconds, monotone_seconds, table_times
from operators.media.image_headers import image_kind
from operators.media.image_shots import FolderShots, image_shot
from operators.media.indexing import PROGRESSIVE, index_table, read_table, read_times, times_promised
from operators.media.opening import ReadLimits, head_of, missing_decoders
from operators.media.packet_table import NO_PTS, PacketTable, irregularity, show_order
from operators.media.sampling import SamplingRule, WindowPlan, whole_plan, window_plans
from operators.media.side_by_side import DecoderThreads
from operators.media.view import Viewer
from operators.records import FrameBatch, Media, Source

__all__ = ["FileReader", "ReadLimits", "missing_decoders"]


class FileReader:
    """Reads one file, image or folder of images; a context manager that owns what is open and its threads.

    `read` gives a FrameBatch whenever windows are complete, and None in between after a few decoded frames, so that
    the caller can see that it lives. What is wrong with the source is a SourceError with its code.
    """

    def __init__(
        self,
        *,
        source: Source,
        sampling: SamplingRule,
        viewer: Viewer,
        clock: Callable[[], float],
        limits: ReadLimits | None = None,
        num_threads: int = 1,
        first_window: int = 0,
    ) -> None:
        """`clock` gives Unix seconds. `num_threads` single-threaded decoders work side by side where groups of
        pictures allow it. Windows before `first_window` were done before and are left out."""
        self._source = source
        self._sampling = sampling
        self._viewer = viewer
        self._limits = limits or ReadLimits()
        self._num_threads = max(1, num_threads)
        self._clock = clock
        self._next_window = first_window
        self._open: list[Decoder] = []
        self._threads = DecoderThreads(open_decoder=self._new_decoder, num_threads=self._num_threads)
        self._opened_unix_s = 0.0

    def __enter__(self) -> FileReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops what runs and closes what is open; a second call does nothing."""
        self._threads.stop()
        while self._open:
            self._open.pop().close()

    def read(self) -> Iterator[FrameBatch | None]:
        """Batches in the order of time, None in between. Once per reader. Raises SourceError."""
        self._opened_unix_s = began = self._clock()
        spent = 0.0
        items = self._items()
        while True:
            item = next(items, _END)
            # The time that the caller takes between two items is not decoding.
            spent += self._clock() - began
            if item is _END:
                return
            if isinstance(item, FrameBatch):
                self._next_window += len(item.windows)
                yield replace(item, decode_s=spent)
                spent = 0.0
            else:
                yield None
            began = self._clock()

    def _items(self) -> Iterator[FrameBatch | None]:
        path = self._source.uri
        if self._source.media is Media.FRAMES or os.path.isdir(path):
            yield from self._read_folder(path)
            return
        kind = image_kind(head_of(path))
        if kind is not None:
            yield from self._read_still(path)
        else:
            yield from self._read_video(path)

    # Images

    def _read_still(self, path: str) -> Iterator[FrameBatch | None]:
        pixels, orientation = stills.read_image(path, max_pixels=self._limits.max_pixels)
        shot = image_shot(pixels, orientation, viewer=self._viewer)
        timeline = Timeline(num_frames=1, seconds=lambda shot: 0.0)
        yield from self._cut([whole_plan(1, 0.0, self._sampling)], [shot], timeline)

    def _read_folder(self, path: str) -> Iterator[FrameBatch | None]:
        paths = stills.frame_paths(path)
        times = np.arange(len(paths)) / stills.FOLDER_FPS
        plans = self._plans(len(paths), times, len(paths) / stills.FOLDER_FPS)
        images = FolderShots(paths, viewer=self._viewer, max_pixels=self._limits.max_pixels)
        timeline = Timeline(
            num_frames=len(paths),
            seconds=lambda shot: float(times[shot.shown]),
            num_corrupt=lambda: images.num_corrupt,
        )
        yield from self._cut(plans, images.shots(_wanted(plans)), timeline)

    # Video

    def _read_video(self, path: str) -> Iterator[FrameBatch | None]:
        yield None
        decoder = self._decoder(1)
        yield None
        shape = file_shape(path)
        table: PacketTable | None = None
        trouble: str | None = None
        promised = 1.0
        by_keyframes = self._sampling.seek == "keyframe"
        if self._sampling.kind == "whole":
            table = yield from index_table(decoder, shape)
            if table is not None and by_keyframes:
                trouble = "the index does not say when frames are shown"
            elif table is not None:
                frames = whole_plan(table.num_frames, 0.0, self._sampling).frames.tolist()
                table = table if (yield from read_times(decoder, table, frames)) else None
        if table is None:
            decoder = self._decoder(1)
            table, trouble = yield from read_table(decoder)
            if not len(table) and decoder.has_failed:
                raise SourceError(f"{path} cannot be read: not one of its pictures comes", ErrorCode.CORRUPT)
            if not len(table):
                raise SourceError(f"{path} has a video stream without a single picture", ErrorCode.NO_FRAMES)
            promised = times_promised(decoder, shape, len(table))
            if promised > 1.0:
                trouble = trouble or "the file breaks off"
            trouble = trouble or irregularity(table)
        if by_keyframes and table.num_frames and (yield from self._read_keyframes(decoder, table, promised)):
            return
        if trouble is None and table.pts[0] != NO_PTS:
            try:
                yield from self._read_planned(decoder, table)
                return
            except Irregular:
                pass
        yield from self._read_everything(table, shape, promised)

    def _decoder(self, num_threads: int) -> Decoder:
        """A decoder that is closed with the reader."""
        decoder = self._new_decoder(num_threads)
        self._open.append(decoder)
        return decoder

    def _new_decoder(self, num_threads: int = 1) -> Decoder:
        return Decoder(self._source.uri, self._limits, self._viewer, num_threads=num_threads)

    def _plans(self, num_frames: int, times: np.ndarray | None, duration_s: float) -> list[WindowPlan]:
        if duration_s > self._limits.max_duration_s:
            raise SourceError(
                f"{self._source.shown_uri} lasts {duration_s:.0f} s, more than {self._limits.max_duration_s:.0f}",
                ErrorCode.TOO_LARGE,
            )
        if self._sampling.kind == "whole" or times is None:
            return [whole_plan(num_frames, duration_s, self._sampling)]
        return list(window_plans(times, duration_s, self._sampling, self._next_window))

    def _cut(
        self, plans: Sequence[WindowPlan], shots: Iterable[Shot | None], timeline: Timeline
    ) -> Iterator[FrameBatch | None]:
        return cut_batches(
            source=self._source,
            plans=plans,
            shots=shots,
            timeline=timeline,
            viewer=self._viewer,
            max_bytes=self._limits.max_batch_bytes,
            opened_unix_s=self._opened_unix_s,
        )

    def _read_planned(self, decoder: Decoder, table: PacketTable) -> Iterator[FrameBatch | None]:
        """Batches of the wanted frames; nothing else is decoded. Raises Irregular."""
        tick = decoder.seconds_per_tick
        times, duration_s = table_times(table, tick)
        plans = self._plans(table.num_frames, times, duration_s)
        groups = decode_plan(table, _wanted(plans))
        origin = int(table.pts[show_order(table, *groups_of_pictures(table, [0])[0])[0]])
        timeline = Timeline(
            num_frames=table.num_frames,
            seconds=lambda shot: (shot.pts - origin) * tick if shot.pts is not None else 0.0,
        )
        shots = self._shots(decoder, table, groups, is_strict=True)
        yield from self._cut(plans, shots, timeline)

    def _shots(
        self, decoder: Decoder, table: PacketTable, groups: Sequence[Group], *, is_strict: bool
    ) -> Iterator[Shot | None]:
        """Shots of all groups in their order. Raises Irregular; without `is_strict` what fails is left out."""
        if self._num_threads > 1 and len(groups) > 1 and self._sampling.kind == "whole":
            yield from self._threads.shots(decoder, groups, partial(self._group, table=table, is_strict=is_strict))
            return
        # Windows take frames of most groups, and need their views as they come; a single group cannot be shared out.
        decoder.use_threads(self._num_threads if is_strict else 1)
        for group in groups:
            yield from self._group(decoder, group, table=table, is_strict=is_strict)

    def _group(self, decoder: Decoder, group: Group, *, table: PacketTable, is_strict: bool) -> Iterator[Shot | None]:
        try:
            yield from decoder.decode_group(table, group, is_strict=is_strict)
        except Irregular:
            if is_strict:
                raise

    def _read_keyframes(
        self, decoder: Decoder, table: PacketTable, promised: float
    ) -> Generator[FrameBatch | None, None, bool]:
        """Gives batches of keyframes, and returns whether there were any."""
        num_failures = int(decoder.has_failed)
        tick = decoder.seconds_per_tick
        times, duration_s = table_times(table, tick)
        plans = self._plans(table.num_frames, times, duration_s)
        # A keyframe coded as two fields is two packets.
        is_fields = decoder.context.field_order not in PROGRESSIVE
        instead, groups = keyframe_plan(table, _wanted(plans), packets_per_frame=2 if is_fields else 1)
        if not groups:
            return False
        plans = [plan.showing(instead) for plan in plans]
        place = {group.frames[0]: i for i, group in enumerate(groups)}
        missing = 0

        def shots() -> Iterator[Shot | None]:
            nonlocal missing
            received = 0
            for item in self._shots(decoder, table, groups, is_strict=False):
                if item is not None:
                    missing = place[item.wanted] - received
                    received += 1
                yield item
            missing = len(groups) - received

        timeline = Timeline(
            num_frames=table.num_frames,
            seconds=lambda shot: float(times[shot.shown]),
            promised_frames=self._promised_frames(promised, table.num_frames),
            num_corrupt=lambda: missing + num_failures,
        )
        try:
            yield from self._cut(plans, shots(), timeline)
        except SourceError:
            # No keyframe of this file can be decoded by itself.
            return False
        return True

    def _promised_frames(self, promised: float, num_frames: int) -> int:
        """The frames of the uncut file, where the clip is the whole file; 0 for windows, which lie in what there is."""
        return round(promised * num_frames) if self._sampling.kind == "whole" else 0

    def _read_everything(self, table: PacketTable, shape: FileShape, promised: float) -> Iterator[FrameBatch | None]:
        """Gives batches after all frames were decoded and counted, which is always right."""
        path = self._source.uri
        tally = DecodeTally()
        guesses: set[int] = set()
        if self._sampling.kind == "whole":
            # The count is nearly always that of the packets, or a little less: with the frames that are wanted then
            # kept on the way, one pass does.
            for count in range(max(1, table.num_frames - 2), table.num_frames + 1):
                guesses.update(whole_plan(count, 0.0, self._sampling).frames.tolist())
        decoder = self._decoder(self._num_threads)
        pts: list[int | None] = []
        found: dict[int, Shot] = {}
        good: tuple[int, Any] | None = None
        for item in decoder.decode_everything(tally):
            if item is None:
                yield None
                continue
            number, frame = item
            pts.append(frame.pts)
            if frame.is_corrupt:
                tally.num_corrupt += 1
            else:
                good = item
            if number in guesses and good is not None:
                found[number] = decoder.shot(good[1], number, good[0])
        if not pts:
            raise SourceError(f"{path}: not one of its {len(table)} pictures can be decoded", ErrorCode.CORRUPT)
        if good is None:
            raise SourceError(f"{path}: all of its {len(pts)} pictures are corrupt", ErrorCode.CORRUPT)
        times = monotone_seconds(pts, decoder.seconds_per_tick)
        duration_s = float(times[-1]) + frame_seconds(times)
        plans = self._plans(len(pts), times, duration_s)
        wanted = _wanted(plans)
        shots: Iterable[Shot | None] = [found[frame] for frame in wanted if frame in found]
        if not found.keys() >= set(wanted):
            shots = self._shots_of_second_pass(set(wanted))
        num_lost = max(0, table.num_frames - len(pts)) if tally.num_errors else 0
        if tally.num_packets > len(table):
            # Reading went farther than the first time.
            promised = times_promised(decoder, shape, tally.num_packets)
        timeline = Timeline(
            num_frames=len(pts),
            seconds=lambda shot: float(times[shot.shown]),
            promised_frames=self._promised_frames(promised, len(pts) + num_lost),
            num_corrupt=lambda: tally.num_errors + tally.num_corrupt,
        )
        yield from self._cut(plans, shots, timeline)

    def _shots_of_second_pass(self, wanted: set[int]) -> Iterator[Shot | None]:
        """The wanted frames by a second pass over everything, as their numbers were unknown during the first."""
        decoder = self._decoder(self._num_threads)
        last = max(wanted)
        good: tuple[int, Any] | None = None
        for item in decoder.decode_everything(DecodeTally()):
            if item is None:
                yield None
                continue
            if not item[1].is_corrupt:
                good = item
            if item[0] in wanted and good is not None:
                yield decoder.shot(good[1], item[0], good[0])
            if item[0] >= last:
                return


_END = object()


def _wanted(plans: Sequence[WindowPlan]) -> list[int]:
    """The distinct frame numbers of all plans, ascending."""
    return np.unique(np.concatenate([plan.frames for plan in plans])).tolist() if plans else []
