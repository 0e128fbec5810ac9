"""Files to measure with: made here, from a fixed seed, so that two machines read the same.

Long videos are the kind where seeking pays: two minutes of 1280x720 H.264 with B-frames and 24 keyframes. Short ones
are the kind where it does not: ten seconds of 340x256. What moves in them is made up, but it costs the coder about
what a lively street does: a view that pans, many things that cross it, grain. Two minutes of it at 720p have
about 4 Mbit/s, and a keyframe costs a decoder little more than any other frame.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from operators.durable import replaced_durably
from operators.media.encode import write_video
from operators.records import Source, source_id
from pipeline.run.pools import process_pool

CACHE = Path("out/bench/workloads")
FORM = 3
"""The number of this way of drawing, which goes up when pictures become others, so that older files are not used."""
_SPEED = 4.0


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Videos of one kind."""

    name: str
    num_files: int
    width: int
    height: int
    seconds: float
    fps: int = 30
    gop: int = 150
    crf: float = 24.0
    grain: int = 16
    """The strength of the grain in grey levels."""
    num_things: int = 60
    """How many things cross the picture."""
    num_made: int | None = None
    """How many files are made; they serve in turn under the names of all, for a decoder does not know that it has seen
    one. None makes all of them."""
    seed: int = 0

    @property
    def num_frames(self) -> int:
        return round(self.seconds * self.fps)

    @property
    def folder(self) -> str:
        """The name of the folder, which is another one for other settings."""
        text = json.dumps({"form": FORM, **asdict(self)}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.name}-{digest}"


LONG = Clips(name="long", num_files=6, width=1280, height=720, seconds=120.0, num_made=1)
SHORT = Clips(name="short", num_files=30, width=340, height=256, seconds=10.0, gop=250, seed=1000)
QUICK_LONG = Clips(name="quick-long", num_files=2, width=320, height=180, seconds=8.0, gop=30, num_made=1)
QUICK_SHORT = Clips(name="quick-short", num_files=4, width=170, height=128, seconds=1.0, num_made=2, seed=1000)


def make(clips: Clips, cache: Path, *, say: Callable[[str], None], workers: int = 1) -> list[Path]:
    """The files of a kind, found in the cache or made: `num_files` paths, of which some may be the same."""
    folder = cache / clips.folder
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / f"{number:03d}.mp4" for number in range(clips.num_made or clips.num_files)]
    missing = [number for number, path in enumerate(made) if not path.exists()]
    if missing:
        with process_pool(min(workers, len(missing))) as pool:
            waiting = [pool.submit(write_scene, made[number], clips, number, b_frames=3) for number in missing]
            for done, future in enumerate(as_completed(waiting), start=1):
                future.result()
                say(f"made {done} of {len(missing)} {clips.name} videos in {folder}")
    return [made[number % len(made)] for number in range(clips.num_files)]


def as_sources(paths: Sequence[Path], *, lap: int) -> Iterator[Source]:
    """Every file as an input of its own in every lap, so that nothing of a lap is known to the next."""
    for number, path in enumerate(paths):
        name = f"{path.parent.name}-{number:03d}-{lap}"
        yield Source(source_id=source_id(f"{path.resolve()}#{name}"), uri=str(path.resolve()), video_id=name)


def write_scene(path: Path, clips: Clips, number: int, *, b_frames: int) -> None:
    """Writes a scene as a video, whole or not at all."""
    # A file that was begun and not finished must not be found next time.
    with replaced_durably(path, suffix=path.suffix) as aside:
        write_video(
            aside,
            scene(clips, number),
            fps=clips.fps,
            gop=clips.gop,
            b_frames=b_frames,
            crf=clips.crf,
            num_threads=1,
            # Keyframes where gop says and nowhere else, so that their number is known.
            options={"preset": "veryfast", "x264-params": "scenecut=0"},
        )


def scene(clips: Clips, number: int) -> Iterator[np.ndarray]:
    """The frames of a scene, uint8 RGB [H,W,3]."""
    rng = np.random.default_rng((clips.seed, number))
    height, width = clips.height, clips.width
    world = _texture(rng, 2 * height, 2 * width)
    things = [_texture(rng, *rng.integers(height // 10, height // 3, 2)) for _ in range(clips.num_things)]
    paths = rng.uniform(0.1, 1.0, (len(things), 4))
    # It repeats after seven frames, which no coder looks back.
    grain = rng.integers(0, clips.grain, (7, height, width, 1), dtype=np.uint8)
    for i in range(clips.num_frames):
        t = _SPEED * i / clips.fps
        top, left = (int((0.5 + 0.5 * np.sin(0.11 * t + k)) * side) for k, side in ((0, height), (1, width)))
        frame = world[top : top + height, left : left + width].copy()
        for thing, (y_hz, x_hz, y0, x0) in zip(things, paths, strict=True):
            free_y, free_x = height - thing.shape[0], width - thing.shape[1]
            y = int(free_y * (0.5 + 0.5 * np.sin(y_hz * t + 6 * y0)))
            x = int(free_x * (0.5 + 0.5 * np.sin(x_hz * t + 6 * x0)))
            frame[y : y + thing.shape[0], x : x + thing.shape[1]] = thing
        frame += grain[i % len(grain)]
        yield frame


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [height,width,3]: soft shapes of two sizes, with room for grain above them."""
    total = np.zeros((height, width, 3), np.float32)
    for step in (128, 32):
        coarse = rng.normal(0.0, np.sqrt(step), (height // step + 3, width // step + 3, 3)).astype(np.float32)
        total += _between(_between(coarse, height, step, axis=0), width, step, axis=1)
    total -= total.min()
    return (total * (220.0 / total.max())).astype(np.uint8)


def _between(coarse: np.ndarray, size: int, step: int, *, axis: int) -> np.ndarray:
    """`size` values along an axis, between those that lie `step` apart."""
    places = np.arange(size) / step
    whole = places.astype(np.int64)
    share = (places - whole).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return coarse.take(whole, axis) * (1 - share) + coarse.take(whole + 1, axis) * share
