"""`bench live`: cameras from a real RTSP server to labels, as `live` does it, for minutes.

The server sends a video again and again to everybody who watches, on this machine too. Latency is from the arrival of
a clip's last frame to its label; the first label counts like the last.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import PipelineError
from operators.records import ClipLabel
from pipeline.bench.environment import environment
from pipeline.bench.figures import Figure, Report, headline_of, interval, measured
from pipeline.bench.machine_use import machine_seconds, memory_bytes, tree_pids
from pipeline.bench.printing import rows_as_text
from pipeline.bench.quick import SMALL_NETWORKS
from pipeline.bench.workloads import Clips, write_scene
from pipeline.config import Camera, Config, load
from pipeline.live.record import LiveReports
from pipeline.live.summary import LiveSummary
from pipeline.live.watch import watch_cameras
from pipeline.live.worker import CameraNews
from pipeline.plan.processor import has_fast_bf16
from pipeline.run.loop import StopRequest

Say = Callable[[str], None]
PRESET = "adafocus_activitynet"
SETTINGS = ("model.untrained=true",)
"""The networks have their full size and random weights: what they cost does not depend on these."""
VIDEO = Clips(name="camera", num_files=1, width=640, height=360, seconds=20.0, fps=15, gop=30)
SERVER = Path(__file__).with_name("rtsp_server.py")
_START_S = 240.0
"""How long the first label may take: workers are made, networks warmed up."""
_MEMORY_EVERY_S = 5.0
_STRETCH_S = 15.0
_SHARES = (0.5, 0.95, 0.99)
_FLAT_MIB_PER_MIN = 1.0
"""The slope that memory may have: five minutes show no smaller one for certain."""


def default_config(*settings: str) -> Config:
    """The preset in bf16 where the processor multiplies in it; elsewhere bf16 takes many times as long as fp32."""
    precision = "bf16" if has_fast_bf16() else "auto"
    return load(PRESET, settings=[*SETTINGS, f"compute.precision={precision}", *settings])


def bench_live(
    config: Config, *, cache: Path, say: Say, quick: bool = False, cameras: int = 8, seconds: float = 300.0
) -> Report:
    """Watches cameras of the server for `seconds`, counted from the first label."""
    where = environment()
    if quick:
        config, cameras, seconds = config.replaced(SMALL_NETWORKS), 2, 5.0
    video = make_video(replace(VIDEO, seconds=4.0) if quick else VIDEO, cache, say=say)
    stop = StopRequest()
    watch = Watch(seconds=seconds, stop=stop, say=say)
    with serving(video, cameras=cameras) as (port, server_pid), tempfile.TemporaryDirectory() as folder:
        watch.not_ours = server_pid
        watched = [Camera(name=f"cam{i}", url=f"rtsp://127.0.0.1:{port}/cam{i}") for i in range(cameras)]
        reports = LiveReports(message=say, started=say, label=watch.label, news=watch.news)
        summary = watch_cameras(config, watched, out=Path(folder), stop=stop, reports=reports, for_s=_START_S + seconds)
    if watch.began_s is None:
        errors = {one.news.last_error for one in summary.cameras.values()}
        raise PipelineError(f"no label within {_START_S:g} s; the cameras say: {errors}")
    figures = figures_of(watch, summary, wanted_fps=cameras * config.live.analysis_fps)
    p95, dropped = figures[0], figures[1]
    headline = (
        f"{cameras} cameras of {VIDEO.width}x{VIDEO.height} at {VIDEO.fps} fps, {config.live.analysis_fps:g} fps each "
        f"analysed for {watch.lasted_s:.0f} s: p95 {p95.value:.0f} ms, {dropped.value:.0f} frames dropped"
    )
    return Report(
        what="live",
        headline=headline_of(headline, quick=quick),
        figures=tuple(figures),
        environment=where,
        settings={"quick": quick, "cameras": cameras, "seconds": seconds, "config": config.flat()},
        notes=tuple(rows_as_text(camera_rows(watch, summary))),
    )


@dataclass(slots=True, eq=False)
class Watch:
    """What is noted while cameras are watched."""

    seconds: float
    stop: StopRequest
    say: Say
    not_ours: int = 0
    """The server's process, whose memory does not count."""
    asked_s: float = field(default_factory=time.monotonic)
    began_s: float | None = None
    """When the first label came."""
    lasted_s: float = 0.0
    latencies_s: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """(when, latency) of every label, by camera."""
    looked: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    """(when, frames looked at of each camera so far)"""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(when, MiB of all processes together)"""
    busy: list[tuple[float, float]] = field(default_factory=list)
    """(seconds that this machine's cores have been busy, seconds that they have been there)"""

    def label(self, label: ClipLabel) -> None:
        now_s = time.monotonic()
        if self.began_s is None:
            self.began_s = now_s
            self.busy.append(machine_seconds())
        assert label.camera is not None and label.latency_s is not None
        self.latencies_s.setdefault(label.camera, []).append((now_s, label.latency_s))

    def news(self, cameras: Mapping[str, CameraNews]) -> None:
        if self.began_s is None or self.stop.is_set:
            return
        now_s = time.monotonic()
        self.lasted_s = now_s - self.began_s
        if not self.memory or now_s - self.memory[-1][0] >= min(_MEMORY_EVERY_S, self.seconds / 10):
            self.memory.append((now_s, memory_bytes(tree_pids(os.getpid(), besides=self.not_ours)) / 2**20))
            self.looked.append((now_s, {name: camera.num_looked for name, camera in cameras.items()}))
            labels = sum(map(len, self.latencies_s.values()))
            self.say(f"{self.lasted_s:.0f} s: {labels} labels, {self.memory[-1][1]:.0f} MiB")
        if self.lasted_s >= self.seconds:
            self.busy.append(machine_seconds())
            self.stop.is_set = True

    def fps(self, camera: str) -> float:
        """Frames of the camera that were looked at per second, from its first ones to the end."""
        there = [(at_s, looked[camera]) for at_s, looked in self.looked if looked[camera]]
        if len(there) < 2:
            return 0.0
        (first_s, first), (last_s, last) = there[0], there[-1]
        return (last - first) / (last_s - first_s)


def figures_of(watch: Watch, summary: LiveSummary, *, wanted_fps: float) -> list[Figure]:
    latencies = [pair for one in watch.latencies_s.values() for pair in one]
    news = [one.news for one in summary.cameras.values()]
    lost = sum(one.counts.num_corrupt + one.counts.num_after_loss for one in news)
    dropped = sum(one.num_behind for one in news)
    figures = [
        quantile_figure("live.latency_p95_ms", latencies, 0.95, goal=500.0),
        measured(
            "live.frames_dropped",
            [float(dropped + lost)],
            unit="frames",
            goal=0.0,
            goal_is="at_most",
            about=f"{dropped} were dropped for being behind, {lost} were broken or came after a loss; those at the "
            "join do not count",
        ),
        quantile_figure("live.latency_p50_ms", latencies, 0.5),
        quantile_figure("live.latency_p99_ms", latencies, 0.99),
        measured(
            "live.fps_analysed",
            [sum(watch.fps(name) for name in summary.cameras)],
            unit="frames/s",
            limit=wanted_fps,
            about="all cameras are counted together",
        ),
        slope_figure(watch.memory),
        measured(
            "live.reconnects",
            [float(sum(one.num_reconnects for one in news))],
            unit="",
            goal_is="at_most",
            about="all cameras are counted together",
        ),
    ]
    if watch.began_s is not None:
        start_s = watch.began_s - watch.asked_s
        figures.append(
            measured(
                "live.start_s",
                [start_s],
                unit="s",
                goal_is="at_most",
                about="the first label comes so long after the call",
            )
        )
    # The clock of the machine's cores ticks every 10 ms.
    if len(watch.busy) == 2 and watch.busy[1][1] > watch.busy[0][1]:
        (busy, there), (later_busy, later_there) = watch.busy
        share = (later_busy - busy) / (later_there - there)
        about = "the share of all cores' time that was used; the server's and other people's work count"
        figures.append(measured("live.machine_busy", [share], unit="", limit=1.0, goal_is="neither", about=about))
    return figures


def quantile_figure(name: str, latencies: list[tuple[float, float]], share: float, **form: Any) -> Figure:
    """The quantile of all labels' latencies; its interval is that of the quantiles of stretches."""
    when = np.array([at_s for at_s, _ in latencies])
    values = 1000 * np.array([latency_s for _, latency_s in latencies])
    stretch = ((when - when.min()) // _STRETCH_S).astype(int)
    parts = [float(np.quantile(values[stretch == i], share)) for i in np.unique(stretch)]
    value, (low, high) = float(np.quantile(values, share)), interval(parts)
    goal = form.get("goal")
    return Figure(
        name=name,
        value=value,
        unit="ms",
        low=min(low, value),
        high=max(high, value),
        n=len(values),
        goal=goal,
        met=None if goal is None else value <= goal,
        goal_is="at_most",
        about=f"the value is of all labels; the interval is of stretches of {_STRETCH_S:g} s",
        samples=tuple(parts),
    )


def slope_figure(memory: list[tuple[float, float]]) -> Figure:
    """The MiB a minute by which all processes together grow, by a line through the second half: then all that is kept
    is there."""
    half = memory[len(memory) // 2 :]
    at, mib = np.array([at_s / 60 for at_s, _ in half]), np.array([size for _, size in half])
    slope = error = 0.0
    if len(half) > 2:
        (slope, _), covariance = np.polyfit(at, mib, 1, cov="unscaled")
        residuals = mib - np.polyval(np.polyfit(at, mib, 1), at)
        error = 2.0 * float(np.sqrt(covariance[0, 0] * residuals.var(ddof=2) if len(half) > 3 else 0.0))
    return Figure(
        name="live.memory_slope",
        value=float(slope),
        unit="MiB/min",
        low=float(slope) - error,
        high=float(slope) + error,
        n=len(half),
        goal=_FLAT_MIB_PER_MIN,
        met=float(slope) <= _FLAT_MIB_PER_MIN,
        goal_is="at_most",
        about=f"all processes grew from {memory[0][1]:.0f} to {memory[-1][1]:.0f} MiB; the slope is the second half's",
    )


HEADER = (
    "camera", "fps", "labels", "p50_ms", "p95_ms", "p99_ms", "behind", "corrupt", "lost", "joining", "misses",
    "reconnects",
)  # fmt: skip


def camera_rows(watch: Watch, summary: LiveSummary) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [HEADER]
    for name, one in summary.cameras.items():
        counts = one.news.counts
        values = [latency_s for _, latency_s in watch.latencies_s.get(name, [])]
        spread = [f"{1000 * np.quantile(values, share):.0f}" if values else "" for share in _SHARES]
        at_join = counts.num_before_keyframe + counts.num_joining
        counted = (one.news.num_behind, counts.num_corrupt, counts.num_after_loss, at_join)
        tries = (one.news.num_misses, one.news.num_reconnects)
        rows.append((name, f"{watch.fps(name):.2f}", str(one.labels), *spread, *map(str, (*counted, *tries))))
    return rows


def make_video(clips: Clips, cache: Path, *, say: Say) -> Path:
    """What the cameras show: found in the cache, or made. It has no B-frames, as cameras send none."""
    path = cache / clips.folder / "live.mp4"
    if not path.exists():
        say(f"making {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_scene(path, clips, 0, b_frames=0)
    return path


@contextlib.contextmanager
def serving(video: Path, *, cameras: int) -> Iterator[tuple[int, int]]:
    """Runs GStreamer's RTSP server; yields its port and its process."""
    command = ["/usr/bin/python3", str(SERVER), str(video), "--cameras", str(cameras)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as exc:
        raise PipelineError(f"the RTSP server cannot be started: {exc}") from exc
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        if not line:
            last = (process.stderr.read().decode().strip().splitlines() or ["no reason given"])[-1]
            raise PipelineError(
                f"the RTSP server does not run ({last}); it needs GStreamer: apt-get install "
                "gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
            )
        yield json.loads(line)["port"], process.pid
    finally:
        process.kill()
        process.communicate()
