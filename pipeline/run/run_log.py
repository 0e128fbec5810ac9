"""The log of a run: OUT/run/log-RUN.jsonl, one event a line as it happens. It is for people; no code reads it back.

Its cousin `pipeline/training/journal.py` keeps the metrics of a training, with a state to go on from.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from operators.json_text import json_text
from operators.passwords import without_password
from operators.records import ClipLabel

MAX_LINES = {"failed": 10_000, "died": 1_000, "exception": 100}
"""How many lines of an event are written; the table has every clip that failed."""
MAX_BYTES = 16 << 20
"""Cameras come and go for months: what is older moves to one other file of this size, and then goes."""


class RunLog:
    """Writes the log while it is open. What cannot be written is lost: a log ends no run."""

    def __init__(self, out: Path, run_id: str, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = out / "run" / f"log-{run_id}.jsonl"
        self._older = out / "run" / f"log-{run_id}.older.jsonl"
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._counts: Counter[str] = Counter()
        self._file: TextIO | None = None

    def __enter__(self) -> RunLog:
        return self

    def begin(self, text: str, **facts: Any) -> None:
        """Begins the log, once the folder is this run's. What is noted before is not kept."""
        self._open()
        self.note("begun", text=text, host=socket.gethostname(), process=os.getpid(), **facts)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            self.note("broken_off", error=f"{kind.__name__}: {error}")
        self._close()

    def note(self, event: str, **facts: Any) -> None:
        """Writes one line. `facts` is anything that JSON can hold. Passwords are taken out of every text."""
        self._counts[event] += 1
        left = MAX_LINES.get(event, self._counts[event]) - self._counts[event]
        if left < 0:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write({"time": time, "event": event, **_shown(facts)})
        if left == 0 and event in MAX_LINES:
            self._write({"time": time, "event": "message", "text": f"{event}: further lines are left out here"})

    def failed(self, label: ClipLabel) -> None:
        """Notes a clip that could not be labelled."""
        where = {"uri": label.source_uri, "start_s": label.start_s}
        self.note("failed", **where, code=label.error_code, error=label.error)

    def noting(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """A function that notes every message here and passes it on to `say`."""

        def note_and_say(text: str) -> None:
            self.note("message", text=text)
            say(text)

        return note_and_say

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        text = json_text(line) + "\n"
        with contextlib.suppress(OSError):
            self._file.write(text)
        self._num_bytes += len(text)
        if self._num_bytes >= self._max_bytes:
            self._close()
            with contextlib.suppress(OSError):
                os.replace(self._path, self._older)
                self._open()

    def _open(self) -> None:
        self._num_bytes = 0
        with contextlib.suppress(OSError):
            # Line by line, so that the log of a run that is killed is complete.
            self._file = self._path.open("a", buffering=1)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _shown(value: Any) -> Any:
    match value:
        case str():
            return without_password(value)
        case Mapping():
            return {key: _shown(item) for key, item in value.items()}
        case list() | tuple():
            return [_shown(item) for item in value]
        case _:
            return value
