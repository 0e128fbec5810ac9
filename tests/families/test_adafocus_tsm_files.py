"""The published files of AdaFocus on TSM, and the pre-training files of single networks that TSM has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from operators.errors import CheckpointError
from operators.networks.backbones import build
from operators.networks.classify import AverageClassifier
from operators.weights.checkpoints import (
    load_backbone,
)
from pipeline.families.files import load_checkpoint_file as load
from tests.parity.files import keys
from tests.support.published_files import on_zero_memory


def test_adafocus_tsm_files_load_with_heads_and_shift(tmp_path: Path):
    shapes = keys("adafocus_sthsth")
    names = ("glancer", "focuser", "fc", "policy")
    torch.save({"epoch": 1, **{name: on_zero_memory(shapes[name]) for name in names}}, tmp_path / "c")
    checkpoint = load(tmp_path / "c")
    header = checkpoint.header
    assert (header.family, header.num_classes, header.num_steps, header.num_focus_steps, header.pad) == (
        "adafocus_tsm", 174, 8, 12, "first",
    )  # fmt: skip
    assert header.policy is not None
    assert (header.policy.kind, header.policy.encoder, header.policy.map_channels) == ("continuous", "clip", 10240)
    glance, focus = checkpoint.glance_network(), checkpoint.focus_network()
    assert glance.head is not None and glance.head.out_features == 174
    assert (glance.num_segments, focus.num_segments) == (8, 12)
    assert isinstance(checkpoint.classifier_module(), AverageClassifier)


def flat(key: str) -> str:
    return key.removeprefix("net.")


def test_tsm_pre_training_files_load_as_the_one_network_they_hold(tmp_path: Path):
    glancer = {flat(k): v for k, v in keys("adafocus_sthsth")["glancer"].items() if "classifier" not in k}
    content = on_zero_memory({f"module.base_model.{k}": v for k, v in glancer.items()})
    content |= on_zero_memory({"module.new_fc.weight": [174, 1280], "module.new_fc.bias": [174]})
    torch.save({"state_dict": content, "arch": "mobilenetv2"}, tmp_path / "mobilenet")
    checkpoint = load(tmp_path / "mobilenet")
    assert checkpoint.sections.keys() == {"glancer"}
    assert checkpoint.glance_network().num_classes == 174
    with pytest.raises(CheckpointError, match="no focuser, which a focus needs; it holds glancer"):
        checkpoint.focus_network()
    assert load_backbone(tmp_path / "mobilenet").keys() == build("mobilenet_v2").state_dict().keys()

    resnet = build("resnet50").state_dict()
    shifted = {
        f"module.base_model.{k.replace('.conv1.', '.conv1.net.') if 'layer' in k else k}": list(v.shape)
        for k, v in resnet.items()
    }
    content = on_zero_memory(shifted | {"module.new_fc.weight": [174, 2048], "module.new_fc.bias": [174]})
    torch.save({"state_dict": content}, tmp_path / "resnet")
    checkpoint = load(tmp_path / "resnet")
    assert checkpoint.focus_network().num_segments == 12
    assert isinstance(checkpoint.classifier_module(), AverageClassifier)
    assert load_backbone(tmp_path / "resnet").keys() == resnet.keys()
