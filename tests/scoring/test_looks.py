"""Patches and skipped frames are judged against boxes that say where the evidence was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import ConfigError
from operators.records import PatchPlace
from pipeline.families.truth import TruthBoxes, read_truth
from pipeline.scoring.evaluate import (
    evaluate_labels,
)
from pipeline.scoring.looks import ClipLooks, look_scores
from tests.support.hand_made_labels import NAMES, label, table

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
