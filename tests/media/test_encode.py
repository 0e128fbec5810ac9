"""Files are written as asked: codec, times, keyframes, tags; and the same file every time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from operators.errors import PipelineError
from operators.media.encode import write_video
from tests.support.video_files import number_in, numbered_frames


def write(path: Path, count: int = 12, **how) -> Path:
    assert write_video(path, numbered_frames(count), **how) == count
    return path


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize(
    ("ending", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv420p"),
        ("mkv", "libx265", "yuv420p10le"),
        ("webm", "libvpx", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("ts", "mpeg2video", "yuv420p"),
        ("mov", "prores_ks", "yuv422p10le"),
        ("avi", "mjpeg", "yuvj420p"),
        ("mkv", "ffv1", "bgr0"),
    ],
)
def test_every_codec_writes_all_frames_in_order(tmp_path, ending, codec, pix_fmt):
    path = write(tmp_path / f"v.{ending}", codec=codec, pix_fmt=pix_fmt, bit_rate=900_000)
    frames = decoded(path)
    assert [number_in(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(12))
    assert frames[0].format.name == pix_fmt


def test_frames_are_shown_at_the_rate_that_was_asked_for(tmp_path):
    frames = decoded(write(tmp_path / "v.mp4", fps=Fraction(30000, 1001)))
    assert [frame.time for frame in frames] == pytest.approx([i * 1001 / 30000 for i in range(12)])


def test_times_can_be_given_one_by_one(tmp_path):
    pts = [100, 140, 200, 300, 310, 320, 330, 500, 501, 550, 600, 800]
    frames = decoded(write(tmp_path / "v.mkv", pts=pts))
    assert [round(frame.time * 1000) for frame in frames] == pts


def test_keyframes_come_where_gop_says_and_b_frames_as_many_as_asked_for(tmp_path):
    path = write(tmp_path / "v.mp4", 24, gop=8, b_frames=2)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 8, 16]
    kinds = [frame.pict_type for frame in decoded(path)]
    assert kinds.count(3) > 8  # B
    assert {frame.pict_type for frame in decoded(write(tmp_path / "p.mp4", b_frames=0))} == {1, 2}  # I, P


def test_the_same_frames_make_the_same_bytes(tmp_path):
    how = {"gop": 6, "b_frames": 2, "crf": 20, "audio": "aac", "rotation": 90, "color": "bt709"}
    first, second = write(tmp_path / "a.mp4", **how), write(tmp_path / "b.mp4", **how)
    assert first.read_bytes() == second.read_bytes()


def test_the_same_frames_make_the_same_bytes_every_time_of_many(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 60, (192, 192, 3), np.uint8) + np.uint8(10 * i) for i in range(10)]
    options = {"preset": "veryfast"}

    def written(name):
        write_video(tmp_path / name, frames, fps=20, gop=5, b_frames=3, crf=24.0, options=options)
        return (tmp_path / name).read_bytes()

    assert len({written(f"{number}.mp4") for number in range(15)}) == 1


def test_colour_is_tagged_or_left_untagged(tmp_path):
    tagged = decoded(write(tmp_path / "tagged.mkv", color="bt709", is_full_range=True))[0]
    assert (tagged.colorspace, tagged.color_range, tagged.color_primaries, tagged.color_trc) == (1, 2, 1, 1)
    untagged = decoded(write(tmp_path / "untagged.mkv"))[0]
    assert (untagged.colorspace, untagged.color_range) == (2, 0)


def test_rotation_pixel_aspect_and_sound_go_into_the_container(tmp_path):
    path = write(tmp_path / "v.mp4", rotation=90, pixel_aspect=Fraction(4, 3), audio="aac")
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        sound = sum(frame.samples for frame in container.decode(audio=0))
    assert sound == pytest.approx(48_000 * 12 / 25, abs=2048)
    assert decoded(path)[0].rotation == -90  # FFmpeg counts against the clock


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path):
    with pytest.raises(PipelineError, match=r"gone/v\.mp4"):
        write(tmp_path / "gone" / "v.mp4")


def test_a_codec_that_a_container_cannot_hold_is_told_in_one_line(tmp_path):
    with pytest.raises(PipelineError, match="prores_ks"):
        write(tmp_path / "v.webm", codec="prores_ks", pix_fmt="yuv422p10le")


def test_frames_of_two_sizes_are_a_bug(tmp_path):
    frames = [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 48, 3), np.uint8)]
    with pytest.raises(ValueError, match="frame 1"):
        write_video(tmp_path / "v.mp4", frames)


def test_no_frames_at_all_are_a_bug(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "v.mp4", [])
