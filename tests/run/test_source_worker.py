"""The source worker: slices of time, bounded room, failures as rows, and nothing left open."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from operators.errors import SourceError
from operators.records import FrameBatch, Source, SourceFacts, Window, clip_id, source_id
from pipeline.run.source_worker import SourceWorker
from pipeline.steering.messages import ReadRequest


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def source(name: str) -> Source:
    return Source(source_id=source_id(f"/{name}"), uri=f"/{name}", video_id=name)


def frames(of: Source, number: int) -> FrameBatch:
    rows = np.zeros(1, np.int64)
    window = Window(
        clip_id=clip_id(of.source_id, number * 2.0),
        start_s=number * 2.0,
        end_s=number * 2.0 + 2,
        glance_rows=rows,
        candidate_rows=rows,
    )
    return FrameBatch(
        source=of,
        pixels=np.zeros((1, 10, 10, 3), np.uint8),
        pts_s=np.zeros(1),
        frame_index=rows,
        view_yxhw=(0, 0, 1, 1),
        facts=SourceFacts(width=10, height=10),
        windows=(window,),
    )


class ScriptedReader:
    """Plays `script`: seconds that pass with a tick, "frames" for a FrameBatch, an exception to raise."""

    opened: list[str]

    def __init__(self, of: Source, script: list[object], clock: Clock, log: list[str]) -> None:
        self._source, self._script, self._clock, self._log = of, script, clock, log

    def __enter__(self) -> ScriptedReader:
        self._log.append(f"open {self._source.video_id}")
        return self

    def __exit__(self, *exc: object) -> None:
        self._log.append(f"close {self._source.video_id}")

    def read(self) -> Iterator[FrameBatch | None]:
        number = 0
        for entry in self._script:
            if isinstance(entry, Exception):
                raise entry
            if entry == "frames":
                yield frames(self._source, number)
                number += 1
            else:
                assert isinstance(entry, float)
                self._clock.now_s += entry
                yield None


def worker(
    scripts: dict[str, list[object]], **settings: object
) -> tuple[SourceWorker, list[str]]:
    clock, log = Clock(), []  # type: ignore[var-annotated]
    made = SourceWorker(
        open_reader=lambda of, first: ScriptedReader(of, scripts[of.video_id], clock, log),
        clock=clock,
        stride_s=2.0,
        **settings,  # type: ignore[arg-type]
    )
    return made, log


def requests(*names: str, first_window: int = 0) -> tuple[ReadRequest, ...]:
    return tuple(ReadRequest(source=source(name), first_window=first_window) for name in names)


def test_a_short_source_is_done_in_one_call_and_closed() -> None:
    made, log = worker({"a": [0.1, "frames", 0.1]})
    reply, batches = made.read(requests("a"), ())
    assert reply.rows[0].is_done
    assert [info.row for info in reply.rows[0].pieces] == [0]
    assert len(batches) == 1
    assert log == ["open a", "close a"]


def test_a_long_source_comes_back_after_a_slice_and_goes_on_where_it_was() -> None:
    made, log = worker({"a": [0.6, "frames", 0.6, 0.6, "frames"]}, slice_s=1.0)
    first, one = made.read(requests("a"), ())
    assert not first.rows[0].is_done
    assert [clip.start_s for info in first.rows[0].pieces for clip in info.clips] == [0.0]
    second, two = made.read(requests("a", first_window=1), ())
    assert second.rows[0].is_done
    assert [(clip.start_s, clip.window) for info in second.rows[0].pieces for clip in info.clips] == [(2.0, 1)]
    assert (len(one), len(two)) == (1, 1)
    assert log == ["open a", "close a"]


def test_what_was_read_is_read_again_if_it_did_not_arrive() -> None:
    made, log = worker({"a": [0.6, "frames", 0.6, 0.6, "frames"]}, slice_s=1.0)
    answers = [made.read(requests("a"), ())[0].rows[0] for _ in range(2)]
    assert [[clip.window for info in row.pieces for clip in info.clips] for row in answers] == [[0], [0]]
    assert log == ["open a", "close a", "open a"]


def test_sources_behind_a_slow_one_wait_for_the_next_call_unopened() -> None:
    made, log = worker({"a": [5.0, "frames"], "b": ["frames"]}, slice_s=1.0)
    reply, _ = made.read(requests("a", "b"), ())
    assert [row.source_id for row in reply.rows] == [source("a").source_id, source("b").source_id]
    assert not reply.rows[1].is_done
    assert log == ["open a"]
    reply, batches = made.read(requests("a", "b"), ())
    assert all(row.is_done for row in reply.rows)
    assert len(batches) == 2


def test_a_call_ends_when_its_room_is_used() -> None:
    # A FrameBatch here is 300 bytes.
    made, _ = worker({"a": ["frames"] * 4}, max_bytes=600)
    reply, batches = made.read(requests("a"), ())
    assert len(batches) == 2
    assert not reply.rows[0].is_done


def test_a_failure_is_a_row_at_the_window_where_it_happened() -> None:
    made, log = worker({"a": ["frames", SourceError("a: broken", code="corrupt")], "b": ["frames"]})
    reply, batches = made.read(requests("a", "b"), ())
    failed = reply.rows[0].failed
    assert failed is not None
    assert (failed.error_code, failed.start_s, failed.clip_id) == (
        "corrupt", 2.0, clip_id(source("a").source_id, 2.0),
    )  # fmt: skip
    assert len(reply.rows[0].pieces) == 1
    assert reply.rows[1].is_done
    assert len(batches) == 2
    assert log == ["open a", "close a", "open b", "close b"]


def test_a_source_is_charged_for_its_own_time_only() -> None:
    made, _ = worker({"a": [4.0, "frames"], "b": [4.0, "frames"]}, slice_s=10.0, max_total_s=5.0)
    reply, _ = made.read(requests("a", "b"), ())
    assert [row.failed for row in reply.rows] == [None, None]


def test_a_source_that_takes_too_long_in_all_is_given_up() -> None:
    made, _ = worker({"a": [0.9] * 10}, slice_s=1.0, max_total_s=3.0)
    replies = [made.read(requests("a"), ())[0].rows[0] for _ in range(2)]
    assert [reply.failed for reply in replies[:1]] == [None]
    assert replies[1].failed is not None
    assert replies[1].failed.error_code == "timeout"


def test_an_exception_of_ours_leaves_no_source_open() -> None:
    made, log = worker({"a": [2.0, "frames"], "b": [RuntimeError("a bug")]}, slice_s=1.0)
    made.read(requests("a"), ())
    with pytest.raises(RuntimeError):
        made.read(requests("b", "a"), ())
    assert log == ["open a", "open b", "close b", "close a"]
    reply, _ = made.read(requests("a"), ())
    # Read again from its beginning, not from where it was.
    assert not reply.rows[0].is_done


def test_after_many_sources_a_fresh_process_is_asked_for_once_nothing_is_open() -> None:
    made, _ = worker({"a": ["frames"], "b": ["frames"], "c": [2.0, "frames"]}, retires_after=2)
    assert not made.read(requests("a"), ())[0].is_spent
    assert made.read(requests("b"), ())[0].is_spent
    assert not made.read(requests("c"), ())[0].is_spent
