"""Curves, reports and comparisons of labels that are made by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from operators.errors import ConfigError, SinkError
from operators.records import ClipLabel
from pipeline.scoring.evaluate import (
    evaluate_labels,
    evaluate_predictions,
    format_table,
    policy_table,
    predictions_json,
    write_report,
)
from pipeline.scoring.scores import (
    searched_thresholds,
)
from run_pipeline import main
from tests.support.hand_made_labels import LOGITS, NAMES, label, predictions, table


def stepped(video_id: str, *steps: tuple[float, float, float], **changes: Any) -> ClipLabel:
    """A clip of class walk with the probabilities of all its steps, which cost 1 and 4 together."""
    given = {"step_gmacs": (1.0, 4.0)[: len(steps)], "stopped_at": len(steps), **changes}
    logits = np.log(np.maximum(np.array(steps, np.float32), 1e-9))
    return label(video_id, list(steps[-1]), ("walk",), step_logits=logits, **given)


def to_search(folder: Path) -> Path:
    """Of these two, one leaves after the first step where q is 1: the threshold there is .8."""
    return table(folder, stepped("x", (0.8, 0.1, 0.1), (0.9, 0, 0.1)), stepped("y", (0.6, 0.2, 0.2), (0.9, 0, 0.1)))


def to_judge(folder: Path) -> Path:
    """One that is sure and right at once, one that is right only in the end."""
    return table(folder, stepped("a", (0.9, 0.1, 0), (0.9, 0.1, 0)), stepped("b", (0.2, 0.5, 0.3), (0.9, 0.1, 0)))


def test_eval_draws_the_budgeted_curve_with_thresholds_searched_on_other_labels(tmp_path):
    judged, searched = to_judge(tmp_path / "test"), to_search(tmp_path / "val")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    arguments = ["eval", str(judged), "-o", str(tmp_path / "report"), "--classes", str(tmp_path / "names.txt")]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--search", str(searched)])
    assert ended.value.code == 0
    scores = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert [point["top1"] for point in scores["anytime"]] == [50.0, 100.0]
    even = next(point for point in scores["budgeted"] if point["q"] == 1.0)
    assert even["thresholds"][0] == pytest.approx(0.8)
    assert (even["gmacs"], even["top1"]) == (2.5, 100.0)
    assert (tmp_path / "report" / "curves.png").is_file()


def test_a_published_files_own_thresholds_give_the_budgeted_curve(tmp_path):
    judged = to_judge(tmp_path)
    rows = [[0.8, -1e8]] * 39
    _, evaluation = evaluate_labels(judged, class_names=NAMES, published=rows)
    assert {(point.gmacs, point.top1) for point in evaluation.budgeted} == {(2.5, 100.0)}
    # Those of another number of looks are none for these labels.
    _, other = evaluate_labels(judged, class_names=NAMES, published=[[0.8, 0.8, -1e8]] * 39)
    assert other.budgeted == ()


@pytest.mark.parametrize(
    ("searched", "message"),
    [
        ([label("x", [1, 0, 0], ("walk",))], "val: there are no step_logits"),
        ([stepped("x", (1, 0, 0)), stepped("y", (1, 0, 0), (1, 0, 0))], "val: some clips stopped early"),
        ([stepped("x", (1, 0, 0))], "val: 1 steps per clip, but the labels to evaluate have 2"),
        ([stepped("a", (1, 0, 0), (1, 0, 0))], "1 of the sources to evaluate are in .*val too"),
    ],
)
def test_labels_that_thresholds_cannot_be_searched_on_are_refused(tmp_path, searched, message):
    judged, val = to_judge(tmp_path / "test"), table(tmp_path / "val", *searched)
    with pytest.raises(ConfigError, match=message):
        evaluate_labels(judged, class_names=NAMES, search=val)


def test_predictions_take_the_activitynet_form():
    form = predictions_json(predictions(), num_best=2)
    assert set(form) == {"version", "results", "external_data"}
    assert [entry["label"] for entry in form["results"]["b"]] == ["run", "walk"]
    assert form["results"]["b"][0]["score"] == pytest.approx(0.5)


def test_a_report_writes_scores_classes_predictions_and_pictures(tmp_path):
    steps = np.stack([LOGITS, LOGITS], axis=1)
    given = predictions(step_logits=steps)
    evaluation = evaluate_predictions(given, step_gmacs=np.array([1.0, 2.0]), thresholds=searched_thresholds(steps))
    written = write_report(tmp_path / "report", given, evaluation)
    assert [path.name for path in written] == [
        *("scores.json", "classes.csv", "predictions.json", "confusion.png", "curves.png"),
    ]
    scores = json.loads(written[0].read_text())
    assert scores["scores"]["top1"] == pytest.approx(100 / 3)
    assert len(scores["anytime"]) == 2 and len(scores["budgeted"]) == 39
    with written[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["num_clips"]) for row in rows] == [("walk", "2"), ("run", "1"), ("jump", "0")]
    # Nothing to divide by: an empty cell, not a nan.
    assert rows[2]["recall"] == ""
    assert set(json.loads(written[2].read_text())["results"]) == {"a", "b", "c"}
    for path in written[3:]:
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 200 and picture.std() > 5


def test_a_report_that_cannot_be_written_is_the_worlds_fault(tmp_path):
    (tmp_path / "file").write_text("")
    given = predictions()
    with pytest.raises(SinkError, match="file"):
        write_report(tmp_path / "file", given, evaluate_predictions(given))


def test_policies_stand_side_by_side_with_only_the_columns_that_say_something():
    costs = {"gmacs": np.full(3, 2.0), "gmacs_full": np.full(3, 8.0)}
    learned, centre = evaluate_predictions(predictions(**costs)), evaluate_predictions(predictions())
    head, rows = policy_table({"learned": learned, "center": centre})
    assert head == ("policy", "clips", "top-1 %", "top-5 %", "mAP %", "GMACs", "of full %")
    assert rows[0] == ("learned", "3", "33.3", "100.0", "61.1", "2", "25.0")
    assert rows[1] == ("center", "3", "33.3", "100.0", "61.1", "", "")
    assert format_table(head[:2], [row[:2] for row in rows]) == "policy   clips\nlearned      3\ncenter       3"
