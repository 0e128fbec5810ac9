"""A real RTSP server (GStreamer's), with cameras that go on whether somebody watches or not.

Run with the system's Python, which has GStreamer's bindings:
    /usr/bin/python3 pipeline/bench/rtsp_server.py VIDEO.mp4 --cameras 8
It prints one line of JSON, {"port": ..., "fps": ..., "num_frames": ..., "started_unix_s": [...]}, and serves until
it is killed or whoever started it dies. Camera i is rtsp://127.0.0.1:PORT/camI. It sends frame n of its stream,
which is frame n modulo the video's length, at started_unix_s[i] + n / fps, over TCP or UDP as the client asks.
"""

import argparse
import ctypes
import json
import os
import signal
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

_EVERYTHING = (
    Gst.BufferCopyFlags.MEMORY | Gst.BufferCopyFlags.FLAGS | Gst.BufferCopyFlags.TIMESTAMPS | Gst.BufferCopyFlags.META
)


def load_frames(path):
    """The coded frames of an MP4 file, in decoding order, with the caps of their stream."""
    pipeline = Gst.parse_launch("filesrc name=file ! qtdemux ! appsink name=sink sync=false")
    pipeline.get_by_name("file").set_property("location", path)
    sink = pipeline.get_by_name("sink")
    pipeline.set_state(Gst.State.PLAYING)
    frames, caps = [], None
    while (sample := sink.emit("pull-sample")) is not None:
        caps = sample.get_caps()
        frames.append(sample.get_buffer())
    pipeline.set_state(Gst.State.NULL)
    if not frames:
        sys.exit(f"{path}: no video in it")
    return frames, caps


class LiveCamera:
    """One mount point: pushes its frames as they become due into whatever media are being watched."""

    def __init__(self, frames, caps, fps, started_s):
        self.frames, self.caps, self.fps, self.started_s = frames, caps, fps, started_s
        self.sources = []
        """[appsrc, number of the first frame that it was given] of each medium."""
        self.next = 0
        self.is_waiting = False

    def configure(self, _factory, media):
        """Called on the server's threads; everything else runs in the main loop."""
        source = media.get_element().get_child_by_name("source")
        source.set_property("caps", self.caps)
        media.connect("unprepared", lambda _media: GLib.idle_add(self.forget, source))
        GLib.idle_add(self.add, source)

    def add(self, source):
        self.sources.append([source, None])
        if not self.is_waiting:
            self.next = int((time.time() - self.started_s) * self.fps) + 1
            self.wait()

    def forget(self, source):
        self.sources = [one for one in self.sources if one[0] is not source]

    def wait(self):
        self.is_waiting = True
        due_s = self.started_s + self.next / self.fps - time.time()
        GLib.timeout_add(max(0, round(due_s * 1000)), self.push)

    def push(self):
        self.is_waiting = False
        n, self.next = self.next, self.next + 1
        frame = self.frames[n % len(self.frames)]
        is_keyframe = not frame.has_flags(Gst.BufferFlags.DELTA_UNIT)
        for entry in self.sources:
            source, first = entry
            if first is None:
                if not is_keyframe:
                    continue
                first = entry[1] = n
            # Not copy(), which is one more reference to the same buffer.
            copy = frame.copy_region(_EVERYTHING, 0, frame.get_size())
            # The spacing of the file, on a time that goes on when the file begins again.
            shift = round((n - n % len(self.frames) - first) / self.fps * Gst.SECOND)
            copy.pts, copy.dts = max(0, frame.pts + shift), max(0, frame.dts + shift)
            source.emit("push-buffer", copy)
        if self.sources:
            self.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("video")
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)
    Gst.init(None)
    frames, caps = load_frames(options.video)
    last = max(frame.pts + frame.duration for frame in frames)
    fps = len(frames) / ((last - min(frame.pts for frame in frames)) / Gst.SECOND)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(str(options.port))
    started = []
    for i in range(options.cameras):
        # Real cameras do not take their frames at the same moment.
        started.append(time.time() + i / options.cameras / fps)
        camera = LiveCamera(frames, caps, fps, started[-1])
        factory = GstRtspServer.RTSPMediaFactory.new()
        factory.set_launch(
            "( appsrc name=source is-live=true format=time ! queue ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
        )
        factory.set_shared(True)
        factory.connect("media-configure", camera.configure)
        server.get_mount_points().add_factory(f"/cam{i}", factory)
    # Who asks what a camera sends waits for its next keyframe. With one thread, which is the default, so does everybody
    # behind: eight readers at once were answered after 2, 4, ... 16 s, and gave up.
    server.get_thread_pool().set_max_threads(-1)
    server.attach(None)
    serving = {"port": server.get_bound_port(), "fps": fps, "num_frames": len(frames), "started_unix_s": started}
    print(json.dumps(serving), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
