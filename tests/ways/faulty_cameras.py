"""Cameras that meet one fault after another, in a process of their own.

    python -m tests.ways.faulty_cameras --faults 200 --seed 7

It writes one line of JSON for every connection and every fault, and serves until its standard input is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.numbered_h264 import CodedVideo, load_coded, write_numbered
from tests.support.scripted_rtsp import Script, ScriptedCamera

NUM_FAULTY = 4
STEADY = "steady"
VIDEO_FPS, NUM_FRAMES, GOP = 15, 600, 15
WRAP = 1 << 32
STEP = 90_000 // VIDEO_FPS


@dataclasses.dataclass(frozen=True)
class Fault:
    kind: str
    script: Script
    video: str = "plain"
    switch_every: int = 0

    @property
    def is_live_first(self) -> bool:
        """Whether frames come before it strikes, so that the camera goes live on this very connection."""
        return self.script.greeting == "serve" and self.script.status == 200 and self.script.credentials is None


KINDS = (
    *(f"ends with {ending}" for ending in ("close", "reset", "bye", "silence", "garbage", "drip")),
    *(f"greets with {greeting}" for greeting in ("silence", "reset", "garbage", "drip")),
    "404", "401", "503", "joins between keyframes", "joins with a burst", "loses packets", "loses frames",
    "clock wraps", "clock starts again", "clock is wild once", "clock stands still", "changes its resolution",
    "has B-frames", "reader is killed", "reader is stopped",
)  # fmt: skip


def fault(kind: str, rng: random.Random) -> Fault:
    num = rng.randint(60, 110)
    often = rng.randint(20, 35)
    served = functools.partial(Script, num_frames=num)
    ends = rng.choice(["close", "reset", "bye"])
    match kind.split():
        case ["ends", "with", ending]:
            return Fault(kind, served(ending=ending))
        case ["greets", "with", greeting]:
            return Fault(kind, Script(greeting=greeting))
        case ["404"] | ["503"]:
            return Fault(kind, Script(status=int(kind)))
        case ["401"]:
            return Fault(kind, Script(credentials=("eve", "right")))
        case ["joins", "between", _]:
            return Fault(kind, served(joins_at_keyframe=False, ending=ends))
        case ["joins", "with", *_]:
            return Fault(kind, served(burst=rng.randint(5, 40), ending=ends))
        case ["loses", what]:
            most = rng.randint(0, 3)
            lost = (lambda n, i: n % often == 3) if what == "frames" else (lambda n, i: n % often == 3 and i <= most)
            return Fault(kind, served(loses=lost, ending=ends))
        case ["clock", "wraps"]:
            return Fault(kind, served(ticks=wrapping(after=often), ending=ends))
        case ["clock", "starts", _]:
            return Fault(kind, served(ticks=lambda n: n % often * STEP, num_frames=num, ending=ends))
        case ["clock", "is", *_]:
            away = rng.choice([-1, 1]) * 3 * 3600 * 90_000
            return Fault(kind, served(ticks=lambda n: WRAP // 2 + n * STEP + away * (n % often == 7), ending=ends))
        case ["clock", "stands", _]:
            return Fault(kind, served(ticks=lambda n: 90_000, ending=ends))
        case ["changes", *_]:
            return Fault(kind, served(ending=ends), switch_every=15)
        case ["has", _]:
            return Fault(kind, served(ending=ends), video="b_frames")
        case ["reader", *_]:
            return Fault(kind, Script())
    raise AssertionError(kind)


def wrapping(*, after: int) -> Callable[[int], int]:
    """RTP's clock, so many frames before it wraps when the connection begins."""
    first: list[int] = []

    def ticks(number: int) -> int:
        first.append(number)
        return WRAP + (number - first[0] - after) * STEP

    return ticks


def all_faults(count: int, seed: int) -> list[list[Fault]]:
    """For each camera its faults: every kind as often as every other, in random order."""
    rng = random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    rng.shuffle(kinds)
    return [[fault(kind, rng) for kind in kinds[i::NUM_FAULTY]] for i in range(NUM_FAULTY)]


class FaultyCamera(ScriptedCamera):
    """The next fault with every connection; in the end none."""

    def __init__(self, name: str, videos: dict[str, CodedVideo], faults: list[Fault]) -> None:
        self._name = name
        self._all = videos
        self._faults = list(faults)
        super().__init__(videos["plain"])

    @property
    def script(self) -> Script:
        """The script of the next connection: the base class asks for it once per connection."""
        present = self._faults.pop(0) if self._faults else Fault("none", Script())
        self.videos = (self._all[present.video], self._all["large"])
        self.switch_every = present.switch_every
        self.kind = present.kind
        report(camera=self._name, event="connected", kind=present.kind, is_live_first=present.is_live_first)
        return present.script

    @script.setter
    def script(self, _: Script) -> None:
        pass

    def _end(self, connection: Any, send_lock: Any, ending: str) -> None:
        report(camera=self._name, event="struck", kind=self.kind)
        super()._end(connection, send_lock, ending)


def report(**event: Any) -> None:
    print(json.dumps({"at": time.time(), **event}), flush=True)


def serve(count: int, seed: int) -> None:
    """The cameras, until whoever started them is gone."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        write = functools.partial(write_numbered, num_frames=NUM_FRAMES, fps=VIDEO_FPS, gop=GOP)
        videos = {
            "plain": load_coded(write(folder / "plain.mp4")),
            "large": load_coded(write(folder / "large.mp4", width=640, height=360)),
            "b_frames": load_coded(write(folder / "b.mp4", b_frames=2)),
        }
        faults = {f"cam{i}": one for i, one in enumerate(all_faults(count, seed))}
        cameras = {
            name: stack.enter_context(FaultyCamera(name, videos, faults.get(name, []))) for name in (*faults, STEADY)
        }
        report(
            event="serving",
            urls={name: camera.url for name, camera in cameras.items()},
            started={name: camera.started_unix_s for name, camera in cameras.items()},
        )
        sys.stdin.read()
        os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    serve(options.faults, options.seed)
