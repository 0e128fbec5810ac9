"""Hundreds of faults of all kinds in random order over four cameras, and a fifth that nobody disturbs.

Not a test of the suite, because it takes minutes; run it by itself:

    python -m tests.ways.live_faults                  # 200 faults, about eight minutes
    python -m tests.ways.live_faults --faults 20      # less than two

It holds what a live run does to what was analysed: every camera comes back within its backoff, every window of which
all frames were received is one row, no other is, what the frames show is what their times say, the undisturbed camera
notices nothing, and no process or descriptor is left. It ends with 1 where one of these is not so.

The cameras run in a process of their own (`faulty_cameras.py`), which reports every connection in a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pipeline.live.factories
from pipeline.config import Camera, load
from pipeline.live.camera_process import CameraSpec, ReaderHandle, start
from pipeline.live.gaze import LiveGaze
from pipeline.live.record import LiveReports
from pipeline.live.watch import watch_cameras
from pipeline.live.worker import CameraNews, LiveWorker
from pipeline.run.loop import StopRequest
from tests.support.numbered_h264 import shown_number
from tests.ways.fault_checks import FPS, MAX_BACKOFF_S, OPEN_S, SILENCE_S, STRIDE_S, WINDOW_S, Log, check, num_children
from tests.ways.faulty_cameras import NUM_FAULTY

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "run.executor=inline", "run.threads=1", f"live.analysis_fps={FPS}", f"live.window_s={WINDOW_S}",
    f"live.stride_s={STRIDE_S}", f"live.watchdog_s={SILENCE_S}", f"live.open_timeout_s={OPEN_S}",
    "live.backoff_s=0.2", f"live.max_backoff_s={MAX_BACKOFF_S}", "view.resize_px=256", "view.crop_px=224",
    "policy.kind=center",
)  # fmt: skip


def run(count: int, seed: int, log: Log, out: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Watches the cameras until all faults have struck; returns when each camera was started."""
    stop = StopRequest()
    with cameras(count, seed, log) as serving:
        watched = [Camera(name=name, url=url) for name, url in serving["urls"].items()]
        bad_readers = Disturbance(log)

        def news(states: dict[str, CameraNews]) -> None:
            now_s = time.time()
            log.states = dict(states)
            bad_readers.strike(now_s)
            is_all_live = all(camera.state == "live" for camera in states.values())
            if is_all_live:
                log.resources.append((now_s, len(os.listdir("/proc/self/fd")), num_children()))
            connected = Counter(event["camera"] for event in log.events if event["event"] == "connected")
            left = count + NUM_FAULTY - sum(connected[f"cam{i}"] for i in range(NUM_FAULTY))
            if is_all_live and left <= 0 and now_s - log.events[-1]["at"] > 4.0:
                stop.is_set = True
            if now_s - said[0] > 15:
                said[0] = now_s
                say(f"{max(left, 0)} faults to come, {len(log.labels)} labels")

        said = [time.time()]
        with taps(log):
            watch_cameras(
                load("live", settings=SETTINGS),
                watched,
                out=out,
                stop=stop,
                reports=LiveReports(message=say, label=log.labels.append, news=news),  # type: ignore[arg-type]
            )
        return dict(serving["started"])


@contextlib.contextmanager
def cameras(count: int, seed: int, log: Log) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.ways.faulty_cameras", "--faults", str(count), "--seed", str(seed)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        serving = json.loads(process.stdout.readline())

        def listen(lines: Any) -> None:
            for line in lines:
                log.events.append(json.loads(line))

        listener = threading.Thread(target=listen, args=(process.stdout,), daemon=True)
        listener.start()
        try:
            yield serving
        finally:
            process.stdin.close()
            process.wait(20)
            listener.join(5)


class Disturbance:
    """The faults that befall the reader's own process, some seconds after it was connected."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._rng = random.Random(0)
        self._done = 0
        self._due: list[tuple[float, str, str]] = []

    def strike(self, now_s: float) -> None:
        for event in self._log.events[self._done :]:
            self._done += 1
            if event["event"] == "connected" and event["kind"].startswith("reader"):
                self._due.append((event["at"] + self._rng.uniform(3, 5), event["camera"], event["kind"]))
        for due in [due for due in self._due if due[0] <= now_s]:
            self._due.remove(due)
            _, camera, kind = due
            with contextlib.suppress(ProcessLookupError):
                signal_ = signal.SIGKILL if kind == "reader is killed" else signal.SIGSTOP
                os.kill(self._log.readers[camera][-1].pid, signal_)
            self._log.events.append({"at": now_s, "camera": camera, "event": "struck", "kind": kind})


@contextlib.contextmanager
def taps(log: Log) -> Iterator[None]:
    """Notes every reader that is opened, and every frame that is looked at."""

    def opened(spec: CameraSpec) -> ReaderHandle:
        log.readers[spec.name].append(start(spec))
        return log.readers[spec.name][-1]

    class Tapped(LiveWorker):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, open_reader=opened)

    look = LiveGaze.look

    def noted(self: LiveGaze, streams: Any, frames: Any) -> Any:
        for stream, frame in zip(streams, frames, strict=True):
            if stream.name.startswith("warm-up"):
                continue
            try:
                number: int | None = shown_number(frame.pixels)
            except AssertionError:
                number = None
            log.looked[stream.name].append((frame.time_unix_s, frame.segment_start_s, frame.tick, number))
            log.looked_at[stream.name].append(time.time())
        return look(self, streams, frames)

    worker = pipeline.live.factories.LiveWorker
    pipeline.live.factories.LiveWorker, LiveGaze.look = Tapped, noted  # type: ignore[misc,method-assign]
    try:
        yield
    finally:
        pipeline.live.factories.LiveWorker, LiveGaze.look = worker, look  # type: ignore[misc,method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slack", type=float, default=1.5, help="seconds that a busy machine may be late")
    options = parser.parse_args()
    log = Log()
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        say = functools.partial(print, file=sys.stderr, flush=True)
        started = run(options.faults, options.seed, log, Path(out), say)
        found = check(log, Path(out), started, options.faults, options.slack)
    print(json.dumps({**found.figures, "seconds": round(time.monotonic() - begun_s), "wrong": found.wrong}, indent=1))
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
