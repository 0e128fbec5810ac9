"""What a person sees of a run: the bar, or a line of JSON every few seconds, and the table at the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from operators.json_text import json_text
from operators.records import ClipLabel
from pipeline.run.loop import Runner
from pipeline.run.metrics import RunSummary

if TYPE_CHECKING:
    from pipeline.live.watch import LiveSummary
    from pipeline.live.worker import CameraNews
    from pipeline.training.journal import StageProgress


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def run_figures(runner: Runner, elapsed_s: float) -> dict[str, Any]:
    """Where a run stands."""
    metrics, feed = runner.metrics, runner.feed
    ended = metrics.labelled + metrics.failed
    total = feed.num_seen - metrics.done_before - metrics.duplicates if feed.is_complete else None
    rate = ended / elapsed_s if elapsed_s > 0 else 0.0
    left_s = (total - ended) / rate if total is not None and rate > 0 and total >= ended else None
    return {
        "clips": metrics.labelled,
        "failed": metrics.failed,
        "committed": metrics.committed,
        "done_before": metrics.done_before,
        "total": total,
        "clips_per_s": round(rate, 3),
        "left_s": None if left_s is None else round(left_s, 1),
    }


@contextmanager
def progress(*, quiet: bool, stream: TextIO = sys.stderr, every_s: float = 5.0) -> Iterator[Callable[[Runner], None]]:
    """A bar on a terminal, one JSON line every few seconds elsewhere; both on stderr."""
    begun_s = time.monotonic()
    if quiet:
        yield lambda runner: None
    elif stream.isatty():
        with _bar(stream) as (bar, task):
            yield lambda runner: _show(bar, task, run_figures(runner, time.monotonic() - begun_s))
    else:
        said_s = [begun_s]

        def say(runner: Runner) -> None:
            now_s = time.monotonic()
            if now_s - said_s[0] >= every_s:
                said_s[0] = now_s
                print(json.dumps({"progress": run_figures(runner, now_s - begun_s)}), file=stream, flush=True)

        yield say


@contextmanager
def _bar(stream: TextIO) -> Iterator[tuple[Progress, TaskID]]:
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.fields[of]} clips"),
        TextColumn("{task.fields[failed]} failed"),
        TextColumn("{task.fields[rate]:.1f}/s"),
        TextColumn("{task.fields[left]} left"),
    )
    with Progress(*columns, console=Console(file=stream), refresh_per_second=4, transient=True) as bar:
        yield bar, bar.add_task("label", total=None, of="?", failed=0, rate=0.0, left="?")


def _show(bar: Progress, task: TaskID, figures: dict[str, Any]) -> None:
    ended, total, left_s = figures["clips"] + figures["failed"], figures["total"], figures["left_s"]
    bar.update(
        task,
        completed=ended,
        # Windows of a source may be more than one clip, and then the number of sources says little.
        total=None if total is None else max(total, ended),
        of="?" if total is None else max(total, ended),
        failed=figures["failed"],
        rate=figures["clips_per_s"],
        left="?" if left_s is None else _duration(left_s),
    )


@contextmanager
def counter(what: str, *, quiet: bool, stream: TextIO = sys.stderr) -> Iterator[Callable[[int, int], None]]:
    """Progress of work whose size is known: a bar on a terminal, now and then a line of JSON elsewhere."""
    if quiet:
        yield lambda done, total: None
    elif stream.isatty():
        columns = (SpinnerColumn(), BarColumn(), TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {what}"))
        with Progress(*columns, console=Console(file=stream), transient=True) as bar:
            task = bar.add_task(what, total=0)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        said_s = [time.monotonic()]

        def say(done: int, total: int) -> None:
            if time.monotonic() - said_s[0] >= 5.0:
                said_s[0] = time.monotonic()
                print(json.dumps({"progress": {what: done, "total": total}}), file=stream, flush=True)

        yield say


@dataclass(frozen=True)
class TrainingNews:
    """What a training tells while it runs."""

    decoded: Callable[[str, int, int], None]
    """Subset, videos decoded, of how many."""
    epoch: Callable[[StageProgress], None]
    say: Callable[[str], None]
    """A line that the user should see, with --quiet too."""


@contextmanager
def training(*, quiet: bool, stream: TextIO = sys.stderr) -> Iterator[TrainingNews]:
    """A bar for each subset and stage on a terminal; elsewhere a line of JSON per epoch, and now and then one of
    decoding."""

    def say_plainly(text: str) -> None:
        print(text, file=stream, flush=True)

    if quiet:
        yield TrainingNews(decoded=lambda subset, done, total: None, epoch=lambda progress: None, say=say_plainly)
    elif stream.isatty():
        with _training_bars(stream) as news:
            yield news
    else:
        with counter("videos decoded", quiet=quiet, stream=stream) as decoded:

            def say(progress: StageProgress) -> None:
                line = {"stage": progress.stage, "done": progress.done, "total": progress.total}
                values = {name: round(float(value), 4) for name, value in progress.values.items()}
                print(json.dumps({"progress": line | values}), file=stream, flush=True)

            yield TrainingNews(decoded=lambda subset, done, total: decoded(done, total), epoch=say, say=say_plainly)


@contextmanager
def _training_bars(stream: TextIO) -> Iterator[TrainingNews]:
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

        yield TrainingNews(
            decoded=lambda subset, done, total: show(f"{subset} videos", "decoded", done, total, ""),
            epoch=show_epoch,
            say=lambda text: bar.console.print(text, markup=False, highlight=False, soft_wrap=True),
        )


def print_rows(rows: Sequence[tuple[str, str]], *, stream: TextIO | None = None) -> None:
    """On stdout, where nothing else is said. Not by rich, which takes [brackets] of a path for markup and cuts what is
    wider than a terminal."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}", file=stream)


def print_summary(summary: RunSummary, *, stream: TextIO | None = None) -> None:
    """The table at the end of a run."""
    print_rows(summary_rows(summary), stream=stream)


def summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    rows = [("clips labelled", f"{summary.clips}")]
    if summary.failed:
        reasons = ", ".join(f"{n} {code}" for code, n in sorted(summary.errors.items()))
        rows.append(("failed", f"{summary.failed} ({reasons})"))
    if summary.done_before > summary.failed_before:
        rows.append(("labelled before", f"{summary.done_before - summary.failed_before}"))
    if summary.failed_before:
        rows.append(("failed before", f"{summary.failed_before}; --retry-failed labels them again"))
    if summary.duplicates:
        rows.append(("given twice", f"{summary.duplicates}"))
    if summary.skipped_files:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(summary.skipped_files.items()))
        rows.append(("other files left out", kinds))
    if summary.accuracy is not None:
        rows.append(("accuracy", f"{summary.accuracy:.1%} of {summary.with_truth} with known truth"))
    if summary.focused_share is not None:
        rows.append(("frames focused", f"{summary.focused_share:.1%}, {summary.mean_steps:.2f} steps per clip"))
    if summary.gmacs_per_clip is not None and summary.gmacs_full_per_clip:
        share = summary.gmacs_per_clip / summary.gmacs_full_per_clip
        rows.append(
            (
                "GMACs per clip",
                f"{summary.gmacs_per_clip:.4g} ({share:.1%} of {summary.gmacs_full_per_clip:.4g} for full frames)",
            )
        )
    steady = summary.steady_clips_per_s
    once = f", {steady:.2f} from the first label to the last" if steady is not None else ""
    rows.append(("clips per second", f"{summary.clips_per_s:.2f} ({summary.wall_s:.1f} s in all){once}"))
    for name, stage in summary.stages.items():
        if stage["calls"]:
            deaths = f", {stage['deaths']:.0f} died" if stage["deaths"] else ""
            rows.append((f"  {name}", f"{stage['busy_share']:.0%} busy, {stage['workers']:.0f} worker(s){deaths}"))
    if summary.bottleneck:
        rows.append(("bottleneck", summary.bottleneck))
    if summary.occupancy is not None:
        rows.append(("focus batches", f"{summary.occupancy:.1%} real patches"))
    if summary.patch_wait_s is not None:
        rows.append(("patches waited", f"{1000 * summary.patch_wait_s:.1f} ms on average, until their batch went"))
    if summary.focus_idle_share is not None:
        idle = f"{summary.focus_idle_share:.0%} of the time between their first batch and their last"
        rows.append(("focus workers idle", idle))
    if summary.ended_early:
        rows.append(("ended early", summary.ended_early))
    if summary.interrupted:
        rows.append(("interrupted", "run the same command again to go on"))
    if not summary.is_trained:
        rows.append(("weights", "UNTRAINED (seeded random): the labels mean nothing"))
    rows.append(("labels", f"{summary.out}/labels"))
    return rows


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
    *, quiet: bool, as_json: bool = False, stream: TextIO = sys.stderr, every_s: float = 5.0
) -> Iterator[Callable[[Mapping[str, CameraNews]], None]]:
    """A line whenever a camera changes its state, and how all of them are: on a terminal in a line that changes,
    elsewhere, and beside `--json`, as a line of JSON now and then.
    """
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
        said_s = [time.monotonic()]

        def say(cameras: Mapping[str, CameraNews]) -> None:
            for line in _state_changes(states, cameras):
                print(line, file=stream, flush=True)
            if time.monotonic() - said_s[0] >= every_s:
                said_s[0] = time.monotonic()
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

        yield say


def _state_changes(states: dict[str, str], cameras: Mapping[str, CameraNews]) -> Iterator[str]:
    """A line for each camera that is not in the state of `states` any more; notes the new one there."""
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
    rows = [("labels", f"{summary.labels} in {_duration(summary.wall_s)}")]
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
