"""Figures of predictions that are made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from operators.errors import ConfigError
from pipeline.scoring.scores import (
    anytime_curve,
    average_precisions,
    budgeted_curve,
    by_video,
    confusion_matrix,
    mean_average_precision,
    score,
    score_classes,
    score_steps,
    searched_thresholds,
)
from tests.support.hand_made_labels import LOGITS, TRUTH, predictions


def test_average_precision_is_the_mean_of_the_precisions_at_the_positives():
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    # Positives at ranks 1 and 3: (1/1 + 2/3) / 2.
    found = average_precisions(scores, np.array([[True], [False], [True], [False]]))
    assert found == pytest.approx([5 / 6])


def test_a_class_without_positives_has_no_precision():
    assert average_precisions(np.array([[0.5], [0.4]]), np.zeros((2, 1), bool)).tolist() == [0.0]


def test_equal_scores_keep_the_order_of_the_rows():
    scores = np.full((3, 1), 0.5)
    assert average_precisions(scores, np.array([[False], [True], [False]])) == pytest.approx([1 / 2])


def test_map_by_the_first_label_counts_the_class_that_never_occurs_as_zero():
    # walk: a yes, c no, b yes: 5/6. run: b no, c yes, a no: 1/2. jump: nobody: 0.
    assert mean_average_precision(LOGITS, TRUTH[:, :1]) == pytest.approx(100 * (5 / 6 + 1 / 2 + 0) / 3)


def test_map_by_all_labels_takes_the_second_label_for_a_positive_too():
    # run: b yes, c yes, a no: 1.
    assert mean_average_precision(LOGITS, TRUTH) == pytest.approx(100 * (5 / 6 + 1 + 0) / 3)


def test_map_ranks_probabilities_not_logits():
    # The third logit is the same in both rows; as probabilities .58 and .04: the second row does not come first.
    logits = np.array([[0.0, 0.0, 1.0], [4.0, 0.0, 1.0]])
    assert mean_average_precision(logits, np.array([[2], [2]])) == pytest.approx(100 / 3)
    assert mean_average_precision(logits, np.array([[0], [2]])) == pytest.approx(100 * (1 / 2 + 0 + 1 / 2) / 3)


def test_the_published_relabelling_shifts_the_truth_but_not_the_scores_where_a_class_is_missing():
    truth = np.array([[0], [0], [2]])
    # With its own number jump is found first in c: (5/6 + 0 + 1) / 3.
    assert mean_average_precision(LOGITS, truth) == pytest.approx(100 * (5 / 6 + 0 + 1) / 3)
    # Renumbered, class 2 becomes class 1 and is sought in the scores of run, where c is second: (5/6 + 1/2 + 0) / 3.
    assert mean_average_precision(LOGITS, truth, relabel=True) == pytest.approx(100 * (5 / 6 + 1 / 2) / 3)
    scores = score(LOGITS, truth)
    assert (scores.map_first, scores.map_first_relabelled) == pytest.approx((100 * 11 / 18, 100 * 8 / 18))


def test_top_scores_go_by_the_first_label():
    scores = score(LOGITS, TRUTH)
    # a is right; b says run, which is its second label; c says walk.
    assert scores.num_clips == 3
    assert scores.top1 == pytest.approx(100 / 3)
    assert scores.top5 == 100.0
    assert scores.map_first == pytest.approx(100 * (5 / 6 + 1 / 2) / 3)
    assert scores.map_all == pytest.approx(100 * (5 / 6 + 1) / 3)


def test_the_sixth_of_seven_classes_is_not_in_the_top_five():
    logits = np.array([[7.0, 6, 5, 4, 3, 2, 1]] * 2, np.float32)
    assert score(logits, np.array([[4], [5]])).top5 == 50.0


def test_a_label_without_a_class_is_never_right():
    scores = score(LOGITS, np.array([[0], [-1], [-1]]))
    assert scores.top1 == pytest.approx(100 / 3)
    assert scores.top5 == pytest.approx(100 / 3)


def test_more_classes_than_are_sorted_at_once_give_the_same_precision():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 70))
    truth = rng.integers(0, 70, (20, 1))
    hot = np.zeros((20, 70), bool)
    hot[np.arange(20), truth[:, 0]] = True
    one_by_one = [average_precisions(logits[:, [k]], hot[:, [k]])[0] for k in range(70)]
    np.testing.assert_allclose(average_precisions(logits, hot), one_by_one)


def test_every_step_is_scored_on_its_own():
    steps = np.stack([np.roll(LOGITS, 1, axis=1), LOGITS], axis=1)
    first, last = score_steps(steps, TRUTH)
    # Rolled by one, b says jump and a, c say run: c is right.
    assert first.top1 == pytest.approx(100 / 3)
    assert last == score(LOGITS, TRUTH)


def test_an_empty_set_is_refused():
    with pytest.raises(ConfigError, match="no clip"):
        score(np.zeros((0, 3)), np.zeros((0, 1), np.int64))


def test_the_confusion_matrix_has_the_truth_in_its_rows():
    # a: walk for walk. b: run for walk. c: walk for run.
    assert confusion_matrix(predictions()).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_classes_are_scored_one_by_one():
    walk, run, jump = score_classes(predictions())
    assert (walk.num_clips, walk.num_correct, walk.num_predicted) == (2, 1, 2)
    assert (walk.recall, walk.precision, walk.average_precision) == pytest.approx((50, 50, 100 * 5 / 6))
    assert (run.recall, run.precision, run.average_precision) == pytest.approx((0, 0, 50))
    assert (jump.num_clips, jump.num_predicted) == (0, 0)
    assert np.isnan([jump.recall, jump.precision, jump.average_precision]).all()


def two_steps(*rows: tuple[float, float]) -> np.ndarray:
    """Step logits [N,2,2] of two classes: the probability of class 0 after each step."""
    p = np.array(rows)
    return np.log(np.stack([p, 1 - p], axis=-1)).astype(np.float32)


def test_the_anytime_curve_ends_every_clip_after_the_same_step():
    steps = two_steps((0.9, 0.9), (0.4, 0.8), (0.3, 0.2), (0.2, 0.6))
    first, last = anytime_curve(steps, np.zeros((4, 1), np.int64), np.array([2.0, 6.0]))
    assert (first.gmacs, first.top1, first.mean_steps) == (2.0, 25.0, 1.0)
    assert (last.gmacs, last.top1, last.mean_steps) == (6.0, 75.0, 2.0)


def test_the_budgeted_curve_takes_its_thresholds_from_other_clips():
    # q = 1: half of the four searched clips leave at step 1: those with .9 and .8, so the threshold is .8.
    search = two_steps((0.9, 0.9), (0.8, 0.8), (0.7, 0.9), (0.6, 0.9))
    # Confidences at step 1: .85 leaves right, .9 (of class 1) leaves wrong, .7 stays and is right in the end.
    steps = two_steps((0.85, 0.1), (0.1, 0.9), (0.7, 0.9))
    (point,) = budgeted_curve(
        table=searched_thresholds(search, (1.0,)),
        step_logits=steps,
        truth=np.zeros((3, 1), np.int64),
        gmacs=np.array([1.0, 4.0]),
        qs=(1.0,),
    )
    assert point.thresholds[0] == pytest.approx(0.8)
    assert point.top1 == pytest.approx(100 * 2 / 3)
    assert point.gmacs == pytest.approx((1 + 1 + 4) / 3)
    assert point.mean_steps == pytest.approx(4 / 3)
    assert point.q == 1.0


def test_the_published_row_of_q_runs_from_a_twentieth_to_39_twentieths():
    steps = two_steps((0.9, 0.9), (0.6, 0.8))
    table = searched_thresholds(steps)
    points = budgeted_curve(
        table=table, step_logits=steps, truth=np.zeros((2, 1), np.int64), gmacs=np.array([1.0, 2.0])
    )
    assert [point.q for point in points] == [pytest.approx(p / 20) for p in range(1, 40)]


def test_the_clips_of_a_video_are_averaged_as_probabilities():
    joined = by_video(
        predictions(
            video_ids=("a", "a", "b"),
            sources=("/x/a.mp4", "/x/a.mp4", "/x/b.mp4"),
            truth=np.array([[0], [0], [1]]),
            gmacs=np.array([1.0, 2.0, 4.0]),
            frames_total=np.array([8, 8, 8]),
        )
    )
    assert joined.video_ids == ("a", "b")
    np.testing.assert_allclose(np.exp(joined.logits), [[0.55, 0.35, 0.1], [0.5, 0.3, 0.2]], rtol=1e-5)
    assert joined.truth.tolist() == [[0], [1]]
    assert joined.gmacs is not None and joined.gmacs.tolist() == [3.0, 4.0]
    assert joined.frames_total is not None and joined.frames_total.tolist() == [16, 8]


def test_two_videos_of_one_name_stay_two():
    joined = by_video(predictions(video_ids=("a", "a", "a"), sources=("/x/a.mp4", "/y/a.mp4", "/z/a.mp4")))
    assert len(joined.video_ids) == 3
