"""What a person sees of a training while it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from pipeline.commands.terminal import counter

if TYPE_CHECKING:
    from pipeline.training.journal import StageProgress


@dataclass(frozen=True)
class TrainingDisplay:
    """The functions that a training calls while it runs."""

    decoded: Callable[[str, int, int], None]
    """Shows how many videos of a subset are decoded, of how many."""
    epoch: Callable[[StageProgress], None]
    """Shows how far a stage is."""
    say: Callable[[str], None]
    """Prints a line that the user should see, with --quiet too."""


@contextmanager
def training(*, quiet: bool, stream: TextIO | None = None) -> Iterator[TrainingDisplay]:
    """A bar for each subset and stage on a terminal; elsewhere a line of JSON per epoch, and now and then one of
    decoding."""
    stream = stream or sys.stderr

    def print_line(text: str) -> None:
        print(text, file=stream, flush=True)

    if quiet:
        yield TrainingDisplay(decoded=lambda subset, done, total: None, epoch=lambda progress: None, say=print_line)
    elif stream.isatty():
        with _training_bars(stream) as display:
            yield display
    else:
        with counter("videos decoded", quiet=quiet, stream=stream) as decoded:

            def print_epoch(progress: StageProgress) -> None:
                line = {"stage": progress.stage, "done": progress.done, "total": progress.total}
                values = {name: round(float(value), 4) for name, value in progress.values.items()}
                print_line(json.dumps({"progress": line | values}))

            yield TrainingDisplay(
                decoded=lambda subset, done, total: decoded(done, total), epoch=print_epoch, say=print_line
            )


@contextmanager
def _training_bars(stream: TextIO) -> Iterator[TrainingDisplay]:
    # Both kinds in one display: two of them would write over each other.
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[values]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:

        def show(name: str, unit: str, done: int, total: int, values: str) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total, unit=unit, values="")
            bar.update(tasks[name], completed=done, total=total, values=values)

        def show_epoch(progress: StageProgress) -> None:
            values = ", ".join(f"{name} {float(value):.4g}" for name, value in progress.values.items())
            show(f"stage {progress.stage}", "epochs", progress.done, progress.total, values)

        yield TrainingDisplay(
            decoded=lambda subset, done, total: show(f"{subset} videos", "decoded", done, total, ""),
            epoch=show_epoch,
            say=lambda text: bar.console.print(text, markup=False, highlight=False, soft_wrap=True),
        )
