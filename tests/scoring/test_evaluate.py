"""Scores, looks and reports on tables made by hand."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import ConfigError, PipelineError, SinkError
from operators.records import ClipLabel, PatchPlace
from operators.table.schema import SCHEMA, LabelStore
from pipeline.families.truth import TruthBoxes, read_truth
from pipeline.scoring.evaluate import (
    comparison,
    evaluate,
    evaluate_labels,
    format_table,
    predictions_json,
    write_report,
)
from pipeline.scoring.looks import ClipLooks, look_scores
from pipeline.scoring.read_labels import read_predictions, truth_array
from pipeline.scoring.scores import (
    Predictions,
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
from run_pipeline import main

NAMES = ("walk", "run", "jump")

# Three clips and their probabilities of three classes; as logits the logarithms do.
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.5, 0.3, 0.2]])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
TRUTH = np.array([[0, -1], [0, 1], [1, -1]])
"""The second clip has two labels."""


def predictions(**changes: Any) -> Predictions:
    given: dict[str, Any] = {
        "class_names": NAMES,
        "video_ids": ("a", "b", "c"),
        "truth": TRUTH,
        "logits": LOGITS,
        **changes,
    }
    return Predictions(**given)


def label(video_id: str, probabilities: list[float], truth: tuple[str, ...] | None, **changes: Any) -> ClipLabel:
    order = np.argsort(-np.array(probabilities), kind="stable")
    given: dict[str, Any] = {
        "video_id": video_id,
        "clip_id": video_id,
        "source_uri": f"/archive/{video_id}.mp4",
        "truth": truth,
        "label": NAMES[order[0]],
        "label_id": int(order[0]),
        "score": probabilities[order[0]],
        "topk": tuple((NAMES[k], int(k), probabilities[k]) for k in order),
        "frames_total": 8,
        "stopped_at": 8,
        **changes,
    }
    return ClipLabel(**given)


def table(folder: Path, *labels: ClipLabel) -> Path:
    """OUT with these labels in one part."""
    store = LabelStore(ids=("model", "config"), run_id="run", clock=lambda: 0.0)
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    pq.write_table(store.table(list(labels), SCHEMA), folder / "labels" / "part-000.parquet")
    return folder


THREE = (
    label("a", [0.7, 0.2, 0.1], ("walk",)),
    label("b", [0.4, 0.5, 0.1], ("walk", "run")),
    label("c", [0.5, 0.3, 0.2], ("run",)),
)


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


def test_a_table_gives_the_scores_that_its_arrays_give(tmp_path):
    out = table(tmp_path, *THREE)
    found, evaluation = evaluate_labels(out, class_names=NAMES)
    assert found.truth.tolist() == TRUTH.tolist()
    np.testing.assert_allclose(np.exp(found.logits), PROBABILITIES, rtol=1e-5)
    assert evaluation.scores == score(LOGITS, TRUTH)
    assert evaluation.is_exact


def test_stored_logits_go_before_the_top_scores(tmp_path):
    shuffled = np.array([1.0, 2.0, 3.0], np.float32)
    out = table(tmp_path, label("a", [0.7, 0.2, 0.1], ("jump",), logits=shuffled))
    assert read_predictions(out, class_names=NAMES).logits.tolist() == [[1.0, 2.0, 3.0]]


def test_a_table_with_few_top_scores_shares_out_the_rest_and_says_so(tmp_path):
    short = label("a", [0.7, 0.2, 0.1], ("walk",), topk=(("walk", 0, 0.7),))
    found = read_predictions(table(tmp_path, short), class_names=NAMES)
    np.testing.assert_allclose(np.exp(found.logits), [[0.7, 0.15, 0.15]], rtol=1e-5)
    assert not found.is_exact


def test_a_clip_that_stopped_early_keeps_its_last_answer_in_later_steps(tmp_path):
    early = label("a", [0.7, 0.2, 0.1], ("walk",), step_logits=np.array([[3.0, 0, 0]], np.float32), stopped_at=1)
    late = label(
        "b", [0.2, 0.7, 0.1], ("run",), step_logits=np.array([[3.0, 0, 0], [0, 3, 0]], np.float32), stopped_at=2
    )
    found, evaluation = evaluate_labels(table(tmp_path, early, late), class_names=NAMES)
    assert found.step_logits is not None
    assert found.step_logits[0].tolist() == [[3, 0, 0], [3, 0, 0]]
    assert [scores.top1 for scores in evaluation.per_step] == [50.0, 100.0]
    assert evaluation.mean_steps == 1.5


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


def test_clips_that_failed_or_have_no_truth_are_counted_apart(tmp_path):
    failed = ClipLabel(video_id="d", clip_id="d", source_uri="/d.mp4", truth=("run",), error_code="corrupt")
    out = table(tmp_path, *THREE, failed, label("e", [1, 0, 0], None))
    _, evaluation = evaluate_labels(out, class_names=NAMES)
    assert (evaluation.scores.num_clips, evaluation.num_failed, evaluation.num_without_truth) == (3, 1, 1)


def test_a_large_table_is_read_in_batches_and_what_is_held_is_what_is_returned(tmp_path, monkeypatch):
    (tmp_path / "labels").mkdir()
    store = LabelStore(ids=("model", "config"), run_id="run", clock=lambda: 0.0)
    places = tuple(PatchPlace(frame=n, pts_s=0.0, y=0.1, x=0.1, h=0.5, w=0.5) for n in range(16))
    steps = np.log(np.array([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]], np.float32))
    few = [
        label("a", [0.7, 0.2, 0.1], ("walk",), step_logits=steps, stopped_at=2, patches=places),
        label("b", [0.2, 0.5, 0.3], ("run", "walk"), step_logits=steps[:1], stopped_at=1, patches=places),
        ClipLabel(video_id="d", clip_id="d", source_uri="/d.mp4", truth=("run",), error_code="corrupt"),
        label("e", [1, 0, 0], None, step_logits=steps),
    ]
    part = store.table(few * 2500, SCHEMA)
    for number in range(4):
        pq.write_table(part, tmp_path / "labels" / f"part-{number}.parquet")
    tracemalloc.start()
    found = read_predictions(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(found.video_ids), found.num_failed, found.num_without_truth) == (20_000, 10_000, 10_000)
    assert found.video_ids[-3:] == ("b", "a", "b") and found.truth[-2:].tolist() == [[0, -1], [1, 0]]
    np.testing.assert_allclose(np.exp(found.logits[-2:]), [[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]], rtol=1e-5)
    np.testing.assert_allclose(found.step_logits[-2:], [steps, steps[[0, 0]]], rtol=1e-6)
    assert found.stopped_at[-2:].tolist() == [2, 1]
    # 36 bytes of scores a clip, its names and its truth: 4.5 MB. The whole table at once took 32 MB.
    assert peak < 12e6


def test_a_failed_row_that_says_nothing_and_one_of_an_earlier_version_are_both_passed_over(tmp_path):
    now = ClipLabel(video_id="d", clip_id="d", source_uri="/d.mp4", error_code="corrupt")
    before = ClipLabel(
        video_id="e", clip_id="e", source_uri="/e.mp4", error_code="corrupt",
        **dict.fromkeys(("end_s", "gmacs", "gmacs_full", "coverage"), 0.0),
        **dict.fromkeys(("frames_total", "frames_focused", "stopped_at", "width", "height"), 0),
    )  # fmt: skip
    out = table(tmp_path, now, *THREE, before)
    store = pq.read_table(out / "labels" / "part-000.parquet")
    row = store.to_pylist()[0]
    assert {name for name, value in row.items() if value is None} >= {
        "end_s", "frames_total", "frames_focused", "stopped_at", "gmacs", "decode_s", "latency_s", "width", "height",
        "rotation", "num_corrupt", "coverage",
    }  # fmt: skip
    assert (row["start_s"], row["patches"], row["topk"]) == (0.0, [], [])
    found, evaluation = evaluate_labels(out, class_names=NAMES)
    assert (evaluation.num_failed, found.stopped_at.tolist()) == (2, [8, 8, 8])


def test_class_names_are_found_in_the_table_where_none_are_given(tmp_path):
    assert read_predictions(table(tmp_path, *THREE)).class_names == NAMES


def test_an_answer_that_the_table_never_gives_needs_the_class_names(tmp_path):
    out = table(tmp_path, label("a", [0.7, 0.2, 0.1], ("swim",)))
    with pytest.raises(ConfigError, match=r"'swim'.*--classes"):
        read_predictions(out)
    found = read_predictions(out, class_names=NAMES)
    assert found.unknown_labels == ("swim",)
    assert found.truth.tolist() == [[-1]]


def test_class_names_of_another_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'walk'"):
        read_predictions(table(tmp_path, *THREE), class_names=("run", "walk", "jump"))


def test_a_truth_from_elsewhere_goes_before_the_tables_own(tmp_path):
    found = read_predictions(table(tmp_path, *THREE), class_names=NAMES, truth={"a": ["jump"], "c": ["run"]})
    assert (found.video_ids, found.truth.tolist(), found.num_without_truth) == (("a", "c"), [[2], [1]], 1)


def test_labels_keep_the_annotations_order_and_are_named_once():
    truth, unknown = truth_array([("run", "walk", "run"), ("fly",)], NAMES)
    assert truth.tolist() == [[1, 0, -1], [-1, -1, -1]]
    assert unknown == ("fly",)


def test_what_is_no_table_of_labels_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        read_predictions(tmp_path / "nowhere")
    (tmp_path / "labels").mkdir()
    with pytest.raises(ConfigError, match="no labels yet"):
        read_predictions(tmp_path)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="no column"):
        read_predictions(tmp_path / "other.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(PipelineError, match=r"torn\.parquet"):
        read_predictions(tmp_path / "torn.parquet")


def test_a_table_without_any_truth_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ConfigError, match="annotation file"):
        read_predictions(table(tmp_path, label("a", [1, 0, 0], None)), class_names=NAMES)


def test_scores_that_are_not_numbers_name_the_video(tmp_path):
    bad = label("b", [0.4, 0.5, 0.1], ("run",), logits=np.array([np.nan, 0, 0], np.float32))
    with pytest.raises(PipelineError, match="video b"):
        read_predictions(table(tmp_path, bad), class_names=NAMES)


# Sixteen frames, of which 1, 3, 5 ... 15 are sampled. The evidence shows in 0 to 7, a tenth of the frame wide.
EVIDENCE = (0.4, 0.4, 0.1, 0.1)
BOXES = TruthBoxes(
    visible=np.arange(16) < 8,
    boxes=np.where(np.arange(16)[:, None] < 8, np.array(EVIDENCE), np.nan),
)


def looks(frames: list[int], boxes: list[tuple[float, float, float, float]], **changes: Any) -> ClipLooks:
    given: dict[str, Any] = {"video_id": "v", "num_steps": 8, "stopped_at": 8, **changes}
    return ClipLooks(frames=np.array(frames, np.int64), boxes=np.array(boxes).reshape(-1, 4), **given)


def test_patches_are_judged_on_the_frames_that_show_the_evidence():
    whole, half, beside = (0.3, 0.3, 0.3, 0.3), (0.44, 0.3, 0.3, 0.3), (0.6, 0.6, 0.3, 0.3)
    # Frame 9 shows nothing, so its patch is neither right nor wrong.
    found = look_scores([looks([1, 3, 5, 9], [whole, half, beside, whole])], {"v": BOXES})
    assert found.num_patches == 3
    assert found.evidence_in_patch == pytest.approx(100 / 3)
    # The middle of the evidence lies at .45, just inside the patch that begins at .44.
    assert found.centre_in_patch == pytest.approx(200 / 3)


def test_a_patch_that_just_fits_holds_the_evidence():
    tight = tuple(float(np.float32(v)) for v in EVIDENCE)
    assert look_scores([looks([1], [tight])], {"v": BOXES}).evidence_in_patch == 100.0


def test_skipping_is_judged_on_the_frames_that_were_sampled():
    patch = (0.3, 0.3, 0.3, 0.3)
    # Sampled and visible: 1 3 5 7, of which 1 3 5 are focused. Sampled and empty: 9 11 13 15, of which 9 is focused.
    found = look_scores([looks([1, 3, 5, 9], [patch] * 4)], {"v": BOXES})
    assert (found.num_visible, found.visible_focused) == (4, 75.0)
    assert (found.num_empty, found.empty_skipped) == (4, 75.0)


def test_frames_after_the_stop_are_neither_focused_nor_skipped():
    found = look_scores([looks([1], [EVIDENCE], stopped_at=2)], {"v": BOXES})
    assert (found.num_visible, found.visible_focused) == (2, 50.0)
    assert (found.num_empty, found.empty_skipped) == (0, None)


def test_a_frame_that_a_short_video_shows_twice_counts_once():
    short = TruthBoxes(visible=np.array([True, False]), boxes=np.array([EVIDENCE, (np.nan,) * 4]))
    found = look_scores([looks([0], [EVIDENCE])], {"v": short})
    assert (found.num_visible, found.num_empty, found.empty_skipped) == (1, 1, 100.0)


def test_of_clips_whose_sample_is_not_known_only_the_patches_count():
    sought = looks([2], [EVIDENCE])
    piece = looks([1], [EVIDENCE], is_whole=False)
    found = look_scores([sought, piece], {"v": BOXES})
    assert (found.num_patches, found.evidence_in_patch) == (2, 100.0)
    assert (found.num_unsampled_clips, found.num_visible, found.visible_focused) == (2, 0, None)


def test_the_truth_of_another_archive_is_refused():
    with pytest.raises(ConfigError, match="another archive"):
        look_scores([looks([1], [EVIDENCE], video_id="w")], {"v": BOXES})
    with pytest.raises(ConfigError, match="frame 16"):
        look_scores([looks([16], [EVIDENCE])], {"v": BOXES})


def test_a_table_is_judged_against_truth_boxes(tmp_path):
    frames = list(range(16))
    boxes = [EVIDENCE if frame < 8 else (None,) * 4 for frame in frames]
    columns: dict[str, Any] = {
        # Not in order, and not alone.
        "video_id": ["a"] * 16 + ["z"],
        "frame": [*frames[::-1], 0],
        "visible": [*(frame < 8 for frame in frames[::-1]), False],
    }
    for place, name in enumerate("yxhw"):
        columns[name] = pa.array([*(box[place] for box in boxes[::-1]), None], pa.float64())
    pq.write_table(pa.table(columns), tmp_path / "truth.parquet")
    patches = tuple(PatchPlace(frame=frame, pts_s=0.0, y=0.3, x=0.3, h=0.3, w=0.3) for frame in (1, 9))
    out = table(tmp_path / "out", label("a", [0.7, 0.2, 0.1], ("walk",), patches=patches, frames_focused=2))
    _, evaluation = evaluate_labels(out, class_names=NAMES, truth_boxes=tmp_path / "truth.parquet")
    assert evaluation.looks is not None
    assert (evaluation.looks.num_patches, evaluation.looks.evidence_in_patch) == (1, 100.0)
    assert (evaluation.looks.visible_focused, evaluation.looks.empty_skipped) == (25.0, 75.0)
    assert evaluation.share_focused == 25.0


def test_what_is_no_truth_table_is_refused(tmp_path):
    pq.write_table(pa.table({"video_id": ["a"]}), tmp_path / "x.parquet")
    for name in ("x.parquet", "missing.parquet"):
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
            read_truth(tmp_path / name)


def test_predictions_take_the_activitynet_form():
    form = predictions_json(predictions(), num_best=2)
    assert set(form) == {"version", "results", "external_data"}
    assert [entry["label"] for entry in form["results"]["b"]] == ["run", "walk"]
    assert form["results"]["b"][0]["score"] == pytest.approx(0.5)


def test_a_report_writes_scores_classes_predictions_and_pictures(tmp_path):
    steps = np.stack([LOGITS, LOGITS], axis=1)
    given = predictions(step_logits=steps)
    evaluation = evaluate(given, step_gmacs=np.array([1.0, 2.0]), thresholds=searched_thresholds(steps))
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
        write_report(tmp_path / "file", given, evaluate(given))


def test_policies_stand_side_by_side_with_only_the_columns_that_say_something():
    costs = {"gmacs": np.full(3, 2.0), "gmacs_full": np.full(3, 8.0)}
    learned, centre = evaluate(predictions(**costs)), evaluate(predictions())
    head, rows = comparison({"learned": learned, "center": centre})
    assert head == ("policy", "clips", "top-1 %", "top-5 %", "mAP %", "GMACs", "of full %")
    assert rows[0] == ("learned", "3", "33.3", "100.0", "61.1", "2", "25.0")
    assert rows[1] == ("center", "3", "33.3", "100.0", "61.1", "", "")
    assert format_table(head[:2], [row[:2] for row in rows]) == "policy   clips\nlearned      3\ncenter       3"
