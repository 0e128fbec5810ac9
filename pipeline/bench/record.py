"""A report as a JSON file."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from operators.durable import write_durably
from operators.errors import ConfigError
from pipeline.bench.figures import Figure, Report


def check_writable(path: Path) -> None:
    """Raises ConfigError where no file of this name can be written, so that this is known before measuring begins."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc}") from exc


def write(path: Path, report: Report) -> None:
    """Writes the report as a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps(asdict(report), indent=1) + "\n").encode())


def read(path: Path) -> Report:
    """The report that `write` wrote. Raises ConfigError where the file holds no report."""
    try:
        tree = json.loads(path.read_text())
        figures = tuple(Figure(**{**entry, "samples": tuple(entry["samples"])}) for entry in tree["figures"])
        return Report(**{**tree, "figures": figures, "notes": tuple(tree["notes"])})
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{path} is no JSON file of `bench`: {exc}") from exc
