"""How AdaFocus-TSM looks: one place for a whole clip, seen in other frames than those glanced at."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.records import FrameBatch, Observation, PatchBatch
from pipeline.config import Config
from pipeline.families.parts import learned_policy
from policies.base import corners
from tests.support.looking import SIDE, assert_same, look, make_checkpoint, make_config, make_frames

GLANCED, FOCUSED = (1, 3, 6, 8), (0, 2, 4, 5, 7, 9)
# MACs by hand, batch norms and both heads included: glance at 32 px with 48*7, focus at 24 px and at 64 px with 128*7;
# policy over 4*48 maps of 8x8: 64*192*64 + 64 + 4096*256 + 256 + 3*256*512 + 256*2.
GLANCE, FOCUS, FOCUS_FULL, POLICY = 3_981_464 + 336, 11_654_200 + 896, 82_870_840 + 896, 2_229_056


def motion_config(**settings: object) -> Config:
    """Four frames to glance at, six to focus on."""
    small = {
        "sampling__num_frames": 4,
        "sampling__num_focus_frames": 6,
        "sampling__pad": "first",
        "model__family": "adafocus_tsm",
    }
    return make_config(**{**small, **settings})


def clip(seed: int = 0) -> FrameBatch:
    return make_frames(10, seed=seed, glance_rows=[GLANCED], focus_rows=[FOCUSED])


def test_the_answer_is_the_sum_of_what_both_networks_think_on_average():
    config = motion_config()
    checkpoint, frames = make_checkpoint(config), clip(seed=2)
    label = look(config, [frames], checkpoint=checkpoint).only

    glance = Glancer(network=checkpoint.glance_network(), size_px=32, resize="antialias")(frames.pixels[list(GLANCED)])
    policy = learned_policy(checkpoint.header.policy).eval()
    policy.load_state_dict(checkpoint.sections["policy"])
    with torch.no_grad():
        actions, _ = policy.act(
            Observation(feature_map=glance.feature_map.reshape(1, -1, 8, 8)), policy.initial_state(1)
        )
    y, x = corners(actions.offsets, view_px=SIDE, patch_px=24)[0].tolist()
    patches = frames.pixels[list(FOCUSED), y : y + 24, x : x + 24]
    batch = PatchBatch(pixels=patches)
    seen = torch.from_numpy(Focuser(network=checkpoint.focus_network())(batch).feature)
    weights = checkpoint.sections["classifier"]
    local = seen @ weights["fc.weight"].T + weights["fc.bias"]
    expected = glance.logits.mean(0) + local.mean(0)
    np.testing.assert_allclose(label.logits, expected, atol=1e-4)
    assert label.step_logits is not None and label.step_logits.shape == (1, 7)
    assert [(round(p.y * SIDE), round(p.x * SIDE)) for p in label.patches] == [(y, x)] * 6


def test_the_one_box_stands_with_each_of_the_focused_frames():
    seen = look(motion_config(), [clip()])
    label = seen.only
    assert [p.frame for p in label.patches] == [10 * row for row in FOCUSED]
    assert [p.pts_s for p in label.patches] == [row / 2 for row in FOCUSED]
    assert len({(p.y, p.x, p.h, p.w) for p in label.patches}) == 1
    assert (label.frames_total, label.frames_focused, label.frames_skipped, label.stopped_at) == (10, 6, 0, 1)
    assert [len(batch.pixels) for batch in seen.patches] == [6]


@pytest.mark.parametrize("kind", ["learned", "random", "full"])
def test_clips_looked_at_together_get_what_each_gets_alone(kind: str):
    config = motion_config(policy__kind=kind)
    clips = [clip(seed=i) for i in range(4)]
    together = look(config, clips)
    assert_same(together, look(config, clips, clips_per_call=1))
    assert_same(together, look(config, list(reversed(clips)), clips_per_call=3))
    if kind != "full":
        assert len({label.patches[0].y for label in together.labels.values()}) > 1


def test_windows_that_share_frames_are_clips_of_their_own():
    shared = make_frames(12, glance_rows=[GLANCED, [3, 5, 8, 10]], focus_rows=[FOCUSED, [2, 4, 6, 7, 9, 11]])
    alone = make_frames(12, glance_rows=[GLANCED], focus_rows=[FOCUSED])
    together, single = look(motion_config(), [shared]), look(motion_config(), [alone])
    np.testing.assert_allclose(together.labels["clip0.0"].logits, single.only.logits, atol=1e-4)
    assert len(together.labels) == 2


def test_the_order_of_the_frames_matters():
    frames = clip()
    backwards = dataclasses.replace(frames, pixels=np.ascontiguousarray(frames.pixels[::-1]))
    config = motion_config(policy__kind="center")
    one, other = look(config, [frames]).only, look(config, [backwards]).only
    assert np.abs(one.logits - other.logits).max() > 1e-2


def test_costs_are_those_of_all_frames_with_both_heads_and_of_one_decision():
    frames = [clip()]

    def gmacs(kind: str) -> float:
        return look(motion_config(policy__kind=kind), frames).only.gmacs

    assert gmacs("learned") == pytest.approx((4 * GLANCE + 6 * FOCUS + POLICY) / 1e9, rel=1e-12)
    assert gmacs("center") == pytest.approx((4 * GLANCE + 6 * FOCUS) / 1e9, rel=1e-12)
    assert gmacs("glance") == pytest.approx(4 * GLANCE / 1e9, rel=1e-12)
    assert gmacs("full") == pytest.approx((4 * GLANCE + 6 * FOCUS_FULL) / 1e9, rel=1e-12)
    label = look(motion_config(), frames).only
    assert label.gmacs_full == gmacs("full")


def test_without_patches_the_glances_alone_answer_at_once():
    config = motion_config(policy__kind="glance")
    checkpoint, frames = make_checkpoint(config), clip()
    seen = look(config, [frames], checkpoint=checkpoint)
    assert not seen.patches
    assert (seen.only.frames_total, seen.only.frames_focused) == (10, 0)
    glance = Glancer(network=checkpoint.glance_network(), size_px=32, resize="antialias")(frames.pixels[list(GLANCED)])
    np.testing.assert_allclose(seen.only.logits, glance.logits.mean(0), atol=1e-5)


def test_the_whole_view_is_one_box_of_all_of_it():
    seen = look(motion_config(policy__kind="full"), [clip()])
    np.testing.assert_array_equal(seen.patches[0].pixels, clip().pixels[list(FOCUSED)])
    assert (seen.only.patches[0].y, seen.only.patches[0].h) == (0, 1)


def test_the_oracle_puts_its_one_box_in_the_middle_of_the_evidence():
    unknown = (math.nan, math.nan)
    truth = {0: (0.2, 0.5), 2: (0.2, 0.75), 9: (0.5, 0.25), 1: (0.9, 0.9)}
    config = motion_config(policy__kind="oracle")
    label = look(config, [clip()], truth_at=lambda frames, row: truth.get(row, unknown)).only
    # Mean (0.3, 0.5), so 24 px around pixel (19.2, 32). Row 1 is only glanced at and does not count.
    assert (round(label.patches[0].y * SIDE), round(label.patches[0].x * SIDE)) == (7, 20)
    blind = look(config, [clip()], truth_at=lambda frames, row: unknown).only
    assert (round(blind.patches[0].y * SIDE), round(blind.patches[0].x * SIDE)) == (20, 20)


def test_a_still_image_stands_for_every_frame():
    still = make_frames(1)
    label = look(motion_config(), [still]).only
    repeated = make_frames(1, glance_rows=[[0] * 4], focus_rows=[[0] * 6])
    np.testing.assert_allclose(label.logits, look(motion_config(), [repeated]).only.logits, atol=1e-5)
    assert (label.frames_focused, len(label.patches), label.patches[5].frame) == (6, 6, 0)


def test_a_clip_of_another_length_is_a_bug():
    with pytest.raises(ValueError, match="a clip shows 3 frames, but the networks take 4"):
        look(motion_config(), [make_frames(3)])
