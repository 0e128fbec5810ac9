"""The port between the loop and what runs the workers: specifications of workers, calls, and how calls ended.

A worker is any object whose methods take (requests, payloads) and return (Reply, payload). It is made by a factory
that is named by its dotted place, so that another process can make it too.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How the workers of one stage are made, and what each of them may use."""

    stage: str
    factory: str
    """The place of a function that makes one worker, as `package.module:function`."""
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
    """The payloads that the requests point into, as handles that the executor gave out."""


@dataclass(frozen=True, slots=True)
class Completion:
    """How a call ended. `died`: the worker's process is gone. `lost`: a payload is gone with its machine."""

    ticket: int
    outcome: str
    """One of done, died, lost and failed."""
    reply: Any = None
    payload: Any = None
    error: str = ""


class Executor(Protocol):
    """What the loop needs of whatever runs the workers."""

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
        """Makes a new worker in the place of one that is gone, is spent or cannot be reached; one that still lives is
        ended."""

    def close(self) -> None:
        """Ends all workers; nothing of them stays behind."""


def make_worker(factory: str, arguments: Mapping[str, Any]) -> Any:
    """The worker that the factory at this dotted place makes of these arguments."""
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)
