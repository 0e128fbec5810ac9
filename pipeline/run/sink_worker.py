"""The worker that writes labels: the only one that touches the output folder while a run lasts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.table.sink import ParquetSink
from pipeline.steering.messages import Reply, Work, WriteRequest


@dataclass(frozen=True, slots=True)
class SinkOpened:
    """What the folder held when the lock was had; or who else holds the lock, and then nothing else."""

    waits_for: str | None = None
    identity: Mapping[str, Any] | None = None
    done: np.ndarray | None = None
    """uint64 [N,2]: clips that have their row."""
    failed: np.ndarray | None = None
    """uint64 [N,2]: those of them that failed."""


class _StillLocked(Exception):
    pass


class SinkWorker:
    """Opens in slices, so that whoever waits for the lock can be told and can give up."""

    def __init__(self, *, out: str, run_id: str, resume: bool, retry_failed: bool, lock_slice_s: float = 2.0) -> None:
        self._arguments = {"out": Path(out), "run_id": run_id, "resume": resume, "retry_failed": retry_failed}
        self._lock_slice_s = lock_slice_s
        self._sink: ParquetSink | None = None

    def open(self, requests: tuple[Any, ...], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        waits: list[str] = []
        give_up_at = time.monotonic() + self._lock_slice_s

        def sleep(seconds: float) -> None:
            if time.monotonic() > give_up_at:
                raise _StillLocked
            time.sleep(seconds)

        sink = ParquetSink(**self._arguments, on_wait=waits.append, sleep=sleep)  # type: ignore[arg-type]
        try:
            sink.__enter__()
        except _StillLocked:
            return Reply(rows=(SinkOpened(waits_for=waits[0] if waits else "waiting for the lock"),)), None
        self._sink = sink
        return Reply(rows=(SinkOpened(identity=sink.found_identity),)), None

    def begin(self, requests: tuple[Mapping[str, Any]], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        assert self._sink is not None
        self._sink.begin(requests[0])
        return Reply(rows=(SinkOpened(done=self._sink.done(), failed=self._sink.failed()),)), None

    def reopen(self, requests: tuple[Mapping[str, Any]], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        """In the place of a worker that died: goes on with the table that it had begun."""
        sink = ParquetSink(**{**self._arguments, "resume": True})  # type: ignore[arg-type]
        sink.__enter__()
        sink.begin(requests[0])
        self._sink = sink
        return Reply(rows=()), None

    def write(self, requests: tuple[WriteRequest, ...], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        assert self._sink is not None
        begun_s = time.monotonic()
        num_rows = 0
        for request in requests:
            self._sink.write(request.sequence, list(request.labels))
            num_rows += len(request.labels)
        return Reply(rows=(), work=Work(busy_s=time.monotonic() - begun_s, num_items=num_rows)), None

    def fold(self, requests: tuple[Any, ...], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        """Folds at most one finished hour of a camera, for a moment when nothing waits to be written.

        Answers whether the disk can do that at all, as far as is known.
        """
        assert self._sink is not None
        self._sink.fold_next()
        return Reply(rows=(self._sink.can_fold,)), None

    def finish(self, requests: tuple[Any, ...], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        """Gives the lock back."""
        if self._sink is not None:
            self._sink.__exit__(None, None, None)
            self._sink = None
        return Reply(rows=()), None

    def shutdown(self) -> None:
        self.finish((), ())


def sink_worker(**arguments: Any) -> SinkWorker:
    return SinkWorker(**arguments)
