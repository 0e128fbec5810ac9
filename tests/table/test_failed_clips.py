"""Failed clips: they count as done, are tried again on request, and are never lost or doubled."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq

from operators.table.schema import part_paths
from tests.table.table_rows import clip, failed, files, sink, start_child, videos


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
        child = start_child(_retry_and_die, out)
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
    start_child(_fail_again_and_die, tmp_path).join()
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
        first = start_child(_retry_all_but_two, out, step)
        first.join()
        if step % 3 == 0:
            start_child(_retry_all_but_two, out, step // 2).join()
        with sink(out, "run9"):
            found = videos(out)
        assert found.keys() == {"v0", "v1", "v2", "v3"}
        assert found["v0"] is None and found["v2"] == "corrupt"
        if first.exitcode == 0:
            assert found == {"v0": None, "v1": None, "v2": "corrupt", "v3": None}
            break
    assert 8 < step < 199, "the retry was killed at every step until it went through"


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
