"""`live`: a label per camera every second or so, until stopped."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline import wait_passively
from pipeline.commands.options import SOME_FAILED, RunOptions, say, stop_on_signals, with_run_options

if TYPE_CHECKING:
    from operators.records import ClipLabel
    from pipeline.run.loop import StopRequest


@click.command()
@click.argument("cameras", nargs=-1, required=True, metavar="CAMERA...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the labels.")
@with_run_options
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Serve /metrics, /healthz, /readyz there.")
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Watch for so long, then stop by itself.",
)
@click.option("--resume/--no-resume", default=True, help="Go on with the table in OUT, or begin a new one.")
def live(
    cameras: tuple[str, ...],
    out: Path,
    options: RunOptions,
    metrics_port: int | None,
    for_s: float | None,
    resume: bool,
) -> int:
    """Label cameras until stopped: a label per camera every live.stride_s.

    CAMERA: an rtsp:// address (or anything else that plays), or a YAML file that names cameras. With --json there is
    a line per label on stdout as it is made.

    \b
    Example:
      saccade live cameras.yaml -o out/ --metrics-port 9400
      saccade live rtsp://user:${PASSWORD}@10.0.0.7/stream -o out/ --json
    """
    config = options.config(preset="live", metrics_port=metrics_port)
    if not options.quiet:
        say("loading weights")
    wait_passively()
    from pipeline.commands.live_display import live_progress, live_rows
    from pipeline.commands.terminal import print_rows
    from pipeline.live.cameras import cameras_of
    from pipeline.live.record import LiveReports
    from pipeline.live.watch import watch_cameras

    stop = stop_on_signals()
    watched = cameras_of(cameras)

    with live_progress(quiet=options.quiet, as_json=options.as_json) as news:
        summary = watch_cameras(
            config,
            watched,
            out=out,
            stop=stop,
            resume=resume,
            for_s=for_s,
            reports=LiveReports(
                message=say,
                started=lambda line: None if options.quiet else say(line),
                label=_label_printer(stop) if options.as_json else lambda label: None,
                news=news,
                metrics_port=lambda port: say(f"metrics on port {port}"),
            ),
        )
    if not options.as_json:
        print_rows(live_rows(summary, out))
    unseen = summary.never_live()
    for name, why in unseen.items():
        say(f"{name} has never been live{why and f': {why}'}")
    if stop.is_set:
        # All is closed. Python would go on for 0.6 s of processor time to unload torch, and a stop is to be over in
        # five seconds on a busy machine too: with ten processes on 2 cores it took 6.8 s, and takes 3.0 like this.
        sys.stdout.flush()
        os._exit(128 + stop.signal_number)
    return SOME_FAILED if unseen or any(camera.failed for camera in summary.cameras.values()) else 0


def _label_printer(stop: StopRequest) -> Callable[[ClipLabel], None]:
    """A function that prints a label as a line of JSON; where nobody reads them any more, the run is to stop."""
    from pipeline.commands.live_display import label_line

    def print_label(label: ClipLabel) -> None:
        try:
            click.echo(label_line(label))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            say("stopping: whoever read the labels from standard output has closed it; committing what is done")
            stop.is_set, stop.signal_number = True, signal.SIGPIPE

    return print_label
