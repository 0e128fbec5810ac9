"""How AdaFocusV2 looks: frames in the published order, places between pixels, and a maximum over what was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from operators.networks.classify import MaxClassifier
from operators.networks.glance import Glancer
from operators.networks.tensors import IMAGENET
from operators.records import FrameBatch
from pipeline.families.parts import learned_policy
from tests.support.looking import SIDE, Look, assert_same, look, make_checkpoint, make_config, make_frames

ORDER = [7, 0, 15, 3, 11, 1, 5, 9, 13, 2, 4, 6, 8, 10, 12, 14]
V2 = {"model__family": "adafocus_v2", "sampling__num_frames": 16}
# MACs by hand, batch norms included: glance at 32 px and focus at 24 px or at the whole view of 64 px, each with a head
# of seven classes as published; policy: 64*48*64 + 4096*256 + 3*256*512 + 256*2, and 64 + 256 channels of batch norm;
# classifier: 176*128 + 128 + 128*7.
GLANCE, FOCUS, FOCUS_FULL = 3_981_464 + 48 * 7, 11_654_200 + 128 * 7, 82_870_840 + 128 * 7
POLICY, CLASSIFY = 196_608 + 1_048_576 + 393_216 + 512 + 64 + 256, 22_528 + 128 + 896


def clips(count: int) -> list[FrameBatch]:
    return [make_frames(16, seed=seed) for seed in range(count)]


def corners_of(seen: Look) -> np.ndarray:
    return np.array([(place.y * SIDE, place.x * SIDE) for place in seen.only.patches])


def resampled(view: np.ndarray, y: float, x: float, side: int) -> np.ndarray:
    """The patch at a real-valued corner, pixel by pixel, as the grey levels that they are."""
    patch = np.empty((side, side, 3))
    for i in range(side):
        for j in range(side):
            row, column = min(int(y + i), SIDE - 2), min(int(x + j), SIDE - 2)
            down, right = y + i - row, x + j - column
            upper = view[row, column] * (1 - right) + view[row, column + 1] * right
            lower = view[row + 1, column] * (1 - right) + view[row + 1, column + 1] * right
            patch[i, j] = upper * (1 - down) + lower * down
    return patch


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"policy__kind": "random"},
        {"policy__kind": "full"},
        {
            "stop__kind": "confidence", "stop__confidence": "logit", "stop__thresholds": [1.5],
            "stop__steps_per_round": 3,
        },
    ],
)  # fmt: skip
def test_clips_looked_at_together_get_what_each_gets_alone(settings: dict):
    config = make_config(**V2, **settings)
    together = look(config, clips(4))
    assert_same(together, look(config, clips(4), clips_per_call=1))
    assert_same(together, look(config, list(reversed(clips(4))), clips_per_call=3))
    if "stop__kind" in settings:
        # In threes, clips at step 3 have met one that had not begun.
        assert sorted(label.stopped_at for label in together.labels.values()) == [3, 6, 6, 6]


@pytest.mark.parametrize("steps_per_round", [1, 3, 16])
def test_rounds_change_nothing_where_the_rule_never_fires(steps_per_round: int):
    config = make_config(
        **V2, stop__kind="confidence", stop__thresholds=[2.0], stop__steps_per_round=steps_per_round
    )
    assert_same(look(make_config(**V2), clips(2)), look(config, clips(2)))


def test_every_step_is_what_its_networks_give_by_hand():
    config = make_config(**V2)
    checkpoint, frames = make_checkpoint(config), make_frames(16, seed=3)
    seen = look(config, [frames], checkpoint=checkpoint)
    label = seen.only
    assert [place.frame for place in label.patches] == [10 * place for place in ORDER]

    with torch.inference_mode():
        glance = Glancer(network=checkpoint.glance_network(), size_px=32, resize="antialias")(frames.pixels[ORDER])
        policy = learned_policy(checkpoint.header.policy).eval()
        policy.load_state_dict(checkpoint.sections["policy"])
        places = torch.sigmoid(policy.logits(glance.feature_map[None]))[0].numpy() * (SIDE - 24)
        np.testing.assert_allclose(corners_of(seen), places, atol=1e-3)
        assert (np.abs(places - places.round()) > 0.01).any(), "places lie between pixels"

        patches = [
            resampled(frames.pixels[row], y, x, 24) for row, (y, x) in zip(ORDER, corners_of(seen), strict=True)
        ]
        mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
        normalised = (torch.from_numpy(np.stack(patches)) / 255 - mean) / std
        _, feature = checkpoint.focus_network().eval()(normalised.float().permute(0, 3, 1, 2))
        classifier = checkpoint.classifier_module()
        assert isinstance(classifier, MaxClassifier)
        weights = classifier.state_dict()
        most = torch.zeros(128)
        for step in range(16):
            both = torch.cat((glance.feature[step], feature[step]))
            code = weights["mlp.0.weight"] @ both + weights["mlp.0.bias"]
            code = (code - weights["mlp.1.running_mean"]) / (weights["mlp.1.running_var"] + 1e-5).sqrt()
            most = most.maximum(torch.relu(code * weights["mlp.1.weight"] + weights["mlp.1.bias"]))
            logits = weights[f"heads.{step}.weight"] @ most + weights[f"heads.{step}.bias"]
            np.testing.assert_allclose(label.step_logits[step], logits, atol=1e-4)


def test_patches_are_shown_with_the_rectangle_that_they_were_mixed_from():
    frames = make_frames(16, seed=3)
    seen = look(make_config(**V2), [frames])
    (batch,) = seen.patches
    assert batch.pixels.shape == (16, 25, 25, 3) and batch.shifts is not None
    first = np.floor(corners_of(seen) + 1e-9).astype(int)
    np.testing.assert_allclose(first + batch.shifts, corners_of(seen), atol=1e-5)
    for step, (y, x) in enumerate(first):
        np.testing.assert_array_equal(batch.pixels[step], frames.pixels[ORDER[step], y : y + 25, x : x + 25])
    assert {(round(place.h * SIDE, 9), round(place.w * SIDE, 9)) for place in seen.only.patches} == {(24, 24)}


def test_a_clip_stops_by_raw_logits_and_only_the_frames_that_it_saw_are_paid_for():
    frames = make_frames(16, seed=1)
    full = look(make_config(**V2), [frames]).only
    assert full.step_logits is not None and full.step_logits.shape == (16, 7)
    thresholds = [row.max() - 1e-3 if step == 4 else 1e8 for step, row in enumerate(full.step_logits)]
    stop = {"stop__kind": "confidence", "stop__confidence": "logit", "stop__thresholds": thresholds}
    label = look(make_config(**V2, **stop), [frames]).only
    assert (label.stopped_at, label.frames_total, label.frames_focused) == (5, 16, 5)
    np.testing.assert_allclose(label.logits, full.step_logits[4], atol=1e-4)
    assert [place.frame // 10 for place in label.patches] == ORDER[:5]
    assert label.gmacs == pytest.approx(5 * (GLANCE + FOCUS + POLICY + CLASSIFY) / 1e9, rel=1e-12)
    assert label.gmacs_full == pytest.approx(16 * (GLANCE + FOCUS_FULL + CLASSIFY) / 1e9, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "focus"), [("center", FOCUS), ("random", FOCUS), ("full", FOCUS_FULL), ("glance", 0)]
)
def test_policies_that_are_not_learned_cost_their_patches_alone(kind: str, focus: int):
    seen = look(make_config(**V2, policy__kind=kind), [make_frames(16)])
    assert seen.only.gmacs == pytest.approx(16 * (GLANCE + focus + CLASSIFY) / 1e9, rel=1e-12)
    if kind == "center":
        np.testing.assert_allclose(corners_of(seen), 20)
    if kind == "full":
        frames = make_frames(16)
        np.testing.assert_array_equal(seen.patches[0].pixels, frames.pixels[ORDER])
    if kind == "glance":
        assert not seen.patches and seen.only.stopped_at == 16


def test_the_oracle_takes_the_exact_place():
    config = make_config(**V2, policy__kind="oracle")
    seen = look(config, [make_frames(16)], truth_at=lambda frames, row: (0.3, 0.5 + row / 100))
    expected = [(0.3 * SIDE - 12, (0.5 + row / 100) * SIDE - 12) for row in ORDER]
    np.testing.assert_allclose(corners_of(seen), expected, atol=1e-4)


def test_a_short_video_repeats_its_last_frame_and_is_glanced_at_once():
    frames = make_frames(3, glance_rows=[[0, 1, *[2] * 14]])
    label = look(make_config(**V2), [frames]).only
    assert [place.frame // 10 for place in label.patches] == [min(place, 2) for place in ORDER]
    assert label.gmacs == pytest.approx((3 * GLANCE + 16 * (FOCUS + POLICY + CLASSIFY)) / 1e9, rel=1e-12)


def test_a_still_image_is_a_clip_of_one_step():
    label = look(make_config(**V2), [make_frames(1)]).only
    assert (label.frames_total, label.frames_focused, label.stopped_at) == (1, 1, 1)
