"""The port between the loop and what runs the workers, and the form of it that runs them in this process.

A worker is any object whose methods take (requests, payloads) and return (Reply, payload). It is made by a
factory that is named by its dotted place, so that another process can make it too.
"""

from __future__ import annotations

import importlib
import itertools
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from operators.errors import PipelineError


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How the workers of one stage are made, and what each of them may use."""

    stage: str
    factory: str
    """`package.module:function`"""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1
    num_cpus: float = 0.0
    num_gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    stage: str
    worker: int
    method: str
    requests: tuple[Any, ...]
    payloads: tuple[Any, ...] = ()
    """Handles as executors give them out."""


@dataclass(frozen=True, slots=True)
class Completion:
    """How a call ended. `died`: the worker's process is gone. `lost`: a payload is gone with its machine."""

    ticket: int
    outcome: str
    """done, died, lost, failed"""
    reply: Any = None
    payload: Any = None
    error: str = ""


class Executor(Protocol):
    def start(self, spec: WorkerSpec) -> None:
        """Makes the workers of a stage; may return before they are ready."""

    def wait_ready(self) -> None:
        """Returns when every worker has been made; raises what its factory raised."""

    def submit(self, call: Call) -> int:
        """Hands a call over and returns its ticket. Calls to one worker run in order."""

    def poll(self, timeout_s: float) -> list[Completion]:
        """The calls that ended since, those of one worker in their order; waits up to timeout_s for the first one.

        Raises ClusterGone when the head of a cluster that was joined has been silent for too long.
        """

    def is_ready(self, stage: str, worker: int) -> bool:
        """Whether a worker has been made: before that, its calls wait and are not late."""

    def missing(self) -> Mapping[tuple[str, int], bool]:
        """The workers that are not made; true for one that has a place and is being made there."""

    def why_missing(self, stage: str) -> str:
        """What a worker of a stage that has no place waits for, in words."""

    def is_here(self, stage: str, worker: int) -> bool:
        """Whether a worker is on the driver's machine."""

    def machine_answered(self, stage: str, worker: int, for_s: float) -> bool:
        """Whether a worker's machine answers, and has done so all the time for so many seconds."""

    def kill(self, stage: str, worker: int) -> None:
        """Ends a worker that hangs. Its calls come back as `died`."""

    def replace(self, stage: str, worker: int) -> None:
        """Makes a new worker in the place of one that is gone, that has nothing left to do, or that cannot be reached:
        one that still lives is ended."""

    def close(self) -> None:
        """Ends all workers; nothing of them stays behind."""


def make_worker(factory: str, arguments: Mapping[str, Any]) -> Any:
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)


class InlineExecutor:
    """The same stages in this process: one call at a time, in the order in which they were handed over.

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
        """Nothing: a call that is late only waited for its turn, or it is over before anybody can ask for its end."""

    def replace(self, stage: str, worker: int) -> None:
        spec = self._specs[stage]
        self._workers[stage, worker] = make_worker(spec.factory, spec.arguments)

    def close(self) -> None:
        for worker in self._workers.values():
            if hasattr(worker, "shutdown"):
                worker.shutdown()
        self._workers.clear()


def count_payloads(handles: Sequence[Any]) -> tuple[tuple[Any, ...], list[int]]:
    """The distinct handles in order of first use, and for each given handle its place among them."""
    distinct: list[Any] = []
    places: dict[int, int] = {}
    rows: list[int] = []
    for handle in handles:
        if id(handle) not in places:
            places[id(handle)] = len(distinct)
            distinct.append(handle)
        rows.append(places[id(handle)])
    return tuple(distinct), rows
