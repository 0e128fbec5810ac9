"""The sink: what is committed is there, whole and once, whatever is killed and when."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from operators.errors import SinkError
from operators.records import ClipLabel, PatchPlace, clip_id
from operators.table.fold import swap_parts
from operators.table.schema import SCHEMA_VERSION
from operators.table.sink import SCHEMA, ParquetSink, look_at, part_paths, read_identity, summarize
from pipeline.run.sink_worker import SinkWorker
from pipeline.steering.messages import WriteRequest

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["operators.table.sink"])

IDENTITY = {"model_id": "m1", "config_id": "c1", "config": {"focus.patch_px": 96, "compute.seed": 0}}


def clip(number: int, **changes: Any) -> ClipLabel:
    facts: dict[str, Any] = {
        "video_id": f"v{number}",
        "clip_id": clip_id("archive", float(number)),
        "source_uri": f"/videos/v{number}.mp4",
        "label": "cat",
        "label_id": 1,
        "score": 0.5,
        "frames_total": 16,
        "frames_focused": 4,
        "gmacs": 2.0,
        "gmacs_full": 8.0,
    }
    return ClipLabel(**facts | changes)


def failed(number: int, code: str = "corrupt") -> ClipLabel:
    nothing = {"label": None, "label_id": None, "score": None, "frames_total": 0, "frames_focused": 0}
    return clip(number, error_code=code, error="nothing to see", gmacs=0.0, gmacs_full=0.0, **nothing)


def seen(second: float, camera: str = "door") -> ClipLabel:
    return clip(0, clip_id=clip_id(camera, second), camera=camera, start_s=second, end_s=second + 1)


def sink(out: Path, run_id: str = "run1", **changes: Any) -> ParquetSink:
    return ParquetSink(out=out, run_id=run_id, **{"identity": IDENTITY} | changes)


def rows(out: Path) -> list[dict[str, Any]]:
    return ds.dataset(out / "labels", partitioning="hive").to_table().to_pylist() if part_paths(out / "labels") else []


def videos(out: Path) -> dict[str, str | None]:
    """video_id -> error_code, and no video twice."""
    found = [(row["video_id"], row["error_code"]) for row in rows(out)]
    assert len(dict(found)) == len(found)
    return dict(found)


def files(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "labels").iterdir())


# The table -------------------------------------------------------------------------------------------------------


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


# Parts -----------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_sent_again_overwrites_itself(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(4, [clip(0), failed(1)])
    with sink(tmp_path) as again:
        again.write(4, [clip(0), failed(1)])
    assert files(tmp_path) == ["failed-run1-00000004.parquet", "run1-00000004.parquet"]
    assert videos(tmp_path) == {"v0": None, "v1": "corrupt"}


def test_what_is_committed_is_not_written_again(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0)])
    (part,) = part_paths(tmp_path / "labels")
    before = (part.stat().st_ino, part.read_bytes())
    with sink(tmp_path, "run2") as later:
        later.write(0, [clip(1)])
    assert (part.stat().st_ino, part.read_bytes()) == before


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "labels/camera=a/date=2024-01-01").mkdir(parents=True)
    (tmp_path / "labels/_tmp-run0-00000001").write_bytes(b"half")
    (tmp_path / "labels/camera=a/date=2024-01-01/_tmp-12-run0-00000001").write_bytes(b"half")
    with sink(tmp_path):
        pass
    assert not list(tmp_path.rglob("_tmp*"))


def test_done_gives_the_two_halves_of_every_clip_id(tmp_path: Path) -> None:
    one, two = "00000000000000010000000000000002", "ffffffffffffffff8000000000000000"
    with sink(tmp_path) as table:
        assert table.done().shape == (0, 2)
        table.write(0, [clip(0, clip_id=one)])
        table.write(1, [clip(1, clip_id=two)])
        assert table.done().dtype == np.uint64
        assert table.done().tolist() == [[1, 2], [2**64 - 1, 2**63]]


def test_a_part_that_is_no_part_is_named_with_the_way_out(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0)])
        (tmp_path / "labels/stray.parquet").write_bytes(b"not parquet at all")
        with pytest.raises(SinkError, match=r"stray.parquet: not a readable part .* move it away"):
            table.done()
        pq.write_table(pa.table({"a": [1]}), tmp_path / "labels/stray.parquet")
        with pytest.raises(SinkError, match=r"stray.parquet: .* no column clip_id"):
            table.done()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match=r"file: cannot be opened: .*; give another -o"):
        sink(tmp_path / "file").__enter__()


# Identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_reason_to_begin_a_new_table(tmp_path: Path, monkeypatch: Any, number: int) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with sink(tmp_path) as out:
        out.write(0, [clip(1)])
        monkeypatch.setattr(pq, "write_table", full)
        with pytest.raises(SinkError, match="free space there and run the same command again") as caught:
            out.write(1, [clip(2)])
    monkeypatch.undo()
    assert os.strerror(number) in str(caught.value) and "another" not in str(caught.value)
    assert videos(tmp_path) == {"v1": None}


def test_labels_of_another_config_are_refused_with_the_option_that_decides(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0)])
    other = {"model_id": "m1", "config_id": "c2", "config": {"focus.patch_px": 128, "compute.seed": 0}}
    with pytest.raises(SinkError, match=r"focus.patch_px 96 -> 128\. .*-o.*--no-resume"):
        sink(tmp_path, "run2", identity=other).__enter__()
    assert videos(tmp_path) == {"v0": None}
    with pytest.raises(SinkError, match=r"model_id m1 -> m2"):
        sink(tmp_path, "run2", identity=IDENTITY | {"model_id": "m2"}).__enter__()


def test_labels_whose_identity_file_is_lost_are_still_not_mixed(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0)])
    (tmp_path / "run/identity.json").unlink()
    with pytest.raises(SinkError, match="config_id c1 -> c2"):
        sink(tmp_path, "run2", identity=IDENTITY | {"config_id": "c2"}).__enter__()
    with sink(tmp_path, "run2"):
        assert read_identity(tmp_path) == IDENTITY | {"run_id": "run2", "schema": SCHEMA_VERSION}


def _begun_by_the_first_version(out: Path) -> None:
    """A table as it was before there were versions: neither its parts nor its identity says one."""
    with sink(out) as table:
        table.write(0, [clip(0)])
    (part,) = part_paths(out / "labels")
    pq.write_table(pq.read_table(part).replace_schema_metadata(None), part)
    identity = json.loads((out / "run/identity.json").read_text())
    del identity["schema"]
    (out / "run/identity.json").write_text(json.dumps(identity))


@pytest.mark.parametrize("has_identity", [True, False])
def test_a_table_of_an_earlier_version_is_refused_with_the_way_out_and_still_read(
    tmp_path: Path, has_identity: bool
) -> None:
    _begun_by_the_first_version(tmp_path)
    if not has_identity:
        (tmp_path / "run/identity.json").unlink()
    with pytest.raises(SinkError, match=r"schema 1 and this version writes 2.*-o.*--no-resume"):
        sink(tmp_path, "run2").__enter__()
    with pytest.raises(SinkError, match="schema 1"):
        look_at(tmp_path).check(IDENTITY)
    assert videos(tmp_path) == {"v0": None} and summarize(tmp_path / "labels").num_clips == 1
    with sink(tmp_path, "run2", resume=False) as fresh:
        fresh.write(0, [clip(1)])
    assert videos(tmp_path) == {"v1": None}


def test_every_part_says_which_schema_it_has(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0), failed(1)])
        table.write(1, [replace(clip(2), camera="door")])
    parts = part_paths(tmp_path / "labels")
    assert [pq.read_schema(part).metadata[b"saccade.schema"] for part in parts] == [b"2"] * 3


def test_a_table_without_labels_may_change_its_config(tmp_path: Path) -> None:
    with sink(tmp_path):
        pass
    with sink(tmp_path, "run2", identity=IDENTITY | {"config_id": "c2"}) as table:
        table.write(0, [clip(0)])
    assert rows(tmp_path)[0]["config_id"] == "c2"


def test_who_settles_the_config_by_what_is_there_sees_it_under_the_lock(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0)])
    with sink(tmp_path, "run2", identity=None) as later:
        assert later.found_identity == IDENTITY | {"run_id": "run1", "schema": SCHEMA_VERSION}
        later.begin(IDENTITY)
        later.write(0, [clip(1)])
    assert videos(tmp_path) == {"v0": None, "v1": None}


def test_no_resume_begins_a_fresh_table_and_loses_nothing(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0), failed(1)])
    other = IDENTITY | {"config_id": "c2"}
    with sink(tmp_path, "run2", identity=other, resume=False) as fresh:
        assert fresh.found_identity is None
        assert len(fresh.done()) == 0
        fresh.write(0, [clip(0)])
    with sink(tmp_path, "run2", identity=other, resume=False) as restarted:
        assert len(restarted.done()) == 1, "a sink that died is not another run"
    assert videos(tmp_path) == {"v0": None}
    assert videos(tmp_path / "previous/run1") == {"v0": None, "v1": "corrupt"}
    assert json.loads((tmp_path / "previous/run1/identity.json").read_text())["config_id"] == "c1"


# The lock --------------------------------------------------------------------------------------------------------


def test_the_next_run_waits_for_the_lock_says_so_and_then_sees_what_was_committed(tmp_path: Path) -> None:
    first, said = sink(tmp_path).__enter__(), []

    def end_first(text: str) -> None:
        said.append(text)
        first.write(0, [clip(0)])
        first.__exit__(None, None, None)

    with sink(tmp_path, "run2", on_wait=end_first) as second:
        assert len(second.done()) == 1
    assert said == [
        f"waiting for the lock: run run1, process {os.getpid()} on {os.uname().nodename} writes to {tmp_path}"
    ]


def test_waiting_for_the_lock_can_be_bounded(tmp_path: Path) -> None:
    now = itertools.count()
    with sink(tmp_path), pytest.raises(SinkError, match=r"run run1, .* within 3 s"):
        sink(tmp_path, "run2", lock_timeout_s=3, clock=lambda: next(now), sleep=lambda _: None).__enter__()


def test_a_killed_holder_gives_the_lock_back(tmp_path: Path) -> None:
    child = _start(_hold, tmp_path)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(SinkError, match="holder"):
        sink(tmp_path, lock_timeout_s=0).__enter__()
    child.kill()
    child.join()
    with sink(tmp_path, lock_timeout_s=0):
        pass


def test_a_sink_in_a_dead_one_s_place_says_that_the_lock_is_held_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    arguments = {"out": str(tmp_path), "run_id": "run1", "resume": True, "retry_failed": False}
    worker = SinkWorker(**arguments, lock_slice_s=0.3, lock_timeout_s=0.5)
    with sink(tmp_path):
        (opened,) = worker.try_reopen((IDENTITY,), ())[0].rows
        assert opened.waits_for is not None and opened.waits_for.startswith("waiting for the lock: run run1")
        with pytest.raises(SinkError, match=r"run run1, .* did not end within 0\.5 s"):
            worker.reopen((IDENTITY,), ())
    (opened,) = worker.try_reopen((IDENTITY,), ())[0].rows
    assert opened.waits_for is None
    worker.write((WriteRequest(sequence=0, labels=(clip(0),)),), ())
    worker.finish((), ())
    assert videos(tmp_path) == {"v0": None}


# Failed clips ----------------------------------------------------------------------------------------------------


def test_failed_clips_are_in_parts_of_their_own_and_count_as_done(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0), failed(1)])
    parts = {part.name: pq.read_table(part)["video_id"].to_pylist() for part in part_paths(tmp_path / "labels")}
    assert parts == {"run1-00000000.parquet": ["v0"], "failed-run1-00000000.parquet": ["v1"]}
    with sink(tmp_path, "run2") as later:
        assert len(later.done()) == 2


def test_a_sink_tells_which_of_the_clips_in_its_table_failed(tmp_path: Path) -> None:
    with sink(tmp_path) as out:
        out.write(0, [clip(1), failed(2), clip(3), failed(4)])
        out.write(1, [clip(5)])
        expected = {tuple(divmod(int(failed(number).clip_id, 16), 2**64)) for number in (2, 4)}
        assert {tuple(map(int, key)) for key in out.failed()} == expected
        assert len(out.done()) == 5
    with sink(tmp_path, "run2", retry_failed=True) as out:
        assert (len(out.done()), len(out.failed())) == (3, 0)


def test_retry_replaces_only_what_was_labelled_again(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0), failed(1), failed(2), failed(3)])
        table.write(1, [failed(4)])
    with sink(tmp_path, "run2", retry_failed=True) as again:
        assert len(again.done()) == 1
        assert videos(tmp_path) == {"v0": None}
        again.write(0, [clip(1), failed(2, "timeout")])
    assert videos(tmp_path) == {"v0": None, "v1": None, "v2": "timeout", "v3": "corrupt", "v4": "corrupt"}
    assert not [name for name in files(tmp_path) if name.startswith("_")]


def test_a_killed_retry_is_made_good_by_whatever_run_comes_next(tmp_path: Path) -> None:
    for kwargs in ({}, {"retry_failed": True}):
        out = tmp_path / str(len(kwargs))
        with sink(out) as table:
            table.write(0, [failed(1), failed(2)])
        child = _start(_retry_and_die, out)
        child.join()
        assert videos(out) == {"v1": None}
        with sink(out, "run3", **kwargs) as after:
            assert len(after.done()) == (1 if kwargs else 2)
        assert videos(out) == {"v1": None, "v2": "corrupt"}


def test_a_sink_that_died_in_a_retry_does_not_try_its_own_failures_again(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [failed(1)])
    with sink(tmp_path, "run2", retry_failed=True) as table:
        table.write(0, [failed(1, "timeout")])
    with sink(tmp_path, "run2", retry_failed=True) as restarted:
        assert len(restarted.done()) == 1
    assert videos(tmp_path) == {"v1": "timeout"}


def test_a_clip_that_failed_again_in_a_killed_retry_fails_once(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [failed(1), failed(2)])
    _start(_fail_again_and_die, tmp_path).join()
    assert videos(tmp_path) == {"v1": "corrupt"}
    with sink(tmp_path, "run3", retry_failed=True) as later:
        assert len(later.done()) == 0
    assert videos(tmp_path) == {"v1": "corrupt", "v2": "corrupt"}


def test_a_retry_killed_before_any_of_its_changes_to_the_disk_loses_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    for step in range(200):
        out = tmp_path / str(step)
        with sink(out) as table:
            table.write(0, [clip(0), failed(1), failed(2)])
            table.write(1, [failed(3)])
        first = _start(_retry_all_but_two, out, step)
        first.join()
        if step % 3 == 0:
            _start(_retry_all_but_two, out, step // 2).join()
        with sink(out, "run9"):
            found = videos(out)
        assert found.keys() == {"v0", "v1", "v2", "v3"}
        assert found["v0"] is None and found["v2"] == "corrupt"
        if first.exitcode == 0:
            assert found == {"v0": None, "v1": None, "v2": "corrupt", "v3": None}
            break
    assert 8 < step < 199, "the retry was killed at every step until it went through"


# Killing ---------------------------------------------------------------------------------------------------------


def test_a_run_killed_again_and_again_ends_with_every_clip_once(tmp_path: Path) -> None:
    chance, acknowledged, kills = random.Random(3), set(), 0
    while True:
        ours, theirs = processes.Pipe(duplex=False)
        child = _start(_label_missing, tmp_path, f"run{kills}", theirs)
        theirs.close()
        try:
            if kills < 8:
                for _ in range(chance.randrange(1, 5)):
                    acknowledged.update(ours.recv())
                time.sleep(chance.random() * 0.03)
                child.kill()
            while True:
                acknowledged.update(ours.recv())
        except EOFError:
            child.join()
        if child.exitcode == 0:
            break
        kills += 1
        there = set(videos(tmp_path))
        assert acknowledged <= there
    assert kills == 8
    assert Counter(row["video_id"] for row in rows(tmp_path)) == Counter(f"v{n}" for n in range(_NUM_CLIPS))
    assert summarize(tmp_path / "labels").num_failed == _NUM_CLIPS // 10


_NUM_CLIPS = 600


def _label_missing(out: Path, run_id: str, acknowledge: Any) -> None:
    with sink(out, run_id) as table:
        done = {tuple(key) for key in table.done().tolist()}
        every = [failed(n) if n % 10 == 0 else clip(n) for n in range(_NUM_CLIPS)]
        todo = [c for c in every if (int(c.clip_id[:16], 16), int(c.clip_id[16:], 16)) not in done]
        for sequence, start in enumerate(range(0, len(todo), 8)):
            batch = todo[start : start + 8]
            table.write(sequence, batch)
            acknowledge.send([c.video_id for c in batch])


def _retry_all_but_two(out: Path) -> None:
    with sink(out, f"retry{os.getpid()}", retry_failed=True) as table:
        done = {tuple(key) for key in table.done().tolist()}
        for number in (1, 3):
            again = clip(number)
            if (int(again.clip_id[:16], 16), int(again.clip_id[16:], 16)) not in done:
                table.write(number, [again])


def _retry_and_die(out: Path) -> None:
    with sink(out, "run2", retry_failed=True) as table:
        table.write(0, [clip(1)])
        os.kill(os.getpid(), signal.SIGKILL)


def _fail_again_and_die(out: Path) -> None:
    with sink(out, "run2", retry_failed=True) as table:
        table.write(0, [failed(1)])
        os.kill(os.getpid(), signal.SIGKILL)


def _hold(out: Path) -> None:
    with sink(out, "holder"):
        (out / "held").touch()
        time.sleep(60)


# Cameras ---------------------------------------------------------------------------------------------------------

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()


def seconds(out: Path) -> list[float]:
    """start_s of every row, from noon, in order."""
    return sorted(row["start_s"] - NOON for row in rows(out))


def parts_at(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "labels/camera=door/date=2024-05-01").iterdir())


def test_a_camera_has_a_part_for_a_while_that_every_flush_replaces_by_a_longer_one(tmp_path: Path) -> None:
    now_s = [NOON]
    with sink(tmp_path, clock=lambda: now_s[0], segment_s=10) as table:
        for second in range(25):
            now_s[0] = NOON + second
            table.write(second, [seen(NOON + second)])
            assert len(rows(tmp_path)) == second + 1
    assert parts_at(tmp_path) == [f"12-run1-{start:08d}.parquet" for start in (0, 10, 20)]
    stamps = {row["start_s"] - NOON: row["committed_at"].timestamp() - NOON for row in rows(tmp_path)}
    assert stamps == {float(second): float(second) for second in range(25)}


def test_a_camera_batch_that_is_sent_again_to_a_new_sink_changes_nothing(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [seen(NOON)])
        table.write(1, [seen(NOON + 1)])
        table.write(1, [seen(NOON + 1)])
    with sink(tmp_path) as restarted:
        restarted.write(1, [seen(NOON + 1)])
        restarted.write(2, [seen(NOON + 2)])
    assert seconds(tmp_path) == [0, 1, 2]


def test_a_finished_hour_is_folded_into_one_part_and_the_running_hour_is_left_alone(tmp_path: Path) -> None:
    now_s = [NOON]
    with sink(tmp_path, clock=lambda: now_s[0], segment_s=0, fold_after_s=120) as table:
        broken = clip(0, clip_id=clip_id("door", 0.5), camera="door", start_s=NOON + 0.5, error_code="corrupt")
        table.write(0, [seen(NOON + 2), broken])
        table.write(1, [seen(NOON + 1)])
        table.write(2, [seen(NOON + 3600)])
        table.write(3, [seen(NOON + 3601)])
        before = rows(tmp_path)
        now_s[0] = NOON + 3600 + 119
        assert not table.fold_next()
        now_s[0] += 1
        assert table.fold_next()
        assert not table.fold_next()
        assert parts_at(tmp_path) == [
            "12-failed-run1-00000000.parquet",
            "12-hour-0001-run1.parquet",
            "13-run1-00000002.parquet",
            "13-run1-00000003.parquet",
        ]
        folded = pq.read_table(tmp_path / "labels/camera=door/date=2024-05-01/12-hour-0001-run1.parquet")
        assert folded["start_s"].to_pylist() == [NOON + 1, NOON + 2]
        key = lambda row: row["start_s"]  # noqa: E731
        assert sorted(rows(tmp_path), key=key) == sorted(before, key=key)


def test_late_labels_of_a_folded_hour_are_folded_in_under_a_new_name(tmp_path: Path) -> None:
    with sink(tmp_path, segment_s=0) as table:
        for sequence in range(2):
            table.write(sequence, [seen(NOON + sequence)])
        assert table.fold_next()
        table.write(2, [seen(NOON + 2)])
        table.write(3, [seen(NOON + 1)])
        assert table.fold_next()
    assert parts_at(tmp_path) == ["12-hour-0002-run1.parquet"]
    assert seconds(tmp_path) == [0, 1, 2]


def test_the_next_run_folds_what_a_killed_one_left(tmp_path: Path) -> None:
    with sink(tmp_path, segment_s=0) as table:
        for sequence in range(3):
            table.write(sequence, [seen(NOON + sequence)])
    with sink(tmp_path, "run2") as later:
        assert later.fold_next()
    assert parts_at(tmp_path) == ["12-hour-0001-run2.parquet"]
    assert seconds(tmp_path) == [0, 1, 2]


def test_a_run_that_begins_lists_each_day_once_for_what_is_left_to_fold(tmp_path: Path, monkeypatch) -> None:
    with sink(tmp_path, segment_s=0) as table:
        for hour in range(6):
            for sequence in (2 * hour, 2 * hour + 1):
                table.write(sequence, [seen(NOON + 3600 * hour + sequence)])
    day, listed = tmp_path / "labels/camera=door/date=2024-05-01", []
    list_folder = os.listdir
    monkeypatch.setattr("operators.table.fold.os.listdir", lambda path: listed.append(path) or list_folder(path))
    with sink(tmp_path, "run2", fold_after_s=1e9) as later:
        assert not later.fold_next()
        assert listed.count(day) == 1
    with sink(tmp_path, "run3") as later:
        assert [later.fold_next() for _ in range(7)] == [True] * 6 + [False]


def test_a_folder_that_was_folded_away_is_kept_for_those_who_are_listing_it(tmp_path: Path) -> None:
    now_s = [NOON + 86_400]
    with sink(tmp_path, clock=lambda: now_s[0], segment_s=0, grace_s=10) as table:
        for sequence in range(2):
            table.write(sequence, [seen(NOON + sequence)])
        listing = os.scandir(tmp_path / "labels/camera=door/date=2024-05-01")
        assert table.fold_next()
        assert len(list(listing)) == 2
        assert len(list((tmp_path / "run/fold").iterdir())) == 1
        now_s[0] += 10
        table.fold_next()
        assert not list((tmp_path / "run/fold").iterdir())


def test_where_folders_cannot_change_places_nothing_changes(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second disk, which /dev/shm is on Linux")
    (tmp_path / "day").mkdir()
    (tmp_path / "day/small.parquet").write_text("small")
    (tmp_path / "day/stays.parquet").write_text("stays")
    aside = elsewhere / f"saccade-{os.getpid()}"
    write = lambda folder: (folder / "large.parquet").touch()  # noqa: E731
    assert not swap_parts(tmp_path / "day", aside, without={"small.parquet"}, write_new=write)
    assert not aside.exists()
    assert sorted(os.listdir(tmp_path / "day")) == ["small.parquet", "stays.parquet"]


def test_where_folders_cannot_change_places_the_small_parts_stay_and_finished_hours_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operators.table.fold.exchange", lambda first, second: False)
    now_s = [NOON]
    with sink(tmp_path, clock=lambda: now_s[0], segment_s=0) as table:
        for sequence in range(20):
            now_s[0] = NOON + sequence * 1800
            table.write(sequence, [seen(now_s[0])])
            assert not table.fold_next()
        now_s[0] += 7200
        assert table.can_fold is False
        assert not table.fold_next()
        parts = table._camera_parts()
        assert not parts._unfolded and not parts._clips and not parts._segments
        # A label that comes very late is not written twice all the same.
        table.write(20, [seen(NOON)])
    assert len(parts_at(tmp_path)) == 20 and seconds(tmp_path) == [1800 * n for n in range(20)]
    assert not list((tmp_path / "run/fold").iterdir())


def test_a_fold_killed_before_any_of_its_changes_to_the_disk_loses_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    for step in range(100):
        out = tmp_path / str(step)
        with sink(out, segment_s=0) as table:
            for sequence in range(3):
                table.write(sequence, [seen(NOON + sequence)])
        child = _start(_fold_all, out, step)
        child.join()
        assert seconds(out) == [0, 1, 2]
        with sink(out, "run2") as later:
            later.fold_next()
        assert seconds(out) == [0, 1, 2]
        if child.exitcode == 0:
            break
    assert 4 < step < 99


def test_who_reads_while_hours_are_folded_never_misses_or_doubles_a_label(tmp_path: Path) -> None:
    hours, parts = 12, 12
    with sink(tmp_path, segment_s=0) as table:
        for sequence in range(hours * parts):
            table.write(sequence, [seen(NOON + 3600 * (sequence // parts) + sequence % parts)])
    expected = Counter(row["clip_id"] for row in rows(tmp_path))
    assert len(expected) == hours * parts
    labels, reads = tmp_path / "labels", Counter[str]()
    query = f"SELECT clip_id FROM read_parquet('{labels}/**/*.parquet')"
    readers: dict[str, Callable[[], list[str]]] = {
        "pyarrow": lambda: ds.dataset(labels, partitioning="hive").to_table(["clip_id"])["clip_id"].to_pylist(),
        "duckdb": lambda: [name for (name,) in duckdb.execute(query).fetchall()],
    }
    ours, theirs = processes.Pipe()
    child = _start(_fold_when_told, tmp_path, theirs)
    for _ in range(hours):
        ours.send("fold one")
        while True:
            is_folded = ours.poll()
            for name, read in readers.items():
                try:
                    found = read()
                except (FileNotFoundError, duckdb.IOException):
                    # Listed before the swap, opened after it: an error, and never a wrong table.
                    assert not is_folded
                    continue
                assert Counter(found) == expected
                reads[name] += 1
            if is_folded:
                assert ours.recv()
                break
    ours.send("stop")
    child.join()
    assert child.exitcode == 0
    assert min(reads["pyarrow"], reads["duckdb"]) >= hours
    assert len(part_paths(labels)) == hours


def _fold_all(out: Path) -> None:
    with sink(out, "folder") as table:
        while table.fold_next():
            pass


def _fold_when_told(out: Path, pipe: Any) -> None:
    with sink(out, "folder") as table:
        while pipe.recv() != "stop":
            pipe.send(table.fold_next())


# Children --------------------------------------------------------------------------------------------------------


def _start(target: Callable[..., None], out: Path, *args: Any) -> Any:
    """A process of its own; an int as the last argument kills it before its so-manieth change to the disk."""
    step = args[-1] if args and isinstance(args[-1], int) else None
    child = processes.Process(target=_child, args=(target, out, args if step is None else args[:-1], step))
    child.start()
    return child


def _child(target: Callable[..., None], out: Path, args: tuple[Any, ...], step: int | None) -> None:
    left = itertools.count(step or 0, -1)

    def kill_at_step(event: str, _: Any) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir", "os.link", "ctypes.dlsym") and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if step is not None:
        sys.addaudithook(kill_at_step)
    target(out, *args)
