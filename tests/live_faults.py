"""Hundreds of faults of all kinds in random order over four cameras, and a fifth that nobody disturbs.

Not a test of the suite, because it takes minutes; run it by itself:

    python tests/live_faults.py                  # 200 faults, about eight minutes
    python tests/live_faults.py --faults 20      # less than two

It holds what a live run does to what was analysed: every camera comes back within its backoff, every window of which
all frames were received is one row, no other is, what the frames show is what their times say, the undisturbed camera
notices nothing, and no process or descriptor is left. It ends with 1 where one of these is not so.

The cameras run in a process of their own (`--serve`), which tells of every connection in a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pyarrow.dataset as ds  # noqa: E402

import pipeline.run.factories  # noqa: E402
from operators.records import ClipLabel  # noqa: E402
from pipeline.config import Camera, load  # noqa: E402
from pipeline.live.camera_process import CameraSpec, ReaderHandle, start  # noqa: E402
from pipeline.live.gaze import LiveGaze  # noqa: E402
from pipeline.live.watch import LiveTold, watch_cameras  # noqa: E402
from pipeline.live.worker import CameraNews, LiveWorker  # noqa: E402
from pipeline.run.loop import StopRequest  # noqa: E402
from tests.support.scripted_rtsp import CodedVideo, Script, ScriptedCamera, load_coded, shown_number, write_numbered  # noqa: E402

NUM_FAULTY = 4
STEADY = "steady"
VIDEO_FPS, NUM_FRAMES, GOP = 15, 600, 15
FPS, WINDOW_S, STRIDE_S = 5, 1.0, 0.4
SILENCE_S, OPEN_S, MAX_BACKOFF_S = 1.0, 2.0, 1.0
SETTINGS = (
    "run.executor=inline", "run.threads=1", f"live.analysis_fps={FPS}", f"live.window_s={WINDOW_S}",
    f"live.stride_s={STRIDE_S}", f"live.watchdog_s={SILENCE_S}", f"live.open_timeout_s={OPEN_S}",
    "live.backoff_s=0.2", f"live.max_backoff_s={MAX_BACKOFF_S}", "view.resize_px=256", "view.crop_px=224",
    "policy.kind=center",
)  # fmt: skip
WRAP = 1 << 32
STEP = 90_000 // VIDEO_FPS
AWAY_S = 0.4
"""How far a frame's time may be from when it was sent."""


@dataclasses.dataclass(frozen=True)
class Fault:
    kind: str
    script: Script
    video: str = "plain"
    switch_every: int = 0

    @property
    def is_live_first(self) -> bool:
        """Whether frames come before it strikes, so that the camera goes live on this very connection."""
        return self.script.greeting == "serve" and self.script.status == 200 and self.script.credentials is None


KINDS = (
    *(f"ends with {ending}" for ending in ("close", "reset", "bye", "silence", "garbage", "drip")),
    *(f"greets with {greeting}" for greeting in ("silence", "reset", "garbage", "drip")),
    "404", "401", "503", "joins between keyframes", "joins with a burst", "loses packets", "loses frames",
    "clock wraps", "clock starts again", "clock is wild once", "clock stands still", "changes its resolution",
    "has B-frames", "reader is killed", "reader is stopped",
)  # fmt: skip


def fault(kind: str, rng: random.Random) -> Fault:
    num = rng.randint(60, 110)
    often = rng.randint(20, 35)
    served = functools.partial(Script, num_frames=num)
    ends = rng.choice(["close", "reset", "bye"])
    match kind.split():
        case ["ends", "with", ending]:
            return Fault(kind, served(ending=ending))
        case ["greets", "with", greeting]:
            return Fault(kind, Script(greeting=greeting))
        case ["404"] | ["503"]:
            return Fault(kind, Script(status=int(kind)))
        case ["401"]:
            return Fault(kind, Script(credentials=("eve", "right")))
        case ["joins", "between", _]:
            return Fault(kind, served(joins_at_keyframe=False, ending=ends))
        case ["joins", "with", *_]:
            return Fault(kind, served(burst=rng.randint(5, 40), ending=ends))
        case ["loses", what]:
            most = rng.randint(0, 3)
            lost = (lambda n, i: n % often == 3) if what == "frames" else (lambda n, i: n % often == 3 and i <= most)
            return Fault(kind, served(loses=lost, ending=ends))
        case ["clock", "wraps"]:
            return Fault(kind, served(ticks=wrapping(after=often), ending=ends))
        case ["clock", "starts", _]:
            return Fault(kind, served(ticks=lambda n: n % often * STEP, num_frames=num, ending=ends))
        case ["clock", "is", *_]:
            away = rng.choice([-1, 1]) * 3 * 3600 * 90_000
            return Fault(kind, served(ticks=lambda n: WRAP // 2 + n * STEP + away * (n % often == 7), ending=ends))
        case ["clock", "stands", _]:
            return Fault(kind, served(ticks=lambda n: 90_000, ending=ends))
        case ["changes", *_]:
            return Fault(kind, served(ending=ends), switch_every=15)
        case ["has", _]:
            return Fault(kind, served(ending=ends), video="b_frames")
        case ["reader", *_]:
            return Fault(kind, Script())
    raise AssertionError(kind)


def wrapping(*, after: int) -> Callable[[int], int]:
    """RTP's clock, so many frames before it wraps when the connection begins."""
    first: list[int] = []

    def ticks(number: int) -> int:
        first.append(number)
        return WRAP + (number - first[0] - after) * STEP

    return ticks


def all_faults(count: int, seed: int) -> list[list[Fault]]:
    """For each camera its faults: every kind as often as every other, in random order."""
    rng = random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    rng.shuffle(kinds)
    return [[fault(kind, rng) for kind in kinds[i::NUM_FAULTY]] for i in range(NUM_FAULTY)]


# The cameras


class FaultyCamera(ScriptedCamera):
    """The next fault with every connection; in the end none."""

    def __init__(self, name: str, videos: dict[str, CodedVideo], faults: list[Fault]) -> None:
        self._name = name
        self._all = videos
        self._faults = list(faults)
        super().__init__(videos["plain"])

    @property
    def script(self) -> Script:
        """Asked for once per connection."""
        present = self._faults.pop(0) if self._faults else Fault("none", Script())
        self.videos = (self._all[present.video], self._all["large"])
        self.switch_every = present.switch_every
        self.kind = present.kind
        tell(camera=self._name, event="connected", kind=present.kind, is_live_first=present.is_live_first)
        return present.script

    @script.setter
    def script(self, _: Script) -> None:
        pass

    def _end(self, connection: Any, send_lock: Any, ending: str) -> None:
        tell(camera=self._name, event="struck", kind=self.kind)
        super()._end(connection, send_lock, ending)


def tell(**event: Any) -> None:
    print(json.dumps({"at": time.time(), **event}), flush=True)


def serve(count: int, seed: int) -> None:
    """The cameras, until whoever started them is gone."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        write = functools.partial(write_numbered, num_frames=NUM_FRAMES, fps=VIDEO_FPS, gop=GOP)
        videos = {
            "plain": load_coded(write(folder / "plain.mp4")),
            "large": load_coded(write(folder / "large.mp4", width=640, height=360)),
            "b_frames": load_coded(write(folder / "b.mp4", b_frames=2)),
        }
        faults = {f"cam{i}": one for i, one in enumerate(all_faults(count, seed))}
        cameras = {
            name: stack.enter_context(FaultyCamera(name, videos, faults.get(name, []))) for name in (*faults, STEADY)
        }
        tell(
            event="serving",
            urls={name: camera.url for name, camera in cameras.items()},
            started={name: camera.started_unix_s for name, camera in cameras.items()},
        )
        sys.stdin.read()
        os._exit(0)


# The run, and what it is held to


@dataclasses.dataclass
class Log:
    """All that happened."""

    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Of the cameras."""
    looked: dict[str, list[tuple[float, float, int, int | None]]] = dataclasses.field(
        default_factory=lambda: defaultdict(list)
    )
    """camera -> (time, segment, tick, number shown or None where it cannot be read) of every analysed frame."""
    looked_at: dict[str, list[float]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    """camera -> when it was looked at, frame by frame."""
    labels: list[ClipLabel] = dataclasses.field(default_factory=list)
    states: dict[str, CameraNews] = dataclasses.field(default_factory=dict)
    readers: dict[str, list[ReaderHandle]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    resources: list[tuple[float, int, int]] = dataclasses.field(default_factory=list)
    """(when, descriptors, children) whenever all cameras were live."""


def run(count: int, seed: int, log: Log, out: Path, say: Callable[[str], None]) -> dict[str, float]:
    """When each camera was started."""
    stop = StopRequest()
    with cameras(count, seed, log) as told:
        watched = [Camera(name=name, url=url) for name, url in told["urls"].items()]
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
                told=LiveTold(message=say, label=log.labels.append, news=news),  # type: ignore[arg-type]
            )
        return dict(told["started"])


@contextlib.contextmanager
def cameras(count: int, seed: int, log: Log) -> Iterator[dict[str, Any]]:
    command = [sys.executable, __file__, "--serve", "--faults", str(count), "--seed", str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        told = json.loads(process.stdout.readline())

        def listen(lines: Any) -> None:
            for line in lines:
                log.events.append(json.loads(line))

        listener = threading.Thread(target=listen, args=(process.stdout,), daemon=True)
        listener.start()
        try:
            yield told
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


def num_children() -> int:
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def wanted_rows(log: Log) -> dict[tuple[str, float], float]:
    """(camera, start) -> coverage of every window there must be, by counting ticks.

    A window is there when its last tick is, or, in part, when a later one is.
    """
    wanted = {}
    for camera, looked in log.looked.items():
        segments: dict[float, set[int]] = defaultdict(set)
        for _, segment, tick, _ in looked:
            segments[segment].add(tick)
        for segment, ticks in segments.items():
            k = 0
            while True:
                begin = k * Fraction(STRIDE_S).limit_denominator(1000)
                first = math.ceil(begin * FPS)
                behind = math.ceil((begin + Fraction(WINDOW_S).limit_denominator(1000)) * FPS)
                if behind > max(ticks) + 1:
                    break
                inside = len(ticks & set(range(first, behind)))
                if inside:
                    wanted[camera, round(segment + float(begin), 5)] = inside / (behind - first)
                k += 1
    return wanted


def check(
    log: Log, out: Path, started: dict[str, float], count: int, slack_s: float
) -> tuple[list[str], dict[str, Any]]:
    """What is wrong, and the figures."""
    wrong: list[str] = []
    rows = ds.dataset(str(out / "labels"), format="parquet", partitioning="hive").to_table().to_pylist()
    found = Counter((row["camera"], round(row["start_s"], 5)) for row in rows)
    wanted = wanted_rows(log)
    wrong += [f"{n} rows of {key}" for key, n in found.items() if n > 1]
    wrong += [f"no row of {key}, all of which was received" for key in wanted.keys() - found.keys()]
    wrong += [f"a row of {key}, which was not received" for key in found.keys() - wanted.keys()]
    wrong += [
        f"coverage {row['coverage']} of {key}, not {wanted[key]}"
        for row in rows
        if (key := (row["camera"], round(row["start_s"], 5))) in wanted and abs(row["coverage"] - wanted[key]) > 1e-6
    ]

    away: list[float] = []
    for camera, looked in log.looked.items():
        for time_s, _, tick, number in looked:
            if number is None:
                wrong.append(f"{camera}: a smeared frame at {time_s:.2f}, tick {tick}")
                continue
            period_s = NUM_FRAMES / VIDEO_FPS
            off_s = (time_s - started[camera] - number / VIDEO_FPS + period_s / 2) % period_s - period_s / 2
            away.append(abs(off_s))
    late = sum(off_s > AWAY_S for off_s in away)
    if late > slack_s / 100 * len(away):
        wrong.append(f"{late} of {len(away)} frames are more than {AWAY_S} s from when they were sent")

    back: dict[str, list[float]] = defaultdict(list)
    for i in range(NUM_FAULTY):
        name = f"cam{i}"
        mine = sorted((e for e in log.events if e.get("camera") == name), key=lambda event: event["at"])
        connects = [event for event in mine if event["event"] == "connected"]
        for before, after in itertools.pairwise(connects):
            strikes = [e["at"] for e in mine if e["event"] == "struck" and before["at"] <= e["at"] <= after["at"]]
            since_s = strikes[-1] if strikes else before["at"]
            back[before["kind"]].append(after["at"] - since_s)
            if after["at"] - since_s > OPEN_S + MAX_BACKOFF_S + slack_s:
                wrong.append(f"{name}: connected again {after['at'] - since_s:.1f} s after: {before['kind']}")
            if not before["is_live_first"]:
                continue
            live_s = next((at for at in log.looked_at[name] if at > before["at"]), math.inf) - before["at"]
            served_s = since_s - before["at"]
            # A join between keyframes waits for one; times have to settle.
            if live_s < after["at"] - before["at"]:
                back["live, once it can be"].append(live_s)
            elif served_s > 2 * GOP / VIDEO_FPS + 2.0 + slack_s:
                wrong.append(f"{name}: not live in {served_s:.1f} s of a connection that {before['kind']}")
            else:
                back["cut off before it was live"].append(served_s)
        if log.states[name].num_reconnects < 1:
            wrong.append(f"{name} was never reconnected")
    struck = sum(event["event"] == "connected" and event["kind"] != "none" for event in log.events)
    if struck != count:
        wrong.append(f"{struck} faults happened, not {count}")

    steady = sorted(label.latency_s for label in log.labels if label.camera == STEADY)
    p95_s = steady[int(len(steady) * 0.95)]
    if p95_s > 0.5:
        wrong.append(f"the undisturbed camera's p95 is {p95_s * 1000:.0f} ms")
    if log.states[STEADY].num_reconnects or len({segment for _, segment, *_ in log.looked[STEADY]}) != 1:
        wrong.append("the undisturbed camera was disturbed")
    dropped = sum(news.num_behind for news in log.states.values())

    (_, first_fds, first_children), (_, last_fds, last_children) = log.resources[0], log.resources[-1]
    if (last_fds, last_children) > (first_fds, first_children):
        wrong.append(f"descriptors {first_fds} -> {last_fds}, children {first_children} -> {last_children}")
    left = [handle.pid for handles in log.readers.values() for handle in handles if not handle.is_gone()]
    if left or num_children():
        wrong.append(f"{len(left)} readers are left, {num_children()} children")
    figures = {
        "faults": struck,
        "rows": len(rows),
        "whole_windows": sum(coverage == 1.0 for coverage in wanted.values()),
        "frames": len(away),
        "worst_time_off_s": round(max(away), 3),
        "readers": sum(map(len, log.readers.values())),
        "steady_p95_ms": round(p95_s * 1000),
        "dropped_behind": dropped,
        "descriptors": [first_fds, last_fds],
        "back_s": {kind: [round(max(times), 2), len(times)] for kind, times in sorted(back.items())},
    }
    return wrong, figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slack", type=float, default=1.5, help="seconds that a busy machine may be late")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.faults, options.seed)
    log = Log()
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        say = functools.partial(print, file=sys.stderr, flush=True)
        started = run(options.faults, options.seed, log, Path(out), say)
        wrong, figures = check(log, Path(out), started, options.faults, options.slack)
    print(json.dumps({**figures, "seconds": round(time.monotonic() - begun_s), "wrong": wrong}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
