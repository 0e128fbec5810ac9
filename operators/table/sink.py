"""The sink: it writes labels to a folder of Parquet parts that appear whole or not at all, under a lock.

A part is written aside, synced, renamed, and its folder synced, before `write` returns. So the process may be killed
at any moment: what was acknowledged is there; what was not is there whole or not at all, and is sent again under the
same name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from operators.durable import ASIDE, sync_folder, write_durably
from operators.file_lock import take_lock
from operators.records import ClipLabel
from operators.table.fold import CameraParts
from operators.table.identity import check_identity, identity_ids, table_identity, with_schema
from operators.table.output import translate_disk_errors
from operators.table.schema import (
    FAILED,
    RETRY,
    SCHEMA,
    LabelStore,
    TableSummary,
    clip_ids,
    keep_rows,
    part_paths,
    parts_keys,
    summarize,
    write_part,
)

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ParquetSink:
    """Writes labels below OUT/labels and keeps the facts about them in OUT/run.

    It is a context manager that holds an exclusive lock on OUT for its whole life, and takes it before it looks what
    is there: so two runs cannot both find a clip missing, and an orphan of a killed run cannot commit after the next
    one has looked. It is used by one process and one thread.
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
        """Checks the run's id; nothing is opened before the `with` block begins.

        identity: `model_id`, `config_id` and, as `config`, the flat settings. Without it the caller calls `begin`.
        resume: False begins a fresh table and moves the old one to OUT/previous.
        retry_failed: failed clips count as not done. What is not labelled again in this run stays failed.
        lock_timeout_s: None waits for ever. on_wait is called once, with a message that names the lock's holder.
        segment_s: for how long a camera's newest part grows before the next one begins.
        fold_after_s: how long after its end an hour of a camera counts as finished.
        grace_s: how long a folder that was folded away is kept for those who are listing it.
        """
        if not _RUN_ID.fullmatch(run_id) or run_id.startswith((FAILED, "hour-")):
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
        with translate_disk_errors(self.out, "opened"):
            self._run.mkdir(parents=True, exist_ok=True)
            self._lock_fd = take_lock(
                self._run / "lock",
                folder=self.out,
                holder=f"run {self._run_id}",
                timeout_s=self._lock_timeout_s,
                on_wait=self._on_wait,
                clock=self._clock,
                sleep=self._sleep,
            )
        try:
            with translate_disk_errors(self.out, "opened"):
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
            with translate_disk_errors(self.out, "closed"):
                if self._store is not None:
                    self._restore_failed()
                if self._cameras is not None:
                    self._cameras.sweep()
        finally:
            self._drop_lock()

    @property
    def found_identity(self) -> dict[str, Any] | None:
        """What the labels in OUT were made with; None where there are none, or where a fresh table begins."""
        return table_identity(self.out) if self._resume else None

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Begins to write labels of this model and config; labels of others that are there are a RefusedError.

        It is for callers that must see `found_identity` before they can settle the config; others give the identity
        to the constructor.
        """
        with translate_disk_errors(self.out, "opened"):
            if not self._resume:
                self._move_aside()
            new = with_schema(identity)
            found = table_identity(self.out)
            check_identity(self.out, found, new)
            if found is None or "run_id" not in found:
                text = json.dumps(new | {"run_id": self._run_id}, indent=1, ensure_ascii=False)
                write_durably(self._run / "identity.json", text.encode("utf-8", "backslashreplace"))
            self._store = LabelStore(ids=identity_ids(new), run_id=self._run_id, clock=self._clock)
            if self._retry_failed:
                for part in sorted(self.labels.glob(f"{FAILED}*.parquet")):
                    # This run's own are there when its sink had died: they have been tried again already.
                    if not part.name.startswith(f"{FAILED}{self._run_id}-"):
                        os.replace(part, part.with_name(RETRY + part.stem))
                sync_folder(self.labels)
            else:
                self._restore_failed()

    def done(self) -> np.ndarray:
        """Returns the two halves of every clip_id in the table, uint64 [N,2]."""
        return parts_keys(part_paths(self.labels))

    def failed(self) -> np.ndarray:
        """Returns the two halves of the clip_ids of failed clips, uint64 [N,2]; `done` has them too."""
        return parts_keys(sorted(self.labels.glob(f"{FAILED}*.parquet")))

    def write(self, sequence: int, labels: Sequence[ClipLabel]) -> None:
        """Commits a batch: it is on disk when this returns. The same number with the same batch overwrites itself."""
        if self._store is None:
            raise ValueError("a sink writes after begin, and inside its with block")
        live = [label for label in labels if label.camera is not None]
        good = [label for label in labels if label.camera is None and label.error_code is None]
        failed = [label for label in labels if label.camera is None and label.error_code is not None]
        with translate_disk_errors(self.out, "written"):
            for prefix, rows in (("", good), (FAILED, failed)):
                if rows:
                    table = self._store.table(rows, SCHEMA)
                    write_part(self.labels / f"{prefix}{self._run_id}-{sequence:08d}.parquet", table)
            if good or failed:
                sync_folder(self.labels)
            if live:
                self._camera_parts().write(sequence, live)

    def fold_next(self) -> bool:
        """Folds at most one finished hour of one camera into a larger part, and returns whether it did.

        It is called in idle moments.
        """
        with translate_disk_errors(self.out, "folded"):
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
        """Makes a failed part again of whatever was to be tried again and is not in the table.

        The process may be killed anywhere in it: a row is in the table, or in a file that waits, or in both, and then
        it is removed from the file the next time.
        """
        waiting = sorted(self.labels.glob(f"{RETRY}*"))
        if not waiting:
            return
        missing = {clip for path in waiting for clips in clip_ids(path) for clip in clips}
        for part in part_paths(self.labels):
            for clips in clip_ids(part):
                missing.difference_update(clips)
        for path in waiting:
            again = {clip for clips in clip_ids(path) for clip in clips}
            keep_rows(path, path.with_name(path.name.removeprefix(RETRY) + ".parquet"), missing)
            missing -= again
        sync_folder(self.labels)

    def _move_aside(self) -> None:
        """Moves the old table to OUT/previous, in one rename, unless it is this run's own, whose sink had died."""
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
