"""The table as readers see it: every column, one schema, and passwords nowhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from operators.records import PatchPlace, clip_id
from operators.table.schema import SCHEMA, part_paths
from tests.table.table_rows import IDENTITY, clip, failed, rows, seen, sink


def test_every_column_arrives_as_it_was_given(tmp_path: Path) -> None:
    received = datetime(2024, 5, 1, 12, 0, 0, 250, UTC)
    label = clip(
        7,
        start_s=1.5,
        end_s=2.5,
        truth=("cat", "dog"),
        received_at=received,
        topk=(("cat", 1, 0.5), ("dog", 2, 0.25)),
        logits=np.array([0.5, -1.0], np.float32),
        step_logits=np.array([[1, 2], [3, 4], [5, 6]], np.float32),
        patches=(PatchPlace(frame=3, pts_s=0.1, y=0.5, x=0.25, h=0.125, w=1.0),),
        step_gmacs=(0.5, 1.5, 2.0),
        frames_skipped=2,
        stopped_at=3,
        decode_s=0.25,
        latency_s=0.75,
        width=640,
        height=360,
        rotation=90,
        num_corrupt=1,
        coverage=0.5,
    )
    with sink(tmp_path, clock=lambda: 1_700_000_000.5) as table:
        table.write(0, [label])
    assert rows(tmp_path) == [
        {
            "video_id": "v7",
            "clip_id": clip_id("archive", 7.0),
            "source_uri": "/videos/v7.mp4",
            "truth": ["cat", "dog"],
            "camera": None,
            "received_at": received,
            "start_s": 1.5,
            "end_s": 2.5,
            "label": "cat",
            "label_id": 1,
            "score": 0.5,
            "topk": [
                {"label": "cat", "label_id": 1, "score": 0.5},
                {"label": "dog", "label_id": 2, "score": 0.25},
            ],
            "logits": [0.5, -1.0],
            "step_logits": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
            "frames_total": 16,
            "frames_focused": 4,
            "frames_skipped": 2,
            "stopped_at": 3,
            "patches": [{"frame": 3, "pts_s": 0.1, "y": 0.5, "x": 0.25, "h": 0.125, "w": 1.0}],
            "gmacs": 2.0,
            "gmacs_full": 8.0,
            "step_gmacs": [0.5, 1.5, 2.0],
            "decode_s": 0.25,
            "latency_s": 0.75,
            "width": 640,
            "height": 360,
            "rotation": 90,
            "num_corrupt": 1,
            "coverage": 0.5,
            "error_code": None,
            "error": None,
            "model_id": "m1",
            "config_id": "c1",
            "run_id": "run1",
            "committed_at": datetime(2023, 11, 14, 22, 13, 20, 500_000, UTC),
        }
    ]


def test_all_parts_have_one_schema_whatever_is_null_in_them(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [failed(0)])
        table.write(1, [clip(1)])
        table.write(2, [clip(2, truth=("a",), logits=np.zeros(3, np.float32), step_logits=np.zeros((2, 3)))])
    parts = part_paths(tmp_path / "labels")
    assert len(parts) == 3
    assert [pq.read_schema(part).equals(SCHEMA) for part in parts] == [True] * 3


def test_patches_are_an_empty_list_and_never_null(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0), failed(1), clip(2, patches=(PatchPlace(frame=0, pts_s=0, y=0, x=0, h=1, w=1),))])
    assert sorted(len(row["patches"]) for row in rows(tmp_path)) == [0, 0, 1]


def test_pyarrow_pandas_and_duckdb_read_an_archive_as_one_table(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0), clip(1), failed(2)])
        table.write(1, [clip(3)])
        labels = tmp_path / "labels"
        (labels / "_tmp-half").write_bytes(b"PAR1 and no more")
        expected = ["v0", "v1", "v2", "v3"]
        assert sorted(ds.dataset(labels).to_table()["video_id"].to_pylist()) == expected
        assert sorted(pd.read_parquet(labels)["video_id"]) == expected
        found = duckdb.execute(f"SELECT video_id FROM read_parquet('{labels}/*.parquet') ORDER BY 1").fetchall()
        assert [name for (name,) in found] == expected


def test_pyarrow_pandas_and_duckdb_read_cameras_as_one_table_with_columns_from_the_path(
    tmp_path: Path,
) -> None:
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()
    with sink(tmp_path) as table:
        table.write(0, [seen(noon, "door"), seen(noon, "yard"), seen(noon + 86_400, "door")])
    labels = tmp_path / "labels"
    expected = [("door", "2024-05-01"), ("door", "2024-05-02"), ("yard", "2024-05-01")]
    assert sorted(str(part.parent.relative_to(labels)) for part in part_paths(labels)) == [
        f"camera={camera}/date={date}" for camera, date in expected
    ]
    assert all("camera" not in pq.read_schema(part).names for part in part_paths(labels))
    arrow = ds.dataset(labels, partitioning="hive").to_table().to_pylist()
    assert sorted((row["camera"], row["date"]) for row in arrow) == expected
    pandas = pd.read_parquet(labels)
    assert sorted(zip(pandas["camera"], pandas["date"], strict=True)) == expected
    query = f"SELECT camera, date::VARCHAR FROM read_parquet('{labels}/**/*.parquet', hive_partitioning=true)"
    assert sorted(duckdb.execute(query).fetchall()) == expected


def test_a_file_name_that_is_not_utf8_is_still_a_row(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0, source_uri="/videos/caf\udce9.mp4")])
    assert rows(tmp_path)[0]["source_uri"] == "/videos/caf\\udce9.mp4"


def test_no_password_reaches_the_table_or_the_identity(tmp_path: Path) -> None:
    url = "rtsp://me:hunter2@camera/1"
    with sink(tmp_path, identity=IDENTITY | {"config": {"cameras.door.url": url}}) as table:
        table.write(0, [clip(0, error_code="timeout", error=f"{url} says nothing")])
    assert rows(tmp_path)[0]["error"] == "rtsp://me:***@camera/1 says nothing"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


def test_the_summary_counts_failures_by_reason_and_adds_up_the_rest(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0), clip(1), failed(2, "missing"), failed(3, "corrupt"), failed(4, "missing")])
        summary = table.summary()
    assert (summary.num_clips, summary.num_failed) == (5, 3)
    assert list(summary.errors.items()) == [("missing", 2), ("corrupt", 1)]
    assert (summary.frames_total, summary.frames_focused, summary.frames_skipped) == (32, 8, 0)
    assert (summary.gmacs, summary.gmacs_full) == (4.0, 16.0)


def test_every_part_says_which_schema_it_has(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0), failed(1)])
        table.write(1, [replace(clip(2), camera="door")])
    parts = part_paths(tmp_path / "labels")
    assert [pq.read_schema(part).metadata[b"saccade.schema"] for part in parts] == [b"2"] * 3
