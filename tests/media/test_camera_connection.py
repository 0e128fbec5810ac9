"""Connections to cameras: an error that says why, no password in it, and no address but the given one."""

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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from operators.errors import SourceError
from operators.media.camera_connection import CameraKind, camera_kind
from pipeline.live.clock_repair import ClockRepair
from tests.media.camera_http import http_server, jpeg
from tests.media.camera_reading import FPS, GOP, Read, serve
from tests.support.numbered_h264 import write_numbered


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


def test_a_playlist_over_http_is_refused_although_what_it_names_could_be_read(tmp_path):
    segment = write_numbered(tmp_path / "a.ts", num_frames=30, fps=FPS, gop=GOP).read_bytes()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\na.ts\n#EXT-X-ENDLIST\n"
    requested: list[str] = []

    def parts(path: str) -> list[bytes]:
        requested.append(path)
        return [segment if path == "/a.ts" else playlist]

    with http_server("application/vnd.apple.mpegurl", parts) as url:
        read = Read(url, timeout_s=2.0)
        assert requested == ["/video"]
        # The segment itself is what cameras send, too.
        assert Read(url.replace("video", "a.ts"), repair=ClockRepair(settle_s=0)).frames
    assert read.error is not None and read.error.code == "not_media"


class Elsewhere(BaseHTTPRequestHandler):
    """A camera that redirects every request to `target`."""

    target = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.target)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_http_camera_cannot_send_its_reader_to_another_address():
    requested: list[str] = []

    def parts(path: str) -> list[bytes]:
        requested.append(path)
        return [b"a secret of the house"]

    with http_server("video/mp2t", parts) as url:
        handler = type("Handler", (Elsewhere,), {"target": url})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as camera:
            threading.Thread(target=camera.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            read = Read(f"http://127.0.0.1:{camera.server_address[1]}/video", timeout_s=2.0)
            camera.shutdown()
    assert requested == []
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
    command += ["-f", "flv", "-listen", "1", url]
    server = subprocess.Popen(command)
    try:
        for _ in range(100):
            read = Read(url, num_frames=20)
            if read.error is None:
                break
            if server.poll() is not None:
                # It serves one reader, and ends with one that came too early on a busy machine.
                server = subprocess.Popen(command)
            time.sleep(0.1)
    finally:
        server.kill()
        server.wait()
    assert read.error is None
    assert len(read.frames) == 20
    assert {(b - a) % 60 for a, b in itertools.pairwise(read.numbers)} <= {1, 2}


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
