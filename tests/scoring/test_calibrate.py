"""Thresholds for budgets, on tables whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from operators.errors import ConfigError
from operators.weights.header import Header
from pipeline.config import Config, parse
from pipeline.families.calibrated import calibrated_for, read_calibration, stop_rule
from pipeline.scoring.calibrate import MARGIN, StepTable, search, table_of
from pipeline.scoring.scores import Predictions
from policies.stopping import Confidence, for_budget
from policies.thresholds import exit_steps
from run_pipeline import cli

HEADER = Header(family="adafocus", glance=None, focus=None, classifier=None)


def easy_and_hard(num_clips: int = 400) -> StepTable:
    """Half of the clips are sure and right at once, the others only at the last of four steps. Each step costs 1."""
    is_easy = np.arange(num_clips) % 2 == 0
    confidences = np.where(is_easy[:, None], 0.95, np.array([[0.4, 0.5, 0.6, 0.99]]))
    correct = np.where(is_easy[:, None], True, np.array([[False, False, False, True]]))
    costs = np.broadcast_to(np.arange(1.0, 5.0), (num_clips, 4)).copy()
    return StepTable(confidences=confidences, correct=correct, costs=costs)


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
    table = StepTable(confidences=confidences, correct=correct, costs=costs)
    seen, unseen = table.rows(np.arange(2000)), table.rows(np.arange(2000, 4000))
    found = search(seen)
    for budget in (4.0, 7.0, 10.0, 13.0):
        rule = for_budget(found.points, budget)
        exits = exit_steps(unseen.confidences, np.array(rule.thresholds))
        spent = unseen.costs[np.arange(2000), exits].mean()
        assert spent == pytest.approx(budget, rel=0.05)


def hardly_apart(num_clips: int = 800) -> StepTable:
    """Confidence says little of who is right, so what one search finds over the other is chance."""
    rng = np.random.default_rng(2)
    confidences = np.sort(rng.uniform(0.3, 1.0, (num_clips, 6)), axis=1)
    correct = rng.uniform(size=confidences.shape) < 0.8 + 0.1 * confidences
    return StepTable(
        confidences=confidences,
        correct=correct,
        costs=np.broadcast_to(np.arange(1.0, 7.0), confidences.shape).copy(),
    )


def test_the_direct_search_is_kept_only_where_it_is_better_by_the_margin() -> None:
    table = hardly_apart()

    def num_direct(**margin: float) -> int:
        return sum(point.found_by == "direct" for point in search(table, **margin).points)

    # Half of 800 clips are searched on: two of them are half a point, and a lead of so few says nothing.
    assert num_direct(margin=0.0) > num_direct() == num_direct(margin=0.5) > num_direct(margin=50.0)
    assert search(table).to_header()["margin"] == 0.5


def test_the_command_has_the_margin_of_the_search() -> None:
    (margin,) = (option for option in cli.commands["calibrate"].params if option.name == "margin")
    assert margin.default == MARGIN


# Three clips of three classes at two steps: at first they say nothing, then what PROBABILITIES says.
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.5, 0.3, 0.2]])
TRUTH = np.array([[0, -1], [0, 1], [1, -1]])


def scored_by_map(copies: int = 1) -> StepTable:
    logits = np.stack([np.zeros((3, 3)), np.log(PROBABILITIES)], axis=1).astype(np.float32)
    predictions = Predictions(
        class_names=("walk", "run", "jump"),
        video_ids=("a", "b", "c") * copies,
        truth=np.tile(TRUTH, (copies, 1)),
        logits=np.tile(logits[:, -1], (copies, 1)),
        step_logits=np.tile(logits, (copies, 1, 1)),
        step_gmacs=np.tile([[1.0, 4.0]], (3 * copies, 1)),
    )
    return table_of(predictions, measure="softmax", score="map")


def test_map_ranks_the_answers_that_clips_give_at_their_exits() -> None:
    table = scored_by_map()
    # All at the end. walk: a yes, c no, b yes: 5/6. run: b yes, c yes, a no: 1. jump: nobody: 0.
    assert table.score(np.array([1, 1, 1]), "map") == pytest.approx(100 * (5 / 6 + 1 + 0) / 3)
    # b leaves at once with a third for each class. walk: a yes, c no, b yes. run: b yes (.33), c yes (.3), a no.
    assert table.score(np.array([1, 0, 1]), "map") == pytest.approx(100 * (5 / 6 + 1 + 0) / 3)
    # c leaves at once. walk: a yes, b yes, c no: 1. run: b yes, c yes, a no: 1.
    assert table.score(np.array([1, 1, 0]), "map") == pytest.approx(100 * (1 + 1 + 0) / 3)
    assert table.score(np.array([1, 1, 0]), "accuracy") == pytest.approx(100 * 2 / 3)


def test_a_curve_of_map_says_that_it_is_one(tmp_path: Path) -> None:
    found = search(scored_by_map(40), score="map")
    half = scored_by_map(40).rows(np.random.default_rng(0).permutation(120)[60:])
    assert found.score_all_steps == pytest.approx(half.score(np.ones(60, int), "map"))
    assert found.score_all_steps != search(scored_by_map(40)).score_all_steps
    assert {point.score for point in found.points} >= {found.score_all_steps}
    assert found.to_header()["score"] == "map"
    assert "% mAP at 4 GMACs" in dict(found.rows(tmp_path))["all steps"]


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


def test_a_budget_takes_the_point_whose_cost_is_closest_to_it(tmp_path: Path) -> None:
    path, header = tmp_path / "calibration.json", HEADER
    points = [{"gmacs": gmacs, "score": 50.0, "thresholds": [gmacs / 10] * 4} for gmacs in (1.0, 2.0, 3.0)]
    path.write_text(json.dumps({"points": points, "for": calibrated_for(Config(), HEADER)}))
    # 2.7 could pay 2, but spends what is asked for with 3.
    for asked, spends in ((1.0, 1.0), (1.4, 1.0), (2.4, 2.0), (2.7, 3.0), (99.0, 3.0)):
        assert stop_rule(budget(asked, path), header) == Confidence(thresholds=(spends / 10,) * 4)
    with pytest.raises(ConfigError, match="below the cheapest exit"):
        stop_rule(budget(0.1, path), header)
    with pytest.raises(ConfigError, match=r"skip\.kind=none there, random here"):
        stop_rule(budget(2.7, path, **{"skip.kind": "random"}), header)
