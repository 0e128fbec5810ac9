"""Several decoders of one file work side by side, each in a thread of its own, on groups of pictures."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from operators.media.container import Decoder
from operators.media.cut import Shot
from operators.media.frame_plan import Group

_News = tuple[int, list[Shot]] | BaseException | None
"""(number of a group, its shots), or the error that ended a thread, or None as a sign of life."""


class DecoderThreads:
    """The threads that decode groups of one file. They end when all groups are done, or with `stop`."""

    def __init__(self, *, open_decoder: Callable[[], Decoder], num_threads: int) -> None:
        """`open_decoder` opens the file once more; each thread closes the decoder that it has opened."""
        self._open_decoder = open_decoder
        self._num_threads = num_threads
        self._threads: list[threading.Thread] = []
        self._must_stop = threading.Event()

    def stop(self) -> None:
        """Waits until every thread has ended; none begins another packet's frames."""
        self._must_stop.set()
        while self._threads:
            self._threads.pop().join()
        self._must_stop.clear()

    def shots(
        self,
        decoder: Decoder,
        groups: Sequence[Group],
        decode_group: Callable[[Decoder, Group], Iterator[Shot | None]],
    ) -> Iterator[Shot | None]:
        """The shots of all groups in the order of the groups, and None as a sign of life.

        The first thread uses the `decoder` that is open already. Raises what `decode_group` raises.
        """
        news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        untaken = iter(enumerate(groups))
        lock = threading.Lock()

        def next_group() -> tuple[int, Group] | None:
            with lock:
                return next(untaken, None)

        def decode_groups(own: Decoder) -> None:
            while not self._must_stop.is_set() and (taken := next_group()) is not None:
                number, group = taken
                shots = []
                for item in decode_group(own, group):
                    if item is not None:
                        shots.append(item)
                    else:
                        news.put(None)
                    if self._must_stop.is_set():
                        return
                news.put((number, shots))

        def work(given: Decoder | None) -> None:
            try:
                own = given or self._open_decoder()
                try:
                    decode_groups(own)
                finally:
                    if given is None:
                        own.close()
            except BaseException as exc:
                news.put(exc)

        for i in range(min(self._num_threads, len(groups))):
            thread = threading.Thread(target=work, args=(decoder if i == 0 else None,), daemon=True)
            self._threads.append(thread)
            thread.start()
        try:
            yield from _in_order(news, len(groups))
        finally:
            self.stop()


def _in_order(news: queue.SimpleQueue[_News], num_groups: int) -> Iterator[Shot | None]:
    """The shots of groups that are done in any order, in the order of their numbers."""
    found: dict[int, list[Shot]] = {}
    due = 0
    while due < num_groups:
        item = news.get()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            yield None
            continue
        number, shots = item
        found[number] = shots
        while due in found:
            yield from found.pop(due)
            due += 1
