"""Videos that many tests of this folder read, made once for each test file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.media.camera_reading import FPS, GOP
from tests.support.numbered_h264 import CodedVideo, load_coded, write_numbered
from tests.support.video_files import plain


@pytest.fixture(scope="module")
def movie(tmp_path_factory) -> Path:
    """60 numbered frames, a keyframe every 12, 25 frames a second; square, so that the view shows all of it."""
    path = tmp_path_factory.mktemp("movie") / "movie.mp4"
    return plain(path, gop=12, b_frames=2, width=160, height=160, fps=25)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, CodedVideo]:
    folder = tmp_path_factory.mktemp("coded")
    write = partial(write_numbered, num_frames=120, fps=FPS, gop=GOP)
    return {
        "plain": load_coded(write(folder / "plain.mp4")),
        "b_frames": load_coded(write(folder / "b.mp4", b_frames=2)),
        "large": load_coded(write(folder / "large.mp4", width=640, height=360)),
    }
