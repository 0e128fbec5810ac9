"""How a live run starts: what is refused, how early it can be stopped, and how torch's threads wait."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest

from operators.errors import ConfigError
from pipeline.config import Camera, load
from pipeline.live.watch import check, watch_cameras
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from pipeline.run.loop import StopRequest
from pipeline.run.sink_worker import SinkOpened

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("step", "started"), [("resolve", []), ("make_executor", []), ("write_run", ["sink"])])
def test_a_stop_is_heeded_before_the_next_step_of_a_start(step, started, tmp_path, monkeypatch):
    stop, seen = StopRequest(), []

    def is_stopped_by(name: str) -> None:
        stop.is_set = stop.is_set or name == step

    def resolved(*arguments, **more):
        is_stopped_by("resolve")
        return resolve(*arguments, **more)

    @contextmanager
    def executor(*_):
        is_stopped_by("make_executor")
        yield types.SimpleNamespace(start=lambda spec: seen.append(spec.stage))

    monkeypatch.setattr("pipeline.live.watch.resolve", resolved)
    monkeypatch.setattr("pipeline.live.watch.make_executor", executor)
    monkeypatch.setattr("pipeline.live.watch.open_sink", lambda *_: SinkOpened())
    monkeypatch.setattr("pipeline.live.watch.call_worker", lambda *_: None)
    monkeypatch.setattr("pipeline.live.watch.write_run", lambda *_: is_stopped_by("write_run"))
    summary = watch_cameras(load("live"), [Camera(name="door", url="rtsp://a/")], out=tmp_path, stop=stop)
    assert seen == started and summary.labels == 0


@pytest.mark.parametrize(
    ("preset", "settings", "words"),
    [
        ("live", ["stop.kind=confidence", "stop.thresholds=[0.9]"], "stop rules do not apply"),
        ("live", ["policy.kind=oracle", f"policy.truth={__file__}"], "nobody knows the truth"),
        ("gfnet_imagenet_resnet50", ["model.untrained=true"], "need a checkpoint of the family adafocus, not gfnet"),
    ],
)
def test_what_cannot_be_had_from_cameras_is_refused(preset, settings, words):
    plan = resolve(load(preset, settings=settings), Machine(num_cores=2, memory_bytes=4 << 30))
    with pytest.raises(ConfigError, match=words):
        check(plan.config, plan)


def test_torchs_threads_are_told_to_sleep_while_they_wait_before_torch_is_loaded(tmp_path):
    code = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("policy", os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, Watch())
from run_pipeline import main
main(["live", "nowhere.mp4", "-o", sys.argv[1]])
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert told.stdout.splitlines()[:1] == ["policy passive"], told.stderr


def test_how_threads_wait_is_said_for_cameras_only():
    code = "import os, pipeline.run.factories, pipeline.run.archive; print(os.environ.get('OMP_WAIT_POLICY'))"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.split() == ["None"], told.stderr
