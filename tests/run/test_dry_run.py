"""How long a run would take: a CPU's stages share its cores, a GPU's work does not divide among them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from operators.records import Media, Source, source_id
from pipeline.config import load
from pipeline.plan.placement import Machine, place
from pipeline.run import dry_run as estimates
from pipeline.run.dry_run import estimate, wall_s
from pipeline.run.metrics import RunMetrics, StageTime
from pipeline.steering.scheduler import FOCUS, SOURCE, STREAM


@pytest.mark.parametrize(
    ("num_gpus", "source_s", "seconds"),
    [
        (0, 4.0, 10.0 / 8),
        (1, 4.0, 5.0),  # the GPU is what the run waits for
        (2, 4.0, 2.5),
        (1, 60.0, 10.0),  # six decoders are
    ],
)
def test_the_stage_that_takes_longest_says_how_long_it_takes(num_gpus, source_s, seconds):
    machine = Machine(num_cores=8, memory_bytes=16 << 30, num_gpus=num_gpus)
    stages = {SOURCE: StageTime(busy_s=source_s), STREAM: StageTime(busy_s=2.0), FOCUS: StageTime(busy_s=3.0)}
    metrics = RunMetrics(stages=stages)
    assert wall_s(metrics, 10.0, machine, place(machine)) == pytest.approx(seconds)


def test_a_stage_has_no_more_cores_than_its_workers_have_threads():
    machine = Machine(num_cores=64, memory_bytes=64 << 30)
    # 32 readers, 8 stream workers of 2 threads, 4 focus workers of 8.
    stages = {SOURCE: StageTime(busy_s=4.0), STREAM: StageTime(busy_s=2.0), FOCUS: StageTime(busy_s=58.0)}
    metrics = RunMetrics(stages=stages)
    assert wall_s(metrics, 64.0, machine, place(machine)) == pytest.approx(58 / 32)
    stages[FOCUS].busy_s = 6.0
    assert wall_s(metrics, 16.0, machine, place(machine)) == pytest.approx(16 / 64)
    # What a run may use, not what is there.
    assert wall_s(metrics, 16.0, machine, place(machine, threads=4)) == pytest.approx(16 / 4)


def test_in_one_process_the_stages_take_turns():
    machine = Machine(num_cores=64, memory_bytes=64 << 30)
    stages = {SOURCE: StageTime(busy_s=4.0), STREAM: StageTime(busy_s=2.0), FOCUS: StageTime(busy_s=10.0)}
    workers = place(machine, in_one_process=True)
    seconds = wall_s(RunMetrics(stages=stages), 16.0, machine, workers, in_turn=True)
    assert seconds == pytest.approx(4 / 32 + 2 / 32 + 10 / 32)


@pytest.fixture
def sources(tmp_path):
    image = tmp_path / "a.png"
    assert cv2.imwrite(str(image), np.zeros((40, 60, 3), np.uint8))
    source = Source(source_id=source_id(str(image)), uri=str(image), video_id="a", media=Media.IMAGE)
    return lambda names: iter([source])


def test_inputs_are_tried_by_one_thread_of_one_worker_whatever_the_run_will_have(monkeypatch, sources):
    tried = []
    try_out = estimates._try_out
    monkeypatch.setattr(estimates, "_try_out", lambda plan, *rest: tried.append(plan) or try_out(plan, *rest))
    monkeypatch.setattr(estimates, "machine_of", lambda config: Machine(num_cores=64, memory_bytes=64 << 30))
    settings = ("compute.precision=fp32", "compute.compile=off", "focus.batch_size=8", "run.focus_workers=3")
    found = estimate(load("demo", settings=settings), sources)
    (plan,) = tried
    assert [(spec.count, spec.arguments["num_threads"]) for spec in plan.worker_specs()] == [(1, 1)] * 3
    assert plan.identity()["config"]["focus.patch_px"] and plan.config.compute.precision == "fp32"
    # On 64 cores it takes no less than a sixty-fourth of what one takes.
    assert found.wall_s >= found.seconds_per_clip / 64 and found.remark is None


def test_the_plan_of_a_cluster_with_gpus_is_not_run_on_a_machine_without(monkeypatch, sources):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(estimates, "machine_of", lambda config: Machine(num_cores=32, memory_bytes=1 << 36, num_gpus=4))
    found = estimate(load("demo", settings=("run.ray_address=10.0.0.1:6379",)), sources)
    assert (found.inputs, found.clips, found.errors) == (1, 1, [])
    assert found.wall_s is None and found.seconds_per_clip > 0
    assert "tried on this machine (cpu), not on the cluster (cuda)" in found.remark
    assert "unknown" in found.text() and found.remark in found.text()
    # A cluster of CPUs is as fast as this machine, times its cores.
    monkeypatch.setattr(estimates, "machine_of", lambda config: Machine(num_cores=32, memory_bytes=1 << 36))
    found = estimate(load("demo", settings=("run.ray_address=10.0.0.1:6379", "compute.precision=fp32")), sources)
    assert found.wall_s is not None and "not on the cluster" in found.remark
