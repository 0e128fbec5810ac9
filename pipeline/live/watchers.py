"""The driver's side of the workers that watch cameras: they get slices of time, and are replaced when they hang."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from operators.errors import StageError
from operators.passwords import without_password
from pipeline.live.record import LiveRecord
from pipeline.live.sink import LabelWriter
from pipeline.live.worker import CameraNews, CameraPlan, LiveNews
from pipeline.steering.executor import Call, Completion, Executor
from pipeline.steering.scheduler import MAX_DEATHS

WATCH = "live"
_SLICE_S = 0.2
_SLICES_AHEAD = 2
"""Slices handed to a worker at a time, so that it goes on while the driver is busy with the one before."""
_HANG_S = 60.0
"""A worker that watches and has not answered for so long is ended and replaced."""
_WARM_UP_S = 300.0
"""A worker that is not ready so long after it had a place is ended and replaced. Making full-size networks and passing
frames through them in all sizes takes seconds, and up to a minute or two where a GPU compiles them."""


@dataclass(slots=True, eq=False)
class _Watcher:
    """A worker that watches cameras, as the driver knows it."""

    share: tuple[CameraPlan, ...]
    answered_s: float
    """When it last answered, or was made."""
    warming_s: float
    """Since when it has had a place to be made in."""
    is_warm: bool = False
    """Whether it has made everything that it needs and can begin."""
    is_watching: bool = False
    is_ready: bool = False
    """Whether it has answered a slice."""
    is_over: bool = False
    deaths: int = 0
    """It died so often in a row, without an answer in between."""
    former: dict[str, CameraNews] = field(default_factory=dict)
    """The news of its cameras with the counts of the workers before it."""


class Watchers:
    """Gives slices of time to the live workers, and takes their labels and news in."""

    def __init__(
        self,
        *,
        executor: Executor,
        shares: Sequence[tuple[CameraPlan, ...]],
        record: LiveRecord,
        writer: LabelWriter,
        can_kill: bool,
        clock: Callable[[], float],
    ) -> None:
        """`shares`: the cameras of each worker. Their labels go to `writer`."""
        self._executor = executor
        self._record = record
        self._writer = writer
        self._can_kill = can_kill
        self._clock = clock
        self._watchers = [_Watcher(share, clock(), clock()) for share in shares]
        self._running: dict[int, Call] = {}
        self._is_stopping = False
        self._warm_s: float | None = None
        """When the first worker was warm."""
        self.begun_s: float | None = None
        """Since when cameras are watched."""
        self.num_deaths = 0
        self.num_lost = 0
        """So many answers were lost on the way."""

    @property
    def are_over(self) -> bool:
        """Whether all cameras are over for good."""
        return all(one.is_over for one in self._watchers)

    @property
    def are_drained(self) -> bool:
        """Whether nothing is left to wait for after a stop: a worker that is not ready yet has nothing to drain."""
        return all(one.is_over or not one.is_ready for one in self._watchers)

    def silent_s(self, now_s: float) -> float:
        """Gives the longest time that a worker which is not over has not answered."""
        return max((now_s - one.answered_s for one in self._watchers if not one.is_over), default=0.0)

    def begin(self) -> None:
        """Has every worker make what it needs."""
        for worker in range(len(self._watchers)):
            self._warm_up(worker)

    def stop(self) -> None:
        """Has every worker let its cameras go; what has arrived is still analysed."""
        self._is_stopping = True
        for worker in range(len(self._watchers)):
            self._submit(Call(stage=WATCH, worker=worker, method="stop", requests=()))

    def start_watching(self) -> None:
        """Hands the first slices to workers that are warm.

        In the beginning all start together: a worker that still makes its networks while others watch takes the cores
        from them. But nobody waits for one that hangs.
        """
        warm = [worker for worker, one in enumerate(self._watchers) if one.is_warm]
        if not warm or self._is_stopping:
            return
        self._warm_s = self._clock() if self._warm_s is None else self._warm_s
        if self.begun_s is None:
            is_late = self._clock() - self._warm_s > _HANG_S
            if is_late:
                num_late = len(self._watchers) - len(warm)
                self._record.message(f"{num_late} live worker(s) are not ready; the others begin")
            if is_late or len(warm) == len(self._watchers):
                self.begun_s = self._clock()
                self._record.begin()
        for worker in warm if self.begun_s is not None else []:
            one = self._watchers[worker]
            if not one.is_watching:
                one.is_watching, one.answered_s = True, self._clock()
                for _ in range(_SLICES_AHEAD):
                    self._submit(_slice(worker))

    def end_hanging(self, now_s: float) -> None:
        """Ends workers that hang, while they watch or while they are made; their calls then come back as `died`."""
        if not self._can_kill:
            return
        missing = self._executor.missing()
        for worker, one in enumerate(self._watchers):
            if missing.get((WATCH, worker)) is False:
                # It waits for a place: that is no fault of its own.
                one.warming_s = now_s
            if one.is_watching and not one.is_over and now_s - one.answered_s > _HANG_S:
                self._record.message(f"live worker {worker} has not answered for {_HANG_S:g} s and is ended")
                one.answered_s = now_s
                self._executor.kill(WATCH, worker)
            elif not one.is_warm and not one.is_over and now_s - one.warming_s > _WARM_UP_S:
                self._record.message(f"live worker {worker} was not ready within {_WARM_UP_S:g} s and is ended")
                one.warming_s = now_s
                self._executor.kill(WATCH, worker)

    def settle(self, completion: Completion) -> None:
        """Does what follows from the end of a call; ends of calls that are not its own change nothing."""
        call = self._running.pop(completion.ticket, None)
        if call is None:
            return
        match completion.outcome:
            case "done" if call.method == "watch":
                self._add(call.worker, completion.reply.rows[0])
                if not self._watchers[call.worker].is_over:
                    self._submit(_slice(call.worker))
            case "done" if call.method == "begin":
                self._watchers[call.worker].is_warm = True
            case "done":
                pass
            case "died":
                self._replace(call.worker)
            case "lost":
                # Counts come again with the next slice; labels that were in this one are gone. Each call of a
                # worker that watches may be made twice.
                self.num_lost += 1
                self._record.message(
                    f"an answer of live worker {call.worker} was lost ({call.method}), with the labels that it held"
                )
                self._submit(call)
            case _:
                last = completion.error.strip().splitlines()[-1] if completion.error else "unknown error"
                raise StageError(f"{call.stage} worker {call.worker} failed: {without_password(last)}")

    def _submit(self, call: Call) -> None:
        self._running[self._executor.submit(call)] = call

    def _warm_up(self, worker: int) -> None:
        share = self._watchers[worker].share
        self._submit(Call(stage=WATCH, worker=worker, method="begin", requests=share))

    def _replace(self, worker: int) -> None:
        """Replaces a worker that died: what it held is gone, and its cameras are opened again."""
        self._running = {ticket: one for ticket, one in self._running.items() if one.worker != worker}
        self.num_deaths += 1
        one = self._watchers[worker]
        one.deaths += 1
        one.is_warm = one.is_watching = one.is_ready = False
        one.former = {plan.spec.name: self._record.news_of(plan.spec.name) for plan in one.share}
        if self._is_stopping:
            one.is_over = True
            return
        if one.deaths >= MAX_DEATHS:
            raise StageError(f"live worker {worker} died {MAX_DEATHS} times in a row")
        self._record.message(f"live worker {worker} died and is replaced; its cameras are opened again")
        one.answered_s = one.warming_s = self._clock()
        self._executor.replace(WATCH, worker)
        self._warm_up(worker)

    def _add(self, worker: int, news: LiveNews) -> None:
        """Takes in what a slice has brought."""
        one = self._watchers[worker]
        one.answered_s, one.is_ready, one.is_over, one.deaths = self._clock(), True, news.is_over, 0
        for name, camera in news.cameras.items():
            self._record.add_news(name, camera.after(one.former[name]) if one.former else camera)
        for label in news.labels:
            self._writer.add(label)
            self._record.add_label(label)
        self._record.end_slice(num_labels_waiting=self._writer.num_waiting)


def _slice(worker: int) -> Call:
    return Call(stage=WATCH, worker=worker, method="watch", requests=(_SLICE_S,))
