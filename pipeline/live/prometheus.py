"""The metrics of a live run for Prometheus, and its probes. This is the only user of prometheus_client.

Metrics carry a camera's name, never its address.
"""

from __future__ import annotations

import json
import socket
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
"""The reader's count for each reason of a drop."""
_SILENCE_S = 10.0
"""A client that connects and sends nothing for so long is hung up on: each connection has a thread and a descriptor."""


class LiveMetrics:
    """Holds the figures of one live run. The loop sets them; a scrape may read them at any time."""

    def __init__(self, *, clock: Callable[[], float], max_beat_s: float = 5.0) -> None:
        """`clock` gives Unix time. A run whose loop has begun, and has not beaten for `max_beat_s`, is not alive."""
        self._clock = clock
        self._max_beat_s = max_beat_s
        self._beat_s = clock()
        self._silent_s = 0.0
        self._has_begun = False
        self._states: dict[str, CameraState] = {}
        self._newest_s: dict[str, float] = {}
        self._reader_counts: dict[str, CameraCounts] = {}
        self._num_lost = 0
        self._num_analysed: dict[str, int] = {}
        self._num_focused: dict[str, int] = {}
        self._num_opened: dict[str, tuple[int, int]] = {}
        """The reconnects and the misses of each camera."""
        # A scrape reads while the loop writes: what is more than one number is kept consistent by this.
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        self._make_counters(self.registry)
        self._make_gauges(self.registry)

    def _make_counters(self, registry: CollectorRegistry) -> None:
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
        self._failed = Counter(
            "saccade_labels_failed", "Windows without a label, but a failed row", ["camera"], registry=registry
        )
        self._labels_dropped = Counter(
            "saccade_labels_dropped", "Labels that were never written", ["camera"], registry=registry
        )
        self._lost = Counter("saccade_answers_lost", "Answers of workers that were lost", registry=registry)
        self._misses = Counter(
            "saccade_misses", "How often a camera was opened in vain", ["camera"], registry=registry
        )
        self._of_a_camera = (
            self._decoded,
            self._analysed,
            self._restamped,
            self._focused,
            self._labels,
            self._failed,
            self._labels_dropped,
            self._reconnects,
            self._misses,
        )

    def _make_gauges(self, registry: CollectorRegistry) -> None:
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

    def add_camera(self, camera: str) -> None:
        """Makes all of a camera's series, so that they are there, at 0, before anything happens."""
        for counter in self._of_a_camera:
            counter.labels(camera)
        for reason in (*_DROPS, "queue"):
            self._dropped.labels(camera, reason)
        self._latency.labels(camera)
        self.set_state(camera, CameraState.WAITING)

    def begin(self, now_s: float) -> None:
        """Notes that cameras are watched: from here on the loop has to beat."""
        self._beat_s, self._has_begun = now_s, True

    def beat(self, now_s: float, *, silent_s: float = 0.0) -> None:
        """Notes that the loop goes on. `silent_s`: the longest time that any of its workers has not answered."""
        self._beat_s, self._silent_s = now_s, silent_s

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
        """Takes in the totals of all readers that a camera has had; totals that come again count once."""
        before = self._reader_counts.get(camera, CameraCounts())
        self._reader_counts[camera] = counts
        self._decoded.labels(camera).inc(counts.num_decoded - before.num_decoded)
        self._restamped.labels(camera).inc(counts.num_restamped - before.num_restamped)
        for reason, name in _DROPS.items():
            self._dropped.labels(camera, reason).inc(getattr(counts, name) - getattr(before, name))

    def dropped(self, camera: str, reason: str = "queue", count: int = 1) -> None:
        """Counts frames that were dropped after the reader had handed them over."""
        self._dropped.labels(camera, reason).inc(count)

    def analysed(self, camera: str, *, time_unix_s: float, was_focused: bool) -> None:
        """Counts a frame that was glanced at. `time_unix_s` is when it was taken."""
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

    def failed(self, camera: str) -> None:
        self._failed.labels(camera).inc()

    def labels_dropped(self, camera: str, *, count: int) -> None:
        """Counts labels that waited for the disk for too long."""
        self._labels_dropped.labels(camera).inc(count)

    def set_lost(self, total: int) -> None:
        self._lost.inc(total - self._num_lost)
        self._num_lost = total

    def set_queues(self, sizes: Mapping[str, int]) -> None:
        for queue, size in sizes.items():
            self._queue.labels(queue).set(size)

    def scrape(self) -> bytes:
        """Gives the text that Prometheus reads."""
        with self._lock:
            newest_s = dict(self._newest_s)
        for camera, time_s in newest_s.items():
            self._age.labels(camera).set(self._clock() - time_s)
        return generate_latest(self.registry)

    def health(self) -> tuple[bool, dict[str, object]]:
        """Whether the run is alive, and what to say of it: false where another start would help, as its loop hangs.

        A run that starts, or waits for the lock, is alive. Cameras that are away are no fault of the run.
        """
        age_s = self._clock() - self._beat_s
        is_alive = not self._has_begun or age_s <= self._max_beat_s
        return is_alive, self._state_of_run(is_alive, age_s)

    def readiness(self) -> tuple[bool, dict[str, object]]:
        """Whether labels are made: the run is alive, at least one camera is live, and no worker is silent."""
        age_s = self._clock() - self._beat_s
        with self._lock:
            is_live = CameraState.LIVE in self._states.values()
        is_ready = self._has_begun and is_live and age_s + self._silent_s <= self._max_beat_s
        return is_ready, self._state_of_run(is_ready, age_s) | {"silent_s": round(age_s + self._silent_s, 3)}

    def _state_of_run(self, is_ok: bool, age_s: float) -> dict[str, object]:
        with self._lock:
            states = {camera: state.value for camera, state in self._states.items()}
        return {"ok": is_ok, "starting": not self._has_begun, "beat_age_s": round(age_s, 3), "cameras": states}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)


@contextmanager
def serve_metrics(metrics: LiveMetrics, *, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Serves /metrics, /healthz and /readyz while the context lasts; gives the port, chosen where `port` is 0."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _SILENCE_S

        def do_GET(self) -> None:
            match self.path.split("?")[0]:
                case "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, metrics.scrape())
                case "/healthz":
                    self._answer_whether(*metrics.health())
                case "/readyz":
                    self._answer_whether(*metrics.readiness())
                case _:
                    self._answer(404, "text/plain", b"only /metrics, /healthz and /readyz\n")

        def _answer_whether(self, is_so: bool, state: dict[str, object]) -> None:
            self._answer(200 if is_so else 503, "application/json", json.dumps(state).encode())

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Writes nothing: scrapes are not worth a line."""

    try:
        server = _Server(host, port, Handler)
    except OSError as exc:
        raise PipelineError(
            f"metrics cannot be served on port {port} of {host}: {exc.strerror}; choose another (live.metrics_host)"
        ) from exc
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
