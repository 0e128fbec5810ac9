"""What `bench live` makes of what it saw, by hand; and that it runs."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import pytest

from operators.records import CameraCounts
from pipeline.bench import live
from pipeline.bench.live import (
    Watch,
    bench_live,
    camera_rows,
    default_config,
    figures_of,
    quantile_figure,
    slope_figure,
)
from pipeline.live.summary import CameraSummary, LiveSummary
from pipeline.live.worker import CameraNews
from pipeline.run.loop import StopRequest
from tests.support.gstreamer import what_is_missing


def test_the_p95_is_of_all_labels_and_its_interval_of_stretches():
    # Two stretches of 15 s: latencies of 0.1 .. 1.0 s in the first, 1.1 .. 2.0 s in the second.
    latencies = [(100.0 + i, (i + 1) / 10) for i in range(10)] + [(115.0 + i, (i + 11) / 10) for i in range(10)]
    figure = quantile_figure("p95", latencies, 0.95, goal=500.0)
    assert figure.value == pytest.approx(1905.0) and figure.n == 20 and figure.met is False
    assert figure.samples == pytest.approx((955.0, 1955.0))
    assert (figure.low, figure.high) == pytest.approx((955.0, 1955.0))
    assert quantile_figure("p95", latencies, 0.0, goal=500.0).met is True


def test_the_slope_of_memory_is_that_of_the_second_half():
    # It rises by 100 MiB a minute while it begins, then by 3.
    rising = [(60.0 * i, 1000.0 + 100.0 * i) for i in range(10)]
    flat = [(60.0 * (10 + i), 1900.0 + 3.0 * i) for i in range(10)]
    figure = slope_figure(rising + flat)
    assert figure.value == pytest.approx(3.0) and figure.low == pytest.approx(3.0) == figure.high
    assert figure.unit == "MiB/min" and "from 1000 to 1927 MiB" in figure.about
    assert (figure.goal, figure.met) == (1.0, False)
    assert slope_figure([(60.0 * i, 1900.0 + 0.5 * i) for i in range(20)]).met is True


@pytest.mark.parametrize(("is_fast", "precision"), [(True, "bf16"), (False, "auto")])
def test_the_large_networks_run_in_half_precision_where_the_processor_has_it(monkeypatch, is_fast, precision):
    monkeypatch.setattr(live, "has_fast_bf16", lambda: is_fast)
    assert default_config().compute.precision == precision
    assert default_config("compute.precision=fp32").compute.precision == "fp32"


def watched() -> tuple[Watch, LiveSummary]:
    watch = Watch(seconds=60.0, stop=StopRequest(), say=lambda text: None)
    watch.began_s = watch.asked_s + 12.0
    watch.latencies_s = {"cam0": [(0.0, 0.1), (1.0, 0.3)], "cam1": [(0.5, 0.2)]}
    watch.looked = [(10.0, {"cam0": 100, "cam1": 50}), (20.0, {"cam0": 140, "cam1": 85})]
    watch.memory = [(0.0, 100.0), (1.0, 100.0)]
    watch.busy = [(10.0, 100.0), (40.0, 160.0)]
    counts = CameraCounts(num_behind=2, num_corrupt=1, num_after_loss=3, num_before_keyframe=1, num_joining=5)
    cam0 = CameraNews(dropped=4, counts=counts, num_connects=3, num_misses=7)
    news = {"cam0": cam0, "cam1": CameraNews(num_connects=1)}
    labelled = {name: CameraSummary(labels=len(news), news=one, latencies_s=deque()) for name, one in news.items()}
    return watch, LiveSummary(labelled)


def test_figures_are_of_all_cameras_together():
    figures = {figure.name: figure for figure in figures_of(*watched(), wanted_fps=8.0)}
    # 40 and 35 frames in ten seconds.
    assert figures["live.fps_analysed"].value == pytest.approx(7.5) and figures["live.fps_analysed"].limit == 8.0
    # Four and two for being behind, one broken, three after a loss; those at the join are nobody's fault.
    assert figures["live.frames_dropped"].value == 10.0 and figures["live.frames_dropped"].met is False
    assert figures["live.reconnects"].value == 2.0
    assert figures["live.start_s"].value == pytest.approx(12.0)
    assert figures["live.machine_busy"].value == pytest.approx(0.5)
    assert figures["live.latency_p50_ms"].value == pytest.approx(200.0)


def test_a_watch_shorter_than_the_clock_of_the_cores_does_not_know_how_busy_they_were():
    watch, summary = watched()
    watch.busy = [(10.0, 100.0), (10.0, 100.0)]
    assert "live.machine_busy" not in {figure.name for figure in figures_of(watch, summary, wanted_fps=8.0)}


def test_every_camera_has_a_row():
    header, cam0, cam1 = camera_rows(*watched())
    assert dict(zip(header, cam0, strict=True)) == {
        "camera": "cam0", "fps": "4.00", "labels": "2", "p50_ms": "200", "p95_ms": "290", "p99_ms": "298",
        "behind": "6", "corrupt": "1", "lost": "3", "joining": "6", "misses": "7", "reconnects": "2",
    }  # fmt: skip
    assert cam1[:2] == ("cam1", "3.50") and cam1[-1] == "0"


@pytest.mark.rtsp
def test_it_runs(tmp_path: Path):
    reason = what_is_missing()
    if reason is not None:
        if os.environ.get("REQUIRE_RTSP") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    config = default_config("run.executor=inline", "run.threads=1")
    said: list[str] = []
    report = bench_live(config, cache=tmp_path, say=said.append, quick=True)
    figures = {figure.name: figure for figure in report.figures}
    assert figures["live.latency_p95_ms"].n >= 2 and figures["live.latency_p95_ms"].goal == 500.0
    assert figures["live.fps_analysed"].value > 0.0 and figures["live.frames_dropped"].goal == 0.0
    assert report.headline.startswith(
        "QUICK (tiny sizes show that it runs, not how fast): 2 cameras of 640x360 at 15 fps, 4 fps each"
    )
    assert [note.split()[0] for note in report.notes] == ["camera", "cam0", "cam1"]
    assert any("labels" in line for line in said)
