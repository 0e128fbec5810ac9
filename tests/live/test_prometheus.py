"""What Prometheus scrapes is what the run reported, /healthz says whether it goes on and /readyz whether it labels."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from operators.errors import PipelineError
from operators.records import CameraCounts
from pipeline.config import load
from pipeline.live.camera_state import CameraState
from pipeline.live.prometheus import LiveMetrics, serve_metrics

NOW_S = 1_700_000_000.0


def metrics(now_s: float = NOW_S) -> LiveMetrics:
    made = LiveMetrics(clock=lambda: now_s)
    made.add_camera("door")
    return made


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()


def scrape(recorded: LiveMetrics) -> dict[tuple[str, ...], float]:
    """(sample name, label values in the order of their names) -> value, as a scrape over HTTP gives it."""
    with serve_metrics(recorded, port=0, host="127.0.0.1") as port:
        status, text = get(port, "/metrics")
    assert status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_all_series_of_a_camera_are_there_before_anything_happens():
    found = scrape(metrics())
    for name in ("decoded", "analysed", "focused", "restamped"):
        assert found[(f"saccade_frames_{name}_total", "door")] == 0
    for reason in ("before_keyframe", "after_loss", "corrupt", "joining", "behind", "queue"):
        assert found[("saccade_frames_dropped_total", "door", reason)] == 0
    assert found[("saccade_up", "door")] == 0 and found[("saccade_reconnects_total", "door")] == 0
    assert found[("saccade_misses_total", "door")] == 0


def test_the_totals_of_a_cameras_readers_become_counters():
    recorded = metrics()
    recorded.observe_reader("door", CameraCounts(num_decoded=100, num_corrupt=2, num_behind=1))
    recorded.observe_reader(
        "door",
        CameraCounts(num_decoded=150, num_corrupt=2, num_behind=4, num_before_keyframe=7, num_after_loss=1),
    )
    recorded.observe_reader(
        "door",
        CameraCounts(
            num_decoded=180, num_corrupt=2, num_behind=4, num_before_keyframe=7, num_after_loss=1, num_joining=5
        ),
    )
    recorded.dropped("door", count=3)
    found = scrape(recorded)
    assert found[("saccade_frames_decoded_total", "door")] == 180
    drops = {key[2]: value for key, value in found.items() if key[0] == "saccade_frames_dropped_total"}
    assert drops == {"corrupt": 2, "behind": 4, "before_keyframe": 7, "after_loss": 1, "joining": 5, "queue": 3}


def test_the_state_of_a_camera_shows_with_its_reconnects():
    recorded = metrics()
    recorded.set_state("door", CameraState.LIVE, 0)
    recorded.set_state("door", CameraState.WAITING, 0)
    recorded.set_state("door", CameraState.LIVE, 2, 3)
    recorded.set_state("door", CameraState.LIVE, 2, 3)
    found = scrape(recorded)
    assert found[("saccade_up", "door")] == 1
    assert (found[("saccade_reconnects_total", "door")], found[("saccade_misses_total", "door")]) == (2, 3)
    states = {key[2]: value for key, value in found.items() if key[0] == "saccade_camera_state"}
    assert states == {"connecting": 0, "live": 1, "lost": 0, "waiting": 0, "stopped": 0}


def test_latencies_are_counted_in_buckets():
    recorded = metrics()
    for latency_s in (0.04, 0.12, 0.45, 0.51):
        recorded.labelled("door", latency_s=latency_s)
    found = scrape(recorded)
    assert found[("saccade_latency_seconds_bucket", "door", "0.05")] == 1
    assert found[("saccade_latency_seconds_bucket", "door", "0.5")] == 3
    assert found[("saccade_latency_seconds_count", "door")] == 4
    assert found[("saccade_latency_seconds_sum", "door")] == pytest.approx(1.12)
    assert found[("saccade_labels_total", "door")] == 4


def test_the_share_focused_and_the_age_of_the_newest_frame_show():
    recorded = metrics()
    for n in range(4):
        recorded.analysed("door", time_unix_s=NOW_S - 2 + n * 0.25, was_focused=n == 0)
    recorded.set_queues({"frames": 5})
    found = scrape(recorded)
    assert found[("saccade_focus_share", "door")] == 0.25
    assert found[("saccade_frames_analysed_total", "door")] == 4
    assert found[("saccade_frames_focused_total", "door")] == 1
    assert found[("saccade_newest_frame_age_seconds", "door")] == pytest.approx(1.25)
    assert found[("saccade_queue_size", "frames")] == 5


def test_a_run_that_starts_is_alive_however_long_it_takes_and_not_ready():
    now_s = NOW_S
    recorded = LiveMetrics(clock=lambda: now_s, max_beat_s=5.0)
    recorded.add_camera("door")
    with serve_metrics(recorded, port=0) as port:
        now_s = NOW_S + 3600.0
        status, text = get(port, "/healthz")
        assert status == 200
        assert json.loads(text) == {
            "ok": True,
            "starting": True,
            "beat_age_s": 3600.0,
            "cameras": {"door": "waiting"},
        }
        assert get(port, "/readyz")[0] == 503


def test_a_run_is_alive_by_the_beat_of_its_loop_and_not_by_its_workers_or_cameras():
    now_s = NOW_S
    recorded = LiveMetrics(clock=lambda: now_s, max_beat_s=5.0)
    recorded.add_camera("door")
    recorded.set_state("door", CameraState.LOST)
    with serve_metrics(recorded, port=0) as port:
        recorded.begin(now_s)
        recorded.beat(now_s, silent_s=50.0)
        now_s = NOW_S + 5.0
        status, text = get(port, "/healthz")
        found = {"ok": True, "starting": False, "beat_age_s": 5.0, "cameras": {"door": "lost"}}
        assert status == 200 and json.loads(text) == found
        now_s = NOW_S + 5.1
        assert get(port, "/healthz")[0] == 503
        recorded.beat(now_s)
        assert get(port, "/healthz")[0] == 200
        assert get(port, "/")[0] == 404


def test_a_run_is_ready_while_a_camera_is_live_and_no_worker_is_silent():
    now_s = NOW_S
    recorded = metrics(now_s)
    recorded.add_camera("yard")

    def is_ready() -> bool:
        status, text = get(port, "/readyz")
        assert (status == 200) is json.loads(text)["ok"]
        return status == 200

    with serve_metrics(recorded, port=0) as port:
        recorded.begin(now_s)
        assert not is_ready()
        recorded.set_state("yard", CameraState.LIVE)
        assert is_ready()
        recorded.beat(now_s, silent_s=5.1)
        assert not is_ready()
        recorded.beat(now_s)
        assert is_ready()
        recorded.set_state("yard", CameraState.LOST)
        assert not is_ready()


def test_metrics_are_served_on_loopback_alone_unless_a_setting_says_otherwise():
    assert load("live").live.metrics_host == "127.0.0.1"
    # All of 127.x.y.z are addresses of this machine.
    with serve_metrics(metrics(), port=0) as port, pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=2.0)
    with serve_metrics(metrics(), port=0, host="0.0.0.0") as port:
        socket.create_connection(("127.0.0.2", port), timeout=2.0).close()


def test_a_port_that_is_taken_is_told_in_one_line():
    with (
        serve_metrics(metrics(), port=0, host="127.0.0.1") as port,
        pytest.raises(PipelineError, match=f"port {port}"),
        serve_metrics(metrics(), port=port, host="127.0.0.1"),
    ):
        pass


def test_a_client_that_connects_and_says_nothing_is_hung_up_on(monkeypatch):
    monkeypatch.setattr("pipeline.live.prometheus._SILENCE_S", 0.1)
    with (
        serve_metrics(metrics(), port=0, host="127.0.0.1") as port,
        socket.create_connection(("127.0.0.1", port), timeout=10.0) as client,
    ):
        assert client.recv(1) == b""
        assert get(port, "/metrics")[0] == 200
