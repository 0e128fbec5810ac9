"""The parts of cameras: they grow, finished hours are folded, and readers see every label once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from operators.errors import SinkError
from operators.records import clip_id
from operators.table.fold import swap_parts
from operators.table.schema import part_paths, parts_keys
from tests.table.table_rows import clip, processes, rows, seen, sink, start_child

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()


def seconds(out: Path) -> list[float]:
    """Returns start_s of every row, counted from noon, in order."""
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
        child = start_child(_fold_all, out, step)
        child.join()
        assert seconds(out) == [0, 1, 2]
        with sink(out, "run2") as later:
            later.fold_next()
        assert seconds(out) == [0, 1, 2]
        if child.exitcode == 0:
            break
    assert 4 < step < 99


def test_a_part_that_is_folded_between_its_listing_and_its_reading_is_an_error_and_not_a_smaller_table(
    tmp_path: Path,
) -> None:
    with sink(tmp_path, segment_s=0) as table:
        for sequence in range(2):
            table.write(sequence, [seen(NOON + sequence)])
        listed = part_paths(tmp_path / "labels")
        assert table.fold_next()
        with pytest.raises(SinkError, match="is gone; it has been replaced meanwhile, read the folder again"):
            parts_keys(listed)
        with pytest.raises(FileNotFoundError):
            ds.dataset([str(part) for part in listed], partitioning="hive")


def test_who_reads_while_hours_are_folded_never_misses_or_doubles_a_label(tmp_path: Path) -> None:
    """A reader that lists the names and opens all of them sees every label, or an error.

    pyarrow and DuckDB, given a folder, list it, ask for every name whether it is still there, and leave out without a
    word those that are not: a read that overlaps a fold may be without the one hour that is folded.
    """
    hours, parts = 12, 12
    with sink(tmp_path, segment_s=0) as table:
        for sequence in range(hours * parts):
            table.write(sequence, [seen(NOON + 3600 * (sequence // parts) + sequence % parts)])
    by_hour = [{clip_id("door", NOON + 3600 * hour + n) for n in range(parts)} for hour in range(hours)]
    expected = Counter(row["clip_id"] for row in rows(tmp_path))
    assert expected == Counter(clip for clips in by_hour for clip in clips)
    labels, reads = tmp_path / "labels", Counter[str]()
    readers: dict[str, Callable[[], list[str]]] = {
        "pyarrow, names": lambda: _read_with_pyarrow([str(part) for part in part_paths(labels)]),
        "duckdb, names": lambda: _read_with_duckdb([str(part) for part in part_paths(labels)]),
        "pyarrow, folder": lambda: _read_with_pyarrow(labels),
        "duckdb, folder": lambda: _read_with_duckdb(f"{labels}/**/*.parquet"),
    }
    ours, theirs = processes.Pipe()
    child = start_child(_fold_when_asked, tmp_path, theirs)
    for hour in range(hours):
        ours.send("fold one")
        is_folded = False
        while not is_folded:
            is_folded = ours.poll()
            for name, read in readers.items():
                try:
                    found = Counter(read())
                except (FileNotFoundError, duckdb.IOException):
                    # The name was listed before the swap and opened after it.
                    assert not is_folded
                    continue
                if name.endswith("folder") and not is_folded and found != expected:
                    found.update(by_hour[hour])
                assert found == expected
                reads[name] += 1
        assert ours.recv()
    ours.send("stop")
    child.join()
    assert child.exitcode == 0
    assert min(reads[name] for name in readers) >= hours
    assert len(part_paths(labels)) == hours


def _read_with_pyarrow(place: Path | list[str]) -> list[str]:
    return ds.dataset(place, partitioning="hive").to_table(["clip_id"])["clip_id"].to_pylist()


def _read_with_duckdb(place: str | list[str]) -> list[str]:
    return [name for (name,) in duckdb.execute("SELECT clip_id FROM read_parquet($1)", [place]).fetchall()]


def _fold_all(out: Path) -> None:
    with sink(out, "folder") as table:
        while table.fold_next():
            pass


def _fold_when_asked(out: Path, pipe: Any) -> None:
    with sink(out, "folder") as table:
        while pipe.recv() != "stop":
            pipe.send(table.fold_next())
