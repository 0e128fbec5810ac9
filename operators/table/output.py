"""An output folder as a run finds it before it has the lock: whether it can be written to, and what is in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import RefusedError, SinkError
from operators.table.identity import check_identity, table_identity
from operators.table.schema import FAILED, RETRY, part_paths, parts_keys


@contextmanager
def translate_disk_errors(out: Path, action: str) -> Iterator[None]:
    """Turns an OSError raised while OUT is "opened", "written", "folded" or "closed" into one line with the way out.

    An error on opening becomes a RefusedError, any other a SinkError.
    """
    try:
        yield
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename else ""
        way_out = "give another -o"
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "free space there and run the same command again, it goes on with what is committed"
        error = RefusedError if action == "opened" else SinkError
        raise error(f"{out}: cannot be {action}: {exc.strerror or exc}{where}; {way_out}") from exc


def check_output(out: Path) -> None:
    """Refuses an output folder that this process could not write to. Nothing is made or written."""
    with translate_disk_errors(out, "opened"):
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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TableSeen:
    """A table as it is found without its lock: another run may be writing it."""

    out: Path
    identity: Mapping[str, Any] | None
    labelled: np.ndarray
    """uint64 [N,2]: the keys of the clips that have a label, in the form of `ParquetSink.done`."""
    failed: np.ndarray
    """uint64 [N,2]: the keys of the clips that failed; after a retry that was killed a clip may be in both."""
    is_settled: bool
    """False after a retry that was killed: the next run has rows to put back into the table."""

    def check(self, identity: Mapping[str, Any]) -> None:
        """Raises the RefusedError with which a run of this model and config would be refused."""
        check_identity(self.out, self.identity, identity)


def inspect_table(out: Path) -> TableSeen:
    """Returns what is in OUT. Nothing is locked, made or written."""
    labels = out / "labels"
    failed = sorted(labels.glob(f"{FAILED}*.parquet"))
    waiting = sorted(labels.glob(f"{RETRY}*"))
    return TableSeen(
        out=out,
        identity=table_identity(out),
        labelled=parts_keys([part for part in part_paths(labels) if part not in failed]),
        failed=parts_keys([*failed, *waiting]),
        is_settled=not waiting,
    )
