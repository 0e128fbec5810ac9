"""Records: ids go by place and start, errors cross processes, and a password is never shown."""

from __future__ import annotations

import pickle

import pytest

from operators.errors import SourceError
from operators.passwords import without_password
from operators.records import ClipLabel, Source, clip_id, source_id


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.7/stream", "rtsp://admin:***@10.0.0.7/stream"),
        ("rtsp://admin:se:c@ret@10.0.0.7/stream", "rtsp://admin:***@10.0.0.7/stream"),
        ("rtsp://admin:se/cret@10.0.0.7/stream", "rtsp://admin:***@10.0.0.7/stream"),
        ("rtsp://:secret@10.0.0.7/", "rtsp://:***@10.0.0.7/"),
        ("cannot open rtsp://a:b@c and http://d:e@f", "cannot open rtsp://a:***@c and http://d:***@f"),
        ("rtsp://host/live?user=eve&password=s3cret&channel=1", "rtsp://host/live?user=eve&password=***&channel=1"),
        ("rtsp://host/user=eve_password=s3cret_channel=1.sdp", "rtsp://host/user=eve_password=***"),
        ("http://host/v?PWD=a&token=b", "http://host/v?PWD=***&token=***"),
        ("rtsp://host/bypass=1", "rtsp://host/bypass=1"),
        ("/videos/token=1/pass=2.mp4", "/videos/token=1/pass=2.mp4"),
        ("http://host:8080/video@2.mp4", "http://host:8080/video@2.mp4"),
        ("rtsp://admin@10.0.0.7/stream", "rtsp://admin@10.0.0.7/stream"),
        ("/videos/a:b@c.mp4", "/videos/a:b@c.mp4"),
        # Users, passwords and hosts of every form.
        ("rtsp://eve@corp.com:pw@h/", "rtsp://eve@corp.com:***@h/"),
        ("rtsp://eve:my pw@h/", "rtsp://eve:***@h/"),
        ("rtsp://eve:my pw@h", "rtsp://eve:***@h"),
        ("rtsp://eve:my p@w x@h:554/a", "rtsp://eve:***@h:554/a"),
        ("rtsp://eve:12/pw@h/", "rtsp://eve:***@h/"),
        ("rtsp://eve:12 pw@h:554", "rtsp://eve:***@h:554"),
        ("rtsp://eve:pw@[fe80::1]:554/a", "rtsp://eve:***@[fe80::1]:554/a"),
        ("rtsp:/eve:pw@h/x.yaml", "rtsp:/eve:***@h/x.yaml"),
        # What only looks like it.
        ("rtsp://10.0.0.71:554/cam@a/b", "rtsp://10.0.0.71:554/cam@a/b"),
        ("rtsp://admin@10.0.0.71:554/cam@a/b", "rtsp://admin@10.0.0.71:554/cam@a/b"),
        ("rtsp://camera:554/cam@1/b", "rtsp://camera:554/cam@1/b"),
        ("rtsp://admin@[fe80::1]:554/a@b/c", "rtsp://admin@[fe80::1]:554/a@b/c"),
        ("rtsp://h: was lost; ask eve@corp.com", "rtsp://h: was lost; ask eve@corp.com"),
        ("rtsp://h:554: was lost; ask eve@corp.com", "rtsp://h:554: was lost; ask eve@corp.com"),
        ("rtsp://h:554/live: was lost; ask eve@corp.com", "rtsp://h:554/live: was lost; ask eve@corp.com"),
        ("rtsp://eve:pw@h: was lost; ask eve@corp.com", "rtsp://eve:***@h: was lost; ask eve@corp.com"),
        ("rtsp://eve:a b@h/ and /data/a@b/c, ask e@f.g", "rtsp://eve:***@h/ and /data/a@b/c, ask e@f.g"),
        # Parameters.
        ("srt://h?passphrase=x", "srt://h?passphrase=***"),
        ("http://h/v?loginuse=eve&loginpas=x&n=1", "http://h/v?loginuse=eve&loginpas=***&n=1"),
        ("http://h/v?psw=a/b#c&pw=it's&auth=d", "http://h/v?psw=***&pw=***&auth=***"),
        ("http://h/v?author=eve&monkey=1&keyframe=2", "http://h/v?author=eve&monkey=1&keyframe=2"),
        ("'http://h/?pw=x', (http://h/?pw=x): lost", "'http://h/?pw=***', (http://h/?pw=***): lost"),
    ],
)
def test_a_password_is_never_shown_and_nothing_else_is_hidden(text: str, shown: str) -> None:
    assert without_password(text) == shown == without_password(shown)


def test_a_source_shows_itself_without_its_password() -> None:
    uri = "rtsp://admin:secret@10.0.0.7/stream"
    source = Source(source_id=source_id(uri), uri=uri, video_id="gate")
    assert "secret" not in repr(source)
    assert source.shown_uri == "rtsp://admin:***@10.0.0.7/stream"


def test_a_label_with_a_password_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="password"):
        ClipLabel(video_id="gate", clip_id="0" * 32, source_uri="rtsp://admin:secret@10.0.0.7/")


def test_ids_go_by_place_and_start_not_by_password() -> None:
    assert source_id("rtsp://a:one@h/x") == source_id("rtsp://a:two@h/x")
    first = source_id("/videos/a.mp4")
    assert first != source_id("/videos/b.mp4")
    assert clip_id(first, 0.0) != clip_id(first, 5.0)
    assert len(clip_id(first, 0.0)) == 32


def test_an_error_crosses_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(SourceError("a.mp4 is empty: download it again", code="empty")))
    assert str(error) == "a.mp4 is empty: download it again"
    assert error.code == "empty"
