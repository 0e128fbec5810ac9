"""How GFNet looks at one image again and again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.records import FrameBatch, Observation, PatchBatch
from operators.weights.checkpoints import Checkpoint
from pipeline.config import Config
from pipeline.families.parts import learned_policy
from policies.base import corners
from tests.support.looking import SIDE, assert_same, look, make_checkpoint, make_config, make_frames, softmax

# MACs by hand, batch norms included: a look at 24 px, at the whole view of 64 px; policy: 9*128*32 + 288*256 +
# 3*256*512 + 256*2; a step of the classifier: 3*128*(128+128) + 128*7.
LOOK, LOOK_FULL, POLICY, CLASSIFY = 11_654_200, 82_870_840, 504_320, 99_200


def image_config(**settings: object) -> Config:
    """Four looks of 24 px."""
    small = {
        "sampling__num_frames": 1,
        "model__family": "gfnet",
        "model__glance_backbone": "small_focus",
        "model__num_looks": 4,
        "glance__size_px": 24,
    }
    return make_config(**{**small, **settings})


def cascaded_config() -> Config:
    """MobileNetV3 at the smallest size that leaves it a cell: its classifier is a cascade."""
    return image_config(
        model__glance_backbone="mobilenetv3_large_100",
        model__focus_backbone="mobilenetv3_large_100",
        model__num_looks=3,
        glance__size_px=32,
        focus__patch_px=32,
    )


def regnet_config() -> Config:
    """Its first answer is that of the glance network's own head."""
    return image_config(
        model__glance_backbone="regnety_600m",
        model__focus_backbone="regnety_600m",
        model__num_looks=3,
        glance__size_px=32,
        focus__patch_px=32,
    )


def image(seed: int = 0) -> FrameBatch:
    return make_frames(1, seed=seed)


def by_hand(config: Config, checkpoint: Checkpoint, pixels: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Corners of the patches and logits of every look at one image uint8 [S,S,3], operator by operator."""
    size = config.focus.patch_px
    resize = checkpoint.header.preprocessing.glance_resize
    glance = Glancer(network=checkpoint.glance_network(), size_px=size, resize=resize)(pixels[None])
    focuser = Focuser(network=checkpoint.focus_network(), feature_maps=True)
    assert checkpoint.header.policy is not None
    policy = learned_policy(checkpoint.header.policy).eval()
    policy.load_state_dict(checkpoint.sections["policy"])
    classifier = checkpoint.classifier_module()
    places, step_logits = [], []
    feature, feature_map = glance.feature, glance.feature_map
    state, hidden = classifier.initial_state(1), policy.initial_state(1)
    with torch.no_grad():
        for number in range(config.model.num_looks):
            state, logits = classifier.step(state, feature)
            if number == 0 and glance.logits is not None:
                logits = glance.logits
            step_logits.append(logits[0].numpy())
            if number == config.model.num_looks - 1:
                break
            actions, hidden = policy.act(Observation(feature_map=feature_map, step=number), hidden)
            y, x = corners(actions.offsets, view_px=SIDE, patch_px=size)[0].tolist()
            places.append((y, x))
            patch = PatchBatch(pixels=pixels[None, y : y + size, x : x + size])
            seen = focuser(patch)
            feature, feature_map = torch.from_numpy(seen.feature), torch.from_numpy(seen.feature_map)
    return places, np.stack(step_logits)


@pytest.mark.parametrize("make", [image_config, cascaded_config, regnet_config])
def test_each_patch_is_where_the_look_before_says(make):
    config = make()
    checkpoint = make_checkpoint(config)
    frames = image(seed=3)
    seen = look(config, [frames], checkpoint=checkpoint)
    places, step_logits = by_hand(config, checkpoint, frames.pixels[0])
    assert [(round(p.y * SIDE), round(p.x * SIDE)) for p in seen.only.patches] == places
    assert len(set(places)) > 1
    np.testing.assert_allclose(seen.only.step_logits, step_logits, atol=1e-4)
    size = config.focus.patch_px
    for (y, x), batch in zip(places, seen.patches, strict=True):
        np.testing.assert_array_equal(batch.pixels[0], frames.pixels[0, y : y + size, x : x + size])


@pytest.mark.parametrize(
    "settings", [{}, {"policy__kind": "random"}, {"stop__kind": "confidence", "stop__thresholds": [0.3]}]
)
def test_images_looked_at_together_get_what_each_gets_alone(settings: dict):
    config = image_config(**settings)
    images = [image(seed=i) for i in range(5)]
    together = look(config, images)
    assert_same(together, look(config, images, clips_per_call=1))
    assert_same(together, look(config, list(reversed(images)), clips_per_call=2))


def test_looks_at_one_image_are_one_frame():
    label = look(image_config(), [image()]).only
    assert (label.frames_total, label.frames_focused, label.frames_skipped, label.stopped_at) == (1, 1, 0, 4)
    assert [p.frame for p in label.patches] == [0, 0, 0]


def test_an_image_that_the_glance_is_sure_of_gets_no_patch():
    seen = look(image_config(stop__kind="confidence", stop__thresholds=[0.0]), [image()])
    assert not seen.patches
    label = seen.only
    assert (label.stopped_at, label.frames_focused, label.patches) == (1, 0, ())
    full = look(image_config(), [image()]).only
    np.testing.assert_allclose(label.logits, full.step_logits[0], atol=1e-5)
    assert label.gmacs == pytest.approx((LOOK + CLASSIFY) / 1e9, rel=1e-12)


def test_images_leave_after_the_first_look_that_is_sure_enough():
    images = [image(seed=i) for i in range(6)]
    full = look(image_config(), images)
    confidences = {clip_id: softmax(label.step_logits).max(1) for clip_id, label in full.labels.items()}
    # Halfway between what the images have, look by look, so that no rounding decides.
    ranked = np.sort(np.stack(list(confidences.values())), axis=0)
    thresholds = ((ranked[3] + ranked[4]) / 2).tolist()
    expected = {}
    for clip_id, sure in confidences.items():
        reached = [k for k in range(3) if sure[k] >= thresholds[k]]
        expected[clip_id] = reached[0] + 1 if reached else 4
    assert len(set(expected.values())) > 2
    seen = look(image_config(stop__kind="confidence", stop__thresholds=thresholds), images)
    assert {clip_id: label.stopped_at for clip_id, label in seen.labels.items()} == expected
    for clip_id, label in seen.labels.items():
        used = expected[clip_id]
        np.testing.assert_allclose(label.logits, full.labels[clip_id].step_logits[used - 1], atol=1e-4)
        macs = used * (LOOK + CLASSIFY) + (used - 1) * POLICY
        assert label.gmacs == pytest.approx(macs / 1e9, rel=1e-12)
        assert len(label.patches) == used - 1
    assert sum(len(batch.pixels) for batch in seen.patches) == sum(expected.values()) - 6


def test_fewer_looks_than_the_checkpoint_was_made_for_are_its_first_ones():
    config = image_config()
    checkpoint = make_checkpoint(config)
    full = look(config, [image()], checkpoint=checkpoint).only
    fewer = look(image_config(model__num_looks=2), [image()], checkpoint=checkpoint).only
    assert fewer.stopped_at == 2
    np.testing.assert_allclose(fewer.step_logits, full.step_logits[:2], atol=1e-5)


def test_the_first_answer_of_a_regnet_is_its_glance_networks_own_and_no_later_one_is():
    config = regnet_config()
    checkpoint = make_checkpoint(config)
    before = look(config, [image()], checkpoint=checkpoint).only
    checkpoint.sections["glancer"]["head.bias"] += 1000 * torch.eye(1, 7)[0]
    after = look(config, [image()], checkpoint=checkpoint).only
    assert after.step_logits[0].argmax() == 0
    np.testing.assert_allclose(after.step_logits[1:], before.step_logits[1:], atol=1e-4)


def test_the_whole_view_is_looked_at_once_and_costs_what_labels_compare_themselves_with():
    frames = image()
    seen = look(image_config(policy__kind="full"), [frames])
    np.testing.assert_array_equal(seen.patches[0].pixels[0], frames.pixels[0])
    label = seen.only
    assert (label.stopped_at, len(label.patches), label.patches[0].h) == (2, 1, 1)
    assert label.gmacs == pytest.approx((LOOK + LOOK_FULL + 2 * CLASSIFY) / 1e9, rel=1e-12)
    assert label.gmacs_full == label.gmacs == look(image_config(), [frames]).only.gmacs_full


def test_without_patches_the_glance_is_the_answer():
    seen = look(image_config(policy__kind="glance"), [image()])
    assert not seen.patches
    assert seen.only.stopped_at == 1
    assert seen.only.gmacs == pytest.approx((LOOK + CLASSIFY) / 1e9, rel=1e-12)


def test_fixed_places_need_no_map_and_cost_nothing_to_choose():
    center = look(image_config(policy__kind="center"), [image()]).only
    assert [(p.y * SIDE, p.x * SIDE) for p in center.patches] == [(20, 20)] * 3
    assert center.gmacs == pytest.approx(4 * (LOOK + CLASSIFY) / 1e9, rel=1e-12)
    drawn = look(image_config(policy__kind="random"), [image()]).only
    assert len({(p.y, p.x) for p in drawn.patches}) == 3


def test_the_oracle_looks_at_the_very_place():
    config = image_config(policy__kind="oracle")
    label = look(config, [image()], truth_at=lambda frames, row: (0.5, 0.25)).only
    # Centre at (32, 16) px, so the corner of 24 px is at (20, 4): no grid here.
    assert [(round(p.y * SIDE), round(p.x * SIDE)) for p in label.patches] == [(20, 4)] * 3


def test_a_clip_of_several_frames_is_no_image():
    with pytest.raises(ValueError, match="a clip of 2 frames is no image"):
        look(image_config(), [make_frames(2)])
