"""Frames of live cameras: the right ones at the right times, whole, and an end that is told.

The cameras speak real RTSP: a scripted one for the faults, GStreamer's server for the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import shutil
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest

from operators.errors import SourceError
from operators.media.camera import CameraReader
from operators.media.camera_connection import CameraKind, camera_kind
from operators.media.encode import write_video
from operators.media.view import Viewer
from operators.records import CameraCounts, CameraFrame
from pipeline.live.clock_repair import ClockRepair
from pipeline.live.frames_and_windows import FrameSampler
from tests.support.gstreamer import Server, serving
from tests.support.scripted_rtsp import (
    CodedVideo,
    Script,
    ScriptedCamera,
    load_coded,
    numbered_frame,
    shown_number,
    write_numbered,
)

FPS = 60
GOP = 10
STEP = 90_000 // FPS
"""RTP's ticks from one frame to the next."""
AWAY_S = 0.4
"""How far a frame's time may be from when it was sent. Generous: the machine may be busy."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, CodedVideo]:
    folder = tmp_path_factory.mktemp("coded")
    write = partial(write_numbered, num_frames=120, fps=FPS, gop=GOP)
    return {
        "plain": load_coded(write(folder / "plain.mp4")),
        "b_frames": load_coded(write(folder / "b.mp4", b_frames=2)),
        "large": load_coded(write(folder / "large.mp4", width=640, height=360)),
    }


class Read:
    """What came out of a camera until it ended, or until enough frames had come."""

    def __init__(
        self,
        uri: str,
        *,
        num_frames: int = 10_000,
        analysis_fps: float = FPS,
        timeout_s: float = 5.0,
        transport: str = "tcp",
        repair: ClockRepair | None = None,
        **more,
    ) -> None:
        self.frames: list[CameraFrame] = []
        self.error: SourceError | None = None
        reader = CameraReader(
            uri=uri,
            viewer=Viewer(),
            repair=repair or ClockRepair(),
            sampler=FrameSampler(analysis_fps=analysis_fps),
            transport=transport,
            open_timeout_s=timeout_s,
            read_timeout_s=timeout_s,
            **more,
        )
        try:
            with reader:
                found = (frame for frame in reader.read() if frame is not None)
                self.frames.extend(itertools.islice(found, num_frames))
        except SourceError as exc:
            self.error = exc
        self.counts: CameraCounts = reader.counts

    @property
    def numbers(self) -> list[int]:
        return [shown_number(frame.pixels) for frame in self.frames]

    @property
    def segments(self) -> int:
        return len({frame.segment_start_s for frame in self.frames})

    def assert_on_time(self, camera: ScriptedCamera) -> None:
        """The numbers that the frames show are those that were sent at the frames' times."""
        assert self.frames
        for frame, number in zip(self.frames, self.numbers, strict=True):
            assert abs(frame.time_unix_s - camera.taken_unix_s(number)) < AWAY_S
            assert frame.time_unix_s <= frame.received_unix_s + 0.001


def serve(*videos: CodedVideo, switch_every: int = 0, **script) -> ScriptedCamera:
    script = {"num_frames": 40} | script
    return ScriptedCamera(*videos, script=Script(**script), switch_every=switch_every)


def test_frames_are_taken_by_time_and_show_the_numbers_that_the_clock_says(videos):
    with serve(videos["plain"], num_frames=80) as camera:
        read = Read(camera.url, analysis_fps=10)
    read.assert_on_time(camera)
    assert read.segments == 1
    # 60 frames a second, 10 ticks: every sixth frame.
    first = read.frames[0]
    for frame, number in zip(read.frames, read.numbers, strict=True):
        assert abs(number - read.numbers[0] - 6 * (frame.tick - first.tick)) <= 1
    assert len(read.frames) >= 10
    assert read.error is None and read.counts.num_decoded == 80
    assert first.pixels.shape == (224, 224, 3) and (first.facts.width, first.facts.height) == (320, 180)


def test_a_reader_that_joins_between_keyframes_waits_for_one(videos):
    with serve(videos["plain"], joins_at_keyframe=False) as camera:
        read = Read(camera.url, repair=ClockRepair(settle_s=0))
    assert read.numbers[0] % GOP == 0
    assert read.counts.num_before_keyframe > 0 and read.counts.num_after_loss == 0
    read.assert_on_time(camera)


def test_a_burst_at_the_join_is_dropped_and_what_follows_is_on_time(videos):
    with serve(videos["plain"], burst=30, num_frames=50) as camera:
        camera.started_unix_s -= 1.0
        read = Read(camera.url)
    read.assert_on_time(camera)
    assert read.counts.num_joining >= 20


@pytest.mark.parametrize("packet", [0, 1, 3, 6], ids=["parameters", "more parameters", "a part", "another part"])
def test_after_a_keyframe_with_a_hole_frames_wait_for_the_next_keyframe(videos, packet):
    with serve(videos["plain"], loses=lambda n, i: n % 30 == 20 and i == packet, num_frames=45) as camera:
        read = Read(camera.url)
    # Parameter sets were told before and do not change: without them nothing is lost.
    if packet > 1:
        assert not [n for n in read.numbers if n % 30 >= 20]
        assert read.counts.num_corrupt >= 2 and read.segments >= 2
    else:
        assert [n for n in read.numbers if n % 30 >= 20]
    read.assert_on_time(camera)


def test_after_a_frame_with_a_hole_frames_wait_for_a_keyframe(videos):
    with serve(videos["large"], loses=lambda n, i: n % 30 == 13 and i == 2, num_frames=50) as camera:
        read = Read(camera.url)
    assert not [n for n in read.numbers if 13 <= n % 30 < 20]
    assert [n for n in read.numbers if n % 30 == 12] and [n for n in read.numbers if n % 30 == 20]
    assert read.counts.num_corrupt >= 1 and read.counts.num_after_loss >= 5
    read.assert_on_time(camera)


def test_after_a_frame_that_was_lost_as_a_whole_frames_wait_for_a_keyframe(videos):
    with serve(videos["plain"], loses=lambda n, i: n % 30 == 13, num_frames=50) as camera:
        read = Read(camera.url)
    assert not [n for n in read.numbers if 13 <= n % 30 < 20]
    assert [n for n in read.numbers if n % 30 == 12] and [n for n in read.numbers if n % 30 == 20]
    assert read.counts.num_after_loss >= 6 and read.counts.num_before_keyframe == 0
    read.assert_on_time(camera)


def test_a_loss_is_a_gap_although_a_frame_from_before_it_is_shown_after_it(videos):
    with serve(videos["b_frames"], loses=lambda n, i: n % 30 == 13, num_frames=60) as camera:
        read = Read(camera.url)
    assert read.counts.num_after_loss >= 3 and read.counts.num_before_keyframe == 0
    assert read.segments == 2
    read.assert_on_time(camera)


WRAP = 1 << 32
CLOCKS = {
    "wraps": lambda n: WRAP - 30 * STEP + n * STEP,
    "starts again at zero": lambda n: 2_000_000_000 + n * STEP if n < 30 else (n - 30) * STEP,
    "is hours off once": lambda n: n * STEP + (3 * 3600 * 90_000 if n == 27 else 0),
    "is hours off once the other way": lambda n: WRAP // 2 + n * STEP - (3 * 3600 * 90_000 if n == 27 else 0),
    "stands still": lambda n: 90_000,
}


@pytest.mark.parametrize("ticks", CLOCKS.values(), ids=CLOCKS.keys())
def test_times_are_right_although_the_clock(videos, ticks):
    with serve(videos["plain"], ticks=ticks, num_frames=40) as camera:
        read = Read(camera.url, repair=ClockRepair(settle_s=0.3))
    read.assert_on_time(camera)
    assert read.segments == 1
    assert read.numbers == sorted(read.numbers)


def test_b_frames_come_in_the_order_of_display(videos):
    with serve(videos["b_frames"], num_frames=60) as camera:
        read = Read(camera.url)
    read.assert_on_time(camera)
    # With as many ticks as frames a frame may fall between two ticks.
    assert {b - a for a, b in itertools.pairwise(read.numbers)} <= {1, 2}
    assert read.segments == 1


def test_the_resolution_may_change_on_the_way(videos):
    with serve(videos["plain"], videos["large"], switch_every=30, num_frames=60) as camera:
        read = Read(camera.url)
    read.assert_on_time(camera)
    assert {frame.facts.width for frame in read.frames} == {320, 640}
    for frame, number in zip(read.frames, read.numbers, strict=True):
        assert frame.facts.width == (640 if number // 30 % 2 else 320)
    assert read.segments == 1


@pytest.mark.parametrize("ending", ["close", "bye"])
def test_a_camera_that_takes_its_leave_ends_the_reading(videos, ending):
    with serve(videos["plain"], ending=ending, num_frames=20) as camera:
        read = Read(camera.url)
    assert read.error is None and read.counts.num_decoded == 20


@pytest.mark.parametrize("ending", ["silence", "drip", "garbage"])
def test_a_camera_that_stops_sending_frames_is_an_error_where_the_library_keeps_its_timeout(videos, ending):
    with serve(videos["plain"], ending=ending, num_frames=20) as camera:
        read = Read(camera.url, timeout_s=0.5)
    assert read.counts.num_decoded in (19, 20) and read.frames
    assert read.error is not None and read.error.code in ("timeout", "missing", "not_media")


def test_a_camera_that_resets_the_connection_ends_the_reading(videos):
    with serve(videos["plain"], ending="reset", num_frames=20) as camera:
        read = Read(camera.url)
    assert read.counts.num_decoded >= 1


GREETINGS = {
    "silence": ({"greeting": "silence"}, "timeout", "no answer in time"),
    "drip": ({"greeting": "drip"}, "timeout", "no answer in time"),
    "reset": ({"greeting": "reset"}, "not_media", "nothing that is understood"),
    "garbage": ({"greeting": "garbage"}, "not_media", "nothing that is understood"),
    "404": ({"status": 404}, "missing", "no such stream"),
    "401": ({"credentials": ("eve", "right")}, "missing", "check user and password"),
}


@pytest.mark.parametrize(("script", "code", "words"), GREETINGS.values(), ids=GREETINGS.keys())
def test_a_camera_that_cannot_be_opened_says_why_without_its_password(videos, script, code, words):
    with serve(videos["plain"], **script) as camera:
        read = Read(camera.url_with("eve", "s3cret"), timeout_s=0.5)
    assert read.error is not None and read.error.code == code
    assert words in str(read.error) and "eve:***@" in str(read.error)
    assert "s3cret" not in "".join(traceback.format_exception(read.error))


def test_nobody_there_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    read = Read(f"rtsp://eve:s3cret@127.0.0.1:{port}/live")
    assert read.error is not None and read.error.code == "missing" and "refused" in str(read.error)
    assert "s3cret" not in "".join(traceback.format_exception(read.error))


def test_the_right_password_opens(videos):
    with serve(videos["plain"], credentials=("eve", "s3cret")) as camera:
        read = Read(camera.url_with("eve", "s3cret"), num_frames=5)
    assert len(read.frames) == 5


@contextlib.contextmanager
def http_server(content_type: str, parts: Callable[[str], Iterable[bytes]]) -> Iterator[str]:
    """Answers a request for a path with the bytes of `parts(path)`; gives the address of /video."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            with contextlib.suppress(OSError):
                for part in parts(self.path):
                    self.wfile.write(part)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/video"
        server.shutdown()
        thread.join()


def jpeg(number: int) -> bytes:
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = 320, 180, "yuvj420p"
    codec.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def test_motion_jpeg_over_http_is_timed_by_arrival():
    sent: dict[int, float] = {}

    def parts(_path: str) -> Iterator[bytes]:
        for number in range(20):
            sent[number] = time.time()
            data = jpeg(number)
            yield b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data + b"\r\n"
            time.sleep(0.05)

    with http_server("multipart/x-mixed-replace;boundary=frame", parts) as url:
        read = Read(url, analysis_fps=50)
    assert read.numbers[-1] >= 15 and len(read.frames) >= 10
    for frame, number in zip(read.frames, read.numbers, strict=True):
        assert abs(frame.time_unix_s - sent[number]) < AWAY_S


def test_a_playlist_over_http_is_refused_although_what_it_names_could_be_read(tmp_path):
    segment = write_numbered(tmp_path / "a.ts", num_frames=30, fps=FPS, gop=GOP).read_bytes()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\na.ts\n#EXT-X-ENDLIST\n"
    asked: list[str] = []

    def parts(path: str) -> list[bytes]:
        asked.append(path)
        return [segment if path == "/a.ts" else playlist]

    with http_server("application/vnd.apple.mpegurl", parts) as url:
        read = Read(url, timeout_s=2.0)
        assert asked == ["/video"]
        # The segment itself is what cameras send, too.
        assert Read(url.replace("video", "a.ts"), repair=ClockRepair(settle_s=0)).frames
    assert read.error is not None and read.error.code == "not_media"


class Elsewhere(BaseHTTPRequestHandler):
    """A camera that redirects what is asked of it to `target`."""

    target = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.target)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_http_camera_cannot_send_its_reader_to_another_address():
    asked: list[str] = []

    def parts(path: str) -> list[bytes]:
        asked.append(path)
        return [b"a secret of the house"]

    with http_server("video/mp2t", parts) as url:
        handler = type("Handler", (Elsewhere,), {"target": url})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as camera:
            threading.Thread(target=camera.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            read = Read(f"http://127.0.0.1:{camera.server_address[1]}/video", timeout_s=2.0)
            camera.shutdown()
    assert asked == []
    assert read.error is not None and read.error.code == "missing" and "is not followed" in str(read.error)


def test_a_password_still_opens_an_http_camera_although_no_redirect_is_followed():
    data = jpeg(1)
    part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data) + data + b"\r\n"

    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != "Basic ZXZlOnMzY3JldA==":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(10):
                    self.wfile.write(part)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as camera:
        threading.Thread(target=camera.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://eve:s3cret@127.0.0.1:{camera.server_address[1]}/video"
        read = Read(url, num_frames=1, repair=ClockRepair(settle_s=0), timeout_s=2.0)
        camera.shutdown()
    assert read.numbers == [1]


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP"])
def test_an_rtsp_camera_cannot_send_its_reader_to_another_address(videos, method):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serve(videos["plain"]) as elsewhere:
        to = elsewhere.url_with("admin", "s3cret")
        with serve(videos["plain"], redirects_at=method, redirects_to=to) as camera:
            # Twice: FFmpeg's log leaves out a line that it has just written.
            for _ in range(2):
                read = Read(camera.url, timeout_s=2.0)
                assert read.error is not None
                # FFmpeg follows none at SETUP, and takes it for an answer that makes no sense.
                assert method == "SETUP" or "a redirect to another address, which is not followed" in str(read.error)
            assert camera.num_connections == 2
    assert elsewhere.num_connections == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_nothing_of_ffmpegs_log_is_shown_while_a_camera_is_opened(videos, caplog, capfd):
    with serve(videos["plain"], status=404) as camera:
        Read(camera.url_with("eve", "s3cret"), timeout_s=2.0)
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_rtmp_is_read(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs Debian's ffmpeg as the RTMP server")
    path = write_numbered(tmp_path / "a.mp4", num_frames=60, fps=FPS, gop=GOP)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"rtmp://127.0.0.1:{unused.getsockname()[1]}/live/x"
    command = ["ffmpeg", "-loglevel", "quiet", "-re", "-stream_loop", "-1", "-i", str(path), "-c", "copy"]
    server = subprocess.Popen([*command, "-f", "flv", "-listen", "1", url])
    try:
        for _ in range(50):
            read = Read(url, num_frames=20)
            if read.error is None:
                break
            time.sleep(0.1)
    finally:
        server.kill()
        server.wait()
    assert len(read.frames) == 20
    assert {(b - a) % 60 for a, b in itertools.pairwise(read.numbers)} <= {1, 2}


class OwnTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0
        self.slept_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds


def test_a_file_is_played_at_its_own_pace(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", num_frames=61, fps=30, gop=GOP, b_frames=2)
    own = OwnTime()
    read = Read(str(path), analysis_fps=10, repair=ClockRepair(settle_s=0), clock=own.clock, sleep=own.sleep)
    # 61 frames at 30 a second: the last one is due after two seconds; every third frame is taken.
    assert own.slept_s == pytest.approx(2.0)
    assert read.numbers == list(range(0, 61, 3))
    assert [frame.tick for frame in read.frames] == list(range(21))
    assert [round(frame.time_unix_s - 1_700_000_000.0, 3) for frame in read.frames[:3]] == [0.0, 0.1, 0.2]
    assert read.error is None


def test_rotation_of_a_file_is_undone(tmp_path):
    def frames() -> Iterator[np.ndarray]:
        for number in range(3):
            yield np.rot90(numbered_frame(number, width=180, height=180)).copy()

    write_video(tmp_path / "a.mp4", frames(), fps=FPS, rotation=90)
    own = OwnTime()
    read = Read(str(tmp_path / "a.mp4"), repair=ClockRepair(settle_s=0), clock=own.clock, sleep=own.sleep)
    assert read.numbers == [0, 1, 2] and read.frames[0].facts.rotation == 90


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("rtsp://host/a", CameraKind.RTSP),
        ("RTSPS://host/a", CameraKind.RTSP),
        ("rtmp://host/a", CameraKind.RTMP),
        ("https://host/a", CameraKind.HTTP),
        ("udp://239.0.0.1:5000", CameraKind.STREAM),
        ("/dev/video0", CameraKind.DEVICE),
        ("/videos/a.mp4", CameraKind.FILE),
        ("file:///videos/a.mp4", CameraKind.FILE),
    ],
)
def test_the_address_says_what_kind_of_camera_it_is(uri, kind):
    assert camera_kind(uri) is kind


def test_an_address_of_no_kind_is_refused_without_its_password():
    with pytest.raises(SourceError, match="gopher is no kind of camera") as found:
        camera_kind("gopher://eve:s3cret@host/")
    assert "s3cret" not in str(found.value)


@pytest.mark.parametrize("uri", ["/dev/video-that-is-not-there", "/nowhere/a.mp4"])
def test_what_is_not_there_is_missing(uri):
    read = Read(uri)
    assert read.error is not None and read.error.code == "missing" and uri in str(read.error)


@pytest.fixture(scope="module")
def gstreamer(tmp_path_factory) -> Iterator[Server]:
    path = write_numbered(tmp_path_factory.mktemp("rtsp") / "a.mp4", num_frames=60, fps=FPS, gop=GOP)
    with serving(path, cameras=2) as server:
        yield server


@pytest.mark.rtsp
@pytest.mark.parametrize("transport", ["tcp", "udp", "auto"])
def test_a_real_server_is_read_and_its_frames_are_those_that_the_clock_says(gstreamer, transport):
    read = Read(gstreamer.url(1), analysis_fps=10, num_frames=15, transport=transport)
    assert read.error is None and len(read.frames) == 15
    assert read.segments == 1
    for frame, number in zip(read.frames, read.numbers, strict=True):
        assert abs(gstreamer.seconds_off(1, number, frame.time_unix_s)) < AWAY_S


@pytest.mark.rtsp
def test_a_real_server_without_the_stream_says_so(gstreamer):
    read = Read(gstreamer.url(1).replace("cam1", "nothing"))
    assert read.error is not None and read.error.code == "missing" and "no such stream" in str(read.error)
