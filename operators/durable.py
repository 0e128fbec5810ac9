"""A file that is there whole or not at all, whoever is killed while it is written, and that stays when it is there."""

from __future__ import annotations

import os
from pathlib import Path

ASIDE = "_tmp-"
"""How the name of an unfinished file begins. No reader of a table takes such a file: its name begins with `_`, and it
does not end in .parquet where it is a part, which is all that DuckDB looks at."""


def write_durably(path: Path, data: bytes) -> None:
    """Writes the file beside its place, syncs it, renames it, and syncs its folder; a failure leaves nothing behind."""
    aside = path.with_name(f"{ASIDE}{os.getpid()}-{path.name}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable; the sync of a file does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
