"""What a person sees of cameras: how they are while they are watched, a label as a line, and the table at the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from operators.json_text import json_text
from pipeline.commands.terminal import duration

if TYPE_CHECKING:
    from operators.records import ClipLabel
    from pipeline.live.watch import LiveSummary
    from pipeline.live.worker import CameraNews


def label_line(label: ClipLabel) -> str:
    """A label as one line of JSON."""
    received_at = label.received_at
    return json_text(
        {
            "camera": label.camera,
            "start_s": label.start_s,
            "end_s": label.end_s,
            "received_at": None if received_at is None else received_at.isoformat(),
            "label": label.label,
            "label_id": label.label_id,
            "score": label.score,
            "frames_total": label.frames_total,
            "frames_focused": label.frames_focused,
            "gmacs": label.gmacs,
            "coverage": label.coverage,
            "latency_s": label.latency_s,
            "clip_id": label.clip_id,
            "error_code": label.error_code,
        }
    )


@contextmanager
def live_progress(
    *, quiet: bool, as_json: bool = False, stream: TextIO | None = None, every_s: float = 5.0
) -> Iterator[Callable[[Mapping[str, CameraNews]], None]]:
    """A line whenever a camera changes its state, and how all of them are: on a terminal in a line that changes,
    elsewhere, and beside `--json`, as a line of JSON now and then.
    """
    stream = stream or sys.stderr
    states: dict[str, str] = {}
    if quiet:
        yield lambda cameras: None
    elif stream.isatty() and not as_json:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=Console(file=stream), refresh_per_second=4, transient=True) as bar:
            task = bar.add_task("", total=None)

            def show(cameras: Mapping[str, CameraNews]) -> None:
                for line in _state_changes(states, cameras):
                    bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
                bar.update(task, description=_live_line(cameras))

            yield show
    else:
        printed_s = [time.monotonic()]

        def print_news(cameras: Mapping[str, CameraNews]) -> None:
            for line in _state_changes(states, cameras):
                print(line, file=stream, flush=True)
            if time.monotonic() - printed_s[0] >= every_s:
                printed_s[0] = time.monotonic()
                figures = {
                    name: {
                        "state": camera.state.value,
                        "analysed": camera.num_looked,
                        "dropped": camera.num_behind,
                        "waiting": camera.waiting,
                    }
                    for name, camera in cameras.items()
                }
                print(json.dumps({"progress": figures}), file=stream, flush=True)

        yield print_news


def _state_changes(states: dict[str, str], cameras: Mapping[str, CameraNews]) -> Iterator[str]:
    """Yields a line for each camera whose state is not the one in `states` any more, and notes the new one there."""
    for name, camera in cameras.items():
        if states.get(name) != camera.state.value:
            states[name] = camera.state.value
            is_away = camera.state.value in ("lost", "waiting", "stopped")
            why = f": {camera.last_error}" if is_away and camera.last_error not in (None, "stopped") else ""
            yield f"{name} is {camera.state.value}{why}"


def _live_line(cameras: Mapping[str, CameraNews]) -> str:
    news = cameras.values()
    num_live = sum(camera.state.value == "live" for camera in news)
    return (
        f"{num_live} of {len(cameras)} camera(s) live, {sum(camera.num_looked for camera in news)} frames analysed, "
        f"{sum(camera.num_behind for camera in news)} dropped, {sum(camera.waiting for camera in news)} waiting"
    )


def live_rows(summary: LiveSummary, out: Path) -> list[tuple[str, str]]:
    """The table at the end of a live run."""
    rows = [("labels", f"{summary.labels} in {duration(summary.wall_s)}")]
    p50, p95 = summary.latency_s(0.5), summary.latency_s(0.95)
    if p50 is not None and p95 is not None:
        rows.append(("latency", f"p50 {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms"))
    for name, camera in summary.cameras.items():
        news = camera.news
        failed = f"{camera.failed} failed, " if camera.failed else ""
        dropped = f"{camera.dropped_labels} of them not written, " if camera.dropped_labels else ""
        rows.append(
            (
                f"  {name}",
                f"{camera.labels} labels, {failed}{dropped}{news.num_behind} frames dropped, "
                f"{news.num_reconnects} reconnects, {news.num_misses} times opened in vain, {news.state.value}",
            )
        )
    rows.append(("table", f"{out}/labels"))
    return rows
