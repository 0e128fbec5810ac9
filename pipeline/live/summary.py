"""The summary of a live run: labels, failures, counts and latencies of each camera."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.live.worker import CameraNews

_KEPT_LATENCIES = 10_000


@dataclass(slots=True)
class CameraSummary:
    labels: int = 0
    failed: int = 0
    """So many windows have a row with an error code instead of a label."""
    dropped_labels: int = 0
    """So many labels and failed rows were never written, because the disk was away for too long."""
    news: CameraNews = field(default_factory=CameraNews)
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_LATENCIES))
    """The latencies of the newest labels."""


@dataclass(slots=True)
class LiveSummary:
    cameras: dict[str, CameraSummary] = field(default_factory=dict)
    wall_s: float = 0.0
    """The time since cameras were watched."""
    deaths: int = 0
    """So many workers died and were replaced."""
    lost: int = 0
    """So many answers of workers were lost on the way, each with up to 0.2 s of labels of its cameras."""

    @property
    def labels(self) -> int:
        return sum(camera.labels for camera in self.cameras.values())

    def latency_s(self, share: float, camera: str | None = None) -> float | None:
        """Gives the latency that this share of the newest labels kept, of one camera or of all; None without labels."""
        chosen = self.cameras.values() if camera is None else [self.cameras[camera]]
        ordered = sorted(itertools.chain.from_iterable(one.latencies_s for one in chosen))
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None

    def never_live(self) -> dict[str, str]:
        """Gives the cameras of which not one frame was decoded although they were watched, with the reason if known."""
        if not self.wall_s:
            return {}
        return {name: one.news.last_error or "" for name, one in self.cameras.items() if not one.news.num_connects}

    def to_dict(self) -> dict[str, Any]:
        return {
            "labels": self.labels,
            "wall_s": round(self.wall_s, 3),
            "deaths": self.deaths,
            "lost": self.lost,
            "latency_s": self._latencies(None),
            "cameras": {
                name: {
                    "labels": one.labels,
                    "failed": one.failed,
                    "dropped_labels": one.dropped_labels,
                    "state": one.news.state.value,
                    "last_error": one.news.last_error,
                    "reconnects": one.news.num_reconnects,
                    "misses": one.news.num_misses,
                    "frames_looked_at": one.news.num_looked,
                    "frames_behind": one.news.num_behind,
                    "latency_s": self._latencies(name),
                    **asdict(one.news.counts),
                }
                for name, one in self.cameras.items()
            },
        }

    def _latencies(self, camera: str | None) -> dict[str, float | None]:
        return {f"p{round(share * 100)}": self.latency_s(share, camera) for share in (0.5, 0.95, 0.99)}
