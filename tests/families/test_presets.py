"""Presets: each loads, and becomes a run with random weights where no checkpoint is given."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from operators.errors import ConfigError
from operators.weights.checkpoints import Checkpoint, save
from pipeline.config import Config, load, presets
from pipeline.families.calibrated import skip_price
from pipeline.families.gfnet.family import GFNET
from pipeline.families.parts import build_cost
from pipeline.families.untrained import untrained
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from pipeline.plan.run_plan import RunPlan
from pipeline.steering.scheduler import STREAM

ROOT = Path(__file__).parents[2]
MACHINE = Machine(num_cores=2, memory_bytes=8 << 30)
GFNETS = {
    "resnet50": 96,
    "mobilenetv3_large_100": 96,
    "mobilenetv3_large_125": 128,
    "densenet121": 96,
    "densenet169": 96,
    "densenet201": 96,
    "efficientnet_b2": 128,
    "efficientnet_b3": 144,
    "regnety_600m": 96,
    "regnety_800m": 96,
    "regnety_1600m": 96,
}
"""By backbone: the patch size."""
VIEWS = {
    "gfnet_imagenet_efficientnet_b2": (297, 260, "bicubic"),
    "gfnet_imagenet_efficientnet_b3": (331, 300, "bicubic"),
}
"""By preset, where it is another than that of all others."""
PUBLISHED = {
    # family, glance and focus backbone, classes, patch, frames glanced at, frames focused on where they are others
    "adafocus_activitynet": ("adafocus", "mobilenet_v2", "resnet50", 200, 128, 16, None),
    "adafocus_fcvid": ("adafocus", "mobilenet_v2", "resnet50", 239, 128, 16, None),
    "adafocus_minikinetics": ("adafocus", "mobilenet_v2", "resnet50", 200, 128, 16, None),
    "adafocus_v2_activitynet": ("adafocus_v2", "mobilenet_v2", "resnet50", 200, 128, 16, None),
    "adafocus_v2_fcvid": ("adafocus_v2", "mobilenet_v2", "resnet50", 239, 128, 16, None),
    "adafocus_v2_minikinetics": ("adafocus_v2", "mobilenet_v2", "resnet50", 200, 128, 16, None),
    "adafocus_tsm_something_v1": ("adafocus_tsm", "mobilenet_v2", "resnet50", 174, 144, 8, 12),
    "adafocus_tsm_something_v2": ("adafocus_tsm", "mobilenet_v2", "resnet50", 174, 144, 8, 12),
    **{
        f"gfnet_imagenet_{backbone}": ("gfnet", backbone, backbone, 1000, patch_px, 1, None)
        for backbone, patch_px in GFNETS.items()
    },
}  # fmt: skip


def plan_of(name: str, *settings: str) -> RunPlan:
    return resolve(load(name, settings=["model.untrained=true", "compute.device=cpu", *settings]), MACHINE)


def test_the_promised_presets_are_there():
    assert {*PUBLISHED, "demo"} <= set(presets())


@pytest.mark.parametrize("name", presets())
def test_every_preset_becomes_a_run(name: str):
    plan = plan_of(name)
    assert "auto" not in str(plan.config.compute)
    assert plan.opening_line().count("UNTRAINED") == (not plan.is_trained)
    if name not in PUBLISHED:
        return
    family, glance, focus, classes, patch_px, num_frames, num_focus = PUBLISHED[name]
    config, header = plan.config, plan.header
    assert (header.family, header.glance.name, header.focus.name) == (family, glance, focus)
    assert (len(plan.class_names), config.focus.patch_px) == (classes, patch_px)
    assert (config.sampling.num_frames, config.sampling.num_focus_frames) == (num_frames, num_focus)
    view = config.view
    assert (view.resize_px, view.crop_px, view.interpolation) == VIEWS.get(name, (256, 224, "bilinear"))
    assert not view.square_pixels


def test_without_a_checkpoint_a_published_preset_says_what_it_needs():
    wanted = r"no weights are given for the gfnet model: add --checkpoint FILE, or .* --config demo or --config live$"
    with pytest.raises(ConfigError, match=wanted):
        resolve(load("gfnet_imagenet_resnet50"), MACHINE)


def test_a_bare_name_is_the_preset_whatever_lies_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "mine", "mine.yaml"):
        (tmp_path / name).write_text("focus: {patch_px: 48}")
    assert load("demo").model.checkpoint is not None
    for path in ("./demo", "./mine", "mine.yaml", str(tmp_path / "mine")):
        assert load(path).focus.patch_px == 48
    with pytest.raises(ConfigError, match=r"no preset is named mine; if the file here is meant, write \./mine"):
        load("mine")


def test_the_tsm_presets_cost_what_was_published_at_every_patch_size():
    plan = plan_of("adafocus_tsm_something_v2")
    spent = []
    for patch_px in (144, 160, 176):
        cost = build_cost(plan.config.replaced({"focus.patch_px": patch_px}), plan.header)
        spent.append(cost.gmacs(glanced=8, focused=12, classified=1, decided=1))
    assert spent == pytest.approx([23.535, 27.467, 33.717], abs=6e-4)
    assert (plan.config.sampling.pad, plan.rows_per_batch) == ("first", 24)


def test_gfnet_at_128_px_takes_one_setting_and_costs_what_was_published_after_every_look():
    plan = plan_of("gfnet_imagenet_resnet50", "focus.patch_px=128")
    assert plan.config.glance.size_px == 128
    cost = build_cost(plan.config, plan.header)
    spent = [cost.gmacs(glanced=1, focused=k - 1, decided=k - 1, classified=k) for k in range(1, 6)]
    assert spent == pytest.approx([1.345, 2.766, 4.186, 5.607, 7.027], abs=6e-4)


@pytest.mark.parametrize(
    ("backbone", "patch_px", "gmacs"),
    [
        ("densenet121", 96, [0.5277, 1.0827, 1.6377, 2.1927, 2.7477]),
        ("densenet169", 96, [0.6262, 1.2914, 1.9566, 2.6219, 3.2871]),
        ("densenet201", 96, [0.7980, 1.6399, 2.4817, 3.3235, 4.1653]),
        ("efficientnet_b2", 128, [0.2170, 0.4367, 0.6578, 0.8803]),
        ("efficientnet_b3", 144, [0.4325, 0.8683, 1.3057, 1.7447]),
        ("regnety_600m", 96, [0.1177, 0.2354, 0.3531, 0.4708, 0.5885]),
        ("regnety_800m", 96, [0.1543, 0.3084, 0.4626, 0.6168, 0.7710]),
        ("regnety_1600m", 96, [0.3050, 0.6098, 0.9146, 1.2194, 1.5242]),
        ("mobilenetv3_large_100", 96, [0.0431, 0.0882, 0.1345]),
        ("mobilenetv3_large_125", 128, [0.1195, 0.2415, 0.3647]),
    ],
)
def test_the_gfnet_presets_cost_what_was_published_after_every_look(backbone: str, patch_px: int, gmacs: list[float]):
    config = load(f"gfnet_imagenet_{backbone}", settings=[f"glance.size_px={patch_px}"])
    assert config.patch_px == patch_px
    cost = build_cost(config, GFNET.untrained_header(config))
    spent = [cost.gmacs(glanced=1, focused=k - 1, decided=k - 1, classified=k) for k in range(1, len(gmacs) + 1)]
    assert config.model.num_looks == len(gmacs)
    assert spent == pytest.approx(gmacs, abs=6e-5)


@pytest.mark.parametrize("family", ["adafocus", "adafocus_v2", "gfnet", "adafocus_tsm"])
def test_random_weights_follow_from_the_seed_and_leave_torchs_own_numbers_alone(family: str):
    def made(seed: int) -> Checkpoint:
        glance = "small_focus" if family == "gfnet" else "small_glance"
        settings = [f"model.family={family}", f"model.glance_backbone={glance}", f"compute.seed={seed}"]
        return untrained(load("demo", settings=[*settings, "sampling.num_focus_frames=12"]))

    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    first = made(1)
    assert torch.equal(torch.rand(1), wanted)
    assert first.model_id == made(1).model_id != made(2).model_id


def test_random_weights_saved_as_a_checkpoint_say_by_themselves_how_to_run(tmp_path):
    sizes = ["glance.size_px=32", "view.crop_px=96", "view.resize_px=96", "focus.patch_px=40", "sampling.num_frames=5"]
    small = ["model.glance_backbone=small_glance", "model.focus_backbone=small_focus"]
    made = untrained(load(settings=[*sizes, *small]))
    save(tmp_path / "model.safetensors", made)
    plan = resolve(load(flags={"model.checkpoint": str(tmp_path / "model.safetensors")}), MACHINE)
    config = plan.config
    assert (config.sampling.num_frames, config.focus.patch_px, config.glance.size_px, config.view.crop_px) == (
        5,
        40,
        32,
        96,
    )
    assert plan.model_id == made.model_id and plan.is_trained


def test_workers_know_what_was_set_from_what_was_not():
    # A share that nobody asked for, taken for a wish, moved the learned skip away from its own price.
    plan = resolve(load("demo", settings=["skip.kind=learned"]), MACHINE)
    (spec,) = (spec for spec in plan.worker_specs() if spec.stage == STREAM)
    config = Config.model_validate(spec.arguments["config"])
    assert config.given() == plan.config.given()
    assert config == plan.config
    assert skip_price(config, plan.header) == plan.header.skip.price


@pytest.mark.parametrize(("sees_gpu", "device"), [(False, "cpu"), (True, "cuda")])
def test_a_gpu_is_taken_only_by_a_torch_that_can_use_it(monkeypatch, sees_gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees_gpu)
    config = load("demo", settings=["compute.precision=fp32", "compute.compile=off"])
    assert resolve(config, replace(MACHINE, num_gpus=1)).placement.device == device


def test_a_gpu_that_is_not_there_is_refused_in_a_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"compute.device=cuda: torch sees no GPU here; take auto or cpu"):
        resolve(load("demo", settings=["compute.device=cuda"]), replace(MACHINE, num_gpus=1))
    with pytest.raises(ConfigError, match=r"compute.device=cuda: 10.0.0.1:6379 has no GPU"):
        resolve(load("demo", settings=["compute.device=cuda", "run.ray_address=10.0.0.1:6379"]), MACHINE)


@pytest.mark.parametrize(("precision", "has_kernels"), [("bf16", True), ("bf16", False), ("fp32", True)])
def test_a_table_that_was_begun_with_a_gpu_goes_on_without_one_and_the_other_way_round(
    monkeypatch, precision, has_kernels
):
    config, gpu = load("demo"), replace(MACHINE, num_gpus=1)

    def plan(machine, table=None):
        with monkeypatch.context() as changed:
            changed.setattr(torch.cuda, "is_available", lambda: machine.num_gpus > 0)
            if not machine.num_gpus:
                changed.setattr("pipeline.plan.resolve.can_compile", lambda device, dtype: has_kernels)
            asked = config if table else config.filled_in({"compute.precision": precision})
            return resolve(asked, machine, remembered=table and table["config"])

    first = plan(gpu)
    assert first.placement.device == "cuda"
    later = plan(MACHINE, first.identity())
    assert (later.placement.device, later.config.compute.precision) == ("cpu", precision)
    assert later.tuned.is_compiled == has_kernels
    assert later.identity() == first.identity()
    # With other threads and other workers too, and back on the GPU.
    many = plan(replace(MACHINE, num_cores=64), first.identity())
    assert many.identity() == plan(gpu, many.identity()).identity() == first.identity()


def test_labels_differ_in_identity_by_their_precision_and_in_half_precision_by_compilation():
    def identity(*settings: str):
        return plan_of("demo", *settings).identity()["config_id"]

    whole, half = "compute.precision=fp32", "compute.precision=bf16"
    assert identity(whole, "compute.compile=off") == identity(whole, "compute.compile=on")
    assert len({identity(whole), identity(half, "compute.compile=off"), identity(half, "compute.compile=on")}) == 3


def test_a_tables_precision_that_cannot_be_had_here_is_said_with_the_way_out(monkeypatch):
    monkeypatch.setattr("pipeline.plan.resolve.can_compute", lambda precision: precision != "fp16")
    table = {"compute.precision": "fp16"}
    with pytest.raises(ConfigError, match=r"made with compute.precision=fp16.*--no-resume or another -o"):
        resolve(load("demo"), MACHINE, remembered=table)
    with pytest.raises(ConfigError, match=r"compute.precision=fp16: torch cannot compute in it on this CPU; take auto"):
        resolve(load("demo", settings=["compute.precision=fp16"]), MACHINE, remembered=table)


def test_in_one_process_there_is_one_worker_of_each_stage_and_torch_has_one_number_of_threads():
    machine = Machine(num_cores=64, memory_bytes=64 << 30)
    plan = resolve(load("demo", settings=["run.executor=inline"]), machine)
    assert {spec.stage: spec.count for spec in plan.worker_specs()} == {"source": 1, "stream": 1, "focus": 1}
    assert [spec.arguments["num_threads"] for spec in plan.worker_specs()] == [32, 32, 32]
    given = resolve(load("demo", settings=["run.executor=inline", "run.source_workers=3", "run.threads=8"]), machine)
    assert [spec.count for spec in given.worker_specs()] == [3, 1, 1]
    assert [spec.arguments["num_threads"] for spec in given.worker_specs()] == [4, 4, 4]
    # On two cores it is as it is under Ray, so that both give the same bits.
    two = resolve(load("demo", settings=["run.executor=inline"]), MACHINE)
    assert [spec.arguments["num_threads"] for spec in two.worker_specs()] == [1, 1, 1]


def test_no_worker_loads_torchs_compiler_which_takes_longer_than_the_rest_of_its_start():
    program = """
import sys
from pipeline.steering.executor import make_worker
from tests.families.test_presets import plan_of
plan = plan_of("demo", "compute.precision=fp32", "compute.compile=on", "skip.kind=learned")
for spec in plan.worker_specs():
    if spec.stage in ("stream", "focus"):
        make_worker(spec.factory, spec.arguments)
        print(spec.stage, [name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["stream []", "focus []"]
