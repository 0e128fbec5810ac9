"""`eval` and `calibrate`: what labels are worth, and how sure is sure enough."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    from pipeline.run.archive import RunReports
    from pipeline.run.metrics import RunSummary
    from pipeline.scoring.calibrate import ScoreKind
    from pipeline.scoring.evaluate import Evaluation


@click.command("eval")
@with_inputs("LABELS|INPUT...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for labels and reports.")
@with_run_options
@click.option("--resume/--no-resume", default=True, help="Keep labels that an earlier call left in OUT, or begin anew.")
@click.option("--allow-failures", is_flag=True, help="Exit with 0 although some items failed.")
@click.option("--compare", default=None, metavar="A,B,...", help="Policies side by side: learned,center,random,full...")
@click.option("--full-checkpoint", metavar="FILE", help="What --compare full labels with: `train --stage full`'s.")
@click.option("--truth", type=click.Path(path_type=Path), help="truth.parquet of a synthetic archive: boxes.")
@click.option("--per-video", is_flag=True, help="Join the clips of a video before scoring.")
@click.option(
    "--search",
    metavar="LABELS",
    type=click.Path(path_type=Path),
    help="Labels of other clips, with step_logits: thresholds of the budgeted curve are searched on them.",
)
def evaluate(
    listing: Listing,
    out: Path,
    options: RunOptions,
    resume: bool,
    allow_failures: bool,
    compare: str | None,
    full_checkpoint: str | None,
    truth: Path | None,
    per_video: bool,
    search: Path | None,
) -> int:
    """Accuracy and mAP against annotations: of labels that are there, or of inputs labelled for it.

    Where there are step_logits, the report has the anytime curve; with --search, or a published GFNet file as
    --checkpoint, the budgeted one too.

    \b
    Example:
      saccade eval out/ -o report/
      saccade eval test/ -o report/ --search val/
      saccade eval data/annotations.json --videos data/videos --subset test -o report/ --config demo \\
          --truth data/truth.parquet --compare learned,center,random
    """
    from pipeline.inputs.annotations import read_class_names
    from pipeline.inputs.tally import InputTally
    from pipeline.scoring import evaluate_policies as judging

    names = None if options.classes is None else read_class_names(Path(options.classes))
    known = judging.Truth(boxes=truth, is_per_video=per_video, class_names=names, search=search)
    if len(listing.inputs) == 1 and judging.is_labels_table(labels := Path(listing.inputs[0])):
        if listing.dry_run:
            click.echo(json_text({}) if options.as_json else "nothing would be labelled: the labels are there")
        else:
            found = judging.evaluate_table(labels, out, truth=known, checkpoint=options.checkpoint)
            _show_evaluations({"labels": found}, out, as_json=options.as_json)
        return 0
    config = options.config()
    listing.check(out, config if full_checkpoint is None else None)
    policies = compare.split(",") if compare else [config.policy.kind]
    tally = InputTally()
    list_sources = listing.lister(tally, is_read_again=len(policies) > 1)
    if listing.dry_run:
        configs = judging.policy_configs(config, policies, full_checkpoint=full_checkpoint)
        return _print_estimates(configs, list_sources, as_json=options.as_json)
    stop = stop_on_signals()
    with _reports(options) as reports:
        evaluations, runs = judging.evaluate_policies(
            config,
            list_sources,
            policies,
            out=out,
            resume=resume,
            truth=known,
            stop=stop,
            told=reports,
            full_checkpoint=full_checkpoint,
        )
    if stop.is_set:
        return 128 + stop.signal_number
    _show_evaluations(evaluations, out, as_json=options.as_json)
    _print_failures(runs)
    return exit_code(listing.inputs, tally, runs, allow_failures=allow_failures)


@click.command()
@with_inputs("INPUT...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for labels and the result.")
@with_run_options
@click.option("--resume/--no-resume", default=True, help="Keep labels that an earlier call left in OUT, or begin anew.")
@click.option("--allow-failures", is_flag=True, help="Exit with 0 although some items failed.")
@click.option(
    "--measure",
    type=click.Choice(["softmax", "logit"]),
    default="softmax",
    show_default=True,
    help="What is compared with the thresholds: the leading class's probability, or its raw logit.",
)
@click.option(
    "--score",
    type=click.Choice(["accuracy", "map"]),
    default="accuracy",
    show_default=True,
    help="What the curve shows and the two searches compete by.",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="By so much the direct search must be better than the published one to be kept.",
)
@click.option("--steps-per-round", type=click.IntRange(min=1), default=None, help="Steps between two checks.")
@click.option("--write", type=click.Path(path_type=Path), help="Also write the checkpoint with the calibration in it.")
def calibrate(
    listing: Listing,
    out: Path,
    options: RunOptions,
    resume: bool,
    allow_failures: bool,
    measure: str,
    score: ScoreKind,
    margin: float,
    steps_per_round: int | None,
    write: Path | None,
) -> int:
    """Search thresholds for a whole range of budgets on a labelled validation set, never on the test set.

    \b
    Example:
      saccade calibrate data/annotations.json --videos data/videos --subset val -o calibration/ \\
          --config demo --write calibrated.safetensors
      saccade label more/ -o out/ --checkpoint calibrated.safetensors \\
          --set stop.kind=budget --set stop.budget_gmacs=0.05
    """
    config = options.config()
    listing.check(out, config)
    from pipeline.commands.terminal import print_rows
    from pipeline.inputs.tally import InputTally
    from pipeline.scoring.calibrate import all_steps, run_calibration

    tally = InputTally()
    list_sources = listing.lister(tally)
    if listing.dry_run:
        return _print_estimates({"calibration": all_steps(config)}, list_sources, as_json=options.as_json)
    stop = stop_on_signals()
    with _reports(options) as reports:
        calibration, run = run_calibration(
            config,
            list_sources,
            out=out,
            resume=resume,
            measure=measure,
            score=score,
            margin=margin,
            steps_per_round=steps_per_round,
            write=write,
            stop=stop,
            told=reports,
        )
    if stop.is_set:
        return 128 + stop.signal_number
    if calibration is not None and options.as_json:
        click.echo(json_text(calibration.to_header()))
    elif calibration is not None:
        print_rows(calibration.rows(out))
    _print_failures([run])
    return exit_code(listing.inputs, tally, [run], allow_failures=allow_failures)


@contextlib.contextmanager
def _reports(options: RunOptions) -> Iterator[RunReports]:
    """The functions that a run calls while it labels."""
    from pipeline.commands.label_display import label_display
    from pipeline.run import archive

    with label_display(quiet=options.quiet) as display:
        yield archive.RunReports(message=say, progress=display.progress, doing=display.doing, failed=display.failed)


def _show_evaluations(evaluations: Mapping[str, Evaluation], out: Path, *, as_json: bool) -> None:
    from pipeline.scoring.evaluate import format_table, policy_table

    if as_json:
        click.echo(json_text({name: e.as_dict() for name, e in evaluations.items()}))
    elif evaluations:
        click.echo(format_table(*policy_table(evaluations)))
        for name, evaluation in evaluations.items():
            for remark in evaluation.remarks():
                click.echo(f"{name}: {remark}")
        click.echo(f"reports: {out}")


def _print_failures(runs: Sequence[RunSummary]) -> None:
    """Prints how many items of each run failed, and why; once where two runs say the same."""
    lines = []
    for run in runs:
        if failed := run.failed + run.failed_before:
            reasons = [f"{n} {code}" for code, n in run.errors.items()]
            reasons += [f"{run.failed_before} in an earlier run"] if run.failed_before else []
            lines.append(f"{failed} items failed ({', '.join(reasons)})")
    for line in dict.fromkeys(lines):
        say(line)


def _print_estimates(
    configs: Mapping[str, Config], list_sources: Callable[[Sequence[str]], Iterator[Source]], *, as_json: bool
) -> int:
    """Prints what --dry-run says of the runs that a command would make, by their names."""
    from pipeline.run.dry_run import estimate

    found = {name: estimate(config, list_sources) for name, config in configs.items()}
    if as_json:
        click.echo(json_text({name: figures.to_dict() for name, figures in found.items()}))
    else:
        click.echo("\n\n".join(f"{name}\n{figures.text()}" for name, figures in found.items()))
    return 0 if all(figures.inputs for figures in found.values()) else NO_INPUT
