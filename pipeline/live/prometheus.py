"""What a live run tells Prometheus, and whether it is well. The only place that knows prometheus_client.

Metrics carry a camera's name, never its address.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from operators.errors import PipelineError
from operators.records import CameraCounts
from pipeline.live.camera_state import CameraState

_LATENCY_BUCKETS_S = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
_DROPS = {
    "before_keyframe": "num_before_keyframe",
    "after_loss": "num_after_loss",
    "corrupt": "num_corrupt",
    "joining": "num_joining",
    "behind": "num_behind",
}
"""Reason of a drop -> the reader's count of it."""
_SILENCE_S = 10.0
"""Who connects and then says nothing for so long is hung up on: each connection has a thread and a descriptor."""


class LiveMetrics:
    """The figures of one live run. The loop tells them; a scrape may read them at any time."""

    def __init__(self, *, clock: Callable[[], float], max_beat_s: float = 5.0) -> None:
        """`clock` gives Unix time. Without a beat for `max_beat_s` the run is not well."""
        self._clock = clock
        self._max_beat_s = max_beat_s
        self._beat_s = clock()
        self._states: dict[str, CameraState] = {}
        self._newest_s: dict[str, float] = {}
        self._reader_counts: dict[str, CameraCounts] = {}
        self.registry = registry = CollectorRegistry()
        self._decoded = Counter("saccade_frames_decoded", "Frames decoded", ["camera"], registry=registry)
        self._analysed = Counter(
            "saccade_frames_analysed", "Frames that were glanced at", ["camera"], registry=registry
        )
        self._dropped = Counter(
            "saccade_frames_dropped", "Frames dropped, by reason", ["camera", "reason"], registry=registry
        )
        self._restamped = Counter(
            "saccade_frames_restamped",
            "Frames whose time stamp was missing or wrong",
            ["camera"],
            registry=registry,
        )
        self._focused = Counter("saccade_frames_focused", "Frames that were focused on", ["camera"], registry=registry)
        self._labels = Counter("saccade_labels", "Labels made", ["camera"], registry=registry)
        self._reconnects = Counter(
            "saccade_reconnects", "How often a camera went live again", ["camera"], registry=registry
        )
        self._misses = Counter(
            "saccade_misses", "How often a camera was opened in vain", ["camera"], registry=registry
        )
        self._up = Gauge("saccade_up", "1 while a camera is live", ["camera"], registry=registry)
        self._state = Gauge(
            "saccade_camera_state", "1 for the state a camera is in", ["camera", "state"], registry=registry
        )
        self._latency = Histogram(
            "saccade_latency_seconds",
            "From the arrival of a clip's last frame to its label",
            ["camera"],
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._age = Gauge(
            "saccade_newest_frame_age_seconds",
            "Age of the newest frame that was analysed",
            ["camera"],
            registry=registry,
        )
        self._queue = Gauge("saccade_queue_size", "Items that wait", ["queue"], registry=registry)
        self._share = Gauge(
            "saccade_focus_share", "Share of the analysed frames that were focused on", ["camera"], registry=registry
        )
        self._of_a_camera = (
            self._decoded,
            self._analysed,
            self._restamped,
            self._focused,
            self._labels,
            self._reconnects,
            self._misses,
        )
        self._num_analysed: dict[str, int] = {}
        self._num_focused: dict[str, int] = {}
        self._num_opened: dict[str, tuple[int, int]] = {}
        """(reconnects, misses)"""
        # A scrape reads while the loop writes: what is more than one number is kept consistent by this.
        self._lock = threading.Lock()

    def add_camera(self, camera: str) -> None:
        """Makes all of a camera's series, so that they are there, at 0, before anything happens."""
        for counter in self._of_a_camera:
            counter.labels(camera)
        for reason in (*_DROPS, "queue"):
            self._dropped.labels(camera, reason)
        self._latency.labels(camera)
        self.set_state(camera, CameraState.WAITING)

    def beat(self, now_s: float) -> None:
        """The loop goes on."""
        self._beat_s = now_s

    def set_state(self, camera: str, state: CameraState, num_reconnects: int = 0, num_misses: int = 0) -> None:
        with self._lock:
            self._states[camera] = state
        self._up.labels(camera).set(state is CameraState.LIVE)
        for one in CameraState:
            self._state.labels(camera, one.value).set(one is state)
        reconnects, misses = self._num_opened.get(camera, (0, 0))
        self._num_opened[camera] = max(reconnects, num_reconnects), max(misses, num_misses)
        self._reconnects.labels(camera).inc(max(0, num_reconnects - reconnects))
        self._misses.labels(camera).inc(max(0, num_misses - misses))

    def observe_reader(self, camera: str, counts: CameraCounts) -> None:
        """The totals of all readers that a camera has had, however often."""
        before = self._reader_counts.get(camera, CameraCounts())
        self._reader_counts[camera] = counts
        self._decoded.labels(camera).inc(counts.num_decoded - before.num_decoded)
        self._restamped.labels(camera).inc(counts.num_restamped - before.num_restamped)
        for reason, name in _DROPS.items():
            self._dropped.labels(camera, reason).inc(getattr(counts, name) - getattr(before, name))

    def dropped(self, camera: str, reason: str = "queue", count: int = 1) -> None:
        """Frames dropped after the reader had handed them over."""
        self._dropped.labels(camera, reason).inc(count)

    def analysed(self, camera: str, *, time_unix_s: float, was_focused: bool) -> None:
        """A frame was glanced at. `time_unix_s` is when it was taken."""
        with self._lock:
            self._newest_s[camera] = time_unix_s
        self._num_analysed[camera] = self._num_analysed.get(camera, 0) + 1
        self._num_focused[camera] = self._num_focused.get(camera, 0) + was_focused
        self._analysed.labels(camera).inc()
        self._focused.labels(camera).inc(was_focused)
        self._share.labels(camera).set(self._num_focused[camera] / self._num_analysed[camera])

    def labelled(self, camera: str, *, latency_s: float) -> None:
        self._labels.labels(camera).inc()
        self._latency.labels(camera).observe(latency_s)

    def set_queues(self, sizes: Mapping[str, int]) -> None:
        for queue, size in sizes.items():
            self._queue.labels(queue).set(size)

    def scrape(self) -> bytes:
        """The text that Prometheus reads."""
        with self._lock:
            newest_s = dict(self._newest_s)
        for camera, time_s in newest_s.items():
            self._age.labels(camera).set(self._clock() - time_s)
        return generate_latest(self.registry)

    def health(self) -> tuple[bool, dict[str, object]]:
        """Whether the loop goes on, and what to say of it. Cameras that are away are no fault of the run."""
        age_s = self._clock() - self._beat_s
        with self._lock:
            states = {camera: state.value for camera, state in self._states.items()}
        is_well = age_s <= self._max_beat_s
        return is_well, {"ok": is_well, "beat_age_s": round(age_s, 3), "cameras": states}


@contextmanager
def serve_metrics(metrics: LiveMetrics, *, port: int, host: str = "") -> Iterator[int]:
    """Serves /metrics and /healthz while the context lasts; gives the port, which is chosen where `port` is 0."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _SILENCE_S

        def do_GET(self) -> None:
            match self.path.split("?")[0]:
                case "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, metrics.scrape())
                case "/healthz":
                    is_well, told = metrics.health()
                    self._answer(200 if is_well else 503, "application/json", json.dumps(told).encode())
                case _:
                    self._answer(404, "text/plain", b"only /metrics and /healthz\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are not worth a line."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as exc:
        raise PipelineError(f"metrics cannot be served on port {port}: {exc.strerror}; choose another") from exc
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
