"""Thresholds for budgets, on tables whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from operators.errors import ConfigError
from operators.header import Header
from pipeline.calibrate import Table, search, table_of
from pipeline.config import Config, parse
from pipeline.rules import calibrated_for, read_calibration, stop_rule
from pipeline.scores import Predictions
from policies.stopping import Confidence, exit_steps, for_budget

HEADER = Header(family="adafocus", glance=None, focus=None, classifier=None)


def easy_and_hard(num_clips: int = 400) -> Table:
    """Half of the clips are sure and right at once, the others only at the last of four steps. Each step costs 1."""
    is_easy = np.arange(num_clips) % 2 == 0
    confidences = np.where(is_easy[:, None], 0.95, np.array([[0.4, 0.5, 0.6, 0.99]]))
    correct = np.where(is_easy[:, None], True, np.array([[False, False, False, True]]))
    costs = np.broadcast_to(np.arange(1.0, 5.0), (num_clips, 4)).copy()
    return Table(confidences=confidences, correct=correct, costs=costs)


def test_easy_clips_leave_at_once_and_nothing_is_lost() -> None:
    found = search(easy_and_hard())
    # Half leave after one step, half after four: 2.5 on average, and all are right.
    perfect = [point for point in found.points if point.score == 100.0]
    assert perfect
    assert min(point.gmacs for point in perfect) == pytest.approx(2.5, abs=0.15)
    assert found.score_all_steps == 100.0
    assert found.gmacs_all_steps == 4.0


def test_the_cheapest_point_is_the_first_exit() -> None:
    found = search(easy_and_hard())
    assert found.points[0].gmacs == pytest.approx(1.0, abs=0.2)


def test_a_rule_from_the_points_spends_what_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    # Confidence that grows at a clip's own pace, right as often as it says.
    pace = rng.uniform(0.02, 0.4, (4000, 1))
    confidences = 1 - 0.9 * np.exp(-pace * np.arange(1, 9))
    correct = rng.uniform(size=confidences.shape) < confidences
    costs = np.broadcast_to(np.arange(1.0, 9.0) * 2, confidences.shape).copy()
    table = Table(confidences=confidences, correct=correct, costs=costs)
    seen, unseen = table.rows(np.arange(2000)), table.rows(np.arange(2000, 4000))
    found = search(seen)
    for budget in (4.0, 7.0, 10.0, 13.0):
        rule = for_budget(found.points, budget)
        exits = exit_steps(unseen.confidences, np.array(rule.thresholds))
        spent = unseen.costs[np.arange(2000), exits].mean()
        assert spent == pytest.approx(budget, rel=0.05)


def test_in_rounds_of_two_nothing_stops_between_two_checks() -> None:
    found = search(easy_and_hard(), steps_per_round=2)
    assert all(point.thresholds[0] == point.thresholds[2] == 1e8 for point in found.points)
    assert found.points[0].gmacs >= 2.0


def test_too_few_clips_are_refused() -> None:
    with pytest.raises(ConfigError, match="too few"):
        search(easy_and_hard(4))


def test_a_table_without_steps_is_refused_with_the_way_out() -> None:
    predictions = Predictions(
        class_names=("a", "b"), video_ids=("x",), truth=np.array([[0]]), logits=np.zeros((1, 2), np.float32)
    )
    with pytest.raises(ConfigError, match=r"output\.step_logits=true"):
        table_of(predictions, measure="softmax")


def test_any_of_several_true_labels_is_right() -> None:
    logits = np.array([[[0.0, 2.0, 1.0]]], np.float32)
    predictions = Predictions(
        class_names=("a", "b", "c"),
        video_ids=("x",),
        truth=np.array([[0, 1]]),
        logits=logits[:, -1],
        step_logits=logits,
        step_gmacs=np.array([[1.0]]),
    )
    table = table_of(predictions, measure="logit")
    assert table.correct.tolist() == [[True]]
    assert table.confidences.tolist() == [[2.0]]


def test_a_calibration_beside_the_checkpoint_reads_as_it_was_written(tmp_path: Path) -> None:
    told_as = search(easy_and_hard()).to_header() | {"for": calibrated_for(Config(), HEADER)}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(told_as))
    assert read_calibration(path) == json.loads(json.dumps(told_as))
    with pytest.raises(ConfigError, match="no calibration"):
        read_calibration(tmp_path / "none.json")


def budget(gmacs: float, path: Path, **more: object) -> Config:
    settings = {"stop.kind": "budget", "stop.budget_gmacs": gmacs, "stop.calibration": str(path), **more}
    return parse({"sampling.num_frames": 4, **settings})


def test_a_budget_takes_the_dearest_point_that_it_can_pay(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(search(easy_and_hard()).to_header() | {"for": calibrated_for(Config(), HEADER)}))
    header = Header(family="adafocus", glance=None, focus=None, classifier=None)
    rule = stop_rule(budget(2.7, path), header)
    assert isinstance(rule, Confidence)
    assert len(rule.thresholds) == 4
    with pytest.raises(ConfigError, match="below the cheapest exit"):
        stop_rule(budget(0.1, path), header)
    with pytest.raises(ConfigError, match=r"skip\.kind=none there, random here"):
        stop_rule(budget(2.7, path, **{"skip.kind": "random"}), header)
