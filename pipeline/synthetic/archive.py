"""The synthetic archive: real H.264 files with annotations and the whole truth, frame by frame.

Each video is painted and encoded by one worker from a seed of its own, so it does not depend on how many there
are, nor on who makes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
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
from pipeline.run.pools import process_pool
from pipeline.synthetic.scene import Box, VideoPlan, class_names, render
from pipeline.synthetic.sheet import SHEET_FRAMES, SHEET_ROWS, PaintedVideo, sheet_row, write_sheet
from pipeline.synthetic.video_plans import SUBSETS, SynthSettings, plan_videos

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
class SynthSummary:
    """The size of an archive that is there."""

    num_videos: dict[str, int]
    num_frames: int
    num_bytes: int
    is_new: bool
    """False: the folder already held just this archive, and nothing was done."""


def _paint(folder: Path, settings: SynthSettings, plan: VideoPlan) -> PaintedVideo:
    """Paints and encodes one video."""
    boxes: list[Box | None] = []
    wanted = set()
    if plan.name in (f"{plan.subset}_{i:05d}" for i in range(SHEET_ROWS)):
        wanted = set(np.linspace(0, plan.num_frames - 1, SHEET_FRAMES).astype(int).tolist())
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
    return PaintedVideo(
        plan=plan, boxes=boxes, num_bytes=path.stat().st_size, samples=samples, sample_frames=sample_frames
    )


def _paint_on_one_core(folder: Path, settings: SynthSettings, plan: VideoPlan) -> PaintedVideo:
    """Paints in a process of a pool, which has one core for itself: OpenCV would start a thread for each."""
    cv2.setNumThreads(1)
    return _paint(folder, settings, plan)


def _results(folder: Path, settings: SynthSettings, workers: int) -> Iterator[PaintedVideo]:
    """The videos in order, made here or by `workers` processes."""
    if workers <= 1:
        yield from map(partial(_paint, folder, settings), plan_videos(settings))
        return
    paint = partial(_paint_on_one_core, folder, settings)
    with process_pool(workers) as pool:
        try:
            yield from pool.map(paint, plan_videos(settings), chunksize=4)
        except BrokenProcessPool as exc:
            raise StageError("a process that made videos died, perhaps of memory: try again with fewer") from exc
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _truth(made: PaintedVideo, label: str) -> pa.Table:
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


def _annotation(made: PaintedVideo, label: str) -> dict[str, Any]:
    """Gives one entry of the ActivityNet form: a segment for every run of frames that show the evidence."""
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


def _write_text(path: Path, text: str) -> None:
    write_durably(path, text.encode())


def _settings_text(settings: SynthSettings) -> str:
    return json.dumps(asdict(settings), indent=2) + "\n"


def _claim(out: Path, settings: SynthSettings) -> bool:
    """Makes the folder ours, and says whether it holds the whole archive already. A folder with anything else in it is
    refused."""
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
    """Makes the archive in folder `out`. A folder that already holds just this archive is left as it is.

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
    with replaced_durably(out / "truth.parquet") as beside, pq.ParquetWriter(beside, TRUTH_SCHEMA) as writer:
        for done, made in enumerate(_results(out, settings, workers), start=1):
            label = names[made.plan.label_id]
            database[made.plan.name] = _annotation(made, label)
            tables.append(_truth(made, label))
            num_frames += len(made.boxes)
            if made.samples and len(rows) < SHEET_ROWS:
                rows.append(sheet_row(made, label))
            if len(tables) == 256:
                writer.write_table(pa.concat_tables(tables))
                tables.clear()
            if progress is not None:
                progress(done, settings.videos)
        if tables:
            writer.write_table(pa.concat_tables(tables))
    write_sheet(out / "sheet.png", rows)
    _write_text(out / "classes.txt", "".join(f"{name}\n" for name in names))
    annotations = {"version": "synthetic 1", "taxonomy": _taxonomy(names), "database": database}
    _write_text(out / "annotations.json", json.dumps(annotations, indent=1) + "\n")
    return _summary(out, num_frames=num_frames, is_new=True)
