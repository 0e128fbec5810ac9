"""`demo`: an archive made afresh, labelled with the checkpoint that ships, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from operators.errors import StageError
from operators.table.schema import summarize
from pipeline import config as configuration
from pipeline.inputs import sources as inputs
from pipeline.run.archive import RunReports, label_archive
from pipeline.run.loop import StopRequest
from pipeline.run.metrics import RunSummary
from pipeline.scoring.evaluate import Evaluation, evaluate_labels
from pipeline.synthetic.archive import generate
from pipeline.synthetic.video_plans import SynthSettings

SEED = 2026
"""Not a seed that any weights were trained on."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    run: RunSummary
    evaluation: Evaluation
    num_clips: int
    labels: Path


class _Stopped(Exception):
    pass


def run_demo(
    out: Path,
    *,
    videos: int,
    settings: tuple[str, ...],
    stop: StopRequest,
    told: RunReports,
    made: Callable[[int, int], None],
) -> DemoResult | None:
    """Makes OUT/archive, labels it into OUT/labels, scores it. What is there already is not made again.

    None when it was stopped before all was labelled.
    """
    archive = out / "archive"

    def heed(done: int, total: int) -> None:
        made(done, total)
        if stop.is_set:
            raise _Stopped

    try:
        generate(archive, SynthSettings(videos=videos, shares=(0, 0, 1), seed=SEED), progress=heed, workers=2)
    except _Stopped:
        return None
    except StageError:
        # A terminal's ctrl-C ends the processes that make videos as well.
        if stop.is_set:
            return None
        raise
    config = configuration.load("demo", settings=settings)
    listing = [str(archive / "annotations.json")]
    run = label_archive(
        config,
        lambda names: inputs.sources(listing, videos=archive / "videos", class_names=names),
        out=out,
        stop=stop,
        reports=told,
    )
    if run.interrupted:
        return None
    _, evaluation = evaluate_labels(out / "labels", truth_boxes=archive / "truth.parquet")
    return DemoResult(
        run=run, evaluation=evaluation, num_clips=summarize(out / "labels").num_clips, labels=out / "labels"
    )


def rows(result: DemoResult) -> list[tuple[str, str]]:
    """The demo's table."""
    evaluation, run = result.evaluation, result.run
    lines = [
        ("clips", f"{result.num_clips}"),
        ("accuracy", f"{evaluation.scores.top1:.1f} % against the known truth"),
    ]
    if evaluation.share_focused is not None:
        lines.append(("frames focused", f"{evaluation.share_focused:.1f} %"))
    looks = evaluation.looks
    if looks is not None and looks.centre_in_patch is not None and looks.evidence_in_patch is not None:
        hits = f"its centre in {looks.centre_in_patch:.1f} %, all of it in {looks.evidence_in_patch:.1f} % of patches"
        lines.append(("where there is evidence", hits))
    if evaluation.gmacs is not None and evaluation.gmacs_full:
        share = 100 * evaluation.gmacs / evaluation.gmacs_full
        lines.append(
            ("GMACs per clip", f"{evaluation.gmacs:.4g}, {share:.1f} % of {evaluation.gmacs_full:.4g} for full frames")
        )
    if run.steady_clips_per_s is not None:
        lines.append(("clips per second", f"{run.steady_clips_per_s:.1f}, once everything runs"))
    else:
        lines.append(("clips per second", "labelled by an earlier call"))
    if not run.is_trained:
        lines.append(("weights", "UNTRAINED (seeded random): the labels mean nothing"))
    lines.append(("labels", f"{result.labels}/*.parquet"))
    return lines
