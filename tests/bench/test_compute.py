"""`bench compute` in its quick form: the figures that others read, each against its limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.errors import ConfigError, PipelineError
from operators.networks.compiled import CudaGraphs
from operators.networks.cost import network_macs
from pipeline import config as configuration
from pipeline.bench import compute, lab
from pipeline.bench.compute import bench_compute
from pipeline.bench.figures import Report
from pipeline.bench.lab import Lab, Side, turns
from pipeline.bench.precision import compared
from pipeline.bench.printing import as_text
from pipeline.bench.quick import QUICK_SETTINGS
from pipeline.bench.record import read, write
from pipeline.bench.stage_share import planned, stages_alone
from pipeline.plan.network_choice import Choice, NetworkWork
from pipeline.plan.resolve import network_work
from pipeline.scoring.scores import Predictions

ROOT = Path(__file__).resolve().parents[2]

PUBLISHED = NetworkWork(glance="mobilenet_v2", glance_px=224, focus="resnet50", patch_px=128)


SMALL = {
    **QUICK_SETTINGS, "model.untrained": True, "compute.precision": "fp32", "compute.compile": "off",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    cache = tmp_path_factory.mktemp("cache")
    config = configuration.parse(SMALL)
    # What is held here are a CPU's goals and sizes, on a machine with a GPU too.
    how = {"config": config, "cache": cache, "device": "cpu"}
    return bench_compute(say=lambda text: None, quick=True, work=PUBLISHED, full_px=224, **how)


@pytest.mark.parametrize(("network", "goal"), [("focus", 0.9), ("glance", 0.6)])
def test_the_share_is_the_networks_rate_over_the_products(report, network, goal):
    share = report.figure(f"compute.{network}_share_of_gemm")
    rate, product = report.figure(f"compute.{network}_rate"), report.figure("compute.gemm")
    assert (share.limit, share.goal) == (1.0, goal)
    assert share.met == (share.value >= goal)
    expected = np.median(np.array(rate.samples) / np.array(product.samples))
    assert share.value == pytest.approx(expected, rel=1e-6)
    assert rate.limit == product.value


def test_how_it_was_run_stands_beside_the_figures(report, tmp_path):
    assert report.settings["precision"] in ("fp32", "bf16") and report.settings["threads"] >= 1
    assert report.environment["torch"].startswith(torch.__version__.split("+")[0])
    assert report.figure("compute.gemm").about.startswith(f"2048^3 in {report.settings['precision']}")
    assert report.headline in as_text(report)
    write(tmp_path / "compute.json", report)
    assert read(tmp_path / "compute.json").figures == report.figures


def test_what_was_asked_for_is_measured(report, monkeypatch):
    # SMALL asks for these.
    settings = {name: report.settings[name] for name in ("precision", "compile", "focus_batch", "glance_batch")}
    assert settings == {"precision": "fp32", "compile": "off", "focus_batch": 4, "glance_batch": 4}
    assert report.figure("compute.focus_share_of_gemm").about.endswith("in fp32, plain")

    seen = {}

    def choose(work, **how):
        seen.update(how)
        return Choice(precision="bf16", compile="on", glance_batch=8, focus_batch=32, how="measured", seconds={})

    monkeypatch.setattr(compute, "choose", choose)
    asked = {"compute.precision": "bf16", "compute.compile": "on", "focus.batch_size": 24}
    choice = compute.chosen(PUBLISHED, configuration.parse(asked), device="cpu", threads=3, quick=False)
    assert seen == {"device": "cpu", "threads": 3, "precision": "bf16", "compile": "on"}
    assert (choice.focus_batch, choice.glance_batch) == (24, 8)
    asked = configuration.parse({})
    assert compute.chosen(PUBLISHED, asked, device="cpu", threads=3, quick=False).focus_batch == 32


def test_device_and_threads_of_the_settings_count_unless_an_option_says_otherwise(monkeypatch):
    asked = []

    def chosen(work, config, *, device, threads, quick):
        asked.append((device, threads))
        raise InterruptedError

    monkeypatch.setattr(compute, "chosen", chosen)
    config = configuration.parse({**SMALL, "run.threads": 6, "compute.device": "cpu"})
    for options in ({}, {"threads": 5}):
        with pytest.raises(InterruptedError):
            bench_compute(say=print, work=PUBLISHED, full_px=224, config=config, **options)
    # The two focus workers have half of them between them, and rather one more.
    assert asked == [("cpu", 2), ("cpu", 5)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        bench_compute(say=print, work=PUBLISHED, full_px=224, config=config, device="cuda")


def test_the_stages_are_driven_without_a_run_and_held_against_the_networks_alone(report):
    share = report.figure("compute.pipeline_share_of_standalone")
    assert share.value > 0 and share.n == 2
    assert share.goal is None, "its goal is a GPU's"
    assert share.about.startswith("4 clips of 4 glances and 4 patches go from frames to labels")


@pytest.mark.parametrize(
    ("family", "settings", "patches"),
    [
        ("adafocus_v2", {"sampling.num_frames": 16}, 16),
        ("adafocus_tsm", {"sampling.num_focus_frames": 6, "policy.kind": "center"}, 6),
        ("gfnet", {"model.glance_backbone": "small_focus", "sampling.num_frames": 1, "model.num_looks": 3}, 2),
    ],
)
def test_every_family_labels_clips_of_noise(family, settings, patches):
    config = configuration.parse({**SMALL, "model.family": family, **settings})
    choice = Choice(precision="fp32", compile="off", glance_batch=4, focus_batch=8, how="by rule", seconds={})
    plan = planned(config, choice, "cpu")
    work = network_work(plan.config, plan.header)
    assert work.patches == patches
    side = stages_alone(plan, work, 1)
    labels = side.run()
    assert len(labels) == side.images and all(label.label is not None for label in labels)
    assert side.run() is not None, "the same clips go through again"


def test_bf16_is_held_against_fp32_on_videos_that_are_made_for_it(report):
    same, change = (report.figure(f"compute.bf16_{name}") for name in ("same_labels", "accuracy_change"))
    assert (same.goal, change.goal, change.goal_is) == (0.995, 0.2, "at_most")
    assert 0 <= same.value <= 1 and "of 8 videos" in same.about


def predicted(names: str, classes: list[int], truth: list[int]) -> Predictions:
    logits = np.eye(3, dtype=np.float32)[classes]
    labels = np.array(truth)[:, None]
    return Predictions(class_names=("a", "b", "c"), video_ids=tuple(names), truth=labels, logits=logits)


def test_labels_are_compared_video_by_video():
    # v is another label and wrong now, w another and still wrong, the rest is the same, in another order.
    full = predicted("uvwx", [0, 1, 2, 0], [0, 1, 0, 0])
    half = predicted("xwvu", [0, 1, 2, 0], [0, 0, 1, 0])
    same, change = compared(full, half)
    assert (same.value, same.met) == (0.5, False)
    assert (change.value, change.met) == (25.0, False)
    assert [figure.met for figure in compared(full, full)] == [True, True]


def test_networks_are_measured_without_pyav_opencv_and_ray(tmp_path):
    code = """
import json, sys
for name in ("av", "cv2", "ray", "pyarrow"):
    sys.modules[name] = None
from pipeline import config as configuration
from pipeline.bench import commands
from pipeline.bench.compute import bench_compute
from pipeline.plan.network_choice import NetworkWork
work = NetworkWork(glance="small_glance", glance_px=16, focus="small_focus", patch_px=16)
config = configuration.parse(json.loads(sys.argv[1]))
report = bench_compute(say=lambda text: None, quick=True, work=work, full_px=32, config=config)
print(report.environment["ffmpeg"], report.notes[1])
"""
    done = subprocess.run([sys.executable, "-c", code, json.dumps(SMALL)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("None labels in bf16 were not compared, which needs PyAV and OpenCV")


def test_labels_that_cannot_be_compared_cost_no_other_figure(monkeypatch):
    def broken(**options):
        raise PipelineError("no room for videos")

    monkeypatch.setattr("pipeline.bench.precision.bf16_figures", broken)
    work = NetworkWork(glance="small_glance", glance_px=16, focus="small_focus", patch_px=16)
    found = bench_compute(say=lambda text: None, quick=True, work=work, full_px=32, device="cpu")
    assert found.notes[1] == "labels in bf16 were not compared: PipelineError: no room for videos"
    assert found.figure("compute.gemm") is not None


def small_lab(**segments: int) -> Lab:
    work = NetworkWork(glance="small_glance", glance_px=16, focus="small_focus", patch_px=16, **segments)
    return Lab(work, device="cpu", threads=1, frames=3)


def test_a_side_counts_the_multiplications_of_all_its_images():
    lab = small_lab()
    focus = lab.focus("fp32", compiled=False, batch=5)
    # A pass is filled: five patches where a clip has three.
    assert (focus.images, focus.macs) == (5, 5 * network_macs("small_focus", 16))
    glance = lab.glance("fp32", compiled=False, batch=2)
    assert (glance.images, glance.macs) == (3, 3 * network_macs("small_glance", 16))
    # As with patches: 64 views in a pass are not mistaken for 16.
    assert lab.glance("fp32", compiled=False, batch=7).images == 7
    alone = lab.standalone("fp32", batch=4, glance=True)
    assert (alone.images, alone.macs) == (4, 4 * network_macs("small_glance", 16))
    alone.run()
    assert lab.product("fp32").macs == 2048**3


@pytest.mark.parametrize(("device", "warm_ups"), [("cpu", 1), ("cuda", CudaGraphs.RECORDED_AT + 1)])
def test_nothing_is_recorded_while_it_is_timed(device, warm_ups):
    ran: list[str] = []
    sides = {name: Side(run=lambda name=name: ran.append(name), macs=1.0) for name in "ab"}

    class Watched(Lab):
        def seconds(self, side: Side):
            ran.append("timed")
            return lambda: 1.0

    lab = Watched(PUBLISHED, device=device, threads=1, frames=4)
    turns(lab, sides, 1, 60.0, lambda text: None)
    assert ran == ["a", "b"] * warm_ups + ["timed"] * 2


def test_warming_up_is_part_of_the_budget(monkeypatch):
    now_s = 0.0

    def run():
        nonlocal now_s
        now_s += 4.0

    monkeypatch.setattr(lab.time, "monotonic", lambda: now_s)
    budgets = []
    monkeypatch.setattr(lab, "take_turns", lambda sides, *, budget_s, **form: budgets.append(budget_s))
    turns(small_lab(), {"a": Side(run=run, macs=1.0)}, 9, 10.0, lambda text: None)
    assert budgets == [6.0]


def test_where_frames_share_what_they_see_whole_clips_are_timed():
    lab = small_lab(glance_segments=2, focus_segments=4)
    glance, focus = lab.glance("fp32", compiled=False, batch=1), lab.focus("fp32", compiled=False, batch=5)
    assert (glance.images, focus.images) == (4, 8)
    glance.run()
    focus.run()
