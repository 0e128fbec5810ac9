"""`live` from a real RTSP server to Parquet, as a user runs it: watched, killed in parts and as a whole, stopped.

Every camera shows the numbers of its frames, and the server says when it sent each.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from prometheus_client.parser import text_string_to_metric_families

from operators.table.schema import LIVE_SCHEMA
from pipeline.config import load
from pipeline.live.camera_process import CameraSpec
from pipeline.live.factories import live_worker
from pipeline.live.gaze import LiveGaze
from pipeline.live.worker import CameraPlan
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from tests.support.gstreamer import Server, serving
from tests.support.numbered_h264 import shown_number, write_numbered
from tests.support.processes import Command, wait_for

pytestmark = pytest.mark.rtsp

PATIENCE_S = 90.0
"""How long a test waits for what must come. Long: the machine may be busy."""
AWAY_S = 0.4
SECRETS = ("s3cretDoor", "s3cretRoof")
QUICK = ("--set", "live.window_s=1", "--set", "live.stride_s=0.5", "--set", "run.threads=1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    video = write_numbered(tmp_path_factory.mktemp("rtsp") / "a.mp4", num_frames=150, fps=15, gop=15)
    with serving(video, cameras=3) as one:
        yield one


class Live:
    """The running command. `labels`: its lines of JSON, each with the time at which it came."""

    def __init__(self, *arguments: object) -> None:
        self.command = Command("live", *arguments, "--json")
        self.labels: list[dict[str, Any]] = []
        self.text = {"out": "", "err": ""}
        streams = {"out": self.command.process.stdout, "err": self.command.process.stderr}
        self._threads = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in streams.items()]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str, stream: Any) -> None:
        for line in stream:
            self.text[name] += line.decode()
            if name == "out" and line.startswith(b"{"):
                self.labels.append({**json.loads(line), "came_unix_s": time.time()})

    def of(self, camera: str) -> list[dict[str, Any]]:
        return [label for label in list(self.labels) if label["camera"] == camera]

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        def is_enough() -> bool:
            assert self.command.process.poll() is None, self.text["err"]
            return is_so()

        assert wait_for(is_enough, PATIENCE_S), self.text["err"]

    def wait_for_labels(self, count: int, *cameras: str) -> None:
        self.wait_until(lambda: all(len(self.of(camera)) >= count for camera in cameras))

    def end(self, number: signal.Signals) -> int:
        self.command.process.send_signal(number)
        code = self.command.process.wait(30)
        for thread in self._threads:
            thread.join(10)
        return code


def readers(*cameras: str) -> dict[int, str]:
    """The processes that read these cameras: id -> name."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            arguments = read(entry / "cmdline").split(b"\0")
            if b"pipeline.live.camera_process" in arguments:
                name = arguments[arguments.index(b"pipeline.live.camera_process") + 1].decode()
                if name in cameras:
                    found[int(entry.name)] = name
    return found


def parent_of(pid: int) -> int:
    return int(read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()[1])


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def assert_nobody_tells(live: Live, out: Path, *, besides: str = "", pids: list[int] | None = None) -> None:
    """No password where others could see it: streams, files, arguments and environments of all that was started."""
    told = [live.text["out"], live.text["err"], besides]
    told += [path.read_bytes().decode(errors="replace") for path in out.rglob("*") if path.is_file()]
    told += [str(path) for path in out.rglob("*")]
    main = live.command.process.pid
    for pid in [main, *live.command.family(), *(pids or [])]:
        told.append(read(Path(f"/proc/{pid}/cmdline")).decode())
        if pid != main:
            # What the user gave to the command itself stays in its own.
            told.append(read(Path(f"/proc/{pid}/environ")).decode(errors="replace"))
    for secret in SECRETS:
        assert not [text for text in told if secret in text]


def table(out: Path) -> list[dict[str, Any]]:
    """All rows, by camera and time; a clip twice is a failure of its own."""
    rows = ds.dataset(str(out / "labels"), format="parquet", partitioning="hive").to_table().to_pylist()
    assert len({row["clip_id"] for row in rows}) == len(rows)
    return sorted(rows, key=lambda row: (row["camera"], row["start_s"]))


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


def scrape(port: str, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=20) as answer:
        return str(answer.read().decode())


def test_cameras_are_labelled_counted_and_kept_to_themselves_until_a_signal(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = uuid.uuid4().hex[:8]
    door, yard, ghost = (f"{name}-{own}" for name in ("door", "yard", "ghost"))
    (tmp_path / "cameras.yaml").write_text(
        "cameras:\n"
        f"  {door}: {{url: '{server.url(0, 'eve:${DOOR_PASSWORD}@')}'}}\n"
        f"  {yard}: {{url: '{server.url(1)}', analysis_fps: 5, window_s: 2, stride_s: 1}}\n"
        f"  {ghost}: {{url: 'rtsp://127.0.0.1:{unused_port()}/'}}\n"
    )
    monkeypatch.setenv("DOOR_PASSWORD", SECRETS[0])
    out = tmp_path / "out"
    roof = server.url(2, f"bob:{SECRETS[1]}@")
    live = Live(
        roof, tmp_path / "cameras.yaml", "-o", out, "--executor", "inline", "--metrics-port", 0, *QUICK
    )
    live.wait_for_labels(4, "camera_1", door, yard)

    (port,) = re.findall(r"metrics on port (\d+)", live.text["err"])
    metrics = scrape(port, "metrics")
    samples = {
        (sample.name, sample.labels.get("camera"), sample.labels.get("reason")): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }
    for camera in ("camera_1", door, yard):
        assert samples["saccade_labels_total", camera, None] >= 4
        assert samples["saccade_latency_seconds_count", camera, None] >= 4
        assert samples["saccade_frames_decoded_total", camera, None] > 15
        assert samples["saccade_up", camera, None] == 1 and samples["saccade_reconnects_total", camera, None] == 0
        assert samples["saccade_frames_dropped_total", camera, "corrupt"] == 0
    assert samples["saccade_up", ghost, None] == 0 and samples["saccade_labels_total", ghost, None] == 0
    health = json.loads(scrape(port, "healthz"))
    assert health["cameras"][door] == "live" and health["cameras"][ghost] in ("connecting", "lost", "waiting")
    assert "refused" in live.text["err"] and f"{ghost} is waiting" in live.text["err"]

    pids = list(readers(door, yard, "camera_1"))
    assert len(pids) >= 3
    assert_nobody_tells(live, out, besides=metrics, pids=pids)
    begun_s = time.monotonic()
    assert live.end(signal.SIGTERM) == 143
    assert time.monotonic() - begun_s < 5.0
    assert not readers(door, yard, ghost)
    assert_nobody_tells(live, out)

    rows = table(out)
    # Every label that was told of is in the table, and no other.
    assert {row["clip_id"] for row in rows} == {label["clip_id"] for label in live.labels}
    part = next((out / "labels").rglob("*.parquet"))
    assert ds.dataset(str(part)).schema.names == LIVE_SCHEMA.names and "camera" not in LIVE_SCHEMA.names
    for camera, fps, window_s, stride_s in (("camera_1", 4, 1.0, 0.5), (door, 4, 1.0, 0.5), (yard, 5, 2.0, 1.0)):
        mine = [row for row in rows if row["camera"] == camera]
        for row in mine:
            assert row["end_s"] - row["start_s"] == pytest.approx(window_s)
            assert row["frames_total"] == fps * window_s * row["coverage"]
            assert row["frames_focused"] == len(row["patches"]) and row["error_code"] is None
            assert row["start_s"] < row["received_at"].timestamp() < row["committed_at"].timestamp()
            assert row["latency_s"] > 0 and row["label"].strip() and row["video_id"] == camera
            assert (row["width"], row["height"]) == (320, 180)
        steps = [b["start_s"] - a["start_s"] for a, b in itertools.pairwise(mine)]
        # Closer than a stride never; exactly a stride where there is no gap.
        assert all(step > stride_s - 0.01 for step in steps)
        assert sum(step == pytest.approx(stride_s, abs=0.01) for step in steps) >= len(steps) / 2
    uris = {row["camera"]: row["source_uri"] for row in rows}
    assert uris[door] == server.url(0, "eve:***@") and uris["camera_1"] == server.url(2, "bob:***@")
    (summary,) = (out / "run").glob("summary-*.json")
    assert json.loads(summary.read_text())["labels"] == len(rows)


def test_killed_it_leaves_no_process_and_all_but_the_last_moments_labels(server: Server, tmp_path: Path) -> None:
    own = uuid.uuid4().hex[:8]
    names = (f"door-{own}", f"yard-{own}")
    lines = [f"  {name}: {{url: '{server.url(i)}'}}" for i, name in enumerate(names)]
    (tmp_path / "cameras.yaml").write_text("\n".join(["cameras:", *lines]))
    out = tmp_path / "out"
    live = Live(tmp_path / "cameras.yaml", "-o", out, "--executor", "inline", *QUICK)
    live.wait_for_labels(8, *names)
    killed_unix_s = time.time()
    assert live.end(signal.SIGKILL) == -signal.SIGKILL
    assert wait_for(lambda: not readers(*names) and not live.command.family(), 20)
    there = {row["clip_id"] for row in table(out)}
    assert there
    for name in names:
        told = live.of(name)
        is_there = [label["clip_id"] in there for label in told]
        # No hole: what is missing is the end.
        assert is_there == sorted(is_there, reverse=True)
        # One second is the promise; a busy machine may be late with the telling and with the writing.
        assert all(label["clip_id"] in there for label in told if label["came_unix_s"] < killed_unix_s - 4.0)


def test_on_ray_readers_and_workers_that_are_killed_come_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = uuid.uuid4().hex[:8]
    names = (f"door-{own}", f"yard-{own}")
    logins = ("eve:${DOOR_PASSWORD}@", "")
    lines = [f"  {name}: {{url: '{server.url(i, logins[i])}'}}" for i, name in enumerate(names)]
    (tmp_path / "cameras.yaml").write_text("\n".join(["cameras:", *lines]))
    monkeypatch.setenv("DOOR_PASSWORD", SECRETS[0])
    out = tmp_path / "out"
    live = Live(tmp_path / "cameras.yaml", "-o", out, *QUICK, "--set", "run.threads=2")
    live.wait_for_labels(2, *names)
    folders = set(re.findall(r"/tmp/saccade-\w+", " ".join(live.command.family().values())))
    assert folders

    (pid,) = [pid for pid, name in readers(*names).items() if name == names[0]]
    os.kill(pid, signal.SIGKILL)
    begun_unix_s = time.time()
    live.wait_until(lambda: any(label["start_s"] > begun_unix_s for label in live.of(names[0])))
    assert pid not in readers(*names)

    workers = [pid for pid, title in live.command.family().items() if "saccade-live" in title]
    old_readers = {name: pid for pid, name in readers(*names).items()}
    assert len(workers) == 2 and len(old_readers) == 2
    worker = parent_of(old_readers[names[0]])
    assert worker in workers
    os.kill(worker, signal.SIGKILL)
    begun_unix_s = time.time()
    live.wait_until(lambda: all(any(one["start_s"] > begun_unix_s for one in live.of(name)) for name in names))
    assert "live worker 0 died and is replaced" in live.text["err"]
    assert old_readers[names[0]] not in readers(*names)
    # The other worker's camera has noticed nothing.
    assert readers(*names)[old_readers[names[1]]] == names[1]

    files = (path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    logs = "".join(read(path).decode(errors="replace") for path in files)
    assert_nobody_tells(live, out, besides=logs, pids=list(readers(*names)))
    begun_s = time.monotonic()
    assert live.end(signal.SIGTERM) == 143
    assert time.monotonic() - begun_s < 5.0
    # Results only, although Ray has seen a worker die.
    assert all(line.startswith("{") for line in live.text["out"].splitlines())
    assert live.command.is_gone() and not readers(*names)
    assert {row["clip_id"] for row in table(out)} == {label["clip_id"] for label in live.labels}
    counted = json.loads(next((out / "run").glob("summary-*.json")).read_text())
    assert counted["deaths"] == 1 and counted["cameras"][names[0]]["reconnects"] == 2


def test_a_signal_while_ray_starts_ends_it_like_any_other(tmp_path: Path) -> None:
    live = Live(f"rtsp://127.0.0.1:{unused_port()}/", "-o", tmp_path / "out", *QUICK)
    live.wait_until(lambda: any("gcs_server" in title for title in live.command.family().values()))
    assert live.end(signal.SIGTERM) == 143
    assert "stopping" in live.text["err"] and "camera(s)" not in live.text["err"]
    assert live.command.is_gone()


def test_the_frames_behind_each_label_are_those_that_the_clock_says(server: Server, monkeypatch) -> None:
    shown: dict[tuple[str, int], int] = {}
    real = LiveGaze.look

    def look_on(self, streams, frames):
        for stream, frame in zip(streams, frames, strict=True):
            if stream.segment_start_s != frame.segment_start_s:
                # Numbers of frames begin again with each connection: there must be one only.
                assert not [name for name, _ in shown if name == stream.name]
            if not stream.name.startswith("warm-up"):
                shown[stream.name, frame.frame_index] = shown_number(frame.pixels)
        return real(self, streams, frames)

    monkeypatch.setattr(LiveGaze, "look", look_on)
    settings = ["view.resize_px=256", "view.crop_px=224", "policy.kind=center", "live.max_waiting_frames=100"]
    plan = resolve(load("live", settings=settings), Machine(num_cores=1, memory_bytes=4 << 30))
    worker = live_worker(**plan.live_arguments())
    specs = [CameraSpec(name=f"cam{i}", uri=server.url(i), analysis_fps=5, max_waiting=100) for i in range(3)]
    worker.begin(tuple(CameraPlan(spec=spec, window_s=2.0, stride_s=1.0) for spec in specs), ())
    labels = []
    end_s = time.monotonic() + PATIENCE_S
    try:
        while min(sum(label.camera == spec.name for label in labels) for spec in specs) < 3:
            assert time.monotonic() < end_s, "waited in vain"
            reply, _ = worker.watch((0.2,), ())
            labels += reply.rows[0].labels
    finally:
        worker.shutdown()
    for label in labels:
        assert label.coverage == 1.0 and len(label.patches) == 10
        assert label.camera is not None
        numbers = [shown[label.camera, place.frame] for place in label.patches]
        for number, place in zip(numbers, label.patches, strict=True):
            assert abs(server.seconds_off(int(label.camera[3:]), number, place.pts_s)) < AWAY_S
            assert label.start_s - 0.021 <= place.pts_s < label.end_s
        # Of 15 frames a second every third, and never the same for another label's place in time.
        steps = [(b - a) % server.num_frames for a, b in itertools.pairwise(numbers)]
        assert all(2 <= step <= 4 for step in steps) and sum(steps) in (26, 27, 28)
