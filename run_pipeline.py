"""Saccade's commands: parse flags, call pipeline/, print, set the exit code. `--help` of each has an example."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from operators.errors import ConfigError, PipelineError
from pipeline import config as configuration
from pipeline.runner import StopRequest

FAILED, USAGE, SOME_FAILED, NO_INPUT = 1, 2, 3, 4


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that most commands share."""
    options = [
        click.option("--config", "config_file", metavar="FILE", help="Config file, or the bare name of a preset."),
        click.option("--checkpoint", type=click.Path(), help="Weights: the project's own form or a published one."),
        click.option("--classes", type=click.Path(), help="Class names, one per line."),
        click.option("--set", "settings", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; repeatable."),
        click.option("--executor", type=click.Choice(["ray", "inline"]), help="Where the stages run."),
        click.option("--ray-address", metavar="ADDR", help="Join a running Ray cluster."),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable summary on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def load_config(
    config_file: str | None,
    settings: tuple[str, ...],
    *,
    checkpoint: str | None = None,
    classes: str | None = None,
    executor: str | None = None,
    ray_address: str | None = None,
) -> configuration.Config:
    given = {
        "model.checkpoint": checkpoint,
        "model.classes": classes,
        "run.executor": executor,
        "run.ray_address": ray_address,
    }
    return configuration.load(
        config_file, settings=settings, flags={k: v for k, v in given.items() if v is not None}
    )


def stop_on_signals() -> StopRequest:
    """The first SIGINT or SIGTERM drains and commits what is done; the second stops at once."""
    stop = StopRequest()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set:
            raise KeyboardInterrupt
        stop.is_set = True
        stop.signal_number = number
        print("stopping: committing what is done; once more to stop at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Labels video the way an eye looks: glance at every frame, focus on few small patches, stop when sure."""


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the labels.")
@common_options
@click.option("--videos", type=click.Path(path_type=Path), help="Where the videos of an annotation or split file lie.")
@click.option("--subset", help="Take one subset of an annotation file.")
@click.option("--limit", type=click.IntRange(min=0), help="Label at most so many inputs.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and what it would cost.")
@click.option("--resume/--no-resume", default=True, help="Go on with the table in OUT, or begin a new one.")
@click.option("--retry-failed", is_flag=True, help="Label the inputs of failed rows again.")
@click.option("--allow-failures", is_flag=True, help="Exit with 0 although some items failed.")
def label(
    inputs: tuple[str, ...],
    out: Path,
    config_file: str | None,
    checkpoint: str | None,
    classes: str | None,
    settings: tuple[str, ...],
    executor: str | None,
    ray_address: str | None,
    as_json: bool,
    quiet: bool,
    videos: Path | None,
    subset: str | None,
    limit: int | None,
    dry_run: bool,
    resume: bool,
    retry_failed: bool,
    allow_failures: bool,
) -> int:
    """Label an archive: one Parquet row per clip.

    INPUT: files, folders, globs, a list, CSV, JSONL or Parquet of paths, an ActivityNet JSON or a split file with
    --videos, or - for stdin.

    \b
    Example:
      saccade label ~/videos -o out/ --config demo
      saccade label activity_net.json --videos ~/ActivityNet --subset validation -o out/ \\
          --config adafocus_activitynet --checkpoint 128s3_checkpoint.pth.tar
    """
    from pipeline import archive, report
    from pipeline import inputs as listing

    config = load_config(
        config_file, settings, checkpoint=checkpoint, classes=classes, executor=executor, ray_address=ray_address
    )
    tally = listing.Tally()
    sources = listing.sources(
        inputs,
        videos=videos,
        subset=subset,
        class_names=None if classes is None else listing.read_class_names(Path(classes)),
        stdin=sys.stdin.buffer,
        tally=tally,
    )
    if limit is not None:
        import itertools

        sources = itertools.islice(sources, limit)
    if dry_run:
        from pipeline.estimate import estimate

        figures = estimate(config, sources, tally=tally)
        click.echo(json.dumps(figures.to_dict()) if as_json else figures.text())
        return 0 if figures.inputs else NO_INPUT
    stop = stop_on_signals()
    with report.progress(quiet=quiet) as show:
        told = archive.Told(
            message=lambda text: print(text, file=sys.stderr, flush=True),
            started=lambda plan: None if quiet else print(plan.opening_line(), file=sys.stderr, flush=True),
            progress=show,
        )
        summary = archive.label_archive(
            config,
            sources,
            out=out,
            resume=resume,
            retry_failed=retry_failed,
            stop=stop,
            told=told,
            skipped_files=lambda: tally.skipped,
        )
    if as_json:
        click.echo(json.dumps(summary.to_dict()))
    else:
        report.print_summary(summary)
    if summary.interrupted:
        return 128 + stop.signal_number
    if not tally.num_sources:
        print("no input found: " + ", ".join(inputs), file=sys.stderr)
        return NO_INPUT
    return SOME_FAILED if summary.failed and not allow_failures else 0


def main(arguments: list[str] | None = None) -> None:
    """Runs a command. What is the world's fault is told in one line, without a traceback."""
    try:
        code = cli.main(arguments, standalone_mode=False)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.ClickException as exc:
        exc.show()
        code = USAGE
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)
        code = USAGE
    except PipelineError as exc:
        print(f"error: {exc}", file=sys.stderr)
        code = FAILED
    except (KeyboardInterrupt, click.Abort):
        print("stopped at once", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
