"""A camera's parts: how they grow while the hour lasts, and how a finished hour becomes one larger part. This file
handles files and names only; the store knows what is inside a part.

With plain files there is always a moment between the larger part's arrival and the small parts' removal in which rows
are doubled, or missing the other way round. So a new folder is made aside, out of hard links to everything that stays
and the larger part, and the two folders change places in one system call. A reader that lists the folder sees the one
or the other, whole. The old folder is kept aside for a while, because a reader may be in the middle of listing it. A
reader that listed the old folder and opens a part that has been folded since gets an error that the file is gone, and
lists again: it never gets a wrong table.

There is one kind of reader for which no order of events is right. pyarrow and DuckDB, when they are given a folder,
first list it and then ask by path for each name whether it is there; a name that is not there any more is left out
without an error. When the swap falls between the two, within about 0.1 ms, that read is without the hour that is
folded. The names cannot stay for such a reader without being listed, and so doubled, for the next one. A reader that
lists the names itself and gives the list to pyarrow or DuckDB, as `part_paths` does, gets the error instead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from operators.durable import sync_folder
from operators.records import ClipLabel

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK)
"""The error codes of a system that has no exchange, or no hard links, or has the two folders on different disks."""
_PART = re.compile(r"(?P<hour>\d\d)-(?P<failed>failed-)?(?:hour-(?P<number>\d+)-)?.+\.parquet")


class PartStore(Protocol):
    """Reads and writes the content of parts."""

    def table(self, labels: Sequence[ClipLabel]) -> Any:
        """Returns the labels as rows, stamped with the time."""

    def write(self, path: Path, tables: Sequence[Any]) -> None:
        """Writes one part from tables: whole or not at all, its content synced."""

    def merge(self, paths: Sequence[Path], path: Path) -> None:
        """Writes one part from parts, ordered by time, its content synced."""

    def clip_ids(self, path: Path) -> Iterable[str]: ...


@dataclass(kw_only=True, slots=True, eq=False)
class _Segment:
    """A part that still grows."""

    name: str
    began_s: float
    tables: list[Any] = field(default_factory=list)


class CameraParts:
    """Writes labels of cameras below labels/camera=NAME/date=YYYY-MM-DD/, by the UTC hour in which a clip starts.

    Each flush replaces the hour's newest part by a longer one under its own name until `segment_s` are over: a flush
    a second would otherwise make 3,600 files an hour. A clip that is there already is left out, so a batch that is
    sent again, to a sink that no longer knows which part it went to, changes nothing.
    """

    def __init__(
        self,
        *,
        labels: Path,
        aside: Path,
        run_id: str,
        store: PartStore,
        clock: Callable[[], float],
        segment_s: float,
        fold_after_s: float,
        grace_s: float,
    ) -> None:
        """`aside`: a folder on the same disk, out of sight of readers. One sink at a time may use the two."""
        self._labels = labels
        self._aside = aside
        self._run_id = run_id
        self._store = store
        self._clock = clock
        self._segment_s = segment_s
        self._fold_after_s = fold_after_s
        self._grace_s = grace_s
        self._segments: dict[tuple[Path, str, str], _Segment] = {}
        self._clips: dict[tuple[Path, str], set[str]] = {}
        self._unfolded = set(self._hours_there())
        self._old: list[tuple[Path, float]] = [(old, clock()) for old in sorted(aside.glob("*"))]
        self._num_folds = 0
        self.can_fold = True
        """False once the disk has turned out not to be able to exchange folders: the small parts stay."""

    def write(self, sequence: int, labels: Sequence[ClipLabel]) -> None:
        groups: dict[tuple[Path, str, str], list[ClipLabel]] = {}
        for label in labels:
            start = datetime.fromtimestamp(label.start_s, UTC)
            folder = self._labels / f"camera={label.camera}" / f"date={start:%Y-%m-%d}"
            kind = "" if label.error_code is None else "failed-"
            groups.setdefault((folder, f"{start:%H}", kind), []).append(label)
        for (folder, hour, kind), rows in groups.items():
            self._grow(folder, hour, kind, sequence, rows)

    def fold_next(self) -> bool:
        """Folds at most one finished hour of one camera, and returns whether it did. It is called in idle moments."""
        self.sweep()
        now_s = self._clock()
        for folder, hour in sorted(self._unfolded):
            if _end_unix_s(folder, hour) + self._fold_after_s > now_s:
                continue
            # What is known of the hour goes whether or not it can be folded: a run is to last for years.
            self._unfolded.discard((folder, hour))
            self._clips.pop((folder, hour), None)
            for kind in ("", "failed-"):
                self._segments.pop((folder, hour, kind), None)
            if self.can_fold and self._fold(folder, hour):
                return True
        return False

    def sweep(self) -> None:
        """Removes the folders that were folded away long enough ago."""
        now_s = self._clock()
        for old, since_s in list(self._old):
            if now_s - since_s >= self._grace_s:
                shutil.rmtree(old, ignore_errors=True)
                self._old.remove((old, since_s))

    def _grow(self, folder: Path, hour: str, kind: str, sequence: int, labels: list[ClipLabel]) -> None:
        if not folder.exists():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
            sync_folder(self._labels)
        clips = self._clips_of(folder, hour)
        labels = [label for label in labels if label.clip_id not in clips]
        if not labels:
            return
        segment = self._segments.get((folder, hour, kind))
        if segment is None or self._clock() - segment.began_s >= self._segment_s:
            name = f"{hour}-{kind}{self._run_id}-{sequence:08d}.parquet"
            segment = self._segments[folder, hour, kind] = _Segment(name=name, began_s=self._clock())
            self._unfolded.add((folder, hour))
        grown = [*segment.tables, self._store.table(labels)]
        self._store.write(folder / segment.name, grown)
        sync_folder(folder)
        segment.tables = grown
        clips.update(label.clip_id for label in labels)

    def _clips_of(self, folder: Path, hour: str) -> set[str]:
        if (folder, hour) not in self._clips:
            parts = (folder / name for kind in _parts_of(folder, hour).values() for name in kind)
            self._clips[folder, hour] = {clip for part in parts for clip in self._store.clip_ids(part)}
        return self._clips[folder, hour]

    def _fold(self, folder: Path, hour: str) -> bool:
        small = {kind: names for kind, names in _parts_of(folder, hour).items() if len(names) > 1}
        if not small:
            return False

        def write_new(new: Path) -> None:
            for kind, names in small.items():
                # A number of its own each time: under a name used before, a reader that opened the late part before
                # the swap and the larger one after it would have the late rows twice.
                numbers = (_PART.fullmatch(name) for name in names)
                number = 1 + max((int(match["number"] or 0) for match in numbers if match), default=0)
                self._store.merge(
                    [folder / name for name in names],
                    new / f"{hour}-{kind}hour-{number:04d}-{self._run_id}.parquet",
                )

        self._num_folds += 1
        aside = self._aside / f"{self._run_id}-{self._num_folds:06d}"
        gone = {name for names in small.values() for name in names}
        self.can_fold = swap_parts(folder, aside, without=gone, write_new=write_new)
        if self.can_fold:
            self._old.append((aside, self._clock()))
        return self.can_fold

    def _hours_there(self) -> Iterable[tuple[Path, str]]:
        """Yields the folders and hours of which some parts can be folded into one."""
        for folder in self._labels.glob("camera=*/date=*"):
            matches = (match for name in os.listdir(folder) if (match := _PART.fullmatch(name)))
            counts = Counter((match["hour"], match["failed"]) for match in matches)
            yield from {(folder, hour) for (hour, _), count in counts.items() if count > 1}


def swap_parts(
    folder: Path, aside: Path, *, without: Collection[str], write_new: Callable[[Path], None]
) -> bool:
    """`folder` loses the names `without` and gains what `write_new` writes (and syncs), at one moment.

    `aside` must not exist; afterwards it is the old folder, which the caller removes when nobody can be listing it
    any more. False, and nothing changed, where the system cannot exchange folders.
    """
    aside.mkdir(parents=True)
    try:
        write_new(aside)
        for name in os.listdir(folder):
            if name not in without and not name.startswith(("_", ".")):
                os.link(folder / name, aside / name)
        sync_folder(aside)
        swapped = exchange(folder, aside)
    except OSError as exc:
        shutil.rmtree(aside, ignore_errors=True)
        if exc.errno in _CANNOT:
            return False
        raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if swapped:
        sync_folder(folder.parent)
        sync_folder(aside.parent)
    else:
        shutil.rmtree(aside, ignore_errors=True)
    return swapped


def exchange(first: Path, second: Path) -> bool:
    """Makes two names change places at one moment; returns False where the system cannot do it."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(first))


def _parts_of(folder: Path, hour: str) -> dict[str, list[str]]:
    """Returns the hour's parts in order: those of good clips under "", those of failed ones under "failed-"."""
    kinds: dict[str, list[str]] = {"": [], "failed-": []}
    for name in sorted(os.listdir(folder)):
        match = _PART.fullmatch(name)
        if match and match["hour"] == hour:
            kinds[match["failed"] or ""].append(name)
    return kinds


def _end_unix_s(folder: Path, hour: str) -> float:
    start = datetime.strptime(f"{folder.name} {hour}", "date=%Y-%m-%d %H").replace(tzinfo=UTC)
    return (start + timedelta(hours=1)).timestamp()
