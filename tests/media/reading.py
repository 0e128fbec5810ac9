"""Files are read by one call each: the batches that come out, or the code of the error."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.errors import ErrorCode, SourceError
from operators.media.decode import FileReader, ReadLimits
from operators.media.sampling import SamplingRule
from operators.media.view import Viewer
from operators.records import FrameBatch, Media
from tests.support.video_files import source_of

SIDE = 96


def reader(path: Path, *, media: Media = Media.VIDEO, limits: ReadLimits | None = None, **how) -> FileReader:
    num_threads, first_window = how.pop("num_threads", 1), how.pop("first_window", 0)
    viewer = how.pop("viewer", None) or Viewer(resize_px=SIDE, crop_px=SIDE)
    return FileReader(
        source=how.pop("source", None) or source_of(path, media),
        sampling=SamplingRule(**how),
        viewer=viewer,
        limits=limits,
        num_threads=num_threads,
        clock=time.time,
        first_window=first_window,
    )


def batches(path: Path, **how) -> list[FrameBatch]:
    with reader(path, **how) as reading:
        return [item for item in reading.read() if item is not None]


def the_batch(path: Path, **how) -> FrameBatch:
    (batch,) = batches(path, **how)
    return batch


def code_of(path: Path, **how) -> str:
    with pytest.raises(SourceError) as caught:
        batches(path, **how)
    assert isinstance(caught.value.code, ErrorCode)
    assert str(path) in str(caught.value)
    return caught.value.code


def damaged(path: Path, name: str, *, begin: float, end: float, num_bytes: int) -> Path:
    """A copy with random bytes between two shares of its length."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(3)
    for at in rng.integers(int(len(data) * begin), int(len(data) * end), num_bytes):
        data[at] = int(rng.integers(0, 256))
    target = path.with_name(name)
    target.write_bytes(data)
    return target


def image(path: Path, pixels: np.ndarray, orientation: int | None = None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=92, exif=exif)
    return path
