"""GStreamer's RTSP server as a process, showing numbered frames."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "pipeline/bench/rtsp_server.py"


@dataclass(frozen=True)
class Server:
    port: int
    fps: float
    num_frames: int
    started_unix_s: list[float]

    def url(self, camera: int, login: str = "") -> str:
        return f"rtsp://{login}127.0.0.1:{self.port}/cam{camera}"

    def seconds_off(self, camera: int, number: int, time_unix_s: float) -> float:
        """How far a frame's time is from when the server sent the frame of this number, which it repeats."""
        period_s = self.num_frames / self.fps
        behind_s = time_unix_s - self.started_unix_s[camera] - number / self.fps
        return (behind_s + period_s / 2) % period_s - period_s / 2


def what_is_missing() -> str | None:
    """Why the server cannot run here, or None."""
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer, Gst; "
    check += "Gst.init(None); assert all(map(Gst.ElementFactory.find, ('qtdemux', 'appsrc', 'rtph264pay')))"
    try:
        subprocess.run(["/usr/bin/python3", "-c", check], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return (
            "GStreamer's RTSP server is missing: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi "
            "gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
        )
    return None


@contextlib.contextmanager
def serving(video: Path, *, cameras: int) -> Iterator[Server]:
    """Skips the test where there is no GStreamer, unless REQUIRE_RTSP=1."""
    reason = what_is_missing()
    if reason is not None:
        if os.environ.get("REQUIRE_RTSP") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    command = ["/usr/bin/python3", str(SCRIPT), str(video), "--cameras", str(cameras)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield Server(**json.loads(process.stdout.readline()))
        finally:
            process.kill()
