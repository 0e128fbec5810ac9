"""The synthetic archive: real H.264 files with annotations and the whole truth, frame by frame.

Each video is painted and encoded by one worker from a seed of its own, so it does not depend on how many there
are, nor on who makes it.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from operators.durable import replaced_durably, write_durably
from operators.errors import ConfigError, SinkError, StageError
from operators.media.encode import write_video
from operators.media.view import Viewer
from pipeline.run.pools import follow_parent
from pipeline.synthetic.scene import (
    ASPECTS,
    COLOURS,
    VIEW_PX,
    Box,
    Kind,
    Look,
    VideoPlan,
    class_names,
    render,
)

SUBSETS = ("train", "val", "test")
SHEET_ROWS = 8
_SHEET_FRAMES = 6
_PATCH_PX = 32
"""Side of the glance and of a patch on the contact sheet."""
_TILE_PX = 144
_CAPTION_PX = 18
_SETTINGS = "settings.json"

TRUTH_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("frame", pa.int32()),
        ("pts_s", pa.float64()),
        ("visible", pa.bool_()),
        ("label", pa.string()),
        # The box's upper left corner and size in units of the frame; null where the evidence is not visible.
        ("y", pa.float64()),
        ("x", pa.float64()),
        ("h", pa.float64()),
        ("w", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthSettings:
    """What the archive is to be. Equal settings give equal pixels."""

    kind: Kind = "needle"
    """What says the class. needle: a glyph's orientation and its carrier's hue. motion: where a texture moves to."""
    videos: int = 300
    """Of all subsets together."""
    shares: tuple[float, float, float] = (0.6, 0.15, 0.25)
    """Of train, val and test; any unit: (2000, 500, 1000) with 3500 videos gives just these numbers."""
    classes: int = 10
    """needle: a multiple of `hues`; motion: 2, 4 or 8 directions."""
    hues: int = 2
    """Colours of the carrier that belong to classes: the coarse cue. By it alone hues/classes can be right."""
    size: int = 192
    """Typical short side in pixels; each video's is within 20% of it."""
    fps: float = 12.0
    """Typical frame rate; each video has 0.8, 1 or 1.25 times this, rounded."""
    seconds: float = 3.0
    """Typical length; each video's is within 30% of it."""
    visible: float = 0.4
    """Share of the frames that show the evidence. motion needs nearly all of them: a gap hides the motion."""
    clutter: float = 1.0
    """How much else there is; 0: nothing but noise."""
    crf: int = 20
    """Quality of the H.264 files. At 20 the glyph's luma correlates .99 with what was painted, at 28 .97."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("needle", "motion"):
            raise ConfigError(f"kind {self.kind!r} is not known: needle or motion")
        if self.kind == "motion":
            if self.classes not in (2, 4, 8):
                raise ConfigError(f"a motion archive has 2, 4 or 8 classes (directions), not {self.classes}")
        else:
            if not 1 <= self.hues < len(COLOURS) - 1:
                raise ConfigError(f"hues must be 1 to {len(COLOURS) - 2}, not {self.hues}; the rest distract")
            if self.classes < 2 or self.classes % self.hues or self.classes // self.hues > 18:
                raise ConfigError(
                    f"classes must be a multiple of hues={self.hues}, at most 18 per hue, not {self.classes}"
                )
        if self.videos < 1:
            raise ConfigError(f"videos must be at least 1, not {self.videos}")
        if len(self.shares) != 3 or min(self.shares) < 0 or sum(self.shares) <= 0:
            raise ConfigError(f"shares must be three numbers for train, val and test, not {self.shares}")
        if not 128 <= self.size <= 2160:
            raise ConfigError(f"size must be 128 (less blurs the glyph) to 2160 pixels, not {self.size}")
        if not 1 <= self.fps <= 240:
            raise ConfigError(f"fps must be 1 to 240, not {self.fps:g}")
        if self.seconds * self.fps < 16 or self.seconds > 3600:
            raise ConfigError(
                f"seconds={self.seconds:g} at {self.fps:g} fps: give at least 16 frames and at most an hour"
            )
        if not 0.05 <= self.visible <= 1:
            raise ConfigError(f"visible must be 0.05 to 1, not {self.visible:g}")
        if not 0 <= self.clutter <= 10:
            raise ConfigError(f"clutter must be 0 to 10, not {self.clutter:g}")
        if not 0 <= self.crf <= 40:
            raise ConfigError(f"crf must be 0 to 40, not {self.crf}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, it is {self.seed}")

    @classmethod
    def motion(cls, **changes: Any) -> SynthSettings:
        """The motion archive as it is meant: four directions, always visible."""
        return cls(**{"kind": "motion", "classes": 4, "hues": 1, "visible": 1.0, **changes})

    @property
    def look(self) -> Look:
        return Look(
            kind=self.kind,
            num_classes=self.classes,
            num_hues=self.hues,
            visible=self.visible,
            clutter=self.clutter,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthSummary:
    """What was made."""

    num_videos: dict[str, int]
    num_frames: int
    num_bytes: int
    is_new: bool
    """False: the folder already held just this archive, and nothing was done."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Made:
    """What a worker gives back of one video."""

    plan: VideoPlan
    boxes: list[Box | None]
    num_bytes: int
    samples: list[np.ndarray] = field(default_factory=list)
    """A few frames for the contact sheet, [H,W,3]."""
    sample_frames: list[int] = field(default_factory=list)


def split_counts(videos: int, shares: tuple[float, float, float]) -> tuple[int, int, int]:
    """How many videos each subset gets: whole numbers by largest remainder."""
    exact = [videos * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(3), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: videos - sum(counts)]:
        counts[i] += 1
    return counts[0], counts[1], counts[2]


def plan_videos(settings: SynthSettings) -> Iterator[VideoPlan]:
    """Every video of the archive. Classes come in shuffled rounds, so that a subset's beginning is balanced too."""
    counts = split_counts(settings.videos, settings.shares)
    for number, subset in enumerate(SUBSETS):
        for index in range(counts[number]):
            turn, place = divmod(index, settings.classes)
            # A fourth number keeps the rounds' seeds apart from the videos'.
            order = np.random.default_rng((settings.seed, number, turn, 1)).permutation(settings.classes)
            rng = np.random.default_rng((settings.seed, number, index))
            short = settings.size * rng.uniform(0.8, 1.2)
            aspect = float(rng.choice(ASPECTS))
            fps = max(1, round(settings.fps * float(rng.choice((0.8, 1.0, 1.25)))))
            height, width = short * max(1, 1 / aspect), short * max(1, aspect)
            yield VideoPlan(
                name=f"{subset}_{index:05d}",
                subset=subset,
                label_id=int(order[place]),
                # 4:2:0 wants even sides.
                width=2 * round(width / 2),
                height=2 * round(height / 2),
                fps=fps,
                num_frames=max(16, round(settings.seconds * rng.uniform(0.7, 1.3) * fps)),
                seed=(settings.seed, number, index, 2),
            )


def _start_worker() -> None:
    """Use one core, and end with the process that started this one, however that ends."""
    cv2.setNumThreads(1)
    follow_parent()


def _make(folder: Path, settings: SynthSettings, plan: VideoPlan) -> _Made:
    """Paint and encode one video."""
    boxes: list[Box | None] = []
    wanted = set()
    if plan.name in (f"{plan.subset}_{i:05d}" for i in range(SHEET_ROWS)):
        wanted = set(np.linspace(0, plan.num_frames - 1, _SHEET_FRAMES).astype(int).tolist())
    samples: list[np.ndarray] = []
    sample_frames: list[int] = []

    def frames() -> Iterator[np.ndarray]:
        for index, (frame, box) in enumerate(render(plan, settings.look)):
            boxes.append(box)
            if index in wanted:
                samples.append(frame)
                sample_frames.append(index)
            yield frame

    path = folder / "videos" / plan.subset / f"{plan.name}.mp4"
    # One thread, and no macroblock tree: x264's output depends on the number of threads, and its AVX-512 code for that
    # tree gave other bytes at every run where the width is no multiple of 256. veryfast takes a third of the default
    # preset's time and no more bytes on these pictures.
    options = {"preset": "veryfast", "mbtree": "0"}
    write_video(path, frames(), fps=plan.fps, crf=settings.crf, options=options, num_threads=1)
    return _Made(
        plan=plan, boxes=boxes, num_bytes=path.stat().st_size, samples=samples, sample_frames=sample_frames
    )


def _results(folder: Path, settings: SynthSettings, workers: int) -> Iterator[_Made]:
    """The videos in order, made here or by `workers` processes."""
    make = partial(_make, folder, settings)
    if workers <= 1:
        yield from map(make, plan_videos(settings))
        return
    # Spawned, not forked: the caller may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(make, plan_videos(settings), chunksize=4)
        except BrokenProcessPool as exc:
            raise StageError("a process that made videos died, perhaps of memory: try again with fewer") from exc
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _truth(made: _Made, label: str) -> pa.Table:
    boxes = made.boxes
    columns: dict[str, Any] = {
        "video_id": [made.plan.name] * len(boxes),
        "frame": range(len(boxes)),
        "pts_s": [index / made.plan.fps for index in range(len(boxes))],
        "visible": [box is not None for box in boxes],
        "label": [label] * len(boxes),
    }
    for place, name in enumerate("yxhw"):
        columns[name] = [None if box is None else box[place] for box in boxes]
    return pa.table({key: list(value) for key, value in columns.items()}, schema=TRUTH_SCHEMA)


def _annotation(made: _Made, label: str) -> dict[str, Any]:
    """One entry of the ActivityNet form: a segment for every run of frames that show the evidence."""
    visible = np.array([False, *(box is not None for box in made.boxes), False])
    edges_s = np.flatnonzero(visible[1:] != visible[:-1]).reshape(-1, 2) / made.plan.fps
    return {
        "subset": made.plan.subset,
        "duration": round(len(made.boxes) / made.plan.fps, 6),
        "resolution": f"{made.plan.width}x{made.plan.height}",
        "url": "",
        "annotations": [
            {"segment": [round(start_s, 6), round(end_s, 6)], "label": label} for start_s, end_s in edges_s.tolist()
        ],
    }


def _taxonomy(names: Iterable[str]) -> list[dict[str, Any]]:
    root = {"nodeId": 0, "nodeName": "Root", "parentId": None, "parentName": None}
    return [root] + [
        {"nodeId": number, "nodeName": name, "parentId": 0, "parentName": "Root"}
        for number, name in enumerate(names, start=1)
    ]


def _tile(image: np.ndarray, caption: str, *, is_pixelated: bool = False) -> np.ndarray:
    """uint8 [_TILE_PX + _CAPTION_PX, _TILE_PX, 3]: the image, fitted, over a line of text."""
    tile = np.full((_TILE_PX + _CAPTION_PX, _TILE_PX, 3), 255, np.uint8)
    scale = _TILE_PX / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    how = cv2.INTER_NEAREST if is_pixelated else cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    top, left = (_TILE_PX - height) // 2, (_TILE_PX - width) // 2
    tile[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=how)
    at = (4, _TILE_PX + _CAPTION_PX - 6)
    cv2.putText(tile, caption, at, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (20, 20, 20), 1, cv2.LINE_AA)
    return tile


def _sheet_row(made: _Made, label: str) -> np.ndarray:
    """Frames of one video with the evidence outlined, then what the networks see of one: glance and patch."""
    tiles: list[np.ndarray] = []
    chosen: tuple[np.ndarray, Box] | None = None
    for index, frame in zip(made.sample_frames, made.samples, strict=True):
        box = made.boxes[index]
        caption = f"{made.plan.name}" if not tiles else f"{index / made.plan.fps:.2f} s"
        shown = frame.copy()
        if box is not None:
            chosen = chosen or (frame, box)
            (y, x, h, w), (height, width) = box, frame.shape[:2]
            start = round(x * width) - 3, round(y * height) - 3
            stop = round((x + w) * width) + 2, round((y + h) * height) + 2
            cv2.rectangle(shown, start, stop, (255, 255, 255), max(1, round(min(height, width) / 96)))
            caption += "  visible"
        tiles.append(_tile(shown, caption))
    frame, box = chosen or (made.samples[0], None)
    viewer, small = Viewer(resize_px=VIEW_PX, crop_px=VIEW_PX), Viewer(resize_px=_PATCH_PX, crop_px=_PATCH_PX)
    view = viewer(frame)
    tiles.append(_tile(small(view), f"glance {_PATCH_PX} px", is_pixelated=True))
    if box is None:
        tiles.append(_tile(np.full((_PATCH_PX, _PATCH_PX, 3), 255, np.uint8), f"{label} (not visible)"))
    else:
        shown_at = viewer.box(*frame.shape[:2])
        y, x = (
            round(((box[i] + box[i + 2] / 2 - shown_at[i]) / shown_at[i + 2]) * VIEW_PX - _PATCH_PX / 2) for i in (0, 1)
        )
        y, x = (min(max(0, v), VIEW_PX - _PATCH_PX) for v in (y, x))
        tiles.append(_tile(view[y : y + _PATCH_PX, x : x + _PATCH_PX], f"patch: {label}", is_pixelated=True))
    framed = [np.pad(tile, ((2, 2), (3, 3), (0, 0)), constant_values=255) for tile in tiles]
    return np.concatenate(framed, axis=1)


def _write_png(path: Path, rgb: np.ndarray) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not done:
        raise SinkError(f"cannot encode the contact sheet {path}")
    write_durably(path, data.tobytes())


def _write_text(path: Path, text: str) -> None:
    write_durably(path, text.encode())


def _settings_text(settings: SynthSettings) -> str:
    return json.dumps(asdict(settings), indent=2) + "\n"


def _claim(out: Path, settings: SynthSettings) -> bool:
    """Make the folder ours; true if it already holds the whole archive. Refuses a folder with anything else in it."""
    mine = out / _SETTINGS
    if mine.exists():
        if mine.read_text(encoding="utf-8") != _settings_text(settings):
            raise ConfigError(f"{out} holds an archive of other settings ({mine}): take another folder or remove it")
        return (out / "annotations.json").exists()
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no synthetic archive: take another folder")
    for subset in SUBSETS:
        (out / "videos" / subset).mkdir(parents=True, exist_ok=True)
    _write_text(mine, _settings_text(settings))
    return False


def _summary(out: Path, *, num_frames: int, is_new: bool) -> SynthSummary:
    files = {subset: list((out / "videos" / subset).glob("*.mp4")) for subset in SUBSETS}
    return SynthSummary(
        num_videos={subset: len(paths) for subset, paths in files.items()},
        num_frames=num_frames,
        num_bytes=sum(path.stat().st_size for paths in files.values() for path in paths),
        is_new=is_new,
    )


def generate(
    out: str | Path,
    settings: SynthSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> SynthSummary:
    """Make the archive in folder `out`. A folder that already holds just this archive is left as it is.

    `progress(done, total)` is called after every video. The annotations are written last: where they are, all is.
    """
    folder = Path(out).resolve()
    try:
        return _generate(folder, settings, progress, workers)
    except OSError as exc:
        raise SinkError(f"cannot write the archive to {folder}: {exc}") from exc


def _generate(
    out: Path, settings: SynthSettings, progress: Callable[[int, int], None] | None, workers: int
) -> SynthSummary:
    if _claim(out, settings):
        return _summary(out, num_frames=pq.read_metadata(out / "truth.parquet").num_rows, is_new=False)
    names = class_names(settings.look)
    database: dict[str, Any] = {}
    rows: list[np.ndarray] = []
    tables: list[pa.Table] = []
    num_frames = 0
    with replaced_durably(out / "truth.parquet") as aside, pq.ParquetWriter(aside, TRUTH_SCHEMA) as writer:
        for done, made in enumerate(_results(out, settings, workers), start=1):
            label = names[made.plan.label_id]
            database[made.plan.name] = _annotation(made, label)
            tables.append(_truth(made, label))
            num_frames += len(made.boxes)
            if made.samples and len(rows) < SHEET_ROWS:
                rows.append(_sheet_row(made, label))
            if len(tables) == 256:
                writer.write_table(pa.concat_tables(tables))
                tables.clear()
            if progress is not None:
                progress(done, settings.videos)
        if tables:
            writer.write_table(pa.concat_tables(tables))
    _write_png(out / "sheet.png", np.concatenate(rows))
    _write_text(out / "classes.txt", "".join(f"{name}\n" for name in names))
    annotations = {"version": "synthetic 1", "taxonomy": _taxonomy(names), "database": database}
    _write_text(out / "annotations.json", json.dumps(annotations, indent=1) + "\n")
    return _summary(out, num_frames=num_frames, is_new=True)
