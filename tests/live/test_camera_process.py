"""Each camera is read in a process of its own: it can be killed at any time, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from operators.records import CameraFrame
from pipeline.live.camera_process import CameraSpec, Polled, ReaderHandle, start
from pipeline.live.camera_state import (
    CameraLimits,
    CameraState,
    CameraStatus,
    Ended,
    Event,
    Gone,
    Kill,
    Open,
    ReaderProgress,
    step,
)
from tests.support.numbered_h264 import CodedVideo, load_coded, shown_number, write_numbered
from tests.support.scripted_rtsp import Script, ScriptedCamera

FPS = 60
PATIENCE_S = 30.0
"""How long a test waits for what must come. Long: the machine may be busy."""


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> CodedVideo:
    path = tmp_path_factory.mktemp("coded") / "a.mp4"
    return load_coded(write_numbered(path, num_frames=120, fps=FPS, gop=10))


@pytest.fixture
def readers() -> Iterator[Callable[..., ReaderHandle]]:
    """Starts readers that are gone after the test."""
    started: list[ReaderHandle] = []

    def begin(uri: str, **more) -> ReaderHandle:
        started.append(start(CameraSpec(name="door", uri=uri, **({"analysis_fps": FPS} | more))))
        return started[-1]

    yield begin
    for reader in started:
        reader.kill()
        wait_until(reader.is_gone)


def wait_until(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.005)


def poll_until(reader: ReaderHandle, is_enough: Callable[[list[CameraFrame], Polled], bool]) -> list[CameraFrame]:
    """The frames up to the poll after which it is enough."""
    frames: list[CameraFrame] = []

    def poll() -> bool:
        polled = reader.poll()
        frames.extend(polled.frames)
        return is_enough(frames, polled)

    wait_until(poll)
    return frames


def is_over(_frames: list[CameraFrame], polled: Polled) -> bool:
    return polled.ended is not None


def num_children() -> int:
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_views_come_out_whole_and_in_order_and_the_end_is_told(video, readers):
    with ScriptedCamera(video, script=Script(num_frames=30)) as camera:
        reader = readers(camera.url)
        frames = poll_until(reader, is_over)
    numbers = [shown_number(frame.pixels) for frame in frames]
    assert len(numbers) >= 15 and numbers == sorted(numbers)
    assert frames[0].view_yxhw == pytest.approx((16 / 256, 116 / 455, 224 / 256, 224 / 455))
    polled = reader.poll()
    assert polled.counts.num_decoded == 30 and polled.counts.num_analysed == len(numbers)
    assert polled.ended == f"{camera.url}: the camera ended the stream" and not polled.is_final
    wait_until(reader.is_gone)


def test_the_end_of_a_file_is_final(tmp_path, readers):
    path = write_numbered(tmp_path / "a.mp4", num_frames=6, fps=FPS)
    reader = readers(str(path))
    frames = poll_until(reader, is_over)
    assert [shown_number(frame.pixels) for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert reader.poll().is_final


def test_a_relative_path_is_the_parents(tmp_path, readers, monkeypatch):
    write_numbered(tmp_path / "a.mp4", num_frames=3, fps=FPS)
    monkeypatch.chdir(tmp_path)
    assert len(poll_until(readers("a.mp4"), is_over)) == 3


def test_a_reader_that_cannot_open_says_why_without_the_password(video, readers):
    with ScriptedCamera(video, script=Script(credentials=("eve", "right"))) as camera:
        reader = readers(camera.url_with("eve", "s3cret"))
        poll_until(reader, is_over)
    assert reader.poll().ended == (
        f"rtsp://eve:***@127.0.0.1:{camera.port}/live: the camera refuses; check user and password"
    )


@pytest.fixture
def broken_reader() -> Iterator[Callable[[bytes], ReaderHandle]]:
    """The parent's side of a child that sends these bytes and stays."""
    started: list[ReaderHandle] = []

    def begin(data: bytes) -> ReaderHandle:
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        process = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE)
        os.write(write_fd, data)
        os.close(write_fd)
        started.append(ReaderHandle(process, read_fd, max_pixel_bytes=224 * 224 * 3))
        return started[-1]

    yield begin
    for reader in started:
        reader.kill()
        wait_until(reader.is_gone)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">II", 30, 224 * 224 * 3 + 1),
        struct.pack(">II", 0xFFFF_FFFF, 0xFFFF_FFFF),
        struct.pack(">II", 1 << 21, 0),
        struct.pack(">II", 4, 0) + b"{no}",
        struct.pack(">II", 2, 0) + b"{}",
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 4, 0) + b'"\xff\xff"',
    ],
    ids=["a view too large", "all too large", "a text too long", "no JSON", "no counts", "a list", "no text"],
)
def test_a_header_that_lies_and_a_text_that_is_none_end_the_reader_as_a_broken_one(data, broken_reader):
    reader = broken_reader(data)
    polled = reader.poll()
    assert polled.ended is not None and polled.ended.startswith("the reader's process sent no view: ")
    assert not polled.is_final and not polled.frames
    assert not reader.is_open
    wait_until(reader.is_gone)
    assert reader.poll().ended == polled.ended


def test_no_password_is_in_the_arguments_or_the_environment_of_a_reader(video, readers, monkeypatch):
    monkeypatch.setenv("DOOR_PASSWORD", "s3cret")
    with ScriptedCamera(video, script=Script(credentials=("eve", "s3cret"))) as camera:
        reader = readers(camera.url_with("eve", "s3cret"))
        poll_until(reader, lambda frames, _: len(frames) >= 1)
        for name in ("cmdline", "environ", "comm", "status"):
            assert b"s3cret" not in Path(f"/proc/{reader.pid}/{name}").read_bytes()
    assert "s3cret" not in repr(CameraSpec(name="door", uri="rtsp://eve:s3cret@host/"))


@pytest.mark.parametrize("script", [Script(greeting="silence"), Script(num_frames=20, ending="silence")])
def test_a_reader_that_hangs_is_gone_after_a_kill(video, readers, script):
    with ScriptedCamera(video, script=script) as camera:
        reader = readers(camera.url, open_timeout_s=1000.0, read_timeout_s=1000.0)
        if script.greeting == "serve":
            poll_until(reader, lambda _, polled: polled.counts.num_decoded >= 15)
        else:
            wait_until(lambda: camera.num_connections == 1)
        assert not reader.is_gone()
        reader.kill()
        wait_until(reader.is_gone)
    assert not Path(f"/proc/{reader.pid}").exists()
    assert not reader.is_open


def test_a_reader_is_ready_before_the_camera_says_anything(video, readers):
    with ScriptedCamera(video, script=Script(greeting="silence")) as camera:
        reader = readers(camera.url, open_timeout_s=1000.0)
        assert not reader.is_ready
        poll_until(reader, lambda _, __: reader.is_ready)
        assert reader.poll().counts.num_packets == 0


def test_starting_and_killing_leaves_no_process_and_no_descriptor(video):
    with ScriptedCamera(video) as camera:
        before = (num_children(), None)
        fds = None
        for _ in range(4):
            readers = [start(CameraSpec(name="door", uri=camera.url)) for _ in range(5)]
            for reader in readers:
                reader.poll()
                reader.kill()
            for reader in readers:
                wait_until(reader.is_gone)
            camera.drop_all()
            del readers
            now = len(os.listdir("/proc/self/fd"))
            assert fds is None or now <= fds
            fds = now
        assert num_children() == before[0]


def test_a_reader_that_is_killed_from_outside_has_ended(video, readers):
    with ScriptedCamera(video) as camera:
        reader = readers(camera.url)
        poll_until(reader, lambda frames, _: len(frames) >= 1)
        os.kill(reader.pid, signal.SIGKILL)
        poll_until(reader, is_over)
    assert reader.poll().ended == "the reader's process died"


def test_a_reader_dies_with_its_parent(video):
    root = Path(__file__).resolve().parents[2]
    with ScriptedCamera(video) as camera:
        program = (
            "import sys, time\n"
            "from pipeline.live.camera_process import CameraSpec, start\n"
            f"reader = start(CameraSpec(name='door', uri='{camera.url}'))\n"
            "while not reader.poll().frames: time.sleep(0.01)\n"
            "print(reader.pid, flush=True)\n"
            "time.sleep(1000)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert Path(f"/proc/{pid}").exists()
            parent.kill()
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid))


def is_zombie(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def test_what_nobody_fetches_is_dropped_oldest_first_and_counted(video, readers):
    with ScriptedCamera(video) as camera:
        # The pipe holds six views of 224 px; two more wait.
        reader = readers(camera.url, max_waiting=2)
        frames: list[CameraFrame] = []

        def has_dropped_some() -> bool:
            # Nobody fetches for a second: 60 frames, once the reader has joined.
            time.sleep(1.0)
            polled = reader.poll()
            frames.extend(polled.frames)
            return polled.counts.num_behind > 0

        wait_until(has_dropped_some)
        camera.drop_all()
        frames += poll_until(reader, is_over)
    counts = reader.poll().counts
    assert counts.num_behind + len(frames) == counts.num_analysed
    # In order, each the picture that its number says. The video begins again after 120 frames.
    indices = [frame.frame_index for frame in frames]
    assert indices == sorted(set(indices))
    assert len({(shown_number(frame.pixels) - frame.frame_index) % 120 for frame in frames}) == 1
    # The newest of all is there: the very last may be cut by the end, and the one before may fall between two ticks.
    assert indices[-1] >= counts.num_decoded - 3


def drive(
    url: str, limits: CameraLimits, until: Callable[[CameraStatus, list[CameraFrame]], bool], **spec
) -> list[str]:
    """Runs one camera as a live run does, with real time; the states it went through."""
    camera, reader = CameraStatus(), None
    frames: list[CameraFrame] = []
    states: list[str] = []
    end_s = time.monotonic() + PATIENCE_S
    try:
        while not until(camera, frames):
            assert time.monotonic() < end_s, f"waited in vain: {states}, {camera.last_error}"
            events: list[Event] = []
            if reader is not None:
                polled = reader.poll()
                frames += polled.frames
                counts = polled.counts
                events.append(ReaderProgress(num_packets=counts.num_packets, num_decoded=counts.num_decoded))
                if polled.ended is not None:
                    events.append(Ended(reason=polled.ended, is_final=polled.is_final))
                if reader.is_gone():
                    reader.kill()
                    reader = None
                    events.append(Gone())
            camera, action = step(camera, events, now_s=time.monotonic(), draw=0.5, limits=limits)
            match action:
                case Open():
                    assert reader is None
                    reader = start(CameraSpec(name="door", uri=url, **({"analysis_fps": FPS} | spec)))
                case Kill():
                    assert reader is not None
                    reader.kill()
            if not states or states[-1] != camera.state:
                states.append(camera.state)
            time.sleep(0.005)
    finally:
        if reader is not None:
            reader.kill()
            wait_until(reader.is_gone)
    return states


QUICK = CameraLimits(open_s=5.0, silence_s=0.5, backoff_s=0.05, max_backoff_s=0.2, stable_s=0.5)


def test_a_camera_that_falls_silent_is_noticed_by_us_and_read_again_when_it_is_back(video):
    with ScriptedCamera(video, script=Script(num_frames=20, ending="silence")) as camera:

        def is_back(status: CameraStatus, _frames: list[CameraFrame]) -> bool:
            if status.state is CameraState.LIVE:
                camera.script = Script()
            return status.num_reconnects == 1

        states = drive(camera.url, QUICK, is_back, read_timeout_s=1000.0)
    assert states[-6:] == ["connecting", "live", "lost", "waiting", "connecting", "live"]


def test_a_camera_that_only_accepts_is_tried_again_and_again(video):
    limits = CameraLimits(open_s=0.8, silence_s=0.5, backoff_s=0.05, max_backoff_s=0.1)
    with ScriptedCamera(video, script=Script(greeting="silence")) as camera:
        drive(camera.url, limits, lambda status, _: status.num_failures == 2, open_timeout_s=1000.0)


FAULTS = [
    Script(num_frames=15, ending="close"),
    Script(num_frames=15, ending="drip"),
    Script(greeting="garbage"),
    Script(credentials=("eve", "right")),
    Script(joins_at_keyframe=False, num_frames=30),
    Script(ticks=lambda n: 0, num_frames=15, ending="reset"),
]


def test_after_one_fault_upon_another_the_camera_is_read_again(video):
    faults = iter(FAULTS)
    with ScriptedCamera(video, script=next(faults)) as camera:
        seen = 0

        def is_done(_status: CameraStatus, _frames: list[CameraFrame]) -> bool:
            nonlocal seen
            # The next fault for each new connection; in the end none.
            if camera.num_connections > seen:
                seen = camera.num_connections
                camera.script = next(faults, Script())
            return seen > len(FAULTS) and _status.state is CameraState.LIVE

        states = drive(camera.url, QUICK, is_done)
        assert camera.num_connections == len(FAULTS) + 1
    assert states.count("connecting") == len(FAULTS) + 1
