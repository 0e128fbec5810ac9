"""One process per camera, which can be killed whatever its library is doing.

The parent starts a reader and polls it; the child reads the camera and sends views through a pipe. The address goes
in through the child's standard input, so that a password is neither among its arguments nor in its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import PipelineError
from operators.records import CameraCounts, CameraFrame, SourceFacts, without_password
from pipeline.run.reaper import MARK

_HEADER = struct.Struct(">II")
"""The number of bytes of the JSON, then that of the pixels."""
_PIPE_BYTES = 1 << 20
_MAX_JSON_BYTES = 1 << 20
"""A message has a few hundred bytes, and the text of an error at the end."""
_COUNTS_S = 0.2
"""The child sends its counts this often while it has no frame to send."""
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "HOME", "LANG", "TZ", "TMPDIR", MARK)
"""What a child gets of the environment, the mark of its run among it: addresses of cameras may stand in the rest."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraSpec:
    """The settings of one reader, with its camera's address."""

    name: str
    uri: str = field(repr=False)
    transport: str = "tcp"
    analysis_fps: float = 4.0
    resize_px: int = 256
    crop_px: int = 224
    square_pixels: bool = True
    interpolation: str = "bilinear"
    open_timeout_s: float = 5.0
    read_timeout_s: float = 5.0
    gap_s: float = 1.0
    phase: float | None = None
    """This camera is analysed at this part of a tick; files are not, which are wanted from their first frame on."""
    max_waiting: int = 8
    """Views that wait in the child for the parent; beyond it the oldest is dropped and counted."""


@dataclass(frozen=True, slots=True)
class Polled:
    """What a reader has sent since the last poll."""

    frames: tuple[CameraFrame, ...] = ()
    counts: CameraCounts = field(default_factory=CameraCounts)
    """The totals since the camera was opened."""
    ended: str | None = None
    """Why the reader has ended; None while it runs."""
    is_final: bool = False
    """Whether opening again would give nothing new."""


class ReaderHandle:
    """The parent's side of a reader. No call blocks."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int, *, max_pixel_bytes: int) -> None:
        """`fd` is the pipe's end to read from; no view has more than `max_pixel_bytes`."""
        self._process = process
        self._max_pixel_bytes = max_pixel_bytes
        self._fd: int | None = fd
        self._received = bytearray()
        self._last = Polled()
        self._is_ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Gives a descriptor that is readable when there is something to poll; only before an end and kill()."""
        if self._fd is None:
            raise ValueError("the reader has ended or was killed")
        return self._fd

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    @property
    def is_ready(self) -> bool:
        """Whether the process has come as far as opening the camera."""
        return self._is_ready

    def poll(self) -> Polled:
        """Gives the frames that have come, the counts, and whether the reader has ended."""
        frames: list[CameraFrame] = []
        while self._fd is not None:
            try:
                data = os.read(self._fd, _PIPE_BYTES)
            except BlockingIOError:
                break
            if not data:
                self._close()
                if self._last.ended is None:
                    self._last = Polled(counts=self._last.counts, ended="the reader's process died")
                break
            self._received += data
            try:
                self._unpack(frames)
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                # Killed, as nothing that it sends from here on can be understood.
                self.kill()
                self._last = Polled(counts=self._last.counts, ended=f"the reader's process sent no view: {exc}")
                break
        last = self._last
        return Polled(frames=tuple(frames), counts=last.counts, ended=last.ended, is_final=last.is_final)

    def kill(self) -> None:
        """Ends the process at once. `is_gone` says when nothing of it is left."""
        self._process.kill()
        self._close()

    def is_gone(self) -> bool:
        return self._process.poll() is not None

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._received.clear()

    def _unpack(self, frames: list[CameraFrame]) -> None:
        """Moves the complete messages to `frames`; raises an error where they cannot be what a reader sends."""
        at = 0
        while len(self._received) - at >= _HEADER.size:
            num_json, num_pixels = _HEADER.unpack_from(self._received, at)
            if num_json > _MAX_JSON_BYTES or num_pixels > self._max_pixel_bytes:
                raise ValueError(f"{num_json} bytes of text and {num_pixels} of pixels")
            stop = at + _HEADER.size + num_json + num_pixels
            if len(self._received) < stop:
                break
            start = at + _HEADER.size
            self._is_ready = True
            message = json.loads(self._received[start : start + num_json])
            pixels = bytes(memoryview(self._received)[start + num_json : stop])
            self._last = Polled(
                counts=CameraCounts(**message["counts"]),
                ended=message.get("ended"),
                is_final=message.get("is_final", False),
            )
            if "frame" in message:
                frames.append(_unpacked(message["frame"], pixels))
            at = stop
        del self._received[:at]


def start(spec: CameraSpec) -> ReaderHandle:
    """Starts a reader, which opens the camera by itself. It dies with the thread that called this."""
    root = Path(__file__).resolve().parents[2]
    read_fd, write_fd = os.pipe()
    try:
        # A long pipe lets a view through in one go. Where that is not allowed the default does it too.
        with contextlib.suppress(OSError):
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(read_fd, False)
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.live.camera_process", spec.name, str(write_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(write_fd,),
            cwd=root,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
            | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            # Ctrl-C on the terminal is for the parent, which ends its readers when it is done with them.
            process_group=0,
        )
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    assert process.stdin is not None
    uri = spec.uri if "://" in spec.uri else os.path.abspath(spec.uri)
    settings = {**asdict(spec), "uri": uri, "parent": os.getpid()}
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(json.dumps(settings).encode())
    return ReaderHandle(process, read_fd, max_pixel_bytes=spec.crop_px**2 * 3)


def _packed(frame: CameraFrame) -> dict[str, Any]:
    fields = {name: getattr(frame, name) for name in CameraFrame.__slots__ if name != "pixels"}
    return {**fields, "facts": asdict(frame.facts), "shape": frame.pixels.shape}


def _unpacked(fields: dict[str, Any], pixels: bytes) -> CameraFrame:
    shape, facts, box = fields.pop("shape"), fields.pop("facts"), fields.pop("view_yxhw")
    return CameraFrame(
        **fields,
        pixels=np.frombuffer(pixels, np.uint8).reshape(shape),
        view_yxhw=tuple(box),
        facts=SourceFacts(**facts),
    )


class _Outbox:
    """Keeps what the reading thread has for the sending one: the newest views, the counts, and at last the end."""

    def __init__(self, fd: int, max_waiting: int) -> None:
        self._fd = fd
        self._max_waiting = max_waiting
        self._waiting: deque[CameraFrame] = deque()
        self._counts = CameraCounts()
        self._num_behind = 0
        self._end: dict[str, Any] | None = None
        self._news = threading.Condition()

    def put(self, frame: CameraFrame | None, counts: CameraCounts) -> None:
        with self._news:
            self._counts = counts
            if frame is None:
                return
            self._waiting.append(frame)
            if len(self._waiting) > self._max_waiting:
                self._waiting.popleft()
                self._num_behind += 1
            self._news.notify()

    def end(self, reason: str, is_final: bool) -> None:
        with self._news:
            self._end = {"ended": reason, "is_final": is_final}
            self._news.notify()

    def send_all(self) -> None:
        """Sends until the end has been sent. The pipe blocks while the parent does not read."""
        sent: dict[str, int] | None = None
        while True:
            with self._news:
                # The first message, which shows that it is ready, does not wait for news.
                if not self._waiting and self._end is None and sent is not None:
                    self._news.wait(_COUNTS_S)
                frame = self._waiting.popleft() if self._waiting else None
                counts = {**asdict(self._counts), "num_behind": self._num_behind}
                end = self._end if frame is None else None
            if frame is None and end is None and counts == sent:
                continue
            message: dict[str, Any] = {"counts": counts}
            if frame is not None:
                message["frame"] = _packed(frame)
            if end is not None:
                message |= end
            self._write(json.dumps(message).encode(), b"" if frame is None else frame.pixels.tobytes())
            sent = counts
            if end is not None:
                return

    def _write(self, text: bytes, pixels: bytes) -> None:
        data = memoryview(_HEADER.pack(len(text), len(pixels)) + text + pixels)
        while data:
            data = data[os.write(self._fd, data) :]


def _die_with(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    # It may have died before the line above.
    if os.getppid() != parent:
        os._exit(1)


def _read_camera(spec: CameraSpec, outbox: _Outbox) -> tuple[str, bool]:
    """Reads until the camera is lost; gives the reason, and whether that is final."""
    # Here, not above: the parent has no use for PyAV.
    from operators.media.camera import CameraReader
    from operators.media.camera_connection import CameraKind, camera_kind
    from operators.media.view import Viewer
    from pipeline.live.clock_repair import ClockRepair
    from pipeline.live.frames_and_windows import FrameSampler

    is_file = False
    try:
        is_file = camera_kind(spec.uri) is CameraKind.FILE
        reader = CameraReader(
            uri=spec.uri,
            viewer=Viewer(
                resize_px=spec.resize_px,
                crop_px=spec.crop_px,
                square_pixels=spec.square_pixels,
                interpolation=spec.interpolation,
            ),
            # The frames of a file come when we say so, from the first on.
            repair=ClockRepair(settle_s=0) if is_file else ClockRepair(),
            sampler=FrameSampler(
                analysis_fps=spec.analysis_fps,
                gap_s=spec.gap_s,
                phase=None if is_file else spec.phase,
            ),
            transport=spec.transport,
            open_timeout_s=spec.open_timeout_s,
            read_timeout_s=spec.read_timeout_s,
            clock=time.time,
            sleep=time.sleep,
        )
        with reader:
            for frame in reader.read():
                outbox.put(frame, reader.counts)
            outbox.put(None, reader.counts)
        shown = without_password(spec.uri)
        return f"{shown}: " + ("the file is over" if is_file else "the camera ended the stream"), is_file
    except PipelineError as exc:
        return str(exc), is_file
    except Exception as exc:  # a bug: sent to the parent, where somebody sees it
        return without_password(f"{type(exc).__name__}: {exc}"), is_file


def main(arguments: Iterable[str]) -> None:
    """Runs the child, and never returns."""
    _, fd = arguments
    settings = json.loads(sys.stdin.buffer.read())
    _die_with(settings.pop("parent"))
    spec = CameraSpec(**settings)
    # What takes long on a busy machine comes before the first message to the parent, which counts from
    # there on how long the camera takes.
    importlib.import_module("operators.media.camera")
    outbox = _Outbox(int(fd), spec.max_waiting)
    sender = threading.Thread(target=outbox.send_all, daemon=True)
    sender.start()
    outbox.end(*_read_camera(spec, outbox))
    sender.join()
    # Without tidying up: a library that hangs at the exit would keep the process.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
