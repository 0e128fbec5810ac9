"""Tables of labels become predictions, and what cannot be judged is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import ConfigError, PipelineError
from operators.records import ClipLabel, PatchPlace
from operators.table.schema import SCHEMA, LabelStore
from pipeline.scoring.evaluate import (
    evaluate_labels,
)
from pipeline.scoring.read_labels import read_predictions, truth_array
from pipeline.scoring.scores import (
    score,
)
from tests.support.hand_made_labels import LOGITS, NAMES, PROBABILITIES, THREE, TRUTH, label, table


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
