"""What a labels table is worth against its truth, and the report of it.

`read_labels.py` reads the tables, `scores.py` computes the figures, and `looks.py` judges where a policy looked.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import ConfigError, SinkError
from operators.json_text import json_text, json_value
from pipeline.families.truth import read_truth
from pipeline.scoring.looks import LookScores, look_scores
from pipeline.scoring.read_labels import labels_dataset, read_looks, read_predictions
from pipeline.scoring.scores import (
    BUDGET_QS,
    CurvePoint,
    Predictions,
    Scores,
    anytime_curve,
    budgeted_curve,
    by_video,
    confusion_matrix,
    score,
    score_classes,
    score_steps,
    searched_thresholds,
    softmax,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """All figures of one labelled set."""

    scores: Scores
    per_step: tuple[Scores, ...] = ()
    num_failed: int = 0
    num_without_truth: int = 0
    unknown_labels: tuple[str, ...] = ()
    is_exact: bool = True
    gmacs: float | None = None
    """Mean per clip, as gmacs_full."""
    gmacs_full: float | None = None
    share_focused: float | None = None
    """Frames focused of all frames sampled."""
    mean_steps: float | None = None
    looks: LookScores | None = None
    anytime: tuple[CurvePoint, ...] = ()
    budgeted: tuple[CurvePoint, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The figures in a form that JSON can hold."""
        return json_value(asdict(self))

    def remarks(self) -> list[str]:
        """What a reader of the figures has to know."""
        lines = []
        if self.num_failed:
            lines.append(f"{self.num_failed} clips failed and are in no figure")
        if self.num_without_truth:
            lines.append(f"{self.num_without_truth} clips have no truth and are in no figure")
        if self.unknown_labels:
            first, more = ", ".join(self.unknown_labels[:5]), len(self.unknown_labels) - 5
            also = f" and {more} more" if more > 0 else ""
            lines.append(f"the truth has labels that are no class, which count as wrong: {first}{also}")
        if not self.is_exact:
            lines.append("mAP is from the best few answers of each clip: label with output.logits=true for all")
        return lines


def evaluate_predictions(
    predictions: Predictions,
    *,
    looks: LookScores | None = None,
    step_gmacs: np.ndarray | None = None,
    thresholds: np.ndarray | None = None,
) -> Evaluation:
    """All figures of the predictions. `step_gmacs` [T] cumulative adds the anytime curve; `thresholds` [39,T] the
    budgeted one."""

    def mean(values: np.ndarray | None) -> float | None:
        return None if values is None or not len(values) else float(values.mean())

    total, focused = predictions.frames_total, predictions.frames_focused
    steps, truth = predictions.step_logits, predictions.truth
    if step_gmacs is None:
        step_gmacs = predictions.step_gmacs
    anytime: tuple[CurvePoint, ...] = ()
    budgeted: tuple[CurvePoint, ...] = ()
    if steps is not None and step_gmacs is not None:
        anytime = anytime_curve(steps, truth, step_gmacs)
        if thresholds is not None:
            budgeted = budgeted_curve(table=thresholds, step_logits=steps, truth=truth, gmacs=step_gmacs)
    return Evaluation(
        scores=score(predictions.logits, truth),
        per_step=() if steps is None else score_steps(steps, truth),
        num_failed=predictions.num_failed,
        num_without_truth=predictions.num_without_truth,
        unknown_labels=predictions.unknown_labels,
        is_exact=predictions.is_exact,
        gmacs=mean(predictions.gmacs),
        gmacs_full=mean(predictions.gmacs_full),
        share_focused=None
        if total is None or focused is None or not total.sum()
        else 100.0 * float(focused.sum()) / float(total.sum()),
        mean_steps=mean(predictions.stopped_at),
        looks=looks,
        anytime=anytime,
        budgeted=budgeted,
    )


def evaluate_labels(
    labels: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    truth: Mapping[str, Sequence[str]] | None = None,
    truth_boxes: str | Path | None = None,
    is_per_video: bool = False,
    search: str | Path | None = None,
    published: Sequence[Sequence[float]] | None = None,
) -> tuple[Predictions, Evaluation]:
    """Judges a labels table against its truth; `truth_boxes` is the synthetic archive's truth.parquet.

    The budgeted curve takes its thresholds from `search`, a table of other clips, or else from `published`, those
    that a checkpoint file holds.
    """
    predictions = read_predictions(labels, class_names=class_names, truth=truth)
    if is_per_video:
        predictions = by_video(predictions)
    looks = None
    if truth_boxes is not None:
        looks = look_scores(read_looks(labels_dataset(Path(labels))), read_truth(Path(truth_boxes)))
    thresholds = None
    if search is not None:
        searched = read_predictions(search, class_names=predictions.class_names)
        thresholds = searched_thresholds(_search_logits(searched, predictions, str(search)))
    elif published is not None and (steps := predictions.step_logits) is not None and _took_all_steps(predictions):
        table = np.array(published, np.float64)
        # With fewer looks than the published ones there is no such curve.
        thresholds = table if table.shape == (len(BUDGET_QS), steps.shape[1]) else None
    return predictions, evaluate_predictions(predictions, looks=looks, thresholds=thresholds)


def _search_logits(searched: Predictions, judged: Predictions, name: str) -> np.ndarray:
    """Step logits [M,T,K] to search thresholds for `judged` on; ConfigError where they are none."""
    for which, given in ((name, searched), ("the labels to evaluate", judged)):
        if given.step_logits is None or given.step_gmacs is None:
            raise ConfigError(
                f"{which}: there are no step_logits, or --per-video has joined them; "
                "label with --set output.step_logits=true, and leave --per-video out"
            )
        if not _took_all_steps(given):
            raise ConfigError(f"{which}: some clips stopped early; label with --set stop.kind=none")
    assert searched.step_logits is not None and judged.step_logits is not None
    theirs, ours = searched.step_logits.shape[1], judged.step_logits.shape[1]
    if theirs != ours:
        raise ConfigError(f"{name}: {theirs} steps per clip, but the labels to evaluate have {ours}: label both alike")
    if shared := set(searched.sources) & set(judged.sources):
        raise ConfigError(
            f"{len(shared)} of the sources to evaluate are in {name} too ({min(shared)}): thresholds are searched on "
            "other clips than those that they are judged with"
        )
    return searched.step_logits


def _took_all_steps(predictions: Predictions) -> bool:
    steps, stopped_at = predictions.step_logits, predictions.stopped_at
    return steps is not None and (stopped_at is None or bool((stopped_at >= steps.shape[1]).all()))


def predictions_json(predictions: Predictions, *, num_best: int | None = None) -> dict[str, Any]:
    """The ActivityNet prediction form: every class of every video with its probability, best first."""
    joined = by_video(predictions)
    probabilities = softmax(joined.logits)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, row in zip(joined.video_ids, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:num_best]
        results[name] = [{"label": joined.class_names[k], "score": float(row[k])} for k in best]
    return {"version": "VERSION 1.3", "results": results, "external_data": {}}


def write_report(out: str | Path, predictions: Predictions, evaluation: Evaluation) -> list[Path]:
    """Writes scores, classes, confusion matrix, predictions and curves into folder `out`; gives what was written."""
    # Matplotlib takes half a second to import, and only reports need it.
    from pipeline.scoring.plots import draw_confusion, draw_curves

    folder = Path(out)
    written = [folder / name for name in ("scores.json", "classes.csv", "predictions.json", "confusion.png")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written[0].write_text(json_text(evaluation.as_dict(), indent=1) + "\n", encoding="utf-8")
        with written[1].open("w", newline="", encoding="utf-8") as file:
            rows = [asdict(row) for row in score_classes(predictions)]
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            # An empty cell where a figure is not finite.
            writer.writerows(json_value(rows))
        written[2].write_text(json_text(predictions_json(predictions)) + "\n", encoding="utf-8")
        draw_confusion(written[3], confusion_matrix(predictions), predictions.class_names)
        if evaluation.anytime or evaluation.budgeted:
            curves = {"after every step": evaluation.anytime, "stopping when sure": evaluation.budgeted}
            written.append(folder / "curves.png")
            draw_curves(
                written[-1],
                {name: [(p.gmacs, p.top1) for p in points] for name, points in curves.items() if points},
                x_label="GMACs per clip, mean",
                y_label="top-1 accuracy, %",
            )
    except OSError as exc:
        raise SinkError(f"cannot write the report to {folder}: {exc}") from exc
    return written


def policy_table(
    evaluations: Mapping[str, Evaluation],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The head of a table that sets policies side by side, and its rows, one per policy, in the order given; columns
    that nothing fills are left out."""

    def cell(value: float | None, form: str = ".1f") -> str:
        return "" if value is None or not np.isfinite(value) else format(value, form)

    def columns(name: str, e: Evaluation) -> dict[str, str]:
        looks = e.looks
        relative = 100 * e.gmacs / e.gmacs_full if e.gmacs is not None and e.gmacs_full else None
        return {
            "policy": name,
            "clips": str(e.scores.num_clips),
            "top-1 %": cell(e.scores.top1),
            "top-5 %": cell(e.scores.top5),
            "mAP %": cell(e.scores.map_all),
            "GMACs": cell(e.gmacs, ".4g"),
            "of full %": cell(relative),
            "steps": cell(e.mean_steps),
            "focused %": cell(e.share_focused),
            "evidence's centre in patch %": cell(looks.centre_in_patch if looks else None),
            "whole evidence in patch %": cell(looks.evidence_in_patch if looks else None),
            "empty skipped %": cell(looks.empty_skipped if looks else None),
            "visible focused %": cell(looks.visible_focused if looks else None),
        }

    table = [columns(name, e) for name, e in evaluations.items()]
    head = tuple(key for key in (table[0] if table else {}) if any(row[key] for row in table))
    return head, [tuple(row[key] for key in head) for row in table]


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Plain text, numbers to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
