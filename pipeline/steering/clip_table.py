"""The clips that are under way: those that wait to be opened, are open, or wait for features. Pure.

A clip is done again from its frames whenever something goes wrong with it. Each time it is opened is a stay of its
own: what comes back for a stay that is over is ignored.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from operators.errors import ErrorCode
from operators.records import ClipLabel
from pipeline.steering.batching import Batcher, PatchRows
from pipeline.steering.messages import Advance, ClipRef, PieceInfo
from pipeline.steering.read_queue import MAX_DEATHS, Reading, failed_label


@dataclass(slots=True, eq=False)
class Frames:
    """The frames that one call brought: they are held until the last of their pieces is labelled."""

    handle: Any
    num_bytes: int
    num_pieces: int = 0


@dataclass(slots=True, eq=False)
class Piece:
    """One FrameBatch of a source."""

    reading: Reading
    frames: Frames
    row: int
    num_clips: int = 0


@dataclass(slots=True, eq=False)
class Clip:
    """A clip that has no label yet."""

    number: int
    """The place of the clip in the order in which clips were read, which is its age."""
    piece: Piece
    ref: ClipRef
    is_suspect: bool = False
    deaths: int = 0
    losses: int = 0
    stay: Stay | None = None


@dataclass(slots=True, eq=False)
class Stay:
    """A clip with state on a stream worker, for as long as that state lives."""

    clip: Clip
    worker: int
    is_over: bool = False
    waiting: list[PatchRows] = field(default_factory=list)
    patches_left: int = 0
    features: list[tuple[int, Any, int, int]] = field(default_factory=list)
    """Features as (first patch row, handle, start, stop), in the order in which they arrived."""


class ClipTable:
    """Holds every clip that is under way, and how far it has got."""

    def __init__(
        self,
        *,
        num_workers: int,
        max_open_clips: int,
        pieces_per_call: int,
        batcher: Batcher,
        is_wanted: Callable[[str], bool],
        emit: Callable[[ClipLabel, float], None],
        on_end: Callable[[Reading], None],
    ) -> None:
        """`on_end` is called with the reading of every clip that got its label."""
        self._max_open_clips = max_open_clips
        self._pieces_per_call = pieces_per_call
        self._batcher = batcher
        self._is_wanted = is_wanted
        self._emit = emit
        self._on_end = on_end
        self._numbers = itertools.count()
        self._clips: dict[str, Clip] = {}
        self._to_open: list[tuple[int, Clip]] = []
        self._suspects: list[tuple[int, Clip]] = []
        self._stays: list[dict[str, Stay]] = [{} for _ in range(num_workers)]
        self._to_step: list[list[Stay]] = [[] for _ in range(num_workers)]
        self._to_close: list[list[str]] = [[] for _ in range(num_workers)]
        self.num_pieces = 0
        self.num_bytes = 0

    def is_new(self, clip_id: str) -> bool:
        """Whether a clip has no label and is not under way."""
        return clip_id not in self._clips and self._is_wanted(clip_id)

    def add(self, reading: Reading, infos: Sequence[PieceInfo], frames: Frames) -> int:
        """Takes what was read of a source; returns how many of its clips were known already."""
        num_known = 0
        for info in infos:
            piece = Piece(reading, frames, info.row)
            for ref in info.clips:
                reading.has_clips, reading.is_resumed = True, False
                reading.first_window = max(reading.first_window, ref.window + 1)
                reading.lost.pop(ref.clip_id, None)
                if not self.is_new(ref.clip_id):
                    num_known += 1
                    continue
                clip = Clip(next(self._numbers), piece, ref)
                self._clips[ref.clip_id] = clip
                self._queue(clip)
                piece.num_clips += 1
            if piece.num_clips:
                reading.num_clips += piece.num_clips
                self.num_pieces += 1
                if frames.num_pieces == 0:
                    self.num_bytes += frames.num_bytes
                frames.num_pieces += 1
        return num_known

    # What to do next

    def open(self, idle: Collection[int], *, may_suspect: bool) -> list[Stay]:
        """Gives the oldest clips that wait to the worker that has the fewest; a suspect goes alone."""
        if not idle or not (self._to_open or self._suspects):
            return []
        worker = min(idle, key=lambda w: len(self._stays[w]))
        room = self._max_open_clips - len(self._stays[worker])
        if room <= 0:
            return []
        if may_suspect and self._suspects and (not self._to_open or self._suspects[0] < self._to_open[0]):
            return [self._begin(heapq.heappop(self._suspects)[1], worker)]
        stays: list[Stay] = []
        pieces: set[int] = set()
        while self._to_open and len(stays) < room:
            piece = self._to_open[0][1].piece
            if id(piece) not in pieces and len(pieces) == self._pieces_per_call:
                break
            pieces.add(id(piece))
            stays.append(self._begin(heapq.heappop(self._to_open)[1], worker))
        return stays

    def to_close(self, worker: int) -> list[str]:
        """The clips whose state on a worker is of no use any more: they are closed before any other call there."""
        closed, self._to_close[worker] = self._to_close[worker], []
        return closed

    def to_step(self, worker: int, *, may_suspect: bool) -> list[Stay]:
        """Takes the stays whose features have all arrived: a suspect alone, all others together."""
        ready = [stay for stay in self._to_step[worker] if not stay.is_over]
        taken: list[Stay] = []
        if ready and ready[0].clip.is_suspect and may_suspect:
            taken = ready[:1]
            ready = ready[1:]
        elif ready:
            taken = [stay for stay in ready if not stay.clip.is_suspect]
            ready = [stay for stay in ready if stay.clip.is_suspect]
        self._to_step[worker] = ready
        return taken

    # What became of it

    def advanced(self, stays: Sequence[Stay], rows: Iterable[Advance], payload: Any, now_s: float) -> None:
        of_clip = {row.clip_id: row for row in rows}
        for stay in stays:
            clip = stay.clip
            row = of_clip.get(clip.ref.clip_id)
            if stay.is_over:
                continue
            if row is not None and row.label is not None:
                self._end_stay(stay)
                self._end(clip, row.label, now_s)
            elif row is not None and row.stop > row.start:
                stay.patches_left = row.stop - row.start
                patches = PatchRows(stay, payload, row.start, row.stop, now_s, clip.is_suspect)
                stay.waiting = [patches]
                self._batcher.add(patches)
            else:
                # Nobody would ever ask for it again.
                self.fail(clip, ErrorCode.INTERNAL, "the stream worker gave neither a label nor patches for it", now_s)

    def have_features(self, batch: Sequence[PatchRows], payload: Any) -> None:
        """Takes the features of these rows, which `payload` has one after another."""
        at = 0
        for rows in batch:
            stay: Stay = rows.clip
            if not stay.is_over:
                stay.features.append((rows.start, payload, at, at + len(rows)))
                stay.patches_left -= len(rows)
                if stay.patches_left == 0:
                    stay.features.sort(key=lambda feature: feature[0])
                    self._to_step[stay.worker].append(stay)
            at += len(rows)

    def put_back(self, batch: Sequence[PatchRows]) -> None:
        """Lets rows wait again that a worker was given and never began with."""
        left = [rows for rows in batch if not rows.clip.is_over]
        for rows in left:
            rows.clip.waiting.append(rows)
        self._batcher.put_back(left)

    def died(self, stay: Stay, *, is_alone: bool, now_s: float) -> None:
        """Starts a clip again whose worker died over a call that it was in, unless that happened too often."""
        clip = stay.clip
        if stay.is_over:
            return
        clip.is_suspect = True
        clip.deaths += is_alone
        if clip.deaths >= MAX_DEATHS:
            self.fail(clip, ErrorCode.WORKER_DIED, f"labelling it ended {clip.deaths} workers", now_s)
        else:
            self._start_again(clip)

    def raised(self, stay: Stay, error: str, *, is_alone: bool, now_s: float) -> None:
        """Fails a clip whose call raised an exception, or starts it again where others were in the call."""
        if stay.is_over:
            return
        if is_alone:
            self.fail(stay.clip, ErrorCode.INTERNAL, error, now_s)
        else:
            stay.clip.is_suspect = True
            self._start_again(stay.clip)

    def lost_patches(self, stay: Stay, now_s: float) -> None:
        """Starts a clip again whose patches or features went with a machine: its frames may still be there."""
        if stay.is_over:
            return
        stay.clip.losses += 1
        if stay.clip.losses >= MAX_DEATHS:
            self.fail(stay.clip, ErrorCode.WORKER_DIED, f"its patches were lost {stay.clip.losses} times", now_s)
        else:
            # It may be this one that makes workers hang: its neighbours are not to be lost with it a third time.
            stay.clip.is_suspect |= stay.clip.losses == MAX_DEATHS - 1
            self._start_again(stay.clip)

    def lost_frames(self, stays: Sequence[Stay]) -> list[tuple[Reading, list[ClipRef]]]:
        """Gives up every clip of the frames that these were to be opened from, for reading them again.

        Clips that are open already hold their frames and go on.
        """
        lost = {id(stay.clip.piece.frames) for stay in stays if not stay.is_over}
        for stay in stays:
            if not stay.is_over:
                self._end_stay(stay, close_there=True)
        refs: dict[Reading, list[ClipRef]] = {}
        for clip in [c for c in self._clips.values() if c.stay is None and id(c.piece.frames) in lost]:
            del self._clips[clip.ref.clip_id]
            self._let_go(clip)
            refs.setdefault(clip.piece.reading, []).append(clip.ref)
        self._to_open = [(n, c) for n, c in self._to_open if id(c.piece.frames) not in lost]
        self._suspects = [(n, c) for n, c in self._suspects if id(c.piece.frames) not in lost]
        heapq.heapify(self._to_open)
        heapq.heapify(self._suspects)
        return list(refs.items())

    def worker_gone(self, worker: int) -> None:
        """Starts the clips of a worker again, unblamed: their state there is gone."""
        for stay in list(self._stays[worker].values()):
            self._start_again(stay.clip)
        self._to_close[worker].clear()

    def fail(self, clip: Clip, code: ErrorCode, message: str, now_s: float) -> None:
        if clip.stay is not None:
            self._end_stay(clip.stay, close_there=True)
        self._end(clip, failed_label(clip.piece.reading.source, code=code, message=message, ref=clip.ref), now_s)

    # Steps of a clip's life

    def _queue(self, clip: Clip) -> None:
        heapq.heappush(self._suspects if clip.is_suspect else self._to_open, (clip.number, clip))

    def _begin(self, clip: Clip, worker: int) -> Stay:
        clip.stay = Stay(clip, worker)
        self._stays[worker][clip.ref.clip_id] = clip.stay
        return clip.stay

    def _start_again(self, clip: Clip) -> None:
        if clip.stay is not None:
            self._end_stay(clip.stay, close_there=True)
            self._queue(clip)

    def _end_stay(self, stay: Stay, *, close_there: bool = False) -> None:
        stay.is_over = True
        stay.clip.stay = None
        stay.features.clear()
        del self._stays[stay.worker][stay.clip.ref.clip_id]
        for rows in stay.waiting:
            self._batcher.drop(rows)
        if close_there:
            self._to_close[stay.worker].append(stay.clip.ref.clip_id)

    def _end(self, clip: Clip, label: ClipLabel, now_s: float) -> None:
        del self._clips[clip.ref.clip_id]
        self._let_go(clip)
        self._emit(label, now_s)
        self._on_end(clip.piece.reading)

    def _let_go(self, clip: Clip) -> None:
        """Counts a clip out of its piece, and lets the frames go with their last one."""
        piece = clip.piece
        piece.num_clips -= 1
        if piece.num_clips == 0:
            self.num_pieces -= 1
            piece.frames.num_pieces -= 1
            if piece.frames.num_pieces == 0:
                self.num_bytes -= piece.frames.num_bytes
                piece.frames.handle = None
