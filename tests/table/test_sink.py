"""The sink: what is committed is there, whole and once, whatever is killed and when."""

from __future__ import annotations

import errno
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import SinkError
from operators.table.schema import part_paths, summarize
from tests.table.table_rows import clip, failed, files, processes, rows, sink, start_child, videos


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


def test_a_run_killed_again_and_again_ends_with_every_clip_once(tmp_path: Path) -> None:
    chance, acknowledged, kills = random.Random(3), set(), 0
    while True:
        ours, theirs = processes.Pipe(duplex=False)
        child = start_child(_label_missing, tmp_path, f"run{kills}", theirs)
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
