"""`bench compute` in its quick form: the figures that others read, each against its limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from operators.cost import network_macs
from pipeline.bench.compute import Lab, bench_compute
from pipeline.bench.figures import Report, read, told, write
from pipeline.tuning import Work

PUBLISHED = Work(glance="mobilenet_v2", glance_px=224, focus="resnet50", patch_px=128)


@pytest.fixture(scope="module")
def report() -> Report:
    return bench_compute(say=lambda text: None, quick=True, work=PUBLISHED, full_px=224)


@pytest.mark.parametrize(("network", "goal"), [("focus", 0.9), ("glance", 0.6)])
def test_the_share_is_the_networks_rate_over_the_products(report, network, goal):
    share = report.figure(f"compute.{network}_share_of_gemm")
    rate, product = report.figure(f"compute.{network}_rate"), report.figure("compute.gemm")
    assert (share.limit, share.goal) == (1.0, goal)
    assert share.met == (share.value >= goal)
    expected = np.median(np.array(rate.samples) / np.array(product.samples))
    assert share.value == pytest.approx(expected, rel=1e-6)
    assert rate.limit == product.value


def test_how_it_was_run_is_told_beside_the_figures(report, tmp_path):
    assert report.settings["precision"] in ("fp32", "bf16") and report.settings["threads"] >= 1
    assert report.environment["torch"].startswith(torch.__version__.split("+")[0])
    assert report.figure("compute.gemm").about.startswith(f"2048^3 in {report.settings['precision']}")
    assert report.headline in told(report)
    write(tmp_path / "compute.json", report)
    assert read(tmp_path / "compute.json").figures == report.figures


def small_lab(**segments: int) -> Lab:
    work = Work(glance="small_glance", glance_px=16, focus="small_focus", patch_px=16, **segments)
    return Lab(work, device="cpu", threads=1, frames=3)


def test_a_side_counts_the_multiplications_of_all_its_images():
    lab = small_lab()
    focus = lab.focus("fp32", compiled=False, batch=5)
    # A pass is filled: five patches where a clip has three.
    assert (focus.images, focus.macs) == (5, 5 * network_macs("small_focus", 16))
    glance = lab.glance("fp32", compiled=False, batch=2)
    assert (glance.images, glance.macs) == (3, 3 * network_macs("small_glance", 16))
    assert lab.product("fp32").macs == 2048**3


def test_where_frames_share_what_they_see_whole_clips_are_timed():
    lab = small_lab(glance_segments=2, focus_segments=4)
    glance, focus = lab.glance("fp32", compiled=False, batch=1), lab.focus("fp32", compiled=False, batch=5)
    assert (glance.images, focus.images) == (4, 8)
    glance.run()
    focus.run()
