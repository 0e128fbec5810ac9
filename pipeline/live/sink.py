"""The writing side of a live run: labels wait here, go to the sink's process in parts, and outlive its deaths."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from operators.errors import StageError
from operators.passwords import without_password
from operators.records import ClipLabel
from pipeline.steering.executor import Call, Completion, Executor
from pipeline.steering.messages import WriteRequest
from pipeline.steering.scheduler import MAX_DEATHS, SINK

_PART_S = 0.7
"""A part is sent at this age. With the slice that its labels come in and the writing itself it stays below a second."""
_FOLD_S = 20.0
_HANG_S = 60.0
"""A process that has not answered for so long is ended and replaced, one that is still being made included."""
_MAX_WAITING = 10_000
"""Labels that wait for a sink that is away, some 5 KB each; 8 cameras with a label a second fill it in 20 minutes."""


class LabelWriter:
    """Hands labels to the sink, one part at a time, folds hours that are over, and replaces a sink that is gone."""

    def __init__(
        self,
        *,
        executor: Executor,
        identity: Mapping[str, Any],
        message: Callable[[str], None],
        can_kill: bool,
        clock: Callable[[], float],
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        self._executor = executor
        self._identity = identity
        self._message = message
        self._can_kill = can_kill
        self._clock = clock
        self._max_waiting = max_waiting
        self._waiting: deque[ClipLabel] = deque()
        self._running: dict[int, Call] = {}
        self._sequence = itertools.count()
        self._flushed_s = self._folded_s = self._answered_s = clock()
        self._can_fold = self._folds = True
        self._deaths_in_a_row = 0
        self._is_dropping = False
        self.num_deaths = 0
        self.num_lost = 0
        """So many answers of the sink were lost on the way."""
        self.dropped: Counter[str] = Counter()
        """The number of labels that were never written, by camera."""

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def silent_s(self, now_s: float) -> float:
        """Gives for how long the sink has owed an answer."""
        return now_s - self._answered_s if self._running else 0.0

    def add(self, label: ClipLabel) -> None:
        """Keeps a label for the next part. The oldest one is dropped where too many wait: cameras go on, and what they
        show now is worth more than what they showed before."""
        self._waiting.append(label)
        if len(self._waiting) > self._max_waiting:
            self._drop(self._waiting.popleft())
            if not self._is_dropping:
                self._message(f"{self._max_waiting} labels wait for a disk that is away; the oldest are dropped")
            self._is_dropping = True

    def begin_due(self, now_s: float, *, is_over: bool) -> None:
        """Begins what is due: a part, or in an idle moment the folding of an hour."""
        if self._running:
            return
        is_due = bool(self._waiting) and (is_over or now_s - self._flushed_s >= _PART_S)
        if is_due:
            self._flushed_s, self._is_dropping = now_s, False
            part = tuple(self._waiting)
            self._waiting.clear()
            self._submit("write", WriteRequest(sequence=next(self._sequence), labels=part))
        elif self._folds and now_s - self._folded_s > _FOLD_S:
            self._folded_s = now_s
            self._submit("fold")

    def settle(self, completion: Completion) -> bool:
        """Does what follows from the end of a call; false where it is no call of this writer."""
        call = self._running.pop(completion.ticket, None)
        if call is None:
            return False
        self._answered_s = self._clock()
        match completion.outcome:
            case "done" if call.method == "write":
                self._deaths_in_a_row = 0
            case "done" if call.method == "fold" and self._can_fold and not completion.reply.rows[0]:
                self._can_fold = False
                self._report_unfolded("this disk cannot exchange folders")
            case "done":
                pass
            case "died":
                self._revive(call)
            case "lost":
                self._repeat(call)
            case _ if call.method == "fold":
                self._fold_no_more(without_password(completion.error.strip().splitlines()[-1]))
            case _:
                last = completion.error.strip().splitlines()[-1] if completion.error else "unknown error"
                raise StageError(f"{SINK} worker 0 failed: {without_password(last)}")
        return True

    def end_hanging(self, now_s: float) -> None:
        """Ends a sink that hangs; its calls then come back as those of one that died."""
        if self._can_kill and self.silent_s(now_s) > _HANG_S:
            self._message(f"the process that writes the labels has been at it for {_HANG_S:g} s and is ended")
            self._answered_s = now_s
            self._executor.kill(SINK, 0)

    def unwritten(self) -> list[WriteRequest]:
        """Gives the labels that are not known to be on the disk, in parts that may be written a second time."""
        parts: list[WriteRequest] = [call.requests[0] for call in self._running.values() if call.method == "write"]
        if self._waiting:
            parts.append(WriteRequest(sequence=next(self._sequence), labels=tuple(self._waiting)))
        return parts

    def give_up(self) -> None:
        """Leaves what is not written: the run has to end, and the sink does not answer."""
        for call in self._running.values():
            for label in call.requests[0].labels if call.method == "write" else ():
                self._drop(label)
        for label in self._waiting:
            self._drop(label)
        self._waiting.clear()
        if self._can_kill:
            # Ray would wait for it at the end: 12 seconds passed from the signal to the end of the command.
            self._executor.kill(SINK, 0)
        count = self.dropped.total()
        self._message(f"the process that writes the labels does not answer and is left; {count} labels were dropped")

    def _drop(self, label: ClipLabel) -> None:
        self.dropped[label.camera or ""] += 1

    def _submit(self, method: str, *requests: Any) -> None:
        self._resubmit(Call(stage=SINK, worker=0, method=method, requests=requests))

    def _resubmit(self, call: Call) -> None:
        if not self._running:
            self._answered_s = self._clock()
        self._running[self._executor.submit(call)] = call

    def _repeat(self, call: Call) -> None:
        """Makes a call again whose answer was lost: a part overwrites itself by its number, and folding can wait."""
        self.num_lost += 1
        self._message(f"an answer of the process that writes the labels was lost ({call.method})")
        if call.method == "write":
            self._resubmit(call)
        elif call.method == "reopen":
            # It may hold the lock already, and would wait for itself: only a new process can be asked.
            self._executor.kill(SINK, 0)
            self._revive(call)

    def _revive(self, call: Call) -> None:
        """Replaces the process. What it had been given is written again by the new one."""
        lost = [call, *self._running.values()]
        self._running.clear()
        self.num_deaths += 1
        self._deaths_in_a_row += 1
        if any(one.method == "fold" for one in lost):
            self._fold_no_more("the process that does it died")
        if self._deaths_in_a_row >= MAX_DEATHS:
            raise StageError(f"the process that writes the labels died {MAX_DEATHS} times in a row")
        self._message("the process that writes the labels died and is replaced; its last part is written again")
        self._executor.replace(SINK, 0)
        self._submit("reopen", self._identity)
        for again in lost:
            if again.method == "write":
                self._resubmit(again)

    def _fold_no_more(self, why: str) -> None:
        """Folding only tidies up: where it fails the labels go on."""
        self._folds = False
        self._report_unfolded(why)

    def _report_unfolded(self, why: str) -> None:
        self._message(f"hours are not folded: {why}; their small parts stay")
