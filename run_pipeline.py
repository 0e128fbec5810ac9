"""Saccade's commands: parse flags, call pipeline/, print, set the exit code. `--help` of each has an example."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from operators.errors import CheckpointError, ClusterGone, ConfigError, PipelineError
from operators.json_text import json_text
from operators.passwords import without_password
from operators.records import ClipLabel
from pipeline.bench.commands import bench
from pipeline.commands.hidden_arguments import hide_arguments
from pipeline.commands.options import (
    FAILED,
    NO_INPUT,
    SOME_FAILED,
    USAGE,
    Listing,
    RunOptions,
    StoppedAtOnce,
    exit_code,
    load_config,
    say,
    stop_on_signals,
    with_inputs,
    with_run_options,
)
from pipeline.commands.score import calibrate, evaluate
from pipeline.commands.version import VERSION

if TYPE_CHECKING:
    from operators.records import Source
    from pipeline.config import Config
    from pipeline.inputs.sources import Tally


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="saccade")
def cli() -> None:
    """Labels video the way an eye looks: glance at every frame, focus on few small patches, stop when sure."""


for command in (evaluate, calibrate, bench):
    cli.add_command(command)


@cli.command()
@with_inputs("INPUT...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the labels.")
@with_run_options
@click.option("--resume/--no-resume", default=True, help="Go on with the table in OUT, or begin a new one.")
@click.option("--retry-failed", is_flag=True, help="Label the inputs of failed rows again.")
@click.option("--allow-failures", is_flag=True, help="Exit with 0 although some items failed.")
def label(
    listing: Listing, out: Path, options: RunOptions, resume: bool, retry_failed: bool, allow_failures: bool
) -> int:
    """Label an archive: one Parquet row per clip.

    INPUT: files, folders, globs, a list, CSV, JSONL or Parquet of paths, an ActivityNet JSON or a split file with
    --videos, or - for stdin.

    \b
    Example:
      saccade label ~/videos -o out/ --config demo
      saccade label activity_net.json --videos ~/ActivityNet --subset validation -o activitynet/ \\
          --config adafocus_activitynet --checkpoint 128s3_checkpoint.pth.tar
    """
    config = options.config()
    listing.check(out, config)
    from pipeline.commands import terminal as report
    from pipeline.inputs.sources import Tally
    from pipeline.run import archive

    tally = Tally()
    list_sources = listing.lister(tally)
    if listing.dry_run:
        return _say_estimate(config, list_sources, tally, options, out=out, resume=resume, retry_failed=retry_failed)
    stop = stop_on_signals()
    with report.progress(quiet=options.quiet) as show:
        told = archive.Told(
            message=say,
            started=lambda plan: None if options.quiet else say(plan.opening_line()),
            progress=show,
        )
        summary = archive.label_archive(
            config,
            list_sources,
            out=out,
            resume=resume,
            retry_failed=retry_failed,
            stop=stop,
            told=told,
            tally=tally,
        )
    if options.as_json:
        click.echo(json_text(summary.to_dict()))
    elif tally.num_sources:
        report.print_summary(summary)
    if summary.interrupted:
        return 128 + stop.signal_number
    return exit_code(listing.inputs, tally, [summary], allow_failures=allow_failures)


def _say_estimate(
    config: Config,
    list_sources: Callable[[Sequence[str]], Iterator[Source]],
    tally: Tally,
    options: RunOptions,
    **table: Any,
) -> int:
    """Says what `label` would do; `table`: what it would do it to."""
    from pipeline.run.dry_run import estimate

    figures = estimate(config, list_sources, **table)
    click.echo(json_text(figures.to_dict()) if options.as_json else figures.text())
    for problem in tally.problems:
        print(problem, file=sys.stderr)
    return 0 if figures.inputs else NO_INPUT


@cli.command()
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
    # Before all that loads torch: it says how torch's threads wait.
    from pipeline.live.watch import LiveTold, watch_cameras  # isort: split

    from pipeline.commands import terminal as report
    from pipeline.live.cameras import cameras_of

    config = options.config(preset="live", metrics_port=metrics_port)
    stop = stop_on_signals()
    watched = cameras_of(cameras)

    def print_label(label: ClipLabel) -> None:
        try:
            click.echo(report.label_line(label))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            say("stopping: whoever read the labels from standard output has closed it; committing what is done")
            stop.is_set, stop.signal_number = True, signal.SIGPIPE

    with report.live_progress(quiet=options.quiet, as_json=options.as_json) as news:
        summary = watch_cameras(
            config,
            watched,
            out=out,
            stop=stop,
            resume=resume,
            for_s=for_s,
            told=LiveTold(
                message=say,
                started=lambda line: None if options.quiet else say(line),
                label=print_label if options.as_json else lambda label: None,
                news=news,
                metrics_port=lambda port: say(f"metrics on port {port}"),
            ),
        )
    if not options.as_json:
        report.print_rows(report.live_rows(summary, out))
    unseen = summary.never_live()
    for name, why in unseen.items():
        say(f"{name} has never been live{why and f': {why}'}")
    if stop.is_set:
        # All is closed. Python would go on for 0.6 s of processor time to unload torch, and a stop is to be over in
        # five seconds on a busy machine too: with ten processes on 2 cores it took 6.8 s, and takes 3.0 like this.
        sys.stdout.flush()
        os._exit(128 + stop.signal_number)
    return SOME_FAILED if unseen or any(camera.failed for camera in summary.cameras.values()) else 0


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="ANNOTATIONS...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints and curves.")
@click.option("--config", "config_file", metavar="FILE", default="train_synth", show_default=True)
@click.option("--classes", type=click.Path(), help="Class names in the model's order; classes.txt beside ANNOTATIONS.")
@click.option("--set", "settings", multiple=True, metavar="KEY.SUB=VALUE", help="e.g. train.seed=1; repeatable.")
@click.option("--videos", type=click.Path(path_type=Path), help="Where the videos lie.")
@click.option("--stage", "stages", default="all", show_default=True, help="all, or 0a,0b,1,2,3,skip,full.")
@click.option("--subsets", nargs=2, default=("train", "val"), show_default=True, help="To learn from, to watch.")
@click.option("--truth", type=click.Path(path_type=Path), help="truth.parquet of a synthetic archive, for scores.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of decoded frames; OUT/cache if not given.")
@click.option("--limit", type=click.IntRange(min=1), help="Take at most so many videos of each subset.")
@click.option("--json", "as_json", is_flag=True, help="The records of the stages on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def train(
    inputs: tuple[str, ...],
    out: Path,
    config_file: str,
    classes: str | None,
    settings: tuple[str, ...],
    videos: Path | None,
    stages: str,
    subsets: tuple[str, str],
    truth: Path | None,
    cache: Path | None,
    limit: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Train the stages, each from the checkpoint of the one before. Killed, the same command goes on.

    \b
    Example:
      saccade synth data/ --videos 3500 --shares 2000 500 1000
      saccade train data/annotations.json --videos data/videos --truth data/truth.parquet -o training/
    """
    from pipeline.commands import terminal as report
    from pipeline.training import command

    beside = Path(inputs[0]).with_name("classes.txt")
    if classes is None and beside.is_file():
        classes = str(beside)
    config = load_config(config_file, settings, classes=classes)
    with report.training(quiet=quiet) as news:
        records = command.train(
            config,
            inputs,
            videos=videos,
            out=out,
            cache=cache,
            stages=stages,
            truth=truth,
            subsets=subsets,
            limit=limit,
            on_progress=news.epoch,
            on_cache=news.decoded,
            say=news.say,
        )
    if as_json:
        click.echo(json_text(records, default=str))
    else:
        for stage, record in records.items():
            scores = ", ".join(f"{name} {value:.4g}" for name, value in record.get("scores", {}).items())
            click.echo(f"stage {stage}: {record['seconds']:.0f} s; {scores}")
        # The comparison `full` is no step on the way to the checkpoint.
        name = "checkpoint" if any(stage != "full" for stage in records) else "stage_full"
        click.echo(f"checkpoint: {out}/{name}.safetensors")
    return 0


@cli.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["needle", "motion"]), default="needle", help="What says the class.")
@click.option("--videos", type=int, default=300, show_default=True, help="Videos of all subsets together.")
@click.option("--shares", type=float, nargs=3, default=(0.6, 0.15, 0.25), show_default=True, help="train val test.")
@click.option("--classes", type=int, default=None, help="Classes: 10, or 4 directions of motion.")
@click.option("--size", type=int, default=192, show_default=True, help="Typical short side in pixels.")
@click.option("--fps", type=float, default=12.0, show_default=True, help="Typical frame rate.")
@click.option("--seconds", type=float, default=3.0, show_default=True, help="Typical length.")
@click.option("--visible", type=float, default=None, help="Share of the frames that show the evidence.")
@click.option("--clutter", type=float, default=1.0, show_default=True, help="How much else there is.")
@click.option("--crf", type=int, default=20, show_default=True, help="Quality of the H.264 files.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same pixels.")
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Processes; one per core if not given.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def synth(out: Path, kind: str, workers: int | None, quiet: bool, **knobs: Any) -> int:
    """Make a synthetic archive with its whole truth.

    \b
    Example:
      saccade synth data/ --videos 300 --seed 1
      saccade label data/annotations.json --videos data/videos --subset test -o out/ --config demo
    """
    from pipeline.commands import terminal as report
    from pipeline.plan.placement import this_machine
    from pipeline.synthetic.archive import generate
    from pipeline.synthetic.video_plans import SynthSettings

    given = {k: v for k, v in knobs.items() if v is not None}
    settings = SynthSettings.motion(**given) if kind == "motion" else SynthSettings(**given)
    with report.counter("videos", quiet=quiet) as show:
        summary = generate(out, settings, progress=show, workers=workers or this_machine().num_cores)
    made = "made" if summary.is_new else "already there"
    counts = ", ".join(f"{n} {name}" for name, n in summary.num_videos.items())
    click.echo(f"{made}: {counts}; {summary.num_frames} frames, {summary.num_bytes / 1e6:.1f} MB in {out}")
    return 0


@cli.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
@click.option("--videos", type=click.IntRange(min=1), default=60, show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; repeatable.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def demo(out: Path, videos: int, settings: tuple[str, ...], quiet: bool) -> int:
    """Make a small archive of real H.264 files, label it on Ray, and say what came of it.

    \b
    Example:
      saccade demo
    """
    from pipeline.commands import terminal as report
    from pipeline.commands.demo import rows, run_demo
    from pipeline.run import archive

    stop = stop_on_signals()
    with report.counter("videos", quiet=quiet) as made, report.progress(quiet=quiet) as show:
        result = run_demo(
            out,
            videos=videos,
            settings=settings,
            stop=stop,
            told=archive.Told(message=say, progress=show),
            made=made,
        )
    if result is None:
        say("interrupted: run the same command again to go on")
        return 128 + stop.signal_number
    report.print_rows(rows(result))
    if stop.is_set:
        return 128 + stop.signal_number
    return 0 if result.run.is_whole else SOME_FAILED


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.option("--ray/--no-ray", default=True, help="Whether Ray is started for a try.")
def doctor(as_json: bool, ray: bool) -> int:
    """Check this machine: codecs, Ray, GPU, shared memory, threads.

    \b
    Example:
      saccade doctor
    """
    from pipeline.commands.doctor import examine, worst

    findings = examine(start_ray=ray)
    if as_json:
        click.echo(json_text([finding.to_dict() for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{finding.state:4}  {finding.name:24}{finding.text}")
    return FAILED if worst(findings) == "fail" else 0


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. What is the world's fault is told in one line, without a traceback."""
    if sys.stdin is None:
        # Its number would go to the next file that is opened, and every process started would inherit that.
        os.open(os.devnull, os.O_RDONLY)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name need not be UTF-8, and not every terminal shows all of it.
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments is None:
        arguments = sys.argv[1:]
        # First of all: what commands import takes seconds.
        hide_arguments()
    try:
        code = cli.main(arguments, standalone_mode=False)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.ClickException as exc:
        # It quotes arguments.
        told = io.StringIO()
        exc.show(told)
        print(without_password(told.getvalue()), file=sys.stderr, end="")
        code = USAGE
    except (ConfigError, CheckpointError) as exc:
        print(f"error: {without_password(str(exc))}", file=sys.stderr)
        code = USAGE
    except PipelineError as exc:
        print(f"error: {without_password(str(exc))}", file=sys.stderr)
        code = FAILED
        if isinstance(exc, ClusterGone):
            # Ray would look for its head once more while Python ends, and crash.
            sys.stdout.flush()
            os._exit(code)
    except (KeyboardInterrupt, click.Abort) as exc:
        print("stopped at once", file=sys.stderr)
        # click raises its own exception from the one of the signal.
        cause = exc.__cause__ if isinstance(exc, click.Abort) else exc
        code = 128 + (cause.signal_number if isinstance(cause, StoppedAtOnce) else signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except Exception:
        # A bug is told whole, but for passwords.
        print(without_password(traceback.format_exc()), file=sys.stderr)
        code = FAILED
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
