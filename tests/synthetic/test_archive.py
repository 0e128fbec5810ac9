"""The synthetic archive: what it promises is checked on decoded pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from operators.errors import ConfigError, SinkError
from operators.media.view import Viewer
from pipeline.synthetic.archive import generate
from pipeline.synthetic.scene import PERIOD, VIEW_PX, class_names, render
from pipeline.synthetic.video_plans import SynthSettings, plan_videos, split_counts

SMALL = SynthSettings(videos=6, size=128, seconds=1.5, shares=(3, 1, 2), seed=3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("archive") / "small"
    generate(out, SMALL)
    return out


def decoded(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [float(frame.time) for frame in frames]


def truth_rows(archive: Path) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {}
    for row in pq.read_table(archive / "truth.parquet").to_pylist():
        rows.setdefault(row["video_id"], []).append(row)
    return rows


def inside(frame: np.ndarray, row: dict) -> np.ndarray:
    """The luma of the evidence's box."""
    height, width = frame.shape[:2]
    top, left = round(row["y"] * height), round(row["x"] * width)
    stop, right = round((row["y"] + row["h"]) * height), round((row["x"] + row["w"]) * width)
    return cv2.cvtColor(frame[top:stop, left:right], cv2.COLOR_RGB2GRAY).astype(np.float64)


def stripe_angle(plate: np.ndarray, period_px: float, angles: list[float]) -> float:
    """The angle, degrees anticlockwise from the horizontal, whose stripes hold the most energy at this period."""
    y, x = np.mgrid[: plate.shape[0], : plate.shape[1]]
    plate = plate - plate.mean()

    def energy(angle: float) -> float:
        a = np.radians(angle)
        wave = np.exp(2j * np.pi / period_px * (x * np.sin(a) + y * np.cos(a)))
        return abs((plate * wave).sum())

    return max(angles, key=energy)


def videos(archive: Path) -> list[Path]:
    return sorted((archive / "videos").rglob("*.mp4"))


def test_every_subset_gets_its_share_of_the_videos(archive):
    assert {p.relative_to(archive / "videos").as_posix() for p in videos(archive)} == {
        "train/train_00000.mp4",
        "train/train_00001.mp4",
        "train/train_00002.mp4",
        "val/val_00000.mp4",
        "test/test_00000.mp4",
        "test/test_00001.mp4",
    }


def test_counts_are_whole_numbers_that_add_up():
    assert split_counts(3500, (2000, 500, 1000)) == (2000, 500, 1000)
    # Exact shares 6, 1.5, 2.5: the one left over goes to the larger remainder, the earlier one where they are equal.
    assert split_counts(10, (0.6, 0.15, 0.25)) == (6, 2, 2)
    assert split_counts(1, (0.0, 0.0, 1.0)) == (0, 0, 1)


def test_files_are_h264_with_b_frames_as_players_expect(archive):
    with av.open(str(videos(archive)[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert any(packet.pts != packet.dts for packet in container.demux(stream) if packet.size)


def test_the_truth_has_a_row_for_every_decoded_frame_at_its_time(archive):
    for name, rows in truth_rows(archive).items():
        frames, times = decoded(archive / "videos" / name.split("_")[0] / f"{name}.mp4")
        assert [row["frame"] for row in rows] == list(range(len(frames)))
        np.testing.assert_allclose([row["pts_s"] for row in rows], times, atol=1e-3)


def test_the_class_can_be_read_in_the_truths_boxes_after_the_codec(archive):
    right = []
    for name, rows in truth_rows(archive).items():
        frames, _ = decoded(archive / "videos" / name.split("_")[0] / f"{name}.mp4")
        period_px = PERIOD * min(frames[0].shape[:2]) / VIEW_PX
        for frame, row in zip(frames, rows, strict=True):
            if row["visible"]:
                angle = stripe_angle(inside(frame, row), period_px, [0, 36, 72, 108, 144])
                right.append(f"{angle:03d}" == row["label"].split("-")[1])
    assert len(right) > 30
    assert np.mean(right) > 0.98


def test_the_carrier_around_the_box_has_the_classs_hue(archive):
    for name, rows in truth_rows(archive).items():
        frames, _ = decoded(archive / "videos" / name.split("_")[0] / f"{name}.mp4")
        for frame, row in zip(frames, rows, strict=True):
            if row["visible"]:
                height, width = frame.shape[:2]
                # Just left of the plate's middle the disc shows.
                y = round((row["y"] + row["h"] / 2) * height)
                x = round((row["x"] - row["w"] * 0.12) * width)
                red, _, blue = frame[y, x].astype(int)
                assert (red - blue > 40) if row["label"].startswith("red") else (blue - red > 40)


def test_the_glyph_survives_the_codec(archive):
    plans = {plan.name: plan for plan in plan_videos(SMALL)}
    similar = []
    for name, rows in truth_rows(archive).items():
        frames, _ = decoded(archive / "videos" / name.split("_")[0] / f"{name}.mp4")
        for frame, (painted, _), row in zip(frames, render(plans[name], SMALL.look), rows, strict=True):
            if row["visible"]:
                similar.append(np.corrcoef(inside(frame, row).ravel(), inside(painted, row).ravel())[0, 1])
    assert np.mean(similar) > 0.97
    assert min(similar) > 0.9


def test_the_glyph_is_gone_at_glance_resolution():
    kept = []
    viewer, small = Viewer(resize_px=96, crop_px=96), Viewer(resize_px=32, crop_px=32)
    for plan in plan_videos(replace(SMALL, videos=12, clutter=0.0)):
        box_of_view = viewer.box(plan.height, plan.width)
        for frame, box in render(plan, replace(SMALL, clutter=0.0).look):
            if box is not None:
                view = viewer(frame)
                glance = small(view)
                y, x = ((box[i] - box_of_view[i]) / box_of_view[i + 2] for i in (0, 1))
                # Well inside the plate, so that its edge against the disc does not count.
                at = (slice(int(y * 96) + 4, int(y * 96) + 11), slice(int(x * 96) + 4, int(x * 96) + 11))
                coarse = (slice(int(y * 32) + 2, int(y * 32) + 4), slice(int(x * 32) + 2, int(x * 32) + 4))
                kept.append(glance[coarse][..., 1].std() / view[at][..., 1].std())
    assert np.mean(kept) < 0.25


def test_the_evidence_lies_inside_what_views_keep(archive):
    for rows in truth_rows(archive).values():
        plan = next(plan for plan in plan_videos(SMALL) if plan.name == rows[0]["video_id"])
        for viewer in (Viewer(resize_px=96, crop_px=96), Viewer(resize_px=256, crop_px=224)):
            y, x, h, w = viewer.box(plan.height, plan.width)
            for row in (row for row in rows if row["visible"]):
                assert y <= row["y"] and row["y"] + row["h"] <= y + h
                assert x <= row["x"] and row["x"] + row["w"] <= x + w


def test_boxes_are_null_where_nothing_is_to_be_seen(archive):
    for row in pq.read_table(archive / "truth.parquet").to_pylist():
        assert all((row[name] is not None) == row["visible"] for name in "yxhw")


def test_annotations_tell_each_videos_class_and_when_it_shows(archive):
    annotations = json.loads((archive / "annotations.json").read_text())
    assert set(annotations) == {"version", "taxonomy", "database"}
    rows_of = truth_rows(archive)
    assert set(annotations["database"]) == set(rows_of)
    for name, entry in annotations["database"].items():
        rows = rows_of[name]
        fps = round(1 / rows[1]["pts_s"])
        assert entry["subset"] == name.split("_")[0]
        assert entry["duration"] == pytest.approx(len(rows) / fps, abs=1e-6)
        assert {a["label"] for a in entry["annotations"]} == {rows[0]["label"]}
        shown = {
            frame for a in entry["annotations"] for frame in range(*(round(second * fps) for second in a["segment"]))
        }
        assert shown == {row["frame"] for row in rows if row["visible"]}
        frame = decoded(archive / "videos" / entry["subset"] / f"{name}.mp4")[0][0]
        assert entry["resolution"] == f"{frame.shape[1]}x{frame.shape[0]}"


def test_class_names_say_hue_and_angle(archive):
    assert (archive / "classes.txt").read_text().splitlines() == [
        *("red-000", "red-036", "red-072", "red-108", "red-144"),
        *("blue-000", "blue-036", "blue-072", "blue-108", "blue-144"),
    ]
    taxonomy = json.loads((archive / "annotations.json").read_text())["taxonomy"]
    assert [node["nodeName"] for node in taxonomy if node["parentId"] == 0][:2] == ["red-000", "red-036"]


def test_the_contact_sheet_has_a_row_for_each_of_the_first_videos(archive):
    sheet = cv2.imread(str(archive / "sheet.png"))
    # Six frames, the glance and the patch, 144 px and a margin each; at most eight videos.
    assert sheet.shape == (6 * (144 + 18 + 4), 8 * (144 + 6), 3)


def test_the_same_seed_gives_the_same_bytes_however_many_make_it(archive, tmp_path):
    generate(tmp_path / "again", SMALL, workers=2)
    for path in [*videos(archive), archive / "sheet.png", archive / "annotations.json", archive / "truth.parquet"]:
        assert (tmp_path / "again" / path.relative_to(archive)).read_bytes() == path.read_bytes(), path.name


def test_another_seed_gives_another_archive():
    first, other = (next(plan_videos(replace(SMALL, seed=seed))) for seed in (3, 4))
    frame = next(render(first, SMALL.look))[0]
    other_frame = next(render(replace(other, width=first.width, height=first.height), SMALL.look))[0]
    assert np.abs(frame.astype(int) - other_frame).mean() > 5


def test_more_videos_leave_the_first_ones_as_they_are():
    few, many = (list(plan_videos(replace(SMALL, videos=count))) for count in (6, 60))
    assert few == [plan for plan in many if plan.name in {p.name for p in few}]


def test_any_beginning_of_a_subset_is_balanced():
    plans = [plan for plan in plan_videos(replace(SMALL, videos=60)) if plan.subset == "train"]
    for start in (0, 10, 20):
        assert sorted(plan.label_id for plan in plans[start : start + 10]) == list(range(10))


def test_sizes_shapes_lengths_and_frame_rates_differ_within_their_bounds():
    plans = list(plan_videos(SynthSettings(videos=200)))
    shorts = [min(plan.width, plan.height) for plan in plans]
    assert 152 <= min(shorts) < 165 and 220 < max(shorts) <= 232
    assert {plan.fps for plan in plans} == {10, 12, 15}
    seconds = [plan.num_frames / plan.fps for plan in plans]
    assert 2.0 < min(seconds) < 2.3 and 3.7 < max(seconds) < 4.0
    assert all(plan.width % 2 == plan.height % 2 == 0 for plan in plans)
    assert {round(12 * plan.width / plan.height) for plan in plans} == {7, 9, 12, 16, 21}


@pytest.mark.parametrize("visible", [0.2, 0.4, 0.7])
def test_the_asked_for_share_of_the_frames_shows_the_evidence(visible):
    settings = replace(SMALL, videos=80, visible=visible, clutter=0.0)
    shown = [box is not None for plan in plan_videos(settings) for _, box in render(plan, settings.look)]
    # Videos that never show it at eight even steps are drawn again: at 0.2 that adds a few points.
    assert visible - 0.05 < np.mean(shown) < visible + 0.08


def test_eight_evenly_spaced_frames_show_the_evidence_at_least_once():
    settings = replace(SMALL, videos=40, visible=0.1, clutter=0.0)
    for plan in plan_videos(settings):
        shown = [box is not None for _, box in render(plan, settings.look)]
        assert any(shown[int(plan.num_frames / 16 + plan.num_frames / 8 * i)] for i in range(8))


def test_clutter_is_a_knob():
    plan = next(plan_videos(SMALL))

    def detail(clutter: float) -> float:
        frames = [frame for frame, _ in render(plan, replace(SMALL, clutter=clutter).look)]
        return float(np.mean([cv2.Laplacian(frame, cv2.CV_64F).std() for frame in frames]))

    assert detail(0.0) < detail(1.0) < detail(3.0)


def plates(label_id: int) -> list[np.ndarray]:
    """The region of a motion video, frame by frame; everything but the class is the same for every label."""
    settings = SynthSettings.motion(videos=1, shares=(0, 0, 1), size=192, clutter=0.0, seed=5)
    plan = replace(next(plan_videos(settings)), label_id=label_id, width=192, height=192, num_frames=33)
    found = []
    for frame, box in render(plan, settings.look):
        assert box is not None
        found.append(inside(frame, dict(zip("yxhw", box, strict=True))))
    return found


def test_a_single_frame_of_a_motion_video_does_not_tell_its_class():
    first = [plates(label_id)[0] for label_id in range(4)]
    for plate in first[1:]:
        np.testing.assert_array_equal(plate, first[0])


@pytest.mark.parametrize(("label_id", "x", "y"), [(0, 1, 0), (1, 0, -1), (2, -1, 0), (3, 0, 1)])
def test_the_texture_moves_where_the_class_says(label_id, x, y):
    look = SynthSettings.motion().look
    assert class_names(look) == ("right", "up", "left", "down")
    found = plates(label_id)
    wave_number = 2 * np.pi / (PERIOD * 2)

    def phases(plate: np.ndarray) -> np.ndarray:
        """Of the stripes along x and along y."""
        waves = np.exp(-1j * wave_number * np.arange(len(plate)))
        return np.array([(plate.mean(axis=axis) - plate.mean()) @ waves for axis in (0, 1)])

    # A pattern that moves by s falls behind in phase by s times its wave number.
    shifts = [-np.angle(phases(b) / phases(a)) / wave_number for a, b in pairwise(found)]
    along, across = np.mean([(dx * x + dy * y, dx * y + dy * x) for dx, dy in shifts], axis=0)
    # 12 steps of 0.14 to 0.2 of the period of 6 px over 33 frames: 0.3 to 0.44 px per frame.
    assert 0.25 < along < 0.5
    # What is left is the carrier's own slow swing.
    assert abs(across) < 0.1


def test_a_finished_archive_is_left_as_it_is(archive):
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*")}
    summary = generate(archive, SMALL)
    assert not summary.is_new
    assert summary.num_videos == {"train": 3, "val": 1, "test": 2}
    assert summary.num_frames == len(pq.read_table(archive / "truth.parquet"))
    assert {path: path.stat().st_mtime_ns for path in archive.rglob("*")} == before


def test_an_unfinished_archive_is_finished(archive, tmp_path):
    settings = replace(SMALL, videos=2)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "a", settings, progress=stop)
    assert not (tmp_path / "a" / "annotations.json").exists()
    assert generate(tmp_path / "a", settings).is_new
    assert (tmp_path / "a" / "annotations.json").exists()


def test_a_folder_with_other_things_in_it_is_refused(archive, tmp_path):
    with pytest.raises(ConfigError, match="other settings"):
        generate(archive, replace(SMALL, seed=9))
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        generate(tmp_path, SMALL)
    with pytest.raises(SinkError, match="cannot write"):
        generate(tmp_path / "mine.txt" / "below", SMALL)


def test_progress_counts_up_to_all_videos(tmp_path):
    seen: list[tuple[int, int]] = []
    generate(tmp_path / "a", replace(SMALL, videos=2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"classes": 7}, "multiple of hues=2"),
        ({"kind": "motion", "classes": 10}, "2, 4 or 8"),
        ({"kind": "dance"}, "'dance'"),
        ({"hues": 9}, "not 9"),
        ({"size": 64}, "not 64"),
        ({"videos": 0}, "not 0"),
        ({"seconds": 1.0}, "at least 16 frames"),
        ({"visible": 0.0}, "not 0"),
        ({"shares": (0, 0, 0)}, "three numbers"),
        ({"crf": 60}, "not 60"),
        ({"seed": -1}, "-1"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_value(changes, text):
    with pytest.raises(ConfigError, match=text):
        SynthSettings(**changes)
