"""Files of torchvision and timm: their names become ours, and the features are theirs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from operators.errors import CheckpointError
from operators.networks.backbones import build, restore
from operators.weights.checkpoints import load_backbone, save
from tests.parity.files import HERE
from tests.parity.frames import frames
from tests.parity.weights import value
from tests.weights.test_checkpoints import small_checkpoint

FILES = json.loads(gzip.decompress((HERE / "keys_image_classifiers.json.gz").read_bytes()))


def theirs(file: str) -> dict[str, torch.Tensor]:
    """A library's weights, which follow from their names."""
    library, _ = file.split()
    names = {
        key: f"{library}.blocks.{key}{'.bn' if key.endswith('bias') else ''}" for key in FILES[file]["weights"]
    }
    return {key: torch.from_numpy(value(names[key], shape)) for key, shape in FILES[file]["weights"].items()}


def image() -> torch.Tensor:
    """Of an odd size: each padding shows in another way at every edge."""
    pixels = np.ascontiguousarray(frames(2, 96, 96, seed=8)[:, :75, :75])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(64).sub(2)


@pytest.mark.parametrize("file", FILES)
def test_a_librarys_file_loads_by_its_own_names_and_gives_the_librarys_features(tmp_path: Path, file: str):
    name = FILES[file]["backbone"]
    safetensors.torch.save_file(theirs(file), tmp_path / "model.safetensors")
    network = restore(name, load_backbone(tmp_path / "model.safetensors", name)).eval()
    with torch.inference_mode():
        _, feature = network(image())
    expected = np.load(HERE / "image_classifiers.npz")[file.replace(" ", "_")]
    np.testing.assert_allclose(feature[:, :64], expected, atol=1e-3 * expected.std(), rtol=0)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_single_networks_safetensors_file_is_as_good_as_one_of_torch_save(tmp_path: Path, prefix: str):
    weights = {key: torch.ones_like(tensor) for key, tensor in build("resnet50").state_dict().items()}
    file = {f"{prefix}{key}": tensor for key, tensor in weights.items()}
    safetensors.torch.save_file(file | {f"{prefix}fc.weight": torch.zeros(9, 2048)}, tmp_path / "m.safetensors")
    assert load_backbone(tmp_path / "m.safetensors", "resnet50").keys() == weights.keys()


def test_a_training_scripts_file_holds_its_network_under_model(tmp_path: Path):
    torch.save({"model": build("small_focus").state_dict(), "epoch": 3}, tmp_path / "m.pth")
    assert load_backbone(tmp_path / "m.pth", "small_focus").keys() == build("small_focus").state_dict().keys()


def test_a_whole_checkpoint_is_no_single_network(tmp_path: Path):
    save(tmp_path / "c.safetensors", small_checkpoint())
    with pytest.raises(CheckpointError, match=r"c\.safetensors is a whole checkpoint of this project; a single"):
        load_backbone(tmp_path / "c.safetensors")


def test_the_oldest_densenet_files_number_their_layers_behind_a_dot(tmp_path: Path):
    with torch.device("meta"):
        wanted = build("densenet121").state_dict()
    old = {
        key.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.").replace(
            "conv2.", "conv.2."
        ): torch.zeros(()).expand(tensor.shape)
        for key, tensor in wanted.items()
    }  # fmt: skip
    torch.save(old, tmp_path / "densenet121-a639ec97.pth")
    assert load_backbone(tmp_path / "densenet121-a639ec97.pth", "densenet121").keys() == wanted.keys()


def zeros_of(name: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        wanted = build(name).state_dict()
    return {key: torch.zeros(()).expand(tensor.shape) for key, tensor in wanted.items()}


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("mobilenet_v2", "resnet50"),
        ("densenet169", "densenet121"),
        ("efficientnet_b3", "efficientnet_b2"),
        ("efficientnet_lite1", "efficientnet_lite0"),
        ("regnety_800m", "regnety_600m"),
        ("mobilenetv3_large_125", "mobilenetv3_large_100"),
    ],
)
def test_the_weights_of_another_backbone_are_refused_by_its_name(tmp_path: Path, found: str, wanted: str):
    torch.save(zeros_of(found), tmp_path / "m.pth")
    expected = f"m.pth holds the weights of {found}, but the backbone is {wanted}: give a file of {wanted}, or name"
    with pytest.raises(CheckpointError, match=expected):
        load_backbone(tmp_path / "m.pth", wanted)


def test_the_weights_of_a_network_that_is_not_known_are_refused_with_what_does_not_fit(tmp_path: Path):
    deeper = zeros_of("resnet50") | {"layer3.6.conv1.weight": torch.zeros(256, 1024, 1, 1)}
    torch.save(deeper, tmp_path / "resnet101.pth")
    with pytest.raises(CheckpointError, match=r"holds no weights of resnet50: it has layer3\.6\.conv1\.weight besides"):
        load_backbone(tmp_path / "resnet101.pth", "resnet50")
    wide = zeros_of("regnety_800m") | {"s2.b1.proj.weight": torch.zeros(144, 64, 1, 1)}
    torch.save(wide, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"its s2.b1.proj.weight has shape \(144, 64, 1, 1\), not \(128, 64"):
        load_backbone(tmp_path / "wide.pth", "regnety_800m")
