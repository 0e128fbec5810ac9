"""Processes that work side by side and end with the one that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def process_pool(num_workers: int) -> ProcessPoolExecutor:
    """A pool of processes that are spawned and not forked, because the caller may have threads."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=follow_parent)


class KillableProcess:
    """A process that works on one call after another and can be ended whatever a call is doing."""

    def __init__(self) -> None:
        self._pool = process_pool(1)
        self._pid = self._pool.submit(os.getpid)

    @property
    def is_ready(self) -> bool:
        """Whether the process has started: before that its calls wait and are not late."""
        return self._pid.done()

    @property
    def is_stillborn(self) -> bool:
        """Whether the process died before it could take a call."""
        return self._pid.done() and self._pid.exception() is not None

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The call's result; it raises BrokenProcessPool where the process died. Raises that itself where the process
        is dead already."""
        return self._pool.submit(function, *args, **kwargs)

    def kill(self) -> None:
        """Ends the process at once and waits until it is gone."""
        if not self._pid.done():
            # It is starting, and has nothing yet that could hang.
            wait([self._pid])
        if not self.is_stillborn:
            for process in multiprocessing.active_children():
                if process.pid == self._pid.result():
                    process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


def follow_parent() -> None:
    """Has a process of a pool watch its parent: one that is killed cannot end it."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
