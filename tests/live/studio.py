"""A live worker with small networks of random weights, whose readers the test plays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from unittest.mock import patch

import numpy as np

from operators.records import CameraCounts, CameraFrame, ClipLabel, SourceFacts
from operators.weights import checkpoints
from pipeline.config import Config
from pipeline.live.camera_process import CameraSpec, Polled
from pipeline.live.camera_state import CameraLimits
from pipeline.live.factories import live_worker
from pipeline.live.worker import CameraPlan, LiveNews, LiveWorker
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from tests.support.looking import NAMES, make_checkpoint, make_frames

START_S = 1_700_000_000.0
FPS = 4.0
QUICK = CameraLimits(backoff_s=0.001, max_backoff_s=0.01)


class Reader:
    """A reader that says what the test wants it to say."""

    def __init__(self, *, is_ready: bool = True) -> None:
        self.frames: list[CameraFrame] = []
        self.counts = CameraCounts()
        self.ended: str | None = None
        self.is_final = False
        self.is_open = True
        self.is_ready = is_ready
        self.was_killed = False
        self._fds = os.pipe()

    def sends(self, *frames: CameraFrame) -> None:
        self.frames += frames
        num = self.counts.num_decoded + len(frames)
        self.counts = CameraCounts(num_packets=num, num_decoded=num, num_analysed=num)

    def ends(self, reason: str, *, is_final: bool = False) -> None:
        self.ended, self.is_final = reason, is_final

    def poll(self) -> Polled:
        frames, self.frames = tuple(self.frames), []
        return Polled(frames=frames, counts=self.counts, ended=self.ended, is_final=self.is_final)

    def fileno(self) -> int:
        return self._fds[0]

    def kill(self) -> None:
        self.was_killed, self.is_open = True, False

    def is_gone(self) -> bool:
        return self.was_killed


class Studio:
    """A worker, and the readers that it has opened, camera by camera."""

    def __init__(
        self,
        make_worker: Callable[..., LiveWorker],
        cameras: Sequence[str],
        *,
        are_ready: bool = True,
        **plan: float,
    ) -> None:
        """`are_ready`: its readers have started when they are opened."""
        self.worker = make_worker(open_reader=self._open)
        self.are_ready = are_ready
        self.full: set[str] = set()
        """Cameras whose readers cannot be started."""
        self.refused: list[str] = []
        self.readers: dict[str, list[Reader]] = {name: [] for name in cameras}
        self.labels: list[ClipLabel] = []
        self.analysed: list[tuple[str, float]] = []
        plan = {"window_s": 1.0, "stride_s": 0.5} | plan
        specs = (CameraSpec(name=name, uri=f"rtsp://eve:s3cret@{name}/", analysis_fps=FPS) for name in cameras)
        self.worker.begin(tuple(CameraPlan(spec=spec, **plan) for spec in specs), ())
        self.watch()

    def _open(self, spec: CameraSpec) -> Reader:
        if spec.name in self.full:
            self.refused.append(spec.name)
            raise OSError(24, "Too many open files")
        self.readers[spec.name].append(Reader(is_ready=self.are_ready))
        return self.readers[spec.name][-1]

    def reader(self, camera: str = "door") -> Reader:
        return self.readers[camera][-1]

    def watch(self, seconds: float = 0.01) -> LiveNews:
        reply, _ = self.worker.watch((seconds,), ())
        (news,) = reply.rows
        self.labels += news.labels
        for name, camera in news.cameras.items():
            self.analysed += [(name, time_s) for time_s, _ in camera.analysed]
        return news

    def watch_until(self, is_so: Callable[[LiveNews], bool]) -> LiveNews:
        end_s = time.monotonic() + 20
        while not is_so(news := self.watch()):
            assert time.monotonic() < end_s, "waited in vain"
        return news

    def watch_all(self) -> LiveNews:
        """Until nothing waits."""
        return self.watch_until(lambda news: not news.labels and not any(c.waiting for c in news.cameras.values()))


def made_worker(config: Config, folder, **own) -> LiveWorker:
    """As the run makes it, but for what is given here."""
    checkpoints.save(folder / "small.safetensors", make_checkpoint(config))
    (folder / "classes.txt").write_text("\n".join(NAMES))
    config = config.replaced(
        {
            "model.checkpoint": str(folder / "small.safetensors"),
            "model.classes": str(folder / "classes.txt"),
            "output.logits": True,
            "output.step_logits": True,
        }
    )
    plan = resolve(config, Machine(num_cores=1, memory_bytes=1 << 30))
    with patch("pipeline.live.factories.LiveWorker", lambda **settings: LiveWorker(**(settings | own))):
        return live_worker(**plan.live_arguments())


PICTURES = {seed: make_frames(12, seed=seed).pixels for seed in range(3)}
VIEW_YXHW = (0.0, 0.25, 1.0, 0.5)


def stream(
    *ticks: int,
    views: np.ndarray = PICTURES[0],
    pictures: Sequence[int] | None = None,
    start_s: float = START_S,
    num_corrupt: int = 0,
) -> list[CameraFrame]:
    """Frames of these ticks of one segment. Each shows the view of its tick, or the one that `pictures` says.

    `num_corrupt`: that their reader has met so far.
    """
    return [
        CameraFrame(
            pixels=views[number],
            time_unix_s=start_s + tick / FPS,
            received_unix_s=start_s + tick / FPS + 0.125,
            frame_index=tick * 4,
            segment_start_s=start_s,
            tick=tick,
            view_yxhw=VIEW_YXHW,
            facts=SourceFacts(width=128, height=64, num_corrupt=num_corrupt),
        )
        for tick, number in zip(ticks, ticks if pictures is None else pictures, strict=True)
    ]


def places(label: ClipLabel) -> list[tuple[float, float]]:
    return [(place.y, place.x) for place in label.patches]


def assert_same(ours: Sequence[ClipLabel], theirs: Sequence[ClipLabel]) -> None:
    assert ours and [label.clip_id for label in ours] == [label.clip_id for label in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.step_logits, other.step_logits, atol=1e-4)
        assert [astuple(place) for place in one.patches] == [astuple(place) for place in other.patches]
        assert (one.gmacs, one.frames_skipped) == (other.gmacs, other.frames_skipped)
