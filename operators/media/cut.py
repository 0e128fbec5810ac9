"""Views of single frames become FrameBatches with the windows that are complete in them. Nothing is decoded here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from operators.errors import ErrorCode, SourceError
from operators.media.sampling import WindowPlan, sample_indices
from operators.media.view import Orientation, Viewer
from operators.records import FrameBatch, Source, SourceFacts, Window, clip_id


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shot:
    """The view of a wanted frame, or of the good one that takes its place."""

    wanted: int
    shown: int
    pixels: np.ndarray
    """uint8 RGB [S,S,3]"""
    pts: int | None
    """In the stream's time base."""
    size: tuple[int, int]
    """(height, width) as coded"""
    orientation: Orientation


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Timeline:
    """The number and the times of a source's frames, as far as they are known."""

    num_frames: int
    seconds: Callable[[Shot], float]
    """The time of a shot; 0 is the stream's first frame."""
    promised_frames: int = 0
    """Frames that there would be had the file not been cut short; 0 where it was not."""
    num_corrupt: Callable[[], int] = lambda: 0
    """Called when a batch is made: more may have been found by then."""


def chunks(plans: Sequence[WindowPlan], max_frames: int) -> Iterator[list[WindowPlan]]:
    """Runs of windows that show at most `max_frames` distinct frames together, one window at least."""
    chunk: list[WindowPlan] = []
    frames: set[int] = set()
    for plan in plans:
        more = frames.union(plan.frames.tolist())
        if chunk and len(more) > max_frames:
            yield chunk
            chunk, more = [], set(plan.frames.tolist())
        chunk.append(plan)
        frames = more
    if chunk:
        yield chunk


def cut_batches(
    *,
    source: Source,
    plans: Sequence[WindowPlan],
    shots: Iterable[Shot | None],
    timeline: Timeline,
    viewer: Viewer,
    max_bytes: int,
    opened_unix_s: float,
) -> Iterator[FrameBatch | None]:
    """Batches of at most `max_bytes` of views, in the order of the windows; hands on the None of `shots`.

    `shots` come in the order of `wanted`. A frame that does not come is replaced by the nearest earlier one that
    did, else by the next; a source of which no frame comes is `corrupt`.
    """
    coming = iter(shots)
    held: dict[int, Shot] = {}
    newest = -1
    todo = list(chunks(plans, max(1, max_bytes // (viewer.crop_px**2 * 3))))
    for number, chunk in enumerate(todo):
        last = max(int(plan.frames[-1]) for plan in chunk)
        while newest < last or not held:
            item = next(coming, _END)
            if isinstance(item, Shot):
                held[item.wanted] = item
                newest = item.wanted
            elif item is None:
                yield None
            else:
                break
        if not held:
            raise SourceError(f"{source.shown_uri}: none of the wanted frames can be decoded", ErrorCode.CORRUPT)
        yield _batch(source, chunk, held, timeline, viewer, opened_unix_s)
        if number + 1 < len(todo):
            first = min(int(plan.frames[0]) for plan in todo[number + 1])
            # The newest one before that stays too: it takes the place of a frame that does not come.
            before = [wanted for wanted in held if wanted < first]
            for wanted in before:
                if wanted != max(before):
                    del held[wanted]


_END = object()


def _batch(
    source: Source,
    chunk: Sequence[WindowPlan],
    held: dict[int, Shot],
    timeline: Timeline,
    viewer: Viewer,
    opened_unix_s: float,
) -> FrameBatch:
    have = np.array(sorted(held), np.int64)
    stand_ins: dict[int, Shot] = {}
    for wanted in np.unique(np.concatenate([plan.frames for plan in chunk])).tolist():
        place = max(int(np.searchsorted(have, wanted, side="right")) - 1, 0)
        stand_ins[wanted] = held[int(have[place])]
    by_shown = {shot.shown: shot for shot in stand_ins.values()}
    shown = sorted(by_shown)
    row = {frame: i for i, frame in enumerate(shown)}
    rows = {wanted: row[shot.shown] for wanted, shot in stand_ins.items()}
    first = by_shown[shown[0]]
    windows = []
    for plan in chunk:
        glance = np.array([rows[frame] for frame in plan.glance.tolist()], np.int64)
        focus = glance
        if plan.focus is not plan.glance:
            focus = np.array([rows[frame] for frame in plan.focus.tolist()], np.int64)
        there = [stand_ins[frame].shown == frame for frame in plan.frames.tolist()]
        windows.append(
            Window(
                clip_id=clip_id(source.source_id, plan.start_s),
                start_s=plan.start_s,
                end_s=plan.end_s,
                glance_rows=glance,
                candidate_rows=focus,
                coverage=sum(there) / len(there) * _share_promised(plan, timeline),
            )
        )
    picked = [by_shown[frame] for frame in shown]
    return FrameBatch(
        source=source,
        pixels=np.stack([shot.pixels for shot in picked]),
        pts_s=np.array([timeline.seconds(shot) for shot in picked], np.float64),
        frame_index=np.array(shown, np.int64),
        view_yxhw=viewer.box(*first.size, first.orientation),
        facts=SourceFacts(
            width=first.size[1],
            height=first.size[0],
            rotation=first.orientation.rotation,
            num_frames=timeline.num_frames,
            num_corrupt=timeline.num_corrupt(),
        ),
        windows=tuple(windows),
        opened_unix_s=opened_unix_s,
    )


def _share_promised(plan: WindowPlan, timeline: Timeline) -> float:
    """Share of the frames that would have been wanted of the whole file that lie in what there is of it."""
    if timeline.promised_frames <= timeline.num_frames:
        return 1.0
    wanted = sample_indices(timeline.promised_frames, len(plan.glance))
    return float(np.mean(wanted < timeline.num_frames))
