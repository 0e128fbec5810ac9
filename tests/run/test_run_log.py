"""The log in OUT/run: what happened, line by line, bounded, and without passwords."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from operators.records import ClipLabel
from pipeline.live.camera_state import CameraState
from pipeline.live.state_log import logging_states
from pipeline.live.worker import CameraNews
from pipeline.run.run_log import MAX_LINES, RunLog


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


def lines(out: Path, name: str = "log-r1.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "run" / name).read_text().splitlines()]


def failed(number: int) -> ClipLabel:
    uri = f"/v{number}.mp4"
    return ClipLabel(video_id="v", clip_id=f"{number:032x}", source_uri=uri, error_code="empty", error="0")


def test_a_line_is_there_as_soon_as_it_is_noted_and_an_error_that_ends_the_run_is_the_last(out):
    with pytest.raises(KeyError), RunLog(out, "r1") as log:
        log.begin("seven classes", model_id="m")
        assert [line["event"] for line in lines(out)] == ["begun"]
        log.failed(failed(1))
        raise KeyError("lost")
    begun, one, end = lines(out)
    assert (begun["text"], begun["model_id"]) == ("seven classes", "m") and begun["time"] <= end["time"]
    assert (one["event"], one["uri"], one["code"], one["error"]) == ("failed", "/v1.mp4", "empty", "0")
    assert (end["event"], end["error"]) == ("broken_off", "KeyError: 'lost'")


def test_of_a_million_failures_the_first_are_listed_and_it_says_that_there_are_more(out, monkeypatch):
    monkeypatch.setitem(MAX_LINES, "failed", 3)
    with RunLog(out, "r1") as log:
        log.begin("")
        for number in range(1000):
            log.failed(failed(number))
        log.note("ended")
    assert [line["event"] for line in lines(out)] == ["begun", *["failed"] * 3, "message", "ended"]


def test_a_log_that_goes_on_for_months_keeps_the_newest(out):
    with RunLog(out, "r1", max_bytes=2000) as log:
        log.begin("")
        for number in range(1000):
            log.note("camera", number=number)
    kept = [*lines(out, "log-r1.older.jsonl"), *lines(out)]
    assert [line["number"] for line in kept] == list(range(1000 - len(kept), 1000))
    assert len(list((out / "run").iterdir())) == 2
    assert all(path.stat().st_size < 2100 for path in (out / "run").iterdir())


def test_no_password_reaches_the_log(out):
    with pytest.raises(ValueError), RunLog(out, "r1") as log:
        log.begin("rtsp://eve:s3cret@host/a")
        log.note("ended", cameras={"door": {"last_error": ["rtsp://eve:s3cret@host/a"]}}, count=3)
        raise ValueError("rtsp://eve:s3cret@host/a")
    text = (out / "run/log-r1.jsonl").read_text()
    assert "s3cret" not in text and text.count("rtsp://eve:***@host/a") == 3


def test_a_camera_is_noted_when_its_state_changes(out):
    reported: list[object] = []
    with RunLog(out, "r1") as log:
        log.begin("")
        take = logging_states(log, reported.append)
        for state in (CameraState.CONNECTING, CameraState.LIVE, CameraState.LIVE, CameraState.LOST):
            take({"door": CameraNews(state=state, last_error="no frame" if state == "lost" else None)})
    states = [(line["camera"], line["state"], line["last_error"]) for line in lines(out)[1:]]
    assert states == [("door", "connecting", None), ("door", "live", None), ("door", "lost", "no frame")]
    assert len(reported) == 4


def test_where_no_log_can_be_written_a_run_goes_on(tmp_path):
    with RunLog(tmp_path / "nowhere", "r1") as log:
        log.begin("")
        log.note("ended")
    with RunLog(tmp_path, "r1") as log:
        log.note("ended")
    assert list(tmp_path.iterdir()) == []
