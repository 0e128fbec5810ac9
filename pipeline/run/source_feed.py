"""The inputs of a run, listed in a thread of their own and handed to the loop one by one."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from operators.records import Source

_END = object()


class SourceFeed:
    """Walks the inputs in a thread of its own, a bounded number ahead: a slow listing must not hold up the loop."""

    def __init__(self, sources: Iterator[Source], *, ahead: int = 256) -> None:
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        self._ahead: deque[Any] = deque()
        """Inputs that `has_work` has seen and `next` has still to give."""
        self._is_closed = False
        self.num_seen = 0
        self.is_complete = False
        """Whether all inputs have been listed, so that num_seen is their number."""
        self._thread = threading.Thread(target=self._walk, args=(sources,), name="inputs", daemon=True)
        self._thread.start()

    def _walk(self, sources: Iterator[Source]) -> None:
        try:
            for source in sources:
                self.num_seen += 1
                self._put(source)
                if self._is_closed:
                    return
            self.is_complete = True
            self._put(_END)
        except BaseException as exc:  # handed to the loop, which raises it
            self._put(exc)

    def _put(self, item: Any) -> None:
        while not self._is_closed:
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def next(self) -> Source | None:
        """The next input if one is ready; raises StopIteration at the end and what the listing raised."""
        try:
            item = self._ahead.popleft() if self._ahead else self._ready.get_nowait()
        except queue.Empty:
            return None
        if item is _END:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def has_work(
        self, *, is_done: Callable[[Source], bool], should_stop: Callable[[], bool], most: int = 4096
    ) -> bool:
        """Whether any of the first `most` inputs is not done yet; waits for them, and `next` gives them all the same.

        True where there are more, or `should_stop` gives true meanwhile. Raises what the listing raised.
        """
        while len(self._ahead) < most and not should_stop():
            try:
                item = self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
            self._ahead.append(item)
            if item is _END:
                return False
            if isinstance(item, BaseException):
                raise item
            if not is_done(item):
                return True
        return True

    def __enter__(self) -> SourceFeed:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._is_closed = True
