"""Videos that a training goes on without: which, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from operators.durable import write_durably
from operators.errors import StageError
from operators.records import Source
from pipeline.training.frame_cache import FrameCache

_NUM_NAMED = 10
"""Videos left out that are named on the terminal; the file has them all."""


def left_out(subset: str, sources: Sequence[Source], cache: FrameCache) -> list[dict[str, str]]:
    """The videos that could not be read, and why."""
    return [
        {"subset": subset, "video": sources[i].shown_uri, "reason": reason}
        for i, reason in sorted(cache.errors.items())
    ]


def report_left_out(rows: Sequence[Mapping[str, str]], out: Path, cache: Path, say: Callable[[str], None]) -> None:
    """Says which videos training does without, and writes it to OUT/left_out.jsonl."""
    path = out / "left_out.jsonl"
    if not rows:
        path.unlink(missing_ok=True)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_durably(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    except OSError as exc:
        raise StageError(f"cannot write {path}: {exc.strerror}") from exc
    for row in rows[:_NUM_NAMED]:
        where = "" if row["video"] in row["reason"] else f"{row['video']}: "
        say(f"left out of the {row['subset']} videos: {where}{row['reason']}")
    if len(rows) > _NUM_NAMED:
        say(f"{len(rows) - _NUM_NAMED} more videos are left out: {path} has them all, with the reasons")
    say(f"the frame cache remembers videos that are left out: delete {cache} to try them again")
