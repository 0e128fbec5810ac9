"""`label`: one Parquet row for every clip of an archive."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from operators.json_text import json_text
from pipeline.commands.options import (
    NO_INPUT,
    Listing,
    RunOptions,
    exit_code,
    say,
    stop_on_signals,
    with_inputs,
    with_run_options,
)

if TYPE_CHECKING:
    from operators.records import Source
    from pipeline.config import Config
    from pipeline.inputs.tally import InputTally
    from pipeline.plan.run_plan import RunPlan


@click.command()
@with_inputs("INPUT...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the labels.")
@with_run_options
@click.option("--resume/--no-resume", default=True, help="Go on with the table in OUT, or begin a new one.")
@click.option("--retry-failed", is_flag=True, help="Label the inputs of failed rows again.")
@click.option("--allow-failures", is_flag=True, help="Exit with 0 although some items failed.")
@click.option("--stats", is_flag=True, help="Also print where the time went: each stage, its waiting, its batches.")
def label(
    listing: Listing,
    out: Path,
    options: RunOptions,
    resume: bool,
    retry_failed: bool,
    allow_failures: bool,
    stats: bool,
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
    begun_s = time.monotonic()
    config = options.config()
    listing.check(out, config)
    from pipeline.commands.label_display import label_display, print_summary
    from pipeline.inputs.tally import InputTally

    tally = InputTally()
    list_sources = listing.lister(tally)
    if listing.dry_run:
        table = {"out": out, "resume": resume, "retry_failed": retry_failed}
        return _print_estimate(config, list_sources, tally, options, **table)
    with label_display(quiet=options.quiet) as display:
        # Before torch is imported, which takes seconds.
        display.doing("loading weights")
        from pipeline.run import archive

        stop = stop_on_signals()
        summary = archive.label_archive(
            config,
            list_sources,
            out=out,
            resume=resume,
            retry_failed=retry_failed,
            stop=stop,
            reports=archive.RunReports(
                message=say,
                started=lambda plan: None if options.quiet else _print_start(plan),
                progress=display.progress,
                doing=display.doing,
                failed=display.failed,
            ),
            tally=tally,
            begun_s=begun_s,
        )
    if options.as_json:
        click.echo(json_text(summary.to_dict()))
    elif tally.num_sources:
        print_summary(summary, stats=stats)
    if summary.interrupted:
        return 128 + stop.signal_number
    return exit_code(listing.inputs, tally, [summary], allow_failures=allow_failures)


def _print_start(plan: RunPlan) -> None:
    """Prints what a run is made of, and what its user should know before it begins."""
    for line in (plan.opening_line(), *(f"warning: {text}" for text in plan.warnings())):
        say(line)


def _print_estimate(
    config: Config,
    list_sources: Callable[[Sequence[str]], Iterator[Source]],
    tally: InputTally,
    options: RunOptions,
    **table: Any,
) -> int:
    """Prints what `label` would do; `table` is what it would do it to."""
    if not options.quiet:
        say("loading weights, then labelling the first inputs for a try")
    from pipeline.run.dry_run import estimate

    figures = estimate(config, list_sources, **table)
    click.echo(json_text(figures.to_dict()) if options.as_json else figures.text())
    for problem in tally.problems:
        print(problem, file=sys.stderr)
    return 0 if figures.inputs else NO_INPUT
