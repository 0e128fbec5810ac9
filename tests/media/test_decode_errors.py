"""A source that cannot be read has a code that says what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest

from operators.errors import SourceError
from operators.media.decode import ReadLimits
from operators.records import Media, Source
from tests.media.reading import batches, code_of, image, the_batch
from tests.support.video_files import copied, ffmpeg, needs_ffmpeg, numbered_frame, patched


def test_a_path_that_is_not_there_is_missing(tmp_path):
    assert code_of(tmp_path / "gone.mp4") == "missing"
    assert code_of(tmp_path / "gone", media=Media.FRAMES) == "missing"


def test_an_address_is_missing_and_its_password_is_not_shown():
    with pytest.raises(SourceError) as caught:
        batches(Path("x"), source=Source(source_id="0" * 32, uri="http://me:secret@host/a.mp4", video_id="a"))
    assert caught.value.code == "missing"
    assert "me:***@host" in str(caught.value)


def test_a_name_that_is_not_utf8_can_be_read(movie, tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    Path(os.fsdecode(path)).write_bytes(movie.read_bytes())
    assert the_batch(Path(os.fsdecode(path)), num_frames=1).facts.num_frames == 60


def test_a_pipe_is_not_media(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert code_of(tmp_path / "pipe.mp4") == "not_media"


def test_a_file_without_a_byte_is_empty(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    assert code_of(path) == "empty"


def test_a_folder_without_images_has_no_frames(tmp_path):
    (tmp_path / "readme.txt").write_text("no frames")
    assert code_of(tmp_path, media=Media.FRAMES) == "no_frames"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.mp4", b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 40),
        ("text.txt", b"hello world\n" * 100),
        ("noise.mp4", np.random.default_rng(0).integers(0, 256, 20000).astype(np.uint8).tobytes()),
        ("one.mp4", b"\0"),
    ],
)
def test_what_is_no_video_is_not_media(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert code_of(path) == "not_media"


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat", "list.sdp", "list.xspf", "list.mpd"])
def test_a_file_that_names_others_opens_none_of_them(movie, tmp_path, name):
    contents = {
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\n{movie}\n#EXT-X-ENDLIST\n",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\nfile://{movie}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{movie}'\n",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "list.xspf": f"<playlist><track><location>{movie}</location></track></playlist>",
        "list.mpd": f'<?xml version="1.0"?><MPD type="static"><BaseURL>{movie}</BaseURL></MPD>',
    }
    path = tmp_path / name
    path.write_text(contents[name])
    assert code_of(path) == "not_media"


def test_a_name_that_looks_like_an_address_is_a_file_name(movie, tmp_path):
    path = tmp_path / "concat:a|b.mp4"
    path.write_bytes(movie.read_bytes())
    assert the_batch(path, num_frames=1).facts.num_frames == 60


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=48000)
        for start in range(0, 48000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48000, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert code_of(path) == "no_video"


@needs_ffmpeg
def test_cover_art_beside_sound_is_no_video(tmp_path):
    picture = image(tmp_path / "cover.png", numbered_frame(1, width=64, height=64))
    path = tmp_path / "song.m4a"
    ffmpeg(
        "-f", "lavfi", "-i", "sine=d=1", "-i", picture, "-map", "0", "-map", "1", "-c:v", "png",
        "-disposition:v:0", "attached_pic", "-f", "mp4", path,
    )  # fmt: skip
    assert code_of(path) == "no_video"


def test_a_codec_that_nobody_knows_is_unsupported(movie, tmp_path):
    path = tmp_path / "unknown.mp4"
    path.write_bytes(movie.read_bytes())
    assert code_of(patched(path, b"avc1", b"zzzz")) == "unsupported_codec"


@needs_ffmpeg
def test_an_encrypted_file_is_called_so(movie):
    path = copied(
        movie, "locked.mp4", "-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "76" * 16,
        "-encryption_kid", "a7" * 16,
    )  # fmt: skip
    assert code_of(path) == "encrypted"
    assert code_of(path, seek="keyframe") == "encrypted"


@needs_ffmpeg
def test_a_video_stream_without_a_picture_has_no_frames(movie):
    pieces = copied(movie, "pieces.mp4", "-movflags", "frag_keyframe+empty_moov")
    data = pieces.read_bytes()
    path = movie.with_name("header.mp4")
    path.write_bytes(data[: data.index(b"moof") - 4])
    assert code_of(path) == "no_frames"


def test_a_file_whose_index_was_never_written_is_corrupt(movie, tmp_path):
    path = tmp_path / "half.mp4"
    data = movie.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov") - 4])
    assert code_of(path) == "corrupt"


def test_a_file_of_which_nothing_decodes_is_corrupt(movie, tmp_path):
    path = tmp_path / "nothing.mp4"
    data = bytearray(movie.read_bytes())
    begin = data.index(b"mdat") + 4
    end = data.rindex(b"moov") - 4
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    assert code_of(path) == "corrupt"


@pytest.mark.parametrize(
    "limits", [ReadLimits(max_pixels=160 * 160 - 1), ReadLimits(max_duration_s=2.0), ReadLimits(max_streams=0)], ids=str
)
@pytest.mark.parametrize("how", [{}, {"seek": "keyframe"}, {"kind": "window"}], ids=str)
def test_what_exceeds_a_limit_is_too_large(movie, limits, how):
    assert code_of(movie, limits=limits, **how) == "too_large"
