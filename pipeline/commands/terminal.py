"""The displays that several commands share: a counter of work of known size, durations, and the table at the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours before them where there are any."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


@contextmanager
def counter(what: str, *, quiet: bool, stream: TextIO | None = None) -> Iterator[Callable[[int, int], None]]:
    """Progress of work whose size is known: a bar on a terminal, now and then a line of JSON elsewhere."""
    stream = stream or sys.stderr
    if quiet:
        yield lambda done, total: None
    elif stream.isatty():
        columns = (SpinnerColumn(), BarColumn(), TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {what}"))
        with Progress(*columns, console=Console(file=stream), transient=True) as bar:
            task = bar.add_task(what, total=0)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        printed_s = [time.monotonic()]

        def print_line(done: int, total: int) -> None:
            if time.monotonic() - printed_s[0] >= 5.0:
                printed_s[0] = time.monotonic()
                print(json.dumps({"progress": {what: done, "total": total}}), file=stream, flush=True)

        yield print_line


def print_rows(rows: Sequence[tuple[str, str]], *, stream: TextIO | None = None) -> None:
    """Prints names and values on stdout, where nothing else is printed. rich is not used for it: it takes [brackets]
    of a path for markup and cuts what is wider than a terminal."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}", file=stream)
