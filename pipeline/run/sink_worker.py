"""The worker that writes labels: the only one that touches the output folder while a run lasts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import SinkError
from operators.table.sink import ParquetSink
from pipeline.steering.executor import WorkerSpec
from pipeline.steering.messages import CallCost, Reply, WriteRequest
from pipeline.steering.scheduler import SINK


@dataclass(frozen=True, slots=True)
class SinkOpened:
    """The content of the folder once its lock is had; while another run holds the lock, `waits_for` alone."""

    waits_for: str | None = None
    identity: Mapping[str, Any] | None = None
    done: np.ndarray | None = None
    """uint64 [N,2]: the clips that have their row."""
    failed: np.ndarray | None = None
    """uint64 [N,2]: those of them that failed."""


class _StillLocked(Exception):
    """Raised where the lock is not had within one slice of time."""


class SinkWorker:
    """Holds the table of a run. It waits for the lock in slices, so that the driver can report that, or give up."""

    def __init__(
        self,
        *,
        out: str,
        run_id: str,
        resume: bool,
        retry_failed: bool,
        lock_slice_s: float = 2.0,
        lock_timeout_s: float = 45.0,
    ) -> None:
        """`lock_timeout_s`: how long `reopen` waits for a dead worker's lock."""
        self._arguments: dict[str, Any] = {
            "out": Path(out),
            "run_id": run_id,
            "resume": resume,
            "retry_failed": retry_failed,
        }
        self._lock_timeout_s = lock_timeout_s
        self._lock_slice_s = lock_slice_s
        self._sink: ParquetSink | None = None

    def open(self, requests: tuple[Any, ...], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        return Reply(rows=(self._open(**self._arguments),)), None

    def _open(self, **arguments: Any) -> SinkOpened:
        if self._sink is not None:
            # The answer to the first call was lost. Another lock on the same folder would wait for this one for ever.
            return SinkOpened(identity=self._sink.found_identity)
        waits: list[str] = []
        give_up_at = time.monotonic() + self._lock_slice_s

        def sleep(seconds: float) -> None:
            if time.monotonic() > give_up_at:
                raise _StillLocked
            time.sleep(seconds)

        sink = ParquetSink(**arguments, on_wait=waits.append, sleep=sleep)
        try:
            sink.__enter__()
        except _StillLocked:
            return SinkOpened(waits_for=waits[0] if waits else "waiting for the lock")
        self._sink = sink
        return SinkOpened(identity=sink.found_identity)

    def begin(self, requests: tuple[Mapping[str, Any]], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        assert self._sink is not None
        self._sink.begin(requests[0])
        return Reply(rows=(SinkOpened(done=self._sink.done(), failed=self._sink.failed()),)), None

    def try_reopen(self, requests: tuple[Mapping[str, Any]], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        """Goes on with the table that a dead worker had begun, unless the lock is still held."""
        opened = self._open(**{**self._arguments, "resume": True})
        if opened.waits_for is None:
            assert self._sink is not None
            self._sink.begin(requests[0])
        return Reply(rows=(opened,)), None

    def reopen(self, requests: tuple[Mapping[str, Any]], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        """Goes on with the table as `try_reopen` does, but waits for the lock, though not for ever."""
        give_up_at = time.monotonic() + self._lock_timeout_s
        while (opened := self.try_reopen(requests, payloads)[0].rows[0]).waits_for is not None:
            if time.monotonic() > give_up_at:
                raise SinkError(f"{opened.waits_for}, and that did not end within {self._lock_timeout_s:g} s")
        return Reply(rows=()), None

    def write(self, requests: tuple[WriteRequest, ...], payloads: tuple[Any, ...]) -> tuple[Reply, None]:
        assert self._sink is not None
        begun_s = time.monotonic()
        num_rows = 0
        for request in requests:
            self._sink.write(request.sequence, list(request.labels))
            num_rows += len(request.labels)
        return Reply(rows=(), work=CallCost(busy_s=time.monotonic() - begun_s, num_items=num_rows)), None

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


def sink_spec(*, out: Path, run_id: str, resume: bool, retry_failed: bool) -> WorkerSpec:
    """The one sink worker of a run that writes to `out`."""
    arguments = {"out": str(out.resolve()), "run_id": run_id, "resume": resume, "retry_failed": retry_failed}
    return WorkerSpec(stage=SINK, factory=f"{__name__}:{sink_worker.__name__}", arguments=arguments)
