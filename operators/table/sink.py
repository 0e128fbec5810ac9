"""Labels to a folder of Parquet parts: parts that appear whole or not at all, the lock, and what is there already.

A part is written aside, synced, renamed, and its folder synced, before `write` returns. So the process may be killed
at any moment: what was acknowledged is there; what was not is there whole or not at all, and is sent again under the
same name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.durable import ASIDE, sync_folder, write_durably
from operators.errors import RefusedError, SinkError
from operators.passwords import without_password
from operators.records import ClipLabel
from operators.table.fold import CameraParts
from operators.table.lock import take_lock
from operators.table.schema import (
    LIVE_SCHEMA,
    SCHEMA,
    SCHEMA_VERSION,
    LabelStore,
    TableSummary,
    clip_ids,
    clip_keys,
    ids_of,
    keep_rows,
    num_rows,
    part_paths,
    summarize,
    write_part,
)

__all__ = [
    "LIVE_SCHEMA",
    "SCHEMA",
    "ParquetSink",
    "TableSeen",
    "TableSummary",
    "check_identity",
    "check_output",
    "disk_told",
    "look_at",
    "part_paths",
    "read_identity",
    "summarize",
    "table_identity",
    "write_durably",
]

_FAILED = "failed-"
_RETRY = "_retry-"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ParquetSink:
    """Writes labels below OUT/labels and keeps the facts about them in OUT/run.

    A context manager that holds an exclusive lock on OUT for its whole life, taken before it looks what is there: so
    two runs cannot both find a clip missing, and an orphan of a killed run cannot commit after the next one has
    looked. For one process and one thread.
    """

    def __init__(
        self,
        *,
        out: Path,
        run_id: str,
        identity: Mapping[str, Any] | None = None,
        resume: bool = True,
        retry_failed: bool = False,
        lock_timeout_s: float | None = None,
        on_wait: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        segment_s: float = 60.0,
        fold_after_s: float = 120.0,
        grace_s: float = 10.0,
    ) -> None:
        """
        identity: `model_id`, `config_id` and, as `config`, the flat settings. Without it: see `begin`.
        resume: False begins a fresh table and moves the old one to OUT/previous.
        retry_failed: failed clips count as not done. What is not labelled again in this run stays failed.
        lock_timeout_s: None waits for ever. on_wait is told once who holds the lock.
        segment_s: for how long a camera's newest part grows before the next one begins.
        fold_after_s: how long after its end an hour of a camera counts as finished.
        grace_s: how long a folder that was folded away is kept for those who are listing it.
        """
        if not _RUN_ID.fullmatch(run_id) or run_id.startswith((_FAILED, "hour-")):
            raise ValueError(f"{run_id!r} cannot be part of a file name here")
        self.out = out
        self.labels = out / "labels"
        self._run = out / "run"
        self._run_id = run_id
        self._identity = identity
        self._resume = resume
        self._retry_failed = retry_failed
        self._lock_timeout_s = lock_timeout_s
        self._on_wait = on_wait
        self._clock = clock
        self._sleep = sleep
        self._live = {"segment_s": segment_s, "fold_after_s": fold_after_s, "grace_s": grace_s}
        self._lock_fd: int | None = None
        self._store: LabelStore | None = None
        self._cameras: CameraParts | None = None

    def __enter__(self) -> ParquetSink:
        with disk_told(self.out, "opened"):
            self._run.mkdir(parents=True, exist_ok=True)
            self._lock_fd = take_lock(
                self._run / "lock",
                holder=f"run {self._run_id}",
                timeout_s=self._lock_timeout_s,
                on_wait=self._on_wait,
                clock=self._clock,
                sleep=self._sleep,
            )
        try:
            with disk_told(self.out, "opened"):
                self.labels.mkdir(exist_ok=True)
                sync_folder(self.out)
                for stale in [*self.labels.rglob(f"{ASIDE}*"), *self._run.glob(f"{ASIDE}*")]:
                    stale.unlink(missing_ok=True)
            if self._identity is not None:
                self.begin(self._identity)
        except BaseException:
            self._drop_lock()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with disk_told(self.out, "closed"):
                if self._store is not None:
                    self._restore_failed()
                if self._cameras is not None:
                    self._cameras.sweep()
        finally:
            self._drop_lock()

    @property
    def found_identity(self) -> dict[str, Any] | None:
        """What the labels that are there were made with; None where there are none, or a fresh table begins."""
        return table_identity(self.out) if self._resume else None

    def begin(self, identity: Mapping[str, Any]) -> None:
        """From here on labels made with this model and config are written; refused where others are there.

        For who must see `found_identity` before the config can be settled; else the constructor takes it.
        """
        with disk_told(self.out, "opened"):
            if not self._resume:
                self._move_aside()
            new = _with_schema(identity)
            found = table_identity(self.out)
            check_identity(self.out, found, new)
            if found is None or "run_id" not in found:
                text = json.dumps(new | {"run_id": self._run_id}, indent=1, ensure_ascii=False)
                write_durably(self._run / "identity.json", text.encode("utf-8", "backslashreplace"))
            self._store = LabelStore(ids=_ids(new), run_id=self._run_id, clock=self._clock)
            if self._retry_failed:
                for part in sorted(self.labels.glob(f"{_FAILED}*.parquet")):
                    # This run's own are there when its sink had died: they have been tried again already.
                    if not part.name.startswith(f"{_FAILED}{self._run_id}-"):
                        os.replace(part, part.with_name(_RETRY + part.stem))
                sync_folder(self.labels)
            else:
                self._restore_failed()

    def done(self) -> np.ndarray:
        """uint64 [N,2]: the two halves of every clip_id in the table."""
        return _keys(part_paths(self.labels))

    def failed(self) -> np.ndarray:
        """Likewise, of the clips among them that failed."""
        return _keys(sorted(self.labels.glob(f"{_FAILED}*.parquet")))

    def write(self, sequence: int, labels: Sequence[ClipLabel]) -> None:
        """Commits a batch: it is on disk when this returns. The same number with the same batch overwrites itself."""
        if self._store is None:
            raise ValueError("a sink writes after begin, and inside its with block")
        live = [label for label in labels if label.camera is not None]
        good = [label for label in labels if label.camera is None and label.error_code is None]
        failed = [label for label in labels if label.camera is None and label.error_code is not None]
        with disk_told(self.out, "written"):
            for prefix, rows in (("", good), (_FAILED, failed)):
                if rows:
                    table = self._store.table(rows, SCHEMA)
                    write_part(self.labels / f"{prefix}{self._run_id}-{sequence:08d}.parquet", table)
            if good or failed:
                sync_folder(self.labels)
            if live:
                self._camera_parts().write(sequence, live)

    def fold_next(self) -> bool:
        """Folds at most one finished hour of one camera into a larger part; True when it did. For idle moments."""
        with disk_told(self.out, "folded"):
            return self._camera_parts().fold_next()

    @property
    def can_fold(self) -> bool:
        """False once the disk has turned out not to be able to: the small parts stay."""
        return self._cameras is None or self._cameras.can_fold

    def summary(self) -> TableSummary:
        return summarize(self.labels)

    def _camera_parts(self) -> CameraParts:
        if self._store is None:
            raise ValueError("a sink works after begin, and inside its with block")
        if self._cameras is None:
            self._cameras = CameraParts(
                labels=self.labels,
                aside=self._run / "fold",
                run_id=self._run_id,
                store=self._store,
                clock=self._clock,
                **self._live,
            )
        return self._cameras

    def _restore_failed(self) -> None:
        """Whatever was to be tried again and is not in the table becomes a failed part again.

        May be killed anywhere: a row is in the table, or in a file that waits, or in both, and then it is removed
        from the file the next time.
        """
        waiting = sorted(self.labels.glob(f"{_RETRY}*"))
        if not waiting:
            return
        missing = {clip for path in waiting for clips in clip_ids(path) for clip in clips}
        for part in part_paths(self.labels):
            for clips in clip_ids(part):
                missing.difference_update(clips)
        for path in waiting:
            again = {clip for clips in clip_ids(path) for clip in clips}
            keep_rows(path, path.with_name(path.name.removeprefix(_RETRY) + ".parquet"), missing)
            missing -= again
        sync_folder(self.labels)

    def _move_aside(self) -> None:
        """The old table to OUT/previous, in one rename. Not this run's own, which is there when its sink had died."""
        found = table_identity(self.out)
        if found is None or found.get("run_id") == self._run_id:
            return
        name = str(found.get("run_id", "unknown"))
        target, number = self.out / "previous" / name, 1
        while target.exists():
            number += 1
            target = self.out / "previous" / f"{name}-{number}"
        target.mkdir(parents=True)
        if (self._run / "identity.json").exists():
            shutil.copyfile(self._run / "identity.json", target / "identity.json")
        os.rename(self.labels, target / "labels")
        self.labels.mkdir()
        for folder in (target, target.parent, self.out):
            sync_folder(folder)

    def _drop_lock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
        self._lock_fd = self._store = self._cameras = None


@contextmanager
def disk_told(out: Path, what: str) -> Iterator[None]:
    """What the disk says while something is done to OUT, in one line with the way out."""
    try:
        yield
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename else ""
        way_out = "give another -o"
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "free space there and run the same command again, it goes on with what is committed"
        error = RefusedError if what == "opened" else SinkError
        raise error(f"{out}: cannot be {what}: {exc.strerror or exc}{where}; {way_out}") from exc


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TableSeen:
    """A table as it is found without its lock: another run may be writing it."""

    out: Path
    identity: Mapping[str, Any] | None
    labelled: np.ndarray
    """uint64 [N,2], as `done`: clips that have a label."""
    failed: np.ndarray
    """Those that failed; after a retry that was killed one may be in both."""
    is_settled: bool
    """False after a retry that was killed: the next run has rows to put back into the table."""

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raises what a run with this model and config would be refused with."""
        check_identity(self.out, self.identity, identity)


def look_at(out: Path) -> TableSeen:
    """What is in OUT. Nothing is locked, made or written."""
    labels = out / "labels"
    failed = sorted(labels.glob(f"{_FAILED}*.parquet"))
    waiting = sorted(labels.glob(f"{_RETRY}*"))
    return TableSeen(
        out=out,
        identity=table_identity(out),
        labelled=_keys([part for part in part_paths(labels) if part not in failed]),
        failed=_keys([*failed, *waiting]),
        is_settled=not waiting,
    )


def check_output(out: Path) -> None:
    """Refuses an output folder that this process could not write to. Nothing is made or written."""
    with disk_told(out, "opened"):
        place = out.absolute()
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        for folder in (place, out / "run", out / "labels"):
            # A file system that is mounted read-only fails here too, even for root.
            if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
                code = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
                raise OSError(code, os.strerror(code), str(folder))


def read_identity(out: Path) -> dict[str, Any] | None:
    """What OUT/run/identity.json says, or None. To look only: who wants to write asks the sink, which has the lock."""
    try:
        found = json.loads((out / "run" / "identity.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _keys(parts: Sequence[Path]) -> np.ndarray:
    keys = np.empty((sum(map(num_rows, parts)), 2), np.uint64)
    start = 0
    for part in parts:
        for batch in clip_keys(part):
            keys[start : start + len(batch)] = batch
            start += len(batch)
    return keys


def _ids(identity: Mapping[str, Any]) -> tuple[str, str]:
    return str(identity.get("model_id") or ""), str(identity.get("config_id") or "")


def table_identity(out: Path) -> dict[str, Any] | None:
    """What the labels in OUT were made with; None where there are none. To look only, as `read_identity`."""
    there = [*(out / "labels").glob(f"{_RETRY}*"), *part_paths(out / "labels")]
    if not there:
        return None
    found = read_identity(out)
    return found if found is not None and all(_ids(found)) else ids_of(there[0])


def _with_schema(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as the table keeps it: with the version of its schema, and without passwords."""
    return _without_passwords({**identity, "schema": SCHEMA_VERSION})


def check_identity(out: Path, found: Mapping[str, Any] | None, new: Mapping[str, Any]) -> None:
    """Refuses to go on with labels that were made with another model, config or version of the table than `new`."""
    new = _with_schema(new)
    if found is None:
        return
    version = found.get("schema", 1)
    if version == new["schema"] and _ids(found) == _ids(new):
        return
    why = f"were made with other settings: {_differences(found, new)}"
    if version != new["schema"]:
        why = (
            f"were made by another version of this program: their table has schema {version} and this version writes"
            f" {new['schema']}, so what they depend on cannot be compared. They can still be read and evaluated"
        )
    raise RefusedError(
        f"{out}: the labels there {why}. Write to another folder with -o, or begin a new table with --no-resume (the"
        f" old one is moved to {out / 'previous'})"
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which settings decide, old -> new."""
    found = []
    before, after = old.get("config") or {}, new.get("config") or {}
    for name in sorted(before.keys() | after.keys()) if before else ():
        if before.get(name) != after.get(name):
            found.append(f"{name} {before.get(name)} -> {after.get(name)}")
    for name in ("model_id", "config_id"):
        if old.get(name) != new.get(name) and not (name == "config_id" and found):
            found.append(f"{name} {old.get(name)} -> {new.get(name)}")
    return ", ".join(found)


def _without_passwords(value: Any) -> Any:
    match value:
        case str():
            return without_password(value)
        case Mapping():
            return {str(key): _without_passwords(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_passwords(item) for item in value]
        case None | bool() | int() | float():
            return value
        case _:
            return str(value)
