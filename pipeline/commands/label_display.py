"""What a person sees of a run over an archive: what it is doing, how far it is, what failed, and the final table."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from pipeline.commands.terminal import duration, print_rows

if TYPE_CHECKING:
    from operators.records import ClipLabel
    from pipeline.run.loop import Runner
    from pipeline.run.metrics import RunSummary

RECENT_S = 30.0
"""The rate, and the time left by it, are those of so many seconds: a run that slows down shows it, and the seconds in
which processes started do not count for ever."""
SHOWN_FAILURES = 10
SHOWN_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class LabelDisplay:
    """The functions that a run calls while it goes on. Messages go to stderr; rich puts them above a bar."""

    doing: Callable[[str], None]
    """Shows what the run is at before the first clip."""
    progress: Callable[[Runner], None]
    """Shows how far the run is."""
    failed: Callable[[ClipLabel], None]
    """Prints why a clip failed, for the first ten of a run."""


@dataclass(slots=True)
class RecentRate:
    """Clips per second over the last half minute."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    """Times at least a second apart, and how many clips had ended by then."""

    def per_s(self, now_s: float, ended: int) -> float:
        """The rate up to now, when so many clips have ended; 0 before anything is known."""
        if not self._seen or now_s - self._seen[-1][0] >= 1.0:
            self._seen.append((now_s, ended))
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - RECENT_S:
            self._seen.popleft()
        then_s, before = self._seen[0]
        return (ended - before) / (now_s - then_s) if now_s > then_s else 0.0


def run_figures(runner: Runner, rate: RecentRate, now_s: float) -> dict[str, Any]:
    """The figures that say where a run stands."""
    metrics, feed = runner.metrics, runner.feed
    ended = metrics.labelled + metrics.failed
    total = feed.num_seen - metrics.done_before - metrics.duplicates if feed.is_complete else None
    per_s = rate.per_s(now_s, ended)
    left_s = (total - ended) / per_s if total is not None and per_s > 0 and total >= ended else None
    return {
        "clips": metrics.labelled,
        "failed": metrics.failed,
        "committed": metrics.committed,
        "done_before": metrics.done_before,
        "total": total,
        "clips_per_s": round(per_s, 3),
        "left_s": None if left_s is None else round(left_s, 1),
    }


@contextmanager
def label_display(*, quiet: bool, stream: TextIO | None = None, every_s: float = 5.0) -> Iterator[LabelDisplay]:
    """A bar on a terminal, one JSON line every few seconds elsewhere; both on stderr."""
    stream = stream or sys.stderr
    rate = RecentRate()
    if quiet:
        yield LabelDisplay(doing=lambda text: None, progress=lambda runner: None, failed=lambda label: None)
    elif stream.isatty():
        with _bar(stream) as show:
            yield LabelDisplay(
                doing=lambda text: show(doing=text),
                progress=lambda runner: _show_figures(show, run_figures(runner, rate, time.monotonic())),
                failed=_failure_printer(),
            )
    else:
        printed_s = [time.monotonic()]

        def print_progress(runner: Runner) -> None:
            now_s = time.monotonic()
            figures = run_figures(runner, rate, now_s)
            if now_s - printed_s[0] >= every_s:
                printed_s[0] = now_s
                print(json.dumps({"progress": figures}), file=stream, flush=True)

        yield LabelDisplay(
            doing=lambda text: print(text, file=stream, flush=True),
            progress=print_progress,
            failed=_failure_printer(stream),
        )


@contextmanager
def _bar(stream: TextIO) -> Iterator[Callable[..., None]]:
    """A function that updates a bar, which shows what the run is doing until there are figures."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[doing]}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.fields[of]} clips"),
        TextColumn("{task.fields[failed]} failed"),
        TextColumn("{task.fields[rate]:.1f}/s"),
        TextColumn("{task.fields[left]} left"),
    )
    with Progress(*columns, console=Console(file=stream), refresh_per_second=4, transient=True) as bar:
        task = bar.add_task("label", total=None, doing="", of="?", failed=0, rate=0.0, left="?")
        yield lambda **fields: bar.update(task, **fields)


def _show_figures(show: Callable[..., None], figures: dict[str, Any]) -> None:
    ended, total, left_s = figures["clips"] + figures["failed"], figures["total"], figures["left_s"]
    show(
        completed=ended,
        # Windows of a source may be more than one clip, and then the number of sources says little.
        total=None if total is None else max(total, ended),
        of="?" if total is None else max(total, ended),
        doing="labelling" if ended else "starting workers",
        failed=figures["failed"],
        rate=figures["clips_per_s"],
        left="?" if left_s is None else duration(left_s),
    )


def _failure_printer(stream: TextIO | None = None) -> Callable[[ClipLabel], None]:
    """A function that prints the first failures it is given. `stream`: stderr as it is at the time where None, for
    rich puts what is printed there above its bar."""
    shown = [0]

    def print_failure(label: ClipLabel) -> None:
        shown[0] += 1
        file = stream or sys.stderr
        if shown[0] <= SHOWN_FAILURES:
            print(failure_line(label), file=file, flush=True)
        elif shown[0] == SHOWN_FAILURES + 1:
            print("further failures are not shown here; the query at the end finds all of them", file=file, flush=True)

    return print_failure


def failure_line(label: ClipLabel) -> str:
    """Why a clip has no label: `code path: reason`, in one line."""
    path = label.source_uri
    reason = " ".join((label.error or "no reason is known").split())
    # Many reasons begin with the path themselves.
    return f"{label.error_code} {path}: {reason.removeprefix(path).lstrip(' :')}"


def failures_query(out: str) -> str:
    """SQL that shows every failed clip of a table, for DuckDB."""
    labels = f"{out}/labels/*.parquet".replace("'", "''")
    return f"SELECT source_uri, error_code, error FROM '{labels}' WHERE error_code IS NOT NULL"


def print_summary(summary: RunSummary, *, stats: bool = False, stream: TextIO | None = None) -> None:
    """Prints the table at the end of a run. `stats`: with the figures of an engineer."""
    print_rows(summary_rows(summary, stats=stats), stream=stream)


def summary_rows(summary: RunSummary, *, stats: bool = False) -> list[tuple[str, str]]:
    """The table at the end of a run, by names."""
    rows = [*_input_rows(summary), *_answer_rows(summary), *_time_rows(summary)]
    if stats:
        rows += _stats_rows(summary)
    if summary.ended_early:
        rows.append(("ended early", summary.ended_early))
    if summary.interrupted:
        rows.append(("interrupted", "run the same command again to go on"))
    if not summary.is_trained:
        rows.append(("weights", "UNTRAINED (seeded random): the labels mean nothing"))
    rows += [("warning", warning) for warning in summary.warnings]
    rows.append(("labels", f"{summary.out}/labels"))
    if summary.failed or summary.failed_before:
        rows.append(("all failures", failures_query(summary.out)))
    return rows


def _input_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """Rows that say what became of the inputs."""
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
    return rows


def _answer_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """Rows that say which labels there are, and what they cost."""
    rows = []
    if summary.labels_by_class:
        counts = list(summary.labels_by_class.items())
        shown = ", ".join(f"{n} {name}" for name, n in counts[:SHOWN_CLASSES])
        others = len(counts) - SHOWN_CLASSES
        rest = f", and {sum(n for _, n in counts[SHOWN_CLASSES:])} of {others} other(s)" if others > 0 else ""
        rows.append(("most frequent", shown + rest))
    if summary.accuracy is not None:
        rows.append(("accuracy", f"{summary.accuracy:.1%} of {summary.with_truth} with known truth"))
    if summary.focused_share is not None:
        rows.append(("frames focused", f"{summary.focused_share:.1%}, {summary.mean_steps:.2f} steps per clip"))
    if summary.gmacs_per_clip is not None and summary.gmacs_full_per_clip:
        spent, full = summary.gmacs_per_clip, summary.gmacs_full_per_clip
        rows.append(("GMACs per clip", f"{spent:.4g} ({spent / full:.1%} of {full:.4g} for full frames)"))
    return rows


def _time_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """The row that says how long it took. One clip has no rate worth a number: nearly all of its time is the start."""
    in_all = f"{summary.total_s:.1f} s in all, the start among them"
    if summary.clips < 2:
        return [("time", in_all)]
    steady = summary.steady_clips_per_s
    once = f"; {steady:.2f} from the first label to the last" if steady is not None else ""
    return [("clips per second", f"{summary.clips / summary.total_s:.2f} ({in_all}){once}")]


def _stats_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """Rows that say where the time went, for `--stats`."""
    if summary.clips + summary.failed < 2:
        return [("stats", "one clip is too few to say where the time goes")]
    rows = []
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
    return rows
