"""The executor that runs all workers in this process, for small machines, dry runs and tests."""

from __future__ import annotations

import itertools
import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any

from operators.errors import PipelineError
from pipeline.steering.executor import Call, Completion, WorkerSpec, make_worker


class InlineExecutor:
    """Runs all workers in this process: one call at a time, in the order in which calls were handed over.

    A decoder that hangs cannot be killed here; deadlines need processes.
    """

    def __init__(self) -> None:
        self._specs: dict[str, WorkerSpec] = {}
        self._workers: dict[tuple[str, int], Any] = {}
        self._waiting: deque[tuple[int, Call]] = deque()
        self._tickets = itertools.count()

    def start(self, spec: WorkerSpec) -> None:
        self._specs[spec.stage] = spec
        for worker in range(spec.count):
            self._workers[spec.stage, worker] = make_worker(spec.factory, spec.arguments)

    def wait_ready(self) -> None:
        return None

    def is_ready(self, stage: str, worker: int) -> bool:
        return True

    def missing(self) -> Mapping[tuple[str, int], bool]:
        return {}

    def why_missing(self, stage: str) -> str:
        return ""

    def is_here(self, stage: str, worker: int) -> bool:
        return True

    def machine_answered(self, stage: str, worker: int, for_s: float) -> bool:
        return True

    def submit(self, call: Call) -> int:
        ticket = next(self._tickets)
        self._waiting.append((ticket, call))
        return ticket

    def poll(self, timeout_s: float) -> list[Completion]:
        if not self._waiting:
            return []
        ticket, call = self._waiting.popleft()
        worker = self._workers[call.stage, call.worker]
        try:
            reply, payload = getattr(worker, call.method)(call.requests, call.payloads)
        except PipelineError:
            raise
        except Exception:
            return [Completion(ticket=ticket, outcome="failed", error=traceback.format_exc())]
        return [Completion(ticket=ticket, outcome="done", reply=reply, payload=payload)]

    def kill(self, stage: str, worker: int) -> None:
        """Does nothing: a late call only waited for its turn, or is over before anybody can ask for its end."""

    def replace(self, stage: str, worker: int) -> None:
        spec = self._specs[stage]
        self._workers[stage, worker] = make_worker(spec.factory, spec.arguments)

    def close(self) -> None:
        for worker in self._workers.values():
            if hasattr(worker, "shutdown"):
                worker.shutdown()
        self._workers.clear()
