"""Files that are there whole or not at all, whoever is killed while they are written, and that stay once they are
there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = "_tmp-"
"""The beginning of the name of an unfinished file. No reader of a table takes such a file: pyarrow leaves out names
that begin with `_`, and DuckDB those that do not end in .parquet, as the name of an unfinished part does not."""


def write_durably(path: Path, data: bytes) -> None:
    """Writes the file beside its place, syncs it, renames it, and syncs its folder; a failure leaves nothing behind."""
    with replaced_durably(path) as aside:
        aside.write_bytes(data)


@contextmanager
def replaced_durably(path: Path, *, suffix: str = "", syncs_folder: bool = True) -> Iterator[Path]:
    """Gives a place beside `path` to write to; what lies there at the end is synced and takes the name `path`.

    A failure leaves the old file as it was and nothing beside it. `suffix` ends the name of the unfinished file, for
    writers that choose the format by it. `syncs_folder`: False where the caller does that once for many files.
    """
    aside = path.with_name(f"{ASIDE}{os.getpid()}-{path.stem}{suffix}")
    try:
        yield aside
        descriptor = os.open(aside, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if syncs_folder:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable; the sync of a file does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
