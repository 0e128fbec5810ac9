"""What a live run has done so far: its summary, its metrics and its reports are kept up to date in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from operators.records import ClipLabel
from pipeline.live.prometheus import LiveMetrics
from pipeline.live.summary import LiveSummary
from pipeline.live.worker import CameraNews


@dataclass(frozen=True, kw_only=True)
class LiveReports:
    """The functions to which a live run reports while it goes on."""

    message: Callable[[str], None] = lambda text: None
    started: Callable[[str], None] = lambda text: None
    label: Callable[[ClipLabel], None] = lambda label: None
    news: Callable[[Mapping[str, CameraNews]], None] = lambda cameras: None
    metrics_port: Callable[[int], None] = lambda port: None


class LiveRecord:
    """Brings what workers report into the summary, into the metrics and to whoever listens to the run."""

    def __init__(
        self,
        *,
        summary: LiveSummary,
        metrics: LiveMetrics,
        reports: LiveReports,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self.summary = summary
        self._metrics = metrics
        self._reports = reports
        self._unix_clock = unix_clock

    def message(self, text: str) -> None:
        self._reports.message(text)

    def begin(self) -> None:
        """Notes that cameras are watched: from here on the loop has to go round."""
        self._metrics.begin(self._unix_clock())

    def beat(self, *, silent_s: float) -> None:
        """Notes that the loop goes on. `silent_s`: the longest time that any worker has not answered."""
        self._metrics.beat(self._unix_clock(), silent_s=silent_s)

    def news_of(self, camera: str) -> CameraNews:
        return self.summary.cameras[camera].news

    def add_news(self, name: str, camera: CameraNews) -> None:
        """Takes in the state of a camera after a slice, with what former workers had counted."""
        metrics, known = self._metrics, self.summary.cameras[name]
        metrics.set_state(name, camera.state, camera.num_reconnects, camera.num_misses)
        metrics.observe_reader(name, camera.counts)
        metrics.dropped(name, count=camera.dropped - known.news.dropped)
        for time_unix_s, was_focused in camera.analysed:
            metrics.analysed(name, time_unix_s=time_unix_s, was_focused=was_focused)
        known.news = replace(camera, analysed=())

    def add_label(self, label: ClipLabel) -> None:
        """Counts a label, or a failed row, and reports it."""
        assert label.camera is not None and label.latency_s is not None
        self._reports.label(label)
        camera = self.summary.cameras[label.camera]
        if label.error_code is not None:
            if not camera.failed:
                self.message(f"{label.camera} has no label but a failed row: {label.error}")
            camera.failed += 1
            self._metrics.failed(label.camera)
            return
        camera.labels += 1
        camera.latencies_s.append(label.latency_s)
        self._metrics.labelled(label.camera, latency_s=label.latency_s)

    def end_slice(self, *, num_labels_waiting: int) -> None:
        """Reports the state of all cameras, after the news and the labels of a slice were added."""
        cameras = {name: camera.news for name, camera in self.summary.cameras.items()}
        frames = sum(camera.waiting for camera in cameras.values())
        self._metrics.set_queues({"frames": frames, "labels": num_labels_waiting})
        self._reports.news(cameras)

    def set_losses(self, *, deaths: int, lost: int, dropped: Mapping[str, int]) -> None:
        """Takes in the totals of what was lost so far. `dropped`: labels that were never written, by camera."""
        self.summary.deaths, self.summary.lost = deaths, lost
        self._metrics.set_lost(lost)
        for name, count in dropped.items():
            self._metrics.labels_dropped(name, count=count - self.summary.cameras[name].dropped_labels)
            self.summary.cameras[name].dropped_labels = count
