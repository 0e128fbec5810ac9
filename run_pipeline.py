"""Saccade's commands: parse flags, call pipeline/, print, set the exit code. `--help` of each has an example."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from operators.errors import CheckpointError, ClusterGone, ConfigError, PipelineError
from operators.json_text import json_text
from operators.passwords import without_password
from pipeline.bench.commands import bench
from pipeline.commands.hidden_arguments import hide_arguments
from pipeline.commands.label import label
from pipeline.commands.live import live
from pipeline.commands.options import FAILED, SOME_FAILED, USAGE, StoppedAtOnce, say, stop_on_signals
from pipeline.commands.score import calibrate, evaluate
from pipeline.commands.train import train
from pipeline.commands.version import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="saccade")
def cli() -> None:
    """Labels video the way an eye looks: glance at every frame, focus on few small patches, stop when sure."""


for command in (label, live, train, evaluate, calibrate, bench):
    cli.add_command(command)


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
    from pipeline.commands.terminal import counter
    from pipeline.plan.placement import this_machine
    from pipeline.synthetic.archive import generate
    from pipeline.synthetic.video_plans import SynthSettings

    given = {k: v for k, v in knobs.items() if v is not None}
    settings = SynthSettings.motion(**given) if kind == "motion" else SynthSettings(**given)
    with counter("videos", quiet=quiet) as show:
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
    from pipeline.commands.demo import rows, run_demo
    from pipeline.commands.label_display import label_display
    from pipeline.commands.terminal import counter, print_rows
    from pipeline.run import archive

    stop = stop_on_signals()
    with counter("videos", quiet=quiet) as made, label_display(quiet=quiet) as display:
        result = run_demo(
            out,
            videos=videos,
            settings=settings,
            stop=stop,
            told=archive.RunReports(
                message=say, progress=display.progress, doing=display.doing, failed=display.failed
            ),
            made=made,
        )
    if result is None:
        say("interrupted: run the same command again to go on")
        return 128 + stop.signal_number
    print_rows(rows(result))
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
    """Runs a command. Where the world is at fault, the error is printed in one line, without a traceback."""
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
        # The message quotes arguments.
        shown = io.StringIO()
        exc.show(shown)
        print(without_password(shown.getvalue()), file=sys.stderr, end="")
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
        # A bug is printed with its traceback, but for passwords.
        print(without_password(traceback.format_exc()), file=sys.stderr)
        code = FAILED
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
