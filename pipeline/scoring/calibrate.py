"""`calibrate`: from one run with all steps to thresholds for a whole range of budgets.

Thresholds are searched on one half of the clips and judged by the accuracy they give on the other: that of the clips
they were fitted to would flatter. Their cost is the mean over all clips, since thresholds hardly fit a mean cost, and a
half alone misses it by two to four percent. Two searches compete at every budget, the published one (exits spread
geometrically, one number) and a direct one (one threshold from some step on, two numbers); the direct one is kept where
it is better by more than a margin on the clips that both were searched on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from operators.errors import ConfigError
from operators.records import Source
from operators.table.output import check_output
from operators.weights import checkpoints
from pipeline.config import Config
from pipeline.families.calibrated import calibrated_for, made_for
from pipeline.families.files import load_checkpoint_file
from pipeline.plan.resolve import resolve
from pipeline.run.archive import RunReports, label_archive
from pipeline.run.loop import StopRequest
from pipeline.run.metrics import RunSummary
from pipeline.run.session import machine_of
from pipeline.scoring.plots import draw_curves
from pipeline.scoring.read_labels import read_predictions
from pipeline.scoring.scores import Predictions, mean_average_precision, softmax
from policies.stopping import OperatingPoint
from policies.thresholds import (
    NEVER_STOPS,
    accuracy_at,
    direct_for_budget,
    exit_steps,
    geometric_for_budget,
    mean_cost,
)

NUM_BUDGETS = 120
"""Steps of two to three percent over the usual range: whatever is asked for has a point close to it."""
MARGIN = 0.5
"""Points by which the direct search must be better. It has a number more to fit what it sees: on some hundred clips a
lead of one or two of them says nothing."""

ScoreKind = Literal["accuracy", "map"]
SCORE_NAMES: dict[ScoreKind, str] = {"accuracy": "accuracy", "map": "mAP"}


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """The answers and costs of all steps of N labelled clips."""

    confidences: np.ndarray
    """float64 [N,T]"""
    correct: np.ndarray
    """bool [N,T]"""
    costs: np.ndarray
    """float64 [N,T]: GMACs up to each step"""
    logits: np.ndarray | None = None
    """float32 [N,T,K]; needed for mAP, as `truth` is"""
    truth: np.ndarray | None = None
    """int64 [N,L], filled up with -1: every label counts"""

    def rows(self, which: np.ndarray) -> StepTable:
        return StepTable(
            confidences=self.confidences[which],
            correct=self.correct[which],
            costs=self.costs[which],
            logits=None if self.logits is None else self.logits[which],
            truth=None if self.truth is None else self.truth[which],
        )

    def at_steps(self, steps: np.ndarray) -> StepTable:
        return StepTable(
            confidences=self.confidences[:, steps],
            correct=self.correct[:, steps],
            costs=self.costs[:, steps],
            logits=None if self.logits is None else self.logits[:, steps],
            truth=self.truth,
        )

    def score(self, exits: np.ndarray, by: ScoreKind) -> float:
        """The score in percent of the answers that the clips give at their exits."""
        if by == "accuracy":
            return accuracy_at(exits, self.correct)
        if self.logits is None or self.truth is None:
            raise ValueError("mAP needs logits and truth")
        return mean_average_precision(self.logits[np.arange(self.num_clips), exits], self.truth)

    @property
    def num_clips(self) -> int:
        return len(self.confidences)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Operating points from cheap to dear, and what they were searched with."""

    points: tuple[OperatingPoint, ...]
    measure: str
    score: ScoreKind
    margin: float
    steps_per_round: int
    num_searched: int
    num_reported: int
    score_all_steps: float
    gmacs_all_steps: float

    def rows(self, out: Path) -> list[tuple[str, str]]:
        """The calibration as a person reads it: names and values."""
        score = f"{self.score_all_steps:.1f} % {SCORE_NAMES[self.score]}"
        lines = [
            ("all steps", f"{score} at {self.gmacs_all_steps:.4g} GMACs per clip"),
            ("searched on", f"{self.num_searched} clips, judged on {self.num_reported} others"),
        ]
        for loss in (0.5, 1.0, 2.0):
            enough = [point for point in self.points if point.score >= self.score_all_steps - loss]
            if enough:
                best = min(enough, key=lambda point: point.gmacs)
                share = best.gmacs / self.gmacs_all_steps
                what = f"{best.gmacs:.4g} GMACs ({share:.0%}), {best.score:.1f} %, {best.found_by}"
                lines.append((f"at {loss:g} point(s) less", what))
        lines.append(("budgets", f"{self.points[0].gmacs:.4g} to {self.points[-1].gmacs:.4g} GMACs per clip"))
        lines.append(("written", f"{out}/calibration.json, {out}/calibration.png"))
        return lines

    def to_header(self) -> dict[str, Any]:
        """The calibration as a checkpoint's header holds it, beside the settings it was made for."""
        return {
            "measure": self.measure,
            "score": self.score,
            "margin": self.margin,
            "steps_per_round": self.steps_per_round,
            "num_searched": self.num_searched,
            "num_reported": self.num_reported,
            "score_all_steps": self.score_all_steps,
            "gmacs_all_steps": self.gmacs_all_steps,
            "points": [asdict(point) | {"thresholds": list(point.thresholds)} for point in self.points],
        }


def table_of(predictions: Predictions, *, measure: str, score: ScoreKind = "accuracy") -> StepTable:
    """The steps of labels that were made with step_logits and step_gmacs."""
    if predictions.step_logits is None or predictions.step_gmacs is None:
        raise ConfigError("the labels have no step_logits: label with --set output.step_logits=true")
    logits = predictions.step_logits
    values = softmax(logits) if measure == "softmax" else logits
    truth = predictions.truth
    best = logits.argmax(axis=2)
    correct = (best[:, :, None] == truth[:, None, :]).any(axis=2)
    return StepTable(
        confidences=values.max(axis=2).astype(np.float64),
        correct=correct,
        costs=predictions.step_gmacs,
        logits=logits if score == "map" else None,
        truth=truth if score == "map" else None,
    )


def search(
    table: StepTable,
    *,
    steps_per_round: int = 1,
    seed: int = 0,
    margin: float = MARGIN,
    measure: str = "softmax",
    score: ScoreKind = "accuracy",
) -> Calibration:
    """Searches thresholds for budgets from the cheapest exit to all steps.

    margin: points of the score by which the direct search must be better where both were searched, to be kept over the
    published one, which has less freedom to fit what it sees. With mAP the direct search still chooses its first step
    by accuracy: a mAP sorts the clips once per class, and is computed of the two candidates of each budget only.
    """
    if table.num_clips < 8:
        raise ConfigError(f"{table.num_clips} clips are too few to calibrate on; at least 8, better a thousand")
    num_steps = table.confidences.shape[1]
    ends = np.arange(steps_per_round - 1, num_steps, steps_per_round)
    if not len(ends) or ends[-1] != num_steps - 1:
        ends = np.append(ends, num_steps - 1)
    # Between two checks nothing can stop, so the search sees only the steps at which it may.
    seen = table.at_steps(ends)
    order = np.random.default_rng(seed).permutation(seen.num_clips)
    half = seen.num_clips // 2
    searched, reported = seen.rows(order[:half]), seen.rows(order[half:])
    low, high = float(searched.costs[:, 0].mean()), float(searched.costs[:, -1].mean())
    points: list[OperatingPoint] = []
    for budget in np.geomspace(low * 1.0005, high, NUM_BUDGETS):
        found = _best(searched, float(budget), margin, score)
        if found is None:
            continue
        thresholds, name = found
        exits = exit_steps(reported.confidences, thresholds)
        points.append(
            OperatingPoint(
                gmacs=mean_cost(exit_steps(seen.confidences, thresholds), seen.costs),
                score=reported.score(exits, score),
                thresholds=tuple(_spread(thresholds, ends, num_steps)),
                found_by=name,
            )
        )
    last = exit_steps(reported.confidences, np.full(len(ends), NEVER_STOPS))
    return Calibration(
        points=tuple(sorted(set(points), key=lambda point: point.gmacs)),
        measure=measure,
        score=score,
        margin=margin,
        steps_per_round=steps_per_round,
        num_searched=searched.num_clips,
        num_reported=reported.num_clips,
        score_all_steps=reported.score(last, score),
        gmacs_all_steps=mean_cost(last, reported.costs),
    )


def _best(table: StepTable, budget: float, margin: float, by: ScoreKind) -> tuple[np.ndarray, str] | None:
    published = geometric_for_budget(table.confidences, table.costs, budget)
    direct = direct_for_budget(table.confidences, table.correct, table.costs, budget)
    if published is None:
        return None if direct is None else (direct, "direct")
    if direct is None:
        return published, "published"
    score_published = table.score(exit_steps(table.confidences, published), by)
    score_direct = table.score(exit_steps(table.confidences, direct), by)
    return (direct, "direct") if score_direct > score_published + margin else (published, "published")


def _spread(thresholds: np.ndarray, ends: np.ndarray, num_steps: int) -> np.ndarray:
    """One threshold per step out of one per check; between checks nothing stops."""
    full = np.full(num_steps, NEVER_STOPS)
    full[ends] = thresholds
    return full


def write_into(checkpoint: Path, out: Path, calibration: Mapping[str, Any]) -> None:
    """Writes the checkpoint again, with the calibration in its header; one made under the same settings is replaced."""
    found = load_checkpoint_file(checkpoint)
    known = found.header.thresholds.get("calibrations", [])
    others = [c for c in known if made_for(c, found.header) != calibration["for"]]
    header = dataclasses.replace(found.header, thresholds={"calibrations": [*others, dict(calibration)]})
    checkpoints.save(out, dataclasses.replace(found, header=header))


def all_steps(config: Config) -> Config:
    """The settings that the set is labelled with: every step, and all logits."""
    if config.model.checkpoint is None:
        raise ConfigError("calibration belongs to a checkpoint: give --checkpoint FILE, or a preset that has one")
    return config.replaced({"stop.kind": "none", "output.step_logits": True, "output.logits": True})


def run_calibration(
    config: Config,
    list_sources: Callable[[Sequence[str]], Iterator[Source]],
    *,
    out: Path,
    resume: bool = True,
    measure: str,
    score: ScoreKind = "accuracy",
    margin: float = MARGIN,
    steps_per_round: int | None,
    write: Path | None,
    stop: StopRequest,
    told: RunReports,
) -> tuple[Calibration | None, RunSummary]:
    """Labels the set once with all steps, searches, and writes what was found: nothing where it was stopped, or no
    label was made. Says how the labelling went, too.
    """
    labels_as = all_steps(config)
    assert config.model.checkpoint is not None
    every = steps_per_round or config.stop.steps_per_round or 1
    # Rounds that the model cannot go in are refused before anything is labelled.
    check_output(out)
    machine = machine_of(config)
    plan = resolve(labels_as.replaced({"stop.steps_per_round": every}), machine)
    run = label_archive(
        labels_as, list_sources, out=out, resume=resume, stop=stop, reports=told, machine=machine
    )
    if stop.is_set or not run.has_labels:
        return None, run
    predictions = read_predictions(out, class_names=plan.header.class_names)
    calibration = search(
        table_of(predictions, measure=measure, score=score),
        steps_per_round=every,
        seed=config.compute.seed,
        margin=margin,
        measure=measure,
        score=score,
    )
    written = calibration.to_header() | {"for": calibrated_for(plan.config, plan.header)}
    (out / "calibration.json").write_text(json.dumps(written, indent=1))
    curves = {
        "thresholds": [(point.gmacs, point.score) for point in calibration.points],
        "all steps": [(calibration.gmacs_all_steps, calibration.score_all_steps)],
    }
    draw_curves(out / "calibration.png", curves, x_label="GMACs per clip", y_label=f"{SCORE_NAMES[score]} (%)")
    if write is not None:
        write_into(Path(config.model.checkpoint), write, written)
    return calibration, run
