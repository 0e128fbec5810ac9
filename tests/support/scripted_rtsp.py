"""A small RTSP camera that does what a script says: real H.264 in RTP over TCP, and every fault on demand.

Like a real camera it goes on whether somebody watches or not: frame n is sent at `started_unix_s` + n / fps, and
shows the number n (modulo the length of its video, which it repeats).
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.support.numbered_h264 import AccessUnit, CodedVideo

CLOCK_HZ = 90_000
_PAYLOAD_BYTES = 1200


@dataclass(frozen=True, kw_only=True)
class Script:
    """The behaviour of the camera towards a connection."""

    greeting: str = "serve"
    """serve; silence: accepts, says nothing; reset: closes hard; garbage: answers with noise; drip: the right
    answers, but a byte every second."""
    status: int = 200
    """The answer's status to DESCRIBE: 200, 404, 503, ..."""
    redirects_at: str = ""
    """The method (OPTIONS, DESCRIBE, SETUP) that is answered with a redirect to `redirects_to`."""
    redirects_to: str = ""
    credentials: tuple[str, str] | None = None
    """User and password without which it answers 401."""
    joins_at_keyframe: bool = True
    """Whether the first frame sent is a keyframe, as most cameras do it."""
    ticks: Callable[[int], int] | None = None
    """Frame number -> RTP time stamp (of which 32 bits are sent); by default its time in 1/90000 s."""
    loses: Callable[[int, int], bool] = lambda number, packet: False
    """(frame number, packet of the frame) -> lost on the way."""
    num_frames: int | None = None
    """Frames sent before the ending; None: no end."""
    ending: str = "close"
    """close, reset, bye (RTCP BYE, then close), silence (sends nothing more), garbage (noise in the stream),
    drip (goes on with a byte every half second)."""
    is_paced: bool = True
    """Whether frames are sent when they are due, or as fast as they go."""
    burst: int = 0
    """The number of past frames that are sent at once at the join, as servers with a cache do it."""


class ScriptedCamera:
    """Serves on a port of 127.0.0.1. A context manager; `script` may be changed at any time for later connections."""

    def __init__(self, *videos: CodedVideo, script: Script | None = None, switch_every: int = 0) -> None:
        """`switch_every`: with several videos, so many frames of one are sent before those of the next."""
        self.videos = videos
        self.fps = videos[0].fps
        self.script = script or Script()
        self.switch_every = switch_every
        self.num_connections = 0
        self.num_played = 0
        """The number of connections that came as far as PLAY."""
        self.started_unix_s = time.time()
        self._is_closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/live"

    def url_with(self, user: str, password: str) -> str:
        return f"rtsp://{user}:{password}@127.0.0.1:{self.port}/live"

    def taken_unix_s(self, number: int) -> float:
        """When the frame with this number was sent."""
        return self.started_unix_s + number / float(self.fps)

    def __enter__(self) -> ScriptedCamera:
        self._acceptor.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_closing.set()
        # shutdown, not only close: a thread blocked in accept keeps a closed listener alive.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_all()
        self._acceptor.join(5)
        for thread in self._threads:
            thread.join(5)

    def drop_all(self) -> None:
        """Closes all present connections."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()

    def _accept(self) -> None:
        while not self._is_closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            self._sockets.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection, self.script), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, script: Script) -> None:
        try:
            match script.greeting:
                case "silence":
                    while connection.recv(4096):
                        pass
                case "reset":
                    connection.recv(1)
                    _reset(connection)
                case "garbage":
                    connection.recv(4096)
                    connection.sendall(bytes(range(256)) * 64)
                    connection.close()
                case _:
                    self._talk(connection, script)
        except OSError:
            pass

    def _talk(self, connection: socket.socket, script: Script) -> None:
        send_lock = threading.Lock()
        stream = connection.makefile("rb")
        player: threading.Thread | None = None
        while True:
            first = stream.read(1)
            if not first:
                return
            if first == b"$":
                _, size = struct.unpack(">BH", stream.read(3))
                stream.read(size)
                continue
            lines = [first + stream.readline()]
            while (line := stream.readline()) not in (b"\r\n", b""):
                lines.append(line)
            method, *_ = lines[0].decode().split()
            headers = dict(line.decode().strip().split(": ", 1) for line in lines[1:])
            answer = self._answer(method, headers, script)
            with send_lock:
                if script.greeting == "drip":
                    for byte in answer:
                        connection.sendall(bytes([byte]))
                        if self._is_closing.wait(1.0):
                            return
                connection.sendall(answer)
            if method == "PLAY" and player is None:
                self.num_played += 1
                player = threading.Thread(target=self._play, args=(connection, send_lock, script), daemon=True)
                self._threads.append(player)
                player.start()
            if method == "TEARDOWN":
                return

    def _answer(self, method: str, headers: dict[str, str], script: Script) -> bytes:
        status, more, body = "200 OK", "", ""
        if script.credentials is not None:
            token = base64.b64encode(":".join(script.credentials).encode()).decode()
            if headers.get("Authorization") != f"Basic {token}":
                status, more = "401 Unauthorized", 'WWW-Authenticate: Basic realm="camera"\r\n'
        if status == "200 OK":
            match method:
                case _ if method == script.redirects_at:
                    status, more = "302 Found", f"Location: {script.redirects_to}\r\n"
                case "OPTIONS":
                    more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n"
                case "DESCRIBE" if script.status != 200:
                    status = f"{script.status} No"
                case "DESCRIBE":
                    body = self._description()
                    more = f"Content-Type: application/sdp\r\nContent-Base: {self.url}/\r\n"
                case "SETUP" if "TCP" not in headers.get("Transport", ""):
                    status = "461 Unsupported Transport"
                case "SETUP":
                    more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
                case _:
                    more = "Session: 1\r\n"
        return (
            f"RTSP/1.0 {status}\r\nCSeq: {headers.get('CSeq', '0')}\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def _description(self) -> str:
        sets = ",".join(base64.b64encode(one).decode() for one in self.videos[0].parameter_sets)
        return (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=scripted\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n"
            "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
            f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}\r\na=control:track1\r\n"
        )

    def _unit(self, n: int) -> tuple[CodedVideo, AccessUnit, int]:
        """The n-th coded frame, and the number of the frame it shows."""
        video = self.videos[n // self.switch_every % len(self.videos)] if self.switch_every else self.videos[0]
        unit = video.units[n % len(video.units)]
        return video, unit, n - n % len(video.units) + unit.number

    def _play(self, connection: socket.socket, send_lock: threading.Lock, script: Script) -> None:
        n = max(0, int((time.time() - self.started_unix_s) * self.fps) + 1 - script.burst)
        # The order of decoding is ahead of that of display: a frame is not coded before it was taken.
        reorder = max(unit.number - i for i, unit in enumerate(self.videos[0].units))
        while self._unit(n)[1].is_keyframe != script.joins_at_keyframe:
            n += 1
        sequence, sent = 1000, 0
        try:
            while script.num_frames is None or sent < script.num_frames:
                video, unit, number = self._unit(n)
                if script.is_paced:
                    wait_s = self.taken_unix_s(n + reorder) - time.time()
                    if self._is_closing.wait(max(0.0, wait_s)):
                        return
                nals = (*video.parameter_sets, *unit.nals) if unit.is_keyframe else unit.nals
                ticks = script.ticks(number) if script.ticks else round(number * CLOCK_HZ / self.fps)
                stamp = ticks % (1 << 32)
                packets = packetise(nals)
                data = bytearray()
                for i, payload in enumerate(packets):
                    is_last = i == len(packets) - 1
                    header = struct.pack(">BBHII", 0x80, 96 | is_last << 7, sequence & 0xFFFF, stamp, 0x5ACCADE)
                    sequence += 1
                    if not script.loses(number, i):
                        data += struct.pack(">cBH", b"$", 0, 12 + len(payload)) + header + payload
                with send_lock:
                    connection.sendall(data)
                n, sent = n + 1, sent + 1
            self._end(connection, send_lock, script.ending)
        except OSError:
            pass

    def _end(self, connection: socket.socket, send_lock: threading.Lock, ending: str) -> None:
        match ending:
            case "reset":
                _reset(connection)
            case "bye":
                with send_lock:
                    bye = struct.pack(">BBHI", 0x81, 203, 1, 0x5ACCADE)
                    connection.sendall(struct.pack(">cBH", b"$", 1, len(bye)) + bye)
                connection.shutdown(socket.SHUT_RDWR)
            case "close":
                connection.shutdown(socket.SHUT_RDWR)
            case "garbage":
                noise = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8).tobytes()
                with send_lock:
                    connection.sendall(noise)
            case "drip":
                with send_lock:
                    connection.sendall(struct.pack(">cBH", b"$", 0, 1000))
                    while not self._is_closing.wait(0.5):
                        connection.sendall(b"\0")
            case "silence":
                pass


def packetise(nals: tuple[bytes, ...]) -> list[bytes]:
    """RTP payloads of an access unit's NAL units: single NAL units, and FU-A for those that are too long."""
    payloads = []
    for nal in nals:
        if len(nal) <= _PAYLOAD_BYTES:
            payloads.append(nal)
            continue
        indicator, kind = nal[0] & 0xE0 | 28, nal[0] & 0x1F
        for at in range(1, len(nal), _PAYLOAD_BYTES):
            part = nal[at : at + _PAYLOAD_BYTES]
            is_first, is_last = at == 1, at + _PAYLOAD_BYTES >= len(nal)
            payloads.append(bytes([indicator, is_first << 7 | is_last << 6 | kind]) + part)
    return payloads


def _reset(connection: socket.socket) -> None:
    """Closes a connection with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # Whoever reads from it must let go first: the kernel closes with the last user.
    connection.shutdown(socket.SHUT_RD)
    os.close(connection.detach())
