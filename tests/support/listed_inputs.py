"""Files and folders for tests of what a command's arguments lead to, and the sources found in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from operators.records import Source
from pipeline.inputs.sources import sources


def make(root: Path, *names: str) -> Path:
    """Files (empty, nobody opens them here) and their folders below a root."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(*arguments: object, **options: Any) -> list[Source]:
    return list(sources(list(map(str, arguments)), **options))


def below(root: Path, found: list[Source]) -> list[str]:
    return [os.path.relpath(source.uri, root) for source in found]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
