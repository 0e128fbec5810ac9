"""The real parts, from a published file to logits, against what the published implementations gave."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.media.view import crop_patches
from operators.networks.backbones import fill
from operators.networks.classify import AverageClassifier, CascadedClassifier, GRUClassifier, join_features
from operators.networks.cost import cost_model, module_macs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.records import Observation, PatchBatch
from operators.weights.checkpoints import Checkpoint
from pipeline.families.files import load_checkpoint_file as load
from policies.base import act_all, corners
from policies.recurrent import RecurrentPolicy
from tests.parity.files import write_adafocus, write_adafocus_tsm, write_gfnet
from tests.parity.frames import frames

EXPECTED = Path(__file__).parents[1] / "parity"
TOLERANCE = 1e-3


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def adafocus(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("adafocus") / "128s3_checkpoint.pth.tar"
    write_adafocus(path)
    return load(path)


@pytest.fixture(scope="module")
def gfnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The weights of the backbone that the test is for."""
    path = tmp_path_factory.mktemp("gfnet") / "checkpoint.pth.tar"
    write_gfnet(path, request.param)
    checkpoint = load(path)
    path.unlink()
    return checkpoint


@pytest.fixture(scope="module")
def adafocus_tsm(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("adafocus_tsm") / "144x144.pth.tar"
    write_adafocus_tsm(path)
    return load(path)


def make_glancer(checkpoint: Checkpoint, *, compiled: bool) -> Glancer:
    header = checkpoint.header
    assert header.glance is not None and header.glance.size_px is not None
    return Glancer(
        network=checkpoint.glance_network(),
        size_px=header.glance.size_px,
        resize=header.preprocessing.glance_resize,
        compiled=compiled,
    )


def make_policy(checkpoint: Checkpoint) -> RecurrentPolicy:
    assert checkpoint.header.policy is not None
    policy = RecurrentPolicy(**dataclasses.asdict(checkpoint.header.policy))
    fill(policy, checkpoint.require("policy", "this test"), "the policy")
    return policy.eval()


def cut(views: np.ndarray, offsets: torch.Tensor, patch_px: int) -> PatchBatch:
    places = corners(offsets, view_px=views.shape[1], patch_px=patch_px).numpy()
    steps = np.arange(len(views))
    return PatchBatch(pixels=crop_patches(views, steps, places, patch_px=patch_px))


def centre(pixels: np.ndarray, size: int = 224) -> np.ndarray:
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]


@pytest.mark.parametrize("compiled", [False, True], ids=["layer by layer", "compiled"])
def test_adafocus_gives_the_published_actions_and_logits_at_every_step(adafocus: Checkpoint, compiled: bool):
    expected = np.load(EXPECTED / "adafocus_p128_c200_a49.npz")
    views = centre(frames())
    glance = make_glancer(adafocus, compiled=compiled)(views)
    policy = make_policy(adafocus)
    actions, _ = act_all(policy, glance.feature_map[None], policy.initial_state(1))
    assert actions.choice is not None
    np.testing.assert_array_equal(actions.choice[0], expected["actions"])

    focuser = Focuser(network=adafocus.focus_network(), max_batch=7, compiled=compiled)
    seen = focuser(cut(views, actions.offsets[0], 128))
    classifier = adafocus.classifier_module()
    assert isinstance(classifier, GRUClassifier)
    features = join_features(glance.feature, torch.from_numpy(seen.feature), 2048)
    logits, _ = classifier(features[None])
    np.testing.assert_allclose(logits[0], expected["logits"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(logits[0, -1:], expected["pred"], atol=TOLERANCE, rtol=0)


GFNETS = {
    # backbone: file of what is expected, side and seed of the images
    "resnet50": ("gfnet_resnet50_p96", 224, 5),
    "densenet121": ("gfnet_densenet121_p96", 224, 62),
    "efficientnet_b2": ("gfnet_efficientnet_b2_p128", 272, 65),
    "regnety_600m": ("gfnet_regnety_600m_p96", 224, 63),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["layer by layer", "compiled"])
@pytest.mark.parametrize("gfnet", GFNETS, indirect=True)
def test_gfnet_gives_the_published_places_and_logits_after_every_look(gfnet: Checkpoint, compiled: bool):
    assert gfnet.header.focus is not None and gfnet.header.focus.size_px is not None
    file, side, seed = GFNETS[gfnet.header.focus.name]
    expected = np.load(EXPECTED / f"{file}.npz")
    patch_px, num_looks = gfnet.header.focus.size_px, len(expected["logits"])
    views = centre(frames(4, side, side, seed=seed), gfnet.header.preprocessing.crop_px)
    glance = make_glancer(gfnet, compiled=compiled)(views)
    focuser = Focuser(network=gfnet.focus_network(), feature_maps=True, compiled=compiled)
    policy = make_policy(gfnet)
    classifier = gfnet.classifier_module()
    assert isinstance(classifier, GRUClassifier | CascadedClassifier)
    state, logits = classifier.step(classifier.initial_state(4), glance.feature)
    # RegNet's first answer is that of the glance network's own head.
    step_logits = [logits if glance.logits is None else glance.logits]
    places, policy_state = [], policy.initial_state(4)
    feature_map = glance.feature_map
    for step in range(num_looks - 1):
        actions, policy_state = policy.act(Observation(feature_map=feature_map, step=step), policy_state)
        places.append(actions.offsets)
        seen = focuser(cut(views, actions.offsets, patch_px))
        assert seen.feature_map is not None
        feature_map = torch.from_numpy(seen.feature_map)
        state, logits = classifier.step(state, torch.from_numpy(seen.feature))
        step_logits.append(logits)
    np.testing.assert_allclose(torch.stack(places), expected["actions"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(torch.stack(step_logits), expected["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("compiled", [False, True], ids=["layer by layer", "compiled"])
def test_adafocus_tsm_gives_the_published_box_and_logits(adafocus_tsm: Checkpoint, compiled: bool):
    expected = np.load(EXPECTED / "adafocus_tsm_p144.npz")
    pixels = centre(frames(24, 256, 256, seed=21))
    glance_rows = [int(24 / 8 / 2 + 24 / 8 * i) for i in range(8)]
    focus_rows = [int(24 / 12 / 2 + 24 / 12 * i) for i in range(12)]
    glance = make_glancer(adafocus_tsm, compiled=compiled)(pixels[glance_rows])
    policy = make_policy(adafocus_tsm)
    joined = glance.feature_map.reshape(1, 8 * 1280, 7, 7)
    actions, _ = policy.act(Observation(feature_map=joined), policy.initial_state(1))
    np.testing.assert_allclose(actions.offsets, expected["action"], atol=1e-4, rtol=0)

    patches = cut(pixels[focus_rows], actions.offsets.expand(12, 2), 144)
    seen = Focuser(network=adafocus_tsm.focus_network(), compiled=compiled)(patches)
    classifier = adafocus_tsm.classifier_module()
    assert isinstance(classifier, AverageClassifier)
    logits = classifier(glance.logits[None], torch.from_numpy(seen.feature)[None])
    spread = expected["pred"].std()
    np.testing.assert_allclose(logits / spread, expected["pred"] / spread, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("patch_px", "gmacs"), [(96, 17.180), (128, 26.522), (160, 38.533), (192, 53.214)])
def test_adafocus_costs_what_was_published(adafocus: Checkpoint, patch_px: int, gmacs: float):
    decide = module_macs(make_policy(adafocus), (1, 1, 1280, 7, 7), method="logits")
    assert decide == 9_954_304
    model = cost_model(adafocus.header, patch_px=patch_px, decide=decide)
    cost = model.gmacs(glanced=16, focused=16, classified=16, decided=16)
    assert cost == pytest.approx(gmacs, abs=5e-4)


@pytest.mark.parametrize(("patch_px", "gmacs"), [(144, 23.535), (160, 27.467), (176, 33.717)])
def test_adafocus_tsm_costs_what_was_published(adafocus_tsm: Checkpoint, patch_px: int, gmacs: float):
    decide = module_macs(make_policy(adafocus_tsm), (1, 1, 8 * 1280, 7, 7), method="logits")
    assert decide == 41_618_496
    model = cost_model(adafocus_tsm.header, patch_px=patch_px, decide=decide)
    assert model.gmacs(glanced=8, focused=12, classified=1, decided=1) == pytest.approx(gmacs, abs=5e-4)


def costs_of_looks(checkpoint: Checkpoint) -> list[float]:
    policy, focus = checkpoint.header.policy, checkpoint.header.focus
    assert policy is not None and focus is not None and focus.size_px is not None
    maps = (1, 1, policy.map_channels, policy.map_side, policy.map_side)
    decide = module_macs(make_policy(checkpoint), maps, method="logits")
    model = cost_model(checkpoint.header, patch_px=focus.size_px, decide=decide)
    looks = range(1, checkpoint.header.num_steps + 1)
    return [model.gmacs(glanced=1, focused=k - 1, decided=k - 1, classified=k) for k in looks]


@pytest.mark.parametrize("gfnet", GFNETS, indirect=True)
def test_gfnet_costs_what_was_published_after_every_look(gfnet: Checkpoint):
    assert gfnet.header.glance is not None
    expected = np.load(EXPECTED / f"{GFNETS[gfnet.header.glance.name][0]}.npz")
    if "gmacs" in expected:
        assert costs_of_looks(gfnet) == pytest.approx(expected["gmacs"], rel=1e-6)
    else:
        assert costs_of_looks(gfnet) == pytest.approx([0.761, 1.569, 2.376, 3.183, 3.990], abs=5e-4)
