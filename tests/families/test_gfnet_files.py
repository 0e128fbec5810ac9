"""GFNet's published files: every backbone is read as it was published, with its preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from operators.errors import CheckpointError
from operators.networks.backbones import build
from operators.networks.classify import CascadedClassifier, GRUClassifier
from operators.weights.checkpoints import (
    Header,
    NetworkSpec,
    Preprocessing,
)
from pipeline.config import load as config_of
from pipeline.families.files import load_checkpoint_file as load
from pipeline.families.gfnet.family import GFNET
from tests.parity.files import gfnet_keys, keys
from tests.support.published_files import on_zero_memory


def gfnet_file(path: Path, *, prefix: str = "module.", **changes: Any) -> Path:
    shapes = keys("gfnet_resnet50")
    content: dict[str, Any] = {}
    for name in ("model_prime_state_dict", "model_state_dict"):
        content[name] = on_zero_memory({prefix + key.removeprefix("module."): v for key, v in shapes[name].items()})
    content |= {name: on_zero_memory(shapes[name]) for name in ("fc", "policy")}
    torch.save(content | changes, path)
    return path


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_both_forms_of_gfnet_files_load(tmp_path: Path, prefix: str):
    checkpoint = load(gfnet_file(tmp_path / "c", prefix=prefix))
    header = checkpoint.header
    assert (header.family, header.num_classes, header.num_steps) == ("gfnet", 1000, 5)
    # 18432 inputs of the policy are 2048 channels of 3x3 cells: patches of 96.
    assert header.glance == header.focus == NetworkSpec(name="resnet50", size_px=96)
    assert header.policy is not None
    assert (header.policy.encoder, header.policy.map_side, header.policy.reads) == ("mlp", 3, "patch")
    assert header.preprocessing.glance_resize == "bicubic"
    checkpoint.glance_network(), checkpoint.focus_network()
    assert isinstance(checkpoint.classifier_module(), GRUClassifier)


def test_what_a_released_gfnet_file_says_of_itself_is_kept(tmp_path: Path):
    path = gfnet_file(tmp_path / "c", patch_size=96, flops=[1.0, 2.0, 3.0], dynamic_threshold=torch.ones(39, 3))
    header = load(path).header
    assert header.num_steps == 3
    assert header.training["published"]["flops"] == [1.0, 2.0, 3.0]
    assert len(header.training["published"]["dynamic_threshold"]) == 39
    assert Header.from_json(header.to_json()) == header


@pytest.mark.parametrize(("name", "channels"), [("mobilenetv3_large_100", 960), ("mobilenetv3_large_125", 1200)])
def test_gfnets_mobilenets_load_with_the_glances_head_as_first_step_of_the_cascade(tmp_path, name, channels):
    network = {k: list(v.shape) for k, v in build(name).state_dict().items()}
    network |= {"classifier.weight": [1000, 1280], "classifier.bias": [1000]}
    fc: dict[str, list[int]] = {}
    for k in range(2, 6):
        fc |= {f"fc_{k}.weight": [1000, k * 1280], f"fc_{k}.bias": [1000]}
    policy = {
        "state_encoder.0.weight": [32, channels, 1, 1],
        "state_encoder.3.weight": [256, 32 * 16],
        "gru.weight_hh_l0": [768, 256],
        "actor.0.weight": [2, 256],
    }
    glance = on_zero_memory(network)
    glance["classifier.bias"] = torch.ones(1000)
    content = {"model_prime_state_dict": glance, "model_state_dict": on_zero_memory(network)}
    torch.save(content | {"fc": on_zero_memory(fc), "policy": on_zero_memory(policy)}, tmp_path / "c")
    checkpoint = load(tmp_path / "c")
    assert checkpoint.header.glance == NetworkSpec(name=name, size_px=128)
    assert checkpoint.header.num_steps == 3
    classifier = checkpoint.classifier_module()
    assert isinstance(classifier, CascadedClassifier)
    with torch.no_grad():
        _, logits = classifier.step(classifier.initial_state(1), torch.randn(1, 1280))
    assert torch.equal(logits, torch.ones(1, 1000))
    checkpoint.glance_network(), checkpoint.focus_network()


GFNETS = {
    # backbone: looks, patch size, classifier, its features, policy's encoder, map channels and side, glance's classes
    "densenet121": (5, 96, "gru", 1024, "mlp", 1024, 3, 0),
    "densenet169": (5, 96, "gru", 1664, "mlp", 1664, 3, 0),
    "efficientnet_b2": (4, 128, "cascaded", 1408, "conv", 1408, 4, 0),
    "efficientnet_b3": (4, 144, "cascaded", 1536, "conv", 1536, 5, 0),
    "regnety_600m": (5, 96, "gru", 608, "conv", 608, 3, 1000),
    "regnety_800m": (5, 96, "gru", 768, "conv", 768, 3, 1000),
    "regnety_1600m": (5, 96, "gru", 888, "conv", 888, 3, 1000),
    "mobilenetv3_large_100": (3, 96, "cascaded", 1280, "conv", 960, 3, 0),
    "mobilenetv3_large_125": (3, 128, "cascaded", 1280, "conv", 1200, 4, 0),
}


@pytest.mark.parametrize("name", GFNETS)
def test_a_gfnet_of_every_published_backbone_loads_by_the_names_in_its_file(tmp_path: Path, name: str):
    shapes = gfnet_keys(name)
    # As the training script writes them: no prefix, no size, no backbone's name.
    network = on_zero_memory({key.removeprefix("module."): shape for key, shape in shapes["network"].items()})
    content = {"model_prime_state_dict": network, "model_state_dict": network}
    torch.save(content | {part: on_zero_memory(shapes[part]) for part in ("fc", "policy")}, tmp_path / "c")
    checkpoint = load(tmp_path / "c")
    header = checkpoint.header
    num_looks, patch_px, kind, num_features, encoder, channels, side, glance_classes = GFNETS[name]
    assert header.glance == NetworkSpec(name=name, size_px=patch_px, num_classes=glance_classes)
    assert header.focus == NetworkSpec(name=name, size_px=patch_px)
    assert header.num_steps == num_looks
    assert header.classifier is not None and header.policy is not None
    assert (header.classifier.kind, header.classifier.in_features) == (kind, num_features)
    assert (header.policy.encoder, header.policy.map_channels, header.policy.map_side) == (encoder, channels, side)
    checkpoint.glance_network(), checkpoint.focus_network(), checkpoint.classifier_module()
    # What settings without a checkpoint describe is of the same form.
    config = config_of(f"gfnet_imagenet_{name}", settings=[f"glance.size_px={patch_px}", f"focus.patch_px={patch_px}"])
    made = GFNET.untrained_header(config)
    assert (made.glance, made.focus, made.classifier, made.policy, made.preprocessing, made.num_steps) == (
        header.glance, header.focus, header.classifier, header.policy, header.preprocessing, header.num_steps
    )  # fmt: skip


def test_a_gfnet_of_images_of_300_px_is_preprocessed_as_published(tmp_path: Path):
    weights = on_zero_memory({"conv_head.weight": [1536, 384, 1, 1]})
    torch.save({"model_prime_state_dict": weights, "model_state_dict": weights, "patch_size": 128}, tmp_path / "c")
    header = load(tmp_path / "c").header
    assert (header.glance, header.num_steps) == (NetworkSpec(name="efficientnet_b3", size_px=128), 4)
    assert header.preprocessing == Preprocessing(
        resize_px=331, crop_px=300, interpolation="bicubic", glance_resize="bicubic"
    )


def test_a_gfnet_of_another_backbone_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "c"
    torch.save({"model_name": "densenet264", "model_prime_state_dict": {"features.conv0.weight": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match="backbone densenet264, which is not known; known are resnet50"):
        load(path)
