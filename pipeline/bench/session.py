"""A run of the real pipeline whose inputs are handed over burst by burst, so that between two bursts something else can
be measured on the same machine, in turn: another run too, each in a process of its own (`Beside`).

What is timed lies in the middle of a burst: the stages before it are full, and behind it more is waiting. So neither
the start of processes nor the filling and emptying of the pipeline is in a rate; the start is given by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np

from operators.errors import PipelineError
from operators.records import Source
from pipeline.bench.machine_use import core_busy_s
from pipeline.bench.workloads import as_sources
from pipeline.config import Config
from pipeline.plan.run_plan import RunPlan
from pipeline.run.archive import RunReports, label_archive
from pipeline.run.loop import Runner
from pipeline.run.metrics import RunSummary

Script = Callable[["Session"], Generator[Source, None, None]]


@dataclass(frozen=True, kw_only=True)
class Burst:
    """What was seen of the clips in the middle of a burst."""

    num_clips: int
    seconds_per_clip: float
    busy: dict[str, float]
    """The share of its workers' time in which they worked, by stage."""
    machine_busy: float
    """The share of all cores' time in which anything ran, ours or not."""
    num_given: int
    whole_s: float
    """How long all clips of the burst took, from the first that was handed over to the last label."""
    stretches: tuple[float, ...] = ()
    """Seconds per clip of each stretch that the middle was cut into."""


@dataclass(slots=True)
class _Moment:
    at_s: float
    num_ended: int
    busy_s: dict[str, float]
    machine_s: float


@dataclass(slots=True)
class Session:
    """One run. `run` returns when the script has ended."""

    config: Config
    plan: RunPlan | None = None
    start_s: float = 0.0
    """From the call to the first label: processes, weights, whatever is compiled, and the first clips."""
    _begun_s: float = 0.0
    _num_given: int = 0
    _moments: list[_Moment] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)
    _is_over: bool = False

    def run(self, script: Script) -> RunSummary:
        self._begun_s = time.perf_counter()
        heard = RunReports(started=self._started, progress=self._note)
        with tempfile.TemporaryDirectory(prefix="saccade-bench-") as out:
            try:
                summary = label_archive(self.config, lambda names: script(self), out=Path(out), reports=heard)
            finally:
                with self._news:
                    self._is_over = True
                    self._news.notify_all()
        if summary.failed:
            raise PipelineError(f"{summary.failed} clips of the workload failed: {summary.errors}")
        return summary

    def burst(
        self, paths: Sequence[Path], *, lead: int, tail: int, stretch: int = 0, period: int = 1
    ) -> Generator[Source, None, Burst]:
        """Hands over the files, waits for their labels, and reports all but the first `lead` and the last `tail`.

        With `stretch` the middle is also reported in stretches of so many clips; it holds one `period` more than these.
        """
        first = self._num_given
        whole_s = yield from self.through(paths)
        found = self._seen(first, lead, tail, whole_s)
        if not stretch:
            return found
        ended = self._ended_s(first, len(paths))[lead : len(paths) - tail]
        return replace(found, stretches=stretch_seconds(ended, stretch=stretch, period=period))

    def through(self, paths: Sequence[Path]) -> Generator[Source, None, float]:
        """Hands over the files, waits for their labels, and returns how long that took."""
        first, begun_s = self._num_given, time.perf_counter()
        # The lap makes every file an input that the run has not seen.
        yield from as_sources(paths, lap=first)
        self._num_given += len(paths)
        with self._news:
            self._news.wait_for(lambda: self._is_over or self._num_ended >= self._num_given)
        if self._num_ended < self._num_given:
            raise PipelineError("the run ended before its inputs did")
        return self._moments[-1].at_s - begun_s

    def timed(
        self, paths: Sequence[Path], *, stretch: int, count: int, period: int = 1, lead: int | None = None
    ) -> Generator[Source, None, Burst]:
        """Times `count` stretches of `stretch` clips each, amid others of the same files; see `stretch_seconds`.

        `lead`: clips before and behind; by default as many as may be in flight, so that what waits has piled up before,
        and enough comes behind. The first stretch begins with the first of the files, and they come round as often as
        needed.
        """
        if lead is None:
            assert self.plan is not None
            lead = self.plan.limits.max_pieces
        middle = stretch * count + period
        around = [paths[number % len(paths)] for number in range(-lead, middle + lead)]
        return (yield from self.burst(around, lead=lead, tail=lead, stretch=stretch, period=period))

    @property
    def _num_ended(self) -> int:
        return self._moments[-1].num_ended if self._moments else 0

    def _ended_s(self, first: int, count: int) -> np.ndarray:
        """When each of `count` clips from the `first` on got its label, in the order of the labels."""
        counts, times = np.array([m.num_ended for m in self._moments]), np.array([m.at_s for m in self._moments])
        return times[np.searchsorted(counts, first + 1 + np.arange(count))]

    def _seen(self, first: int, lead: int, tail: int, whole_s: float) -> Burst:
        start, stop = first + lead, self._num_given - tail
        moments = [m for m in self._moments if start <= m.num_ended <= stop]
        if len(moments) < 2:
            raise PipelineError(f"clips {start} to {stop} ended all at once: take more of them")
        # Labels come a few at a time; the slope through all of them does not hang on where the first few fell.
        counts, times = np.array([m.num_ended for m in moments]), np.array([m.at_s for m in moments])
        slope = float(np.polyfit(counts, times, 1)[0])
        begin, end = moments[0], moments[-1]
        lasted_s = end.at_s - begin.at_s
        assert self.plan is not None
        workers = {spec.stage: spec.count for spec in self.plan.worker_specs()}
        return Burst(
            num_clips=end.num_ended - begin.num_ended,
            seconds_per_clip=slope,
            busy={
                stage: (end.busy_s[stage] - begin.busy_s[stage]) / (workers.get(stage, 1) * lasted_s)
                for stage in end.busy_s
            },
            machine_busy=(end.machine_s - begin.machine_s) / lasted_s,
            num_given=self._num_given - first,
            whole_s=whole_s,
        )

    def _started(self, plan: RunPlan) -> None:
        self.plan = plan

    def _note(self, runner: Runner) -> None:
        """Notes what the loop says of its progress, in the thread that runs it."""
        num_ended = runner.metrics.labelled + runner.metrics.failed
        if num_ended == self._num_ended:
            return
        busy_s = {name: stage.busy_s for name, stage in runner.metrics.stages.items()}
        moment = _Moment(time.perf_counter(), num_ended, busy_s, core_busy_s())
        with self._news:
            if not self._moments:
                self.start_s = moment.at_s - self._begun_s
            self._moments.append(moment)
            self._news.notify_all()


def stretch_seconds(ended_s: np.ndarray, *, stretch: int, period: int = 1) -> tuple[float, ...]:
    """Seconds per clip of each stretch, from when the clips of a steady run ended.

    Labels come a few at a time, and a mix of long and short comes in waves. A stretch therefore lasts from the mean
    time of the `period` that it begins with to that of the one behind it: waves of that period cancel.
    """
    count = (len(ended_s) - period) // stretch
    means = [float(np.mean(ended_s[number * stretch :][:period])) for number in range(count + 1)]
    return tuple((after - before) / stretch for before, after in itertools.pairwise(means))


class Beside:
    """A session in a process of its own that does what it is asked and stands still meanwhile. A context manager.

    Several may live at once: each over Ray has a Ray of its own.
    """

    def __init__(self, config: Config) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config.model_dump_json(exclude_unset=True)))
        self._process.start()
        theirs.close()
        self.start_s = 0.0
        self._plan: RunPlan | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        last: Any = None
        with contextlib.suppress(EOFError, OSError):
            self._connection.send(None)
            while self._connection.poll(_ENDS_WITHIN_S):
                last = self._connection.recv()
        self._process.join(_ENDS_WITHIN_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._connection.close()
        # Clips that failed are known at the end of a run: what was measured with them is worth nothing.
        if isinstance(last, Exception) and exc[0] is None:
            raise last

    @property
    def plan(self) -> RunPlan:
        """The plan of the run, once it has done something."""
        assert self._plan is not None
        return self._plan

    def begin(self, paths: Sequence[Path]) -> None:
        """Has the files labelled and does not wait for it, so that several runs can start at once."""
        self._connection.send(("through", {"paths": list(paths)}))

    def ready(self) -> float:
        """Waits for what was begun, and returns how long it took from the first file to the last label."""
        seconds: float = self._answer()
        return seconds

    def through(self, paths: Sequence[Path]) -> float:
        """Has the run do Session.through, and waits for it."""
        self.begin(paths)
        return self.ready()

    def timed(self, paths: Sequence[Path], **form: Any) -> Burst:
        """Has the run do Session.timed, and waits for it."""
        self._connection.send(("timed", {"paths": list(paths), **form}))
        burst: Burst = self._answer()
        return burst

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError) as exc:
            raise PipelineError("a run that was being measured ended; what it said of it is above") from exc
        if isinstance(answer, Exception):
            raise answer
        self._plan, self.start_s, found = answer
        return found


_ENDS_WITHIN_S = 60.0


def _serve(connection: Connection, config_json: str) -> None:
    """Runs a session that does what the Beside at the other end of the connection asks."""

    def script(session: Session) -> Generator[Source, None, None]:
        # A parent that is gone closes its end: the run ends with an EOFError, and with it all of its processes.
        while (order := connection.recv()) is not None:
            method, arguments = order
            found = yield from getattr(session, method)(**arguments)
            connection.send((session.plan, session.start_s, found))

    try:
        Session(Config.model_validate_json(config_json)).run(script)
    except PipelineError as exc:
        with contextlib.suppress(OSError):
            connection.send(exc)
    except EOFError:
        pass
