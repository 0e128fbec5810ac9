"""A live run over workers that the test plays. Time passes only while the loop waits for its workers."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

from operators.records import CameraCounts, ClipLabel
from pipeline.live.camera_process import CameraSpec
from pipeline.live.camera_state import CameraState
from pipeline.live.loop import LiveLoop
from pipeline.live.prometheus import LiveMetrics
from pipeline.live.record import LiveRecord, LiveReports
from pipeline.live.summary import CameraSummary, LiveSummary
from pipeline.live.worker import CameraNews, CameraPlan, LiveNews
from pipeline.run.inline_executor import InlineExecutor
from pipeline.run.loop import StopRequest
from pipeline.steering.executor import Call, Completion
from pipeline.steering.messages import Reply, WriteRequest

IDENTITY = {"model_id": "m", "config_id": "c"}
CAMERAS = ("door", "yard")


def label(camera: str, number: int) -> ClipLabel:
    return ClipLabel(
        video_id=camera,
        clip_id=f"{camera}{number}",
        source_uri=f"rtsp://{camera}/",
        camera=camera,
        start_s=float(number),
        end_s=number + 1.0,
        latency_s=0.2,
    )


class Players(InlineExecutor):
    """An executor whose workers answer at once, as the test says. One poll takes a tenth of a second."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.calls: list[tuple[float, Call]] = []
        self.replaced: list[tuple[str, int]] = []
        self.killed: list[tuple[str, int]] = []
        self.hanging: set[tuple[str, int]] = set()
        self.dying: list[tuple[str, int, str]] = []
        """(stage, worker, method): the next such call ends with the worker's death."""
        self.losing: list[tuple[str, int, str]] = []
        """(stage, worker, method): the answer of the next such call is lost on the way."""
        self.news: Callable[[int, float], LiveNews] = lambda worker, now_s: LiveNews(
            labels=(), cameras={}, is_over=False
        )
        self.can_fold = True
        self.failing = ""
        """The method whose calls end with an exception."""
        self._num = 0

    def clock(self) -> float:
        return self.now_s

    def submit(self, call: Call) -> int:
        self._num += 1
        self.calls.append((self.now_s, call))
        self._waiting.append((self._num, call))
        return self._num

    def poll(self, timeout_s: float) -> list[Completion]:
        self.now_s += 0.1
        now, self._waiting = self._waiting, deque()
        done: list[Completion] = []
        dead: set[tuple[str, int]] = set()
        for ticket, call in now:
            place = (call.stage, call.worker)
            if place in self.hanging:
                self._waiting.append((ticket, call))
            elif place in dead or (*place, call.method) in self.dying:
                if place not in dead:
                    self.dying.remove((*place, call.method))
                dead.add(place)
                done.append(Completion(ticket=ticket, outcome="died"))
            elif (*place, call.method) in self.losing:
                self.losing.remove((*place, call.method))
                done.append(Completion(ticket=ticket, outcome="lost", error="ObjectLostError: it is gone"))
            elif call.method == self.failing:
                done.append(Completion(ticket=ticket, outcome="failed", error="SinkError: part 7 is no Parquet file"))
            else:
                row = self.news(call.worker, self.now_s) if call.method == "watch" else self.can_fold
                done.append(Completion(ticket=ticket, outcome="done", reply=Reply(rows=(row,))))
        return done

    def kill(self, stage: str, worker: int) -> None:
        self.killed.append((stage, worker))
        self.hanging.discard((stage, worker))
        waiting = [call.method for _, call in self._waiting if (call.stage, call.worker) == (stage, worker)]
        self.dying += [(stage, worker, method) for method in waiting[:1]]

    def replace(self, stage: str, worker: int) -> None:
        self.replaced.append((stage, worker))

    def methods(self, stage: str) -> list[str]:
        return [call.method for _, call in self.calls if call.stage == stage]

    def written(self) -> list[list[str]]:
        return [
            [one.clip_id for one in call.requests[0].labels] for _, call in self.calls if call.method == "write"
        ]


@dataclasses.dataclass
class Run:
    loop: LiveLoop
    players: Players
    summary: LiveSummary
    stop: StopRequest
    metrics: LiveMetrics
    said: list[str]
    rescued: list[WriteRequest]
    """The parts that were committed without any worker."""


def two_workers() -> Run:
    """Gives a run of two workers with a camera each, ready to be begun."""
    players, stop = Players(), StopRequest()
    metrics = LiveMetrics(clock=players.clock)
    for name in CAMERAS:
        metrics.add_camera(name)
    summary = LiveSummary({name: CameraSummary() for name in CAMERAS})
    said: list[str] = []
    rescued: list[WriteRequest] = []
    plans = [CameraPlan(spec=CameraSpec(name=n, uri=f"rtsp://{n}/"), window_s=1, stride_s=1) for n in CAMERAS]
    loop = LiveLoop(
        executor=players,
        shares=[(plan,) for plan in plans],
        identity=IDENTITY,
        record=LiveRecord(
            summary=summary,
            metrics=metrics,
            reports=LiveReports(message=said.append),
            unix_clock=players.clock,
        ),
        stop=stop,
        rescue=rescued.extend,
        can_kill=True,
        clock=players.clock,
    )
    return Run(loop, players, summary, stop, metrics, said, rescued)


def steady(players: Players, *, over_after_s: float = 1e9) -> Callable[[int, float], LiveNews]:
    """Every slice brings a label of the worker's camera; nothing more comes once it is asked to stop."""
    numbers = iter(range(1_000_000))

    def news(worker: int, now_s: float) -> LiveNews:
        is_over = now_s >= 1000.0 + over_after_s or any(
            call.method == "stop" and call.worker == worker for _, call in players.calls
        )
        name = CAMERAS[worker]
        camera = CameraNews(
            state=CameraState.STOPPED if is_over else CameraState.LIVE,
            num_connects=1,
            counts=CameraCounts(num_decoded=15),
            dropped=2,
        )
        labels = () if is_over else (label(name, next(numbers)),)
        return LiveNews(labels=labels, cameras={name: camera}, is_over=is_over)

    return news
