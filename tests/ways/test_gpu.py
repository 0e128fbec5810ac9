"""What runs on a GPU gives what it gives on a CPU. Nothing here can be tried without one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from operators.networks.backbones import build
from operators.networks.compiled import CudaGraphs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.networks.tensors import Upload
from operators.records import FrameBatch, PatchBatch
from operators.weights.checkpoints import Checkpoint
from operators.weights.header import SkipSpec
from pipeline.config import Config
from pipeline.families.clip import LabelForm
from pipeline.families.parts import build_focuser, skip_head
from pipeline.run.factories import build_gaze
from pipeline.run.focus_worker import FocusWorker
from pipeline.run.stream_worker import StreamWorker
from tests.support.looking import NAMES, Look, drive, make_checkpoint, make_config, make_frames

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def exact():
    """fp32 is no TF32 in any worker. Of matrix products that is torch's own default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(autouse=True)
def recorded(caplog):
    """Every graph that is asked for is recorded. Without one the passes go kernel by kernel, and answer alike."""
    yield
    assert not [record.message for record in caplog.get_records("call") if "no graph of them" in record.message]


def noise(rows: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, side, side, 3), dtype=np.uint8)


def patches(rows: int, side: int, seed: int = 0) -> PatchBatch:
    return PatchBatch(pixels=noise(rows, side, seed))


def test_what_goes_up_arrives_whole_although_its_pinned_memory_is_used_again():
    upload, busy = Upload("cuda"), torch.zeros(4096, 4096, device="cuda")
    views = [noise(40 + n % 3, 112, seed=n) for n in range(24)]
    arrived = []
    for view in views:
        # The device is behind, so that the copies of many calls wait at once.
        busy = busy @ busy
        arrived.append(upload.join([view[:7], view[7:]], 48)[0].clone())
    for view, x in zip(views, arrived, strict=True):
        got = x.permute(0, 2, 3, 1).cpu().numpy()
        np.testing.assert_array_equal(got[: len(view)], view)
        assert not got[len(view) :].any()


@pytest.mark.parametrize("resize", ["nearest", "antialias", "bilinear", "bicubic"])
@pytest.mark.parametrize("compiled", [False, True])
def test_resized_views_are_glanced_at_alike(resize, compiled):
    torch.manual_seed(0)
    network = build("small_glance", num_classes=5).eval()
    options = {"size_px": 32, "resize": resize, "compiled": compiled, "max_batch": 8}
    here = Glancer(network=copy.deepcopy(network), **options)
    there = Glancer(network=network, device="cuda", shapes=(1, 2, 4, 8), **options)
    for seed in range(CudaGraphs.RECORDED_AT + 1):
        views = noise(11, 80, seed)
        one, other = here(views), there(views)
        for name in ("feature_map", "feature", "logits"):
            ours, theirs = getattr(one, name), getattr(other, name).cpu()
            torch.testing.assert_close(theirs, ours, atol=1e-3 * float(ours.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("name", ["small_focus", "mobilenet_v2", "mobilenetv3_large_100", "resnet50"])
@pytest.mark.parametrize("segments", [0, 4])
def test_bf16_in_recorded_passes_that_overlap_stays_close_to_fp32(name, segments):
    torch.manual_seed(0)
    network = build(name, num_segments=segments).eval()
    full = Focuser(network=copy.deepcopy(network), device="cuda", max_batch=256)
    options = {"device": "cuda", "dtype": torch.bfloat16, "compiled": True, "max_batch": 64}
    half = Focuser(network=network, shapes=() if segments else (16, 32, 48, 64), **options)
    for rows in (64, 100, 64, 28, 64, 100, 132, 28):
        batch = patches(rows, 64, seed=rows)
        exact, rounded = full(batch).feature, half(batch).feature
        assert exact.shape == rounded.shape and np.isfinite(rounded).all()
        alike = torch.cosine_similarity(torch.from_numpy(exact), torch.from_numpy(rounded))
        assert alike.min() > 0.99


def with_skip_head(checkpoint: Checkpoint) -> Checkpoint:
    spec = SkipSpec(policy_hidden=256, classifier_hidden=128, price=0.02, sees="classifier")
    torch.manual_seed(4)
    header = dataclasses.replace(checkpoint.header, skip=spec)
    return Checkpoint(header=header, sections={**checkpoint.sections, "skip": skip_head(spec).state_dict()})


IMAGE = {
    "sampling__num_frames": 1, "model__family": "gfnet", "model__glance_backbone": "small_focus",
    "model__num_looks": 4, "glance__size_px": 24,
}  # fmt: skip
MOTION = {"sampling__num_frames": 4, "sampling__num_focus_frames": 6, "model__family": "adafocus_tsm"}
V2 = {"sampling__num_frames": 16, "model__family": "adafocus_v2"}
KINDS = {
    "adafocus": {},
    "adafocus that stops": {"stop__kind": "confidence", "stop__thresholds": [0.5]},
    "adafocus that skips": {"skip__kind": "learned"},
    "adafocus at random": {"policy__kind": "random", "skip__kind": "uniform", "skip__share": 0.5},
    "gfnet": IMAGE,
    "adafocus_v2": V2,
    "adafocus_tsm": MOTION,
}


def frames_of(config: Config) -> list[FrameBatch]:
    if config.model.family == "gfnet":
        return [make_frames(1, seed=seed) for seed in range(7)]
    if config.model.family == "adafocus_tsm":
        rows = {"glance_rows": [(1, 3, 6, 8)], "focus_rows": [(0, 2, 4, 5, 7, 9)]}
        return [make_frames(10, seed=seed, **rows) for seed in range(7)]
    if config.model.family == "adafocus_v2":
        return [make_frames(16, seed=seed) for seed in range(7)]
    return [make_frames(6, seed=seed) for seed in range(7)]


def look_on(device: str, config: Config, frames: Sequence[FrameBatch]) -> Look:
    checkpoint = make_checkpoint(config)
    if config.skip.kind == "learned":
        checkpoint = with_skip_head(checkpoint)
    gaze = build_gaze(config, checkpoint, device=device, glance_batch=8)
    form = LabelForm(class_names=NAMES, logits=True, step_logits=True)
    stream = StreamWorker(gaze=gaze, form=form, seed=config.compute.seed, unix_clock=lambda: 1e9 + 100.0)
    focuser = build_focuser(config, checkpoint, device=device, max_batch=16)
    return drive(stream, FocusWorker(focuser=focuser), frames, clips_per_call=2)


@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("kind", KINDS)
def test_clips_get_the_labels_and_places_of_a_cpu(kind, compile):
    config = make_config(**KINDS[kind], compute__compile=compile)
    frames = frames_of(config)
    here, there = look_on("cpu", config, frames), look_on("cuda", config, frames)
    assert here.labels.keys() == there.labels.keys() and len(here.labels) == len(frames)
    for clip_id, ours in here.labels.items():
        theirs = there.labels[clip_id]
        np.testing.assert_allclose(theirs.step_logits, ours.step_logits, atol=5e-3)
        places = [[dataclasses.astuple(place) for place in label.patches] for label in (theirs, ours)]
        # AdaFocusV2's lie between pixels, and follow from the last bits; a whole pixel is 1/64.
        np.testing.assert_allclose(*places, atol=1e-3, rtol=0)
        assert (theirs.stopped_at, theirs.frames_focused, theirs.gmacs) == (
            ours.stopped_at, ours.frames_focused, ours.gmacs
        )  # fmt: skip
