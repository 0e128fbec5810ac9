"""The stream worker: clips open, step and close. And the way of the published files through both workers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.errors import ErrorCode
from operators.media.sampling import sample_indices
from operators.records import FrameBatch, PatchFeatures
from pipeline.config import load
from pipeline.families.clip import LabelForm, finite, generator_of
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from pipeline.run.factories import build_gaze, focus_worker, stream_worker
from pipeline.run.stream_worker import StreamWorker
from pipeline.steering.messages import Advance, OpenRequest, Slice, StepRequest
from tests.parity.files import write_adafocus, write_adafocus_tsm, write_adafocus_v2, write_gfnet
from tests.parity.frames import frames as parity_frames
from tests.support.looking import NAMES, SIDE, drive, make_checkpoint, make_config, make_frames

EXPECTED = Path(__file__).parents[1] / "parity"


def request(frames: FrameBatch, *, row: int = 0, payload: int = 0, clips: int | None = None) -> OpenRequest:
    clip_ids = tuple(window.clip_id for window in frames.windows)[:clips]
    return OpenRequest(frames=Slice(payload, row, row + 1), clip_ids=clip_ids)


def make_stream(**fields: object) -> StreamWorker:
    config = make_config(policy__kind="center")
    gaze = build_gaze(config, make_checkpoint(config), device="cpu")
    return StreamWorker(gaze=gaze, form=LabelForm(class_names=NAMES, **fields), unix_clock=lambda: 1e9 + 30)


def features_of(num_rows: int, seed: int = 0) -> PatchFeatures:
    rng = np.random.default_rng(seed)
    return PatchFeatures(feature=rng.normal(size=(num_rows, 128)).astype(np.float32))


def label_of(stream: StreamWorker, frames: FrameBatch):
    """Opens and steps the one clip of `frames` with made-up features."""
    reply, patches = stream.open((request(frames),), ([frames],))
    clip_id, num_patches = reply.rows[0].clip_id, len(patches.pixels)
    features = features_of(num_patches)
    reply, _ = stream.step((StepRequest(clip_id=clip_id, features=(Slice(0, 0, num_patches),)),), (features,))
    return reply.rows[0].label


@pytest.mark.parametrize("family", ["adafocus", "gfnet"])
def test_views_of_several_clips_reach_the_network_without_a_copy(monkeypatch, family):
    seen: list[torch.Tensor] = []

    def watched(network, **options):
        def forward(views):
            seen.extend(views)
            num_views = sum(map(len, views))
            return torch.zeros(num_views, network.map_channels, 4, 4), torch.zeros(num_views, network.num_features)

        return forward

    monkeypatch.setattr("operators.networks.glance.make_forward", watched)
    small = {"model__family": "gfnet", "model__glance_backbone": "small_focus"} if family == "gfnet" else {}
    config = make_config(policy__kind="center", glance__size_px=SIDE, **small)
    gaze = build_gaze(config, make_checkpoint(config), device="cpu")
    stream = StreamWorker(gaze=gaze, form=LabelForm(class_names=NAMES))
    num_frames = 1 if family == "gfnet" else 6
    batches = [make_frames(num_frames, seed=i) for i in range(3)]
    stream.open(tuple(request(frames, row=i) for i, frames in enumerate(batches)), (batches,))
    # Passes of 8 take a clip and a part of the next; every row is where its FrameBatch has it.
    there = [view.data_ptr() for part in seen for view in part]
    assert there == [view.ctypes.data for frames in batches for view in frames.pixels]


def test_a_reply_says_which_patches_are_whose():
    stream = make_stream()
    first, second = make_frames(6, seed=1), make_frames(4, seed=2)
    reply, patches = stream.open((request(first), request(second, payload=1)), ([first], [second]))
    assert reply.rows == (
        Advance(clip_id="clip1.0", start=0, stop=6),
        Advance(clip_id="clip2.0", start=6, stop=10),
    )
    assert len(patches.pixels) == 10
    np.testing.assert_array_equal(patches.pixels[6:], second.pixels[:, 20:44, 20:44])
    assert reply.work.num_items == 2


def test_only_the_clips_that_are_still_wanted_are_opened():
    stream = make_stream()
    frames = make_frames(4, glance_rows=[[0, 1], [1, 2], [2, 3]])
    wanted = OpenRequest(frames=Slice(0, 0, 1), clip_ids=("clip0.2", "clip0.0"))
    reply, _ = stream.open((wanted,), ([frames],))
    assert [row.clip_id for row in reply.rows] == ["clip0.0", "clip0.2"]


def test_a_request_points_at_one_frame_batch_of_a_payload():
    stream = make_stream()
    payload = [make_frames(3, seed=1), make_frames(5, seed=2)]
    reply, patches = stream.open((request(payload[1], row=1),), (payload,))
    assert [row.clip_id for row in reply.rows] == ["clip2.0"]
    assert len(patches.pixels) == 5


def test_features_may_come_in_pieces_of_several_passes():
    frames = make_frames()
    whole = features_of(6)
    pieces = (
        PatchFeatures(feature=np.concatenate((whole.feature[4:], features_of(3, seed=9).feature))),
        PatchFeatures(feature=np.concatenate((features_of(2, seed=8).feature, whole.feature[:4]))),
    )
    at_once, in_pieces = make_stream(), make_stream()
    for stream in (at_once, in_pieces):
        stream.open((request(frames),), ([frames],))
    one, _ = at_once.step((StepRequest(clip_id="clip0.0", features=(Slice(0, 0, 6),)),), (whole,))
    order = (Slice(1, 2, 6), Slice(0, 0, 2))
    other, _ = in_pieces.step((StepRequest(clip_id="clip0.0", features=order),), pieces)
    assert one.rows[0].label.topk == other.rows[0].label.topk


def test_a_closed_clip_is_forgotten_and_so_is_one_that_has_its_label():
    stream = make_stream()
    frames = make_frames()
    stream.open((request(frames),), ([frames],))
    stream.close(("clip0.0", "never opened"))
    step = StepRequest(clip_id="clip0.0", features=(Slice(0, 0, 6),))
    with pytest.raises(KeyError):
        stream.step((step,), (features_of(6),))
    assert label_of(stream, frames) is not None
    with pytest.raises(KeyError):
        stream.step((step,), (features_of(6),))


def test_a_clip_that_is_opened_again_starts_anew():
    stream, frames = make_stream(), make_frames()
    stream.open((request(frames),), ([frames],))
    again = label_of(stream, frames)
    assert again.topk == label_of(make_stream(), frames).topk
    assert again.frames_focused == 6


def test_a_label_says_what_it_knows_of_its_clip():
    frames = make_frames()
    source = dataclasses.replace(frames.source, truth=("class 3",))
    label = label_of(make_stream(topk=3), dataclasses.replace(frames, source=source))
    assert (label.video_id, label.clip_id, label.source_uri) == ("video0", "clip0.0", "/videos/0.mp4")
    assert (label.start_s, label.end_s, label.truth, label.coverage) == (0.0, 1.0, ("class 3",), 1.0)
    assert (label.camera, label.received_at) == (None, None)
    assert (label.width, label.height, label.rotation, label.num_corrupt) == (128, 64, 0, 0)
    # From opening the source to the label.
    assert (label.decode_s, label.latency_s) == (0.5, 30.0)


def test_scores_are_probabilities_and_the_best_come_first():
    label = label_of(make_stream(topk=1000), make_frames())
    names, ids, scores = zip(*label.topk, strict=True)
    assert sum(scores) == pytest.approx(1.0, abs=1e-5)
    assert list(scores) == sorted(scores, reverse=True) and len(set(scores)) == 7
    assert names == tuple(f"class {i}" for i in ids) and sorted(ids) == list(range(7))
    assert (label.label, label.label_id, label.score) == label.topk[0]
    assert len(label_of(make_stream(topk=2), make_frames()).topk) == 2


def test_logits_are_in_the_label_only_where_they_are_asked_for():
    plain = label_of(make_stream(), make_frames())
    asked = label_of(make_stream(logits=True, step_logits=True), make_frames())
    assert (plain.logits, plain.step_logits) == (None, None)
    assert (asked.logits.shape, asked.step_logits.shape) == ((7,), (6, 7))
    np.testing.assert_array_equal(asked.step_logits[-1], asked.logits)
    assert asked.logits.dtype == np.float32


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_a_failed_row_and_no_label(wrong):
    form = LabelForm(class_names=NAMES, logits=True, step_logits=True)
    logits = torch.arange(14.0).reshape(2, 7)
    assert finite(logits) and form.answer(logits)["label_id"] == 6
    logits[1, 3] = wrong
    assert not finite(logits)
    answer = form.answer(logits)
    assert answer.keys() == {"error_code", "error"} and answer["error_code"] is ErrorCode.NOT_FINITE
    assert answer["error_code"] == "not_finite" and "compute.precision=fp32" in answer["error"]


@pytest.mark.parametrize("where", ["feature", "bias"])
def test_a_clip_whose_networks_give_nan_has_a_row_that_says_so(where):
    config = make_config(policy__kind="center")
    checkpoint = make_checkpoint(config)
    if where == "bias":
        next(t for k, t in checkpoint.sections["classifier"].items() if k.endswith("bias")).fill_(float("nan"))
    gaze = build_gaze(config, checkpoint, device="cpu")
    stream, frames = StreamWorker(gaze=gaze, form=LabelForm(class_names=NAMES)), make_frames()
    stream.open((request(frames),), ([frames],))
    features = features_of(6)
    if where == "feature":
        features.feature[2, 5] = float("nan")
    reply, _ = stream.step((StepRequest(clip_id="clip0.0", features=(Slice(0, 0, 6),)),), (features,))
    label = reply.rows[0].label
    assert label.error_code == "not_finite"
    assert (label.label, label.label_id, label.score, label.topk) == (None, None, None, ())
    # What is known of it is in its row all the same.
    assert (label.width, label.end_s, label.frames_focused) == (128, 1.0, 6)


@pytest.mark.parametrize("step_logits", [False, True])
def test_the_answers_of_a_call_leave_the_device_in_one_copy(monkeypatch, step_logits):
    stream = make_stream(step_logits=step_logits)
    batches = [make_frames(seed=seed) for seed in range(3)]
    reply, _ = stream.open(tuple(request(frames, row=row) for row, frames in enumerate(batches)), (batches,))
    to_cpu, copies = torch.Tensor.cpu, []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(x) or to_cpu(x))
    asked = tuple(StepRequest(clip_id=row.clip_id, features=(Slice(0, row.start, row.stop),)) for row in reply.rows)
    reply, _ = stream.step(asked, (features_of(18),))
    assert len(copies) == 1
    together = [row.label.topk for row in reply.rows]
    monkeypatch.undo()
    stream = make_stream()
    for number, (frames, topk) in enumerate(zip(batches, together, strict=True)):
        reply, _ = stream.open((request(frames),), ([frames],))
        own = Slice(0, 6 * number, 6 * number + 6)
        reply, _ = stream.step((StepRequest(clip_id=reply.rows[0].clip_id, features=(own,)),), (features_of(18),))
        np.testing.assert_allclose([s for *_, s in reply.rows[0].label.topk], [s for *_, s in topk], atol=1e-6)


def test_random_numbers_belong_to_the_clip_and_the_seed():
    def draw(seed: int, clip_id: str) -> float:
        return torch.rand(1, generator=generator_of(seed, clip_id)).item()

    assert draw(1, "a") == draw(1, "a")
    assert len({draw(1, "a"), draw(2, "a"), draw(1, "b")}) == 3


# The published files, from the command's settings to labels, through both workers.


def published(preset: str, path: Path, batches: list[FrameBatch], *settings: str, clips_per_call: int = 1000):
    config = load(
        preset,
        settings=[
            "output.logits=true", "output.step_logits=true", "compute.device=cpu", "compute.precision=fp32", *settings
        ],
        flags={"model.checkpoint": str(path)},
    )
    plan = resolve(config, Machine(num_cores=2, memory_bytes=8 << 30))
    shared = {"config": plan.config.model_dump(mode="json"), "model_id": plan.model_id, "device": "cpu"}
    shared["num_threads"] = torch.get_num_threads()
    stream = stream_worker(**shared, class_names=plan.class_names)
    return drive(stream, focus_worker(**shared, batch_size=plan.rows_per_batch), batches, clips_per_call=clips_per_call)


def centre(pixels: np.ndarray) -> np.ndarray:
    top, left = (pixels.shape[1] - 224) // 2, (pixels.shape[2] - 224) // 2
    return np.ascontiguousarray(pixels[:, top : top + 224, left : left + 224])


def of_pixels(pixels: np.ndarray, glance_rows=None, focus_rows=None, seed: int = 0) -> FrameBatch:
    rows = [glance_rows or range(len(pixels))]
    frames = make_frames(len(pixels), seed=seed, glance_rows=rows, focus_rows=[focus_rows] if focus_rows else rows)
    return dataclasses.replace(frames, pixels=pixels)


def test_an_adafocus_file_is_labelled_as_published_in_rounds_too(tmp_path: Path):
    expected = np.load(EXPECTED / "adafocus_p128_c200_a49.npz")
    write_adafocus(tmp_path / "128s3_checkpoint.pth.tar")
    rounds = ("stop.kind=confidence", "stop.thresholds=[2.0]", "stop.steps_per_round=5")
    batches = [of_pixels(centre(parity_frames()))]
    label = published("adafocus_activitynet", tmp_path / "128s3_checkpoint.pth.tar", batches, *rounds).only
    np.testing.assert_allclose(label.step_logits, expected["logits"], atol=1e-3)
    cells = [(round(p.y * 224) // 16 * 7 + round(p.x * 224) // 16) for p in label.patches]
    assert cells == expected["actions"].tolist()
    assert label.gmacs == pytest.approx(26.522, abs=5e-4)


def test_a_gfnet_file_is_labelled_as_published_after_every_look(tmp_path: Path):
    expected = np.load(EXPECTED / "gfnet_resnet50_p96.npz")
    write_gfnet(tmp_path / "resnet50_patch_size_96_T_5.pth.tar")
    images = parity_frames(4, 224, 224, seed=5)
    batches = [of_pixels(images[i : i + 1], seed=i) for i in range(4)]
    seen = published(
        "gfnet_imagenet_resnet50", tmp_path / "resnet50_patch_size_96_T_5.pth.tar", batches, clips_per_call=3
    )
    for i in range(4):
        label = seen.labels[f"clip{i}.0"]
        np.testing.assert_allclose(label.step_logits, expected["logits"][:, i], atol=1e-3)
        corners = np.floor(expected["actions"][:, i] * (224 - 96))
        np.testing.assert_array_equal([(round(p.y * 224), round(p.x * 224)) for p in label.patches], corners)
        assert (label.gmacs, label.stopped_at) == (pytest.approx(3.990, abs=5e-4), 5)


def test_an_adafocus_tsm_file_is_labelled_as_published(tmp_path: Path):
    expected = np.load(EXPECTED / "adafocus_tsm_p144.npz")
    write_adafocus_tsm(tmp_path / "144x144.pth.tar")
    glance_rows = [int(24 / 8 / 2 + 24 / 8 * i) for i in range(8)]
    focus_rows = [int(24 / 12 / 2 + 24 / 12 * i) for i in range(12)]
    pixels = centre(parity_frames(24, 256, 256, seed=21))
    batches = [of_pixels(pixels, glance_rows, focus_rows)]
    label = published("adafocus_tsm_something_v1", tmp_path / "144x144.pth.tar", batches).only
    spread = expected["pred"].std()
    np.testing.assert_allclose(label.logits / spread, expected["pred"][0] / spread, atol=1e-3)
    y, x = np.floor(expected["action"][0] * (224 - 144))
    assert {(round(p.y * 224), round(p.x * 224)) for p in label.patches} == {(y, x)}
    assert [p.frame for p in label.patches] == [10 * row for row in focus_rows]
    assert label.gmacs == pytest.approx(23.535, abs=5e-4)


V2 = {
    # glance network: file of what is expected, length of the second part of the clip, patch, settings of the preset
    "mbv2": ("adafocus_v2_p128_c200", 20, 128, ()),
    "res50": ("adafocus_v2_resnet50_p96_c200", 13, 96, (
        "model.glance_backbone=resnet50", "glance.size_px=96", "focus.patch_px=96",
    )),
}  # fmt: skip


@pytest.mark.parametrize(("compile", "every"), [("off", 5), ("on", 16)])
@pytest.mark.parametrize("glance", V2)
def test_an_adafocus_v2_file_is_labelled_as_published_in_the_order_that_its_networks_are_fed(
    tmp_path: Path, glance: str, compile: str, every: int
):
    file, behind, patch_px, settings = V2[glance]
    expected = np.load(EXPECTED / f"{file}.npz")
    write_adafocus_v2(tmp_path / "v2.pth.tar", glance)
    whole = np.concatenate((parity_frames(20, seed=33), parity_frames(behind, seed=34)))
    sampled = sample_indices(len(whole), 16)
    frames = dataclasses.replace(of_pixels(centre(whole[sampled])), frame_index=sampled)
    rounds = ("stop.kind=confidence", "stop.thresholds=[1e8]", f"stop.steps_per_round={every}")
    settings = (*settings, f"compute.compile={compile}", *rounds)
    label = published("adafocus_v2_activitynet", tmp_path / "v2.pth.tar", [frames], *settings).only
    assert [place.frame for place in label.patches] == expected["frames"].tolist()
    corners = [(place.y * 224, place.x * 224) for place in label.patches]
    np.testing.assert_allclose(corners, expected["actions"] * (224 - patch_px), atol=0.01, rtol=0)
    sides = [(place.h * 224, place.w * 224) for place in label.patches]
    np.testing.assert_allclose(sides, patch_px, atol=1e-6)
    spread = expected["logits"].std(axis=1, keepdims=True)
    np.testing.assert_allclose(label.step_logits / spread, expected["logits"] / spread, atol=1e-3, rtol=0)
    # At most 3 MACs in a billion are counted otherwise.
    assert label.step_gmacs == pytest.approx(expected["gmacs"], rel=3e-9)
