"""AdaFocusV2's files, what its settings may be, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from operators.errors import CheckpointError, ConfigError
from operators.networks.classify import MaxClassifier
from operators.weights.checkpoints import ClassifierSpec, PolicySpec, save
from pipeline.config import load as config_of
from pipeline.families.adafocus_v2.family import ADAFOCUS_V2
from pipeline.families.files import load_checkpoint_file as load
from pipeline.families.parts import build_cost, learned_policy
from pipeline.families.untrained import untrained
from pipeline.plan.compatibility import check
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from tests.parity.files import keys
from tests.support.looking import make_config

V2 = {"model__family": "adafocus_v2", "sampling__num_frames": 16}


def file_of(path: Path, glance: str, **changes: list[int] | None) -> Path:
    """A file in the published form whose values are all one and the same zero. None leaves a tensor out."""
    shapes = keys("adafocusv2_actnet")[f"adafocusv2_actnet_{glance}"] | changes
    zeros = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items() if shape is not None}
    torch.save({"state_dict": zeros}, path)
    return path


@pytest.mark.parametrize(
    ("glance", "name", "size_px", "channels", "side"),
    [("mbv2", "mobilenet_v2", 224, 1280, 7), ("res50", "resnet50", 96, 2048, 3)],
)
def test_both_published_files_load_with_every_part(
    tmp_path: Path, glance: str, name: str, size_px: int, channels: int, side: int
):
    checkpoint = load(file_of(tmp_path / "c", glance))
    header = checkpoint.header
    assert (header.family, header.num_steps, header.pad) == ("adafocus_v2", 16, "last")
    assert header.glance is not None and (header.glance.name, header.glance.size_px) == (name, size_px)
    assert header.focus is not None and (header.focus.name, header.focus.size_px) == ("resnet50", None)
    assert header.policy == PolicySpec(
        kind="continuous", encoder="tanh", map_channels=channels, map_side=side, hidden=2048, width=64
    )
    assert header.classifier == ClassifierSpec(kind="max", num_classes=200, in_features=channels + 2048, hidden=4096)
    assert header.preprocessing.glance_resize == "bilinear"
    checkpoint.glance_network(), checkpoint.focus_network()
    assert isinstance(checkpoint.classifier_module(), MaxClassifier)
    policy = learned_policy(header.policy)
    assert policy.state_dict().keys() == checkpoint.sections["policy"].keys()
    # ImageNet's heads and those of the training alone are dropped: two of each, weight and bias.
    num_used = sum(map(len, checkpoint.sections.values()))
    assert num_used == len(keys("adafocusv2_actnet")[f"adafocusv2_actnet_{glance}"]) - 8


def test_the_number_of_classes_is_read_from_the_shapes(tmp_path: Path):
    heads = {
        f"module.classifier.classifiers.{step}.1.{part}": shape
        for step in range(16)
        for part, shape in (("weight", [239, 4096]), ("bias", [239]))
    }
    assert load(file_of(tmp_path / "c", "mbv2", **heads)).header.num_classes == 239


def test_a_tensor_that_is_missing_is_named(tmp_path: Path):
    gone = {"module.policy_stn.encoder.5.running_mean": None}
    checkpoint = load(file_of(tmp_path / "c", "mbv2", **gone))
    assert "state_encoder.5.running_mean" not in checkpoint.sections["policy"]
    with pytest.raises(CheckpointError, match=r"checkpoint lacks state_encoder\.4\.weight"):
        load(file_of(tmp_path / "c", "mbv2", **{"module.policy_stn.encoder.4.weight": None}))


def test_a_glance_network_that_is_not_known_is_refused(tmp_path: Path):
    torch.save({"state_dict": {"module.policy_stn.encoder.0.weight": torch.zeros(64, 8, 1, 1)}}, tmp_path / "c")
    with pytest.raises(CheckpointError, match="global_CNN is not known: it holds nothing; known are MobileNetV2"):
        load(tmp_path / "c")


def test_random_weights_come_back_from_a_file_of_our_own(tmp_path: Path):
    made = untrained(make_config(**V2))
    save(tmp_path / "c.safetensors", made)
    again = load(tmp_path / "c.safetensors")
    assert (again.header, again.model_id) == (made.header, made.model_id)
    assert isinstance(again.classifier_module(), MaxClassifier)


@pytest.mark.parametrize(
    ("settings", "patch_px", "gmacs"),
    [
        ([], 96, 17.615),
        ([], 128, 26.957),
        ([], 160, 38.969),
        ([], 192, 53.649),
        (["model.glance_backbone=resnet50", "glance.size_px=96"], 96, 24.758),
        (["model.glance_backbone=resnet50", "glance.size_px=96"], 128, 34.100),
        (["model.glance_backbone=resnet50", "glance.size_px=96"], 160, 46.112),
    ],
)
def test_the_presets_cost_what_was_published(settings: list[str], patch_px: int, gmacs: float):
    config = config_of("adafocus_v2_activitynet", settings=[*settings, f"focus.patch_px={patch_px}"])
    cost = build_cost(config, ADAFOCUS_V2.untrained_header(config))
    assert cost.gmacs(glanced=16, focused=16, decided=16, classified=16) == pytest.approx(gmacs, abs=5e-4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sampling__num_frames": 8}, "for 16 of them, but sampling.num_frames=8: set sampling.num_frames=16"),
        ({"sampling__num_focus_frames": 12}, "sampling.num_focus_frames=12"),
        ({"skip__kind": "random"}, "skip.kind=random does not apply, leave it at none"),
        (
            {"stop__kind": "confidence", "stop__thresholds": [0.5] * 3},
            "stop.thresholds has 3 numbers and a clip has 16 steps",
        ),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(settings: dict, text: str):
    config = make_config(**{**V2, **settings})
    with pytest.raises(ConfigError) as error:
        check(config, untrained(config))
    assert text in str(error.value)


def test_plain_settings_and_a_threshold_for_each_step_are_taken():
    for extra in ({}, {"stop__kind": "confidence", "stop__confidence": "logit", "stop__thresholds": [9.0] * 16}):
        config = make_config(**V2, **extra)
        check(config, untrained(config))


def test_a_classifier_of_fewer_steps_is_refused():
    shorter = untrained(make_config(**{**V2, "sampling__num_frames": 8}))
    with pytest.raises(ConfigError, match="the classifier of untrained weights has 8 steps"):
        check(make_config(**V2), shorter)


def test_what_is_compared_with_thresholds_is_the_raw_logit_unless_another_measure_is_given():
    machine = Machine(num_cores=2, memory_bytes=8 << 30)
    for settings, measure in ([], "logit"), (["stop.confidence=softmax"], "softmax"):
        untrained_run = ["model.untrained=true", "compute.device=cpu", *settings]
        plan = resolve(config_of("adafocus_v2_activitynet", settings=untrained_run), machine)
        assert plan.config.stop.confidence == measure
    assert ADAFOCUS_V2.settings_of(plan.header)["stop.confidence"] == "logit"


def test_it_is_not_for_cameras():
    assert not ADAFOCUS_V2.may_be_live
