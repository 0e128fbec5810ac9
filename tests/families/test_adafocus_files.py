"""AdaFocus's published files: every stage loads, shapes say how to run it, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from operators.errors import CheckpointError
from operators.weights.checkpoints import (
    ClassifierSpec,
    NetworkSpec,
    PolicySpec,
    save,
)
from pipeline.families.files import load_checkpoint_file as load
from tests.parity.files import keys
from tests.support.published_files import Weights, adafocus_file, on_zero_memory


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_adafocus_files_of_every_stage_load(tmp_path: Path, stage: int):
    checkpoint = load(adafocus_file(tmp_path / "c.pth.tar", stage=stage))
    header = checkpoint.header
    assert (header.family, header.num_classes, header.num_steps) == ("adafocus", 200, 16)
    assert header.glance == NetworkSpec(name="mobilenet_v2", size_px=224)
    # The file does not say how large its patches are.
    assert header.focus == NetworkSpec(name="resnet50", size_px=None)
    assert header.classifier == ClassifierSpec(kind="gru", num_classes=200, in_features=3328, hidden=1024)
    assert header.training["published"]["best_acc"] == [71.0]
    checkpoint.glance_network(), checkpoint.focus_network(), checkpoint.classifier_module()
    if stage < 2:
        assert header.policy is None
        with pytest.raises(CheckpointError, match=r"c.pth.tar has no policy, which policy.kind=learned needs"):
            checkpoint.require("policy", "policy.kind=learned")
    else:
        assert header.policy == PolicySpec(
            kind="grid", encoder="conv", map_channels=1280, map_side=7, hidden=1024, width=32, num_actions=49
        )


def test_unused_parts_of_an_adafocus_file_are_dropped(tmp_path: Path):
    sections = load(adafocus_file(tmp_path / "c")).sections
    assert not [k for k in sections["focuser"] if k.startswith(("policy", "fc"))]
    assert not [k for k in sections["glancer"] if k.startswith(("classifier", "head"))]


def test_another_grid_and_another_number_of_classes_are_read_from_the_shapes(tmp_path: Path):
    shapes = keys("adafocus_actnet")
    fc = shapes["fc"] | shapes["_fcvid_239_overrides"]["fc"]
    policy = shapes["policy"] | {"actor.0.weight": [25, 1024], "actor.0.bias": [25]}
    header = load(adafocus_file(tmp_path / "c", fc=on_zero_memory(fc), policy=on_zero_memory(policy))).header
    assert header.num_classes == 239
    assert header.policy is not None and header.policy.num_actions == 25


def test_actions_that_are_no_square_grid_are_refused(tmp_path: Path):
    policy = keys("adafocus_actnet")["policy"] | {"actor.0.weight": [50, 1024]}
    with pytest.raises(CheckpointError, match="50 actions is no square grid"):
        load(adafocus_file(tmp_path / "c", policy=on_zero_memory(policy)))


def test_a_policy_that_is_missing_is_taken_from_its_copy_in_the_focuser(tmp_path: Path):
    checkpoint = load(adafocus_file(tmp_path / "c", stage=3, policy=None))
    assert checkpoint.sections["policy"].keys() == keys("adafocus_actnet")["policy"].keys()


def test_sections_that_are_missing_are_taken_from_the_whole_models_weights(tmp_path: Path):
    shapes = keys("adafocus_actnet")
    whole: Weights = {}
    for prefix, name in (("glancer", "glancer"), ("focuser", "focuser"), ("classifier", "fc")):
        whole |= {f"{prefix}.{key}": tensor for key, tensor in on_zero_memory(shapes[name]).items()}
    torch.save({"epoch": 1, "model_state_dict": whole}, tmp_path / "c")
    checkpoint = load(tmp_path / "c")
    assert checkpoint.sections.keys() == {"glancer", "focuser", "classifier", "policy"}
    checkpoint.glance_network(), checkpoint.focus_network(), checkpoint.classifier_module()


def test_a_tensor_that_is_missing_is_named(tmp_path: Path):
    glancer = on_zero_memory(keys("adafocus_actnet")["glancer"])
    del glancer["net.features.18.0.weight"]
    checkpoint = load(adafocus_file(tmp_path / "c", glancer=glancer))
    with pytest.raises(CheckpointError, match=r"mobilenet_v2 lack features\.18\.0\.weight"):
        checkpoint.glance_network()


def test_the_linear_form_of_the_classifier_is_refused_by_name(tmp_path: Path):
    fc = {"fc.1.weight": torch.zeros(200, 3328)}
    with pytest.raises(CheckpointError, match=r"holds fc\.1\.weight, not a GRU"):
        load(adafocus_file(tmp_path / "c", fc=fc))


def test_a_published_checkpoint_may_be_saved_in_our_own_form(tmp_path: Path):
    published = load(adafocus_file(tmp_path / "c.pth.tar"))
    save(tmp_path / "c.safetensors", published)
    own = load(tmp_path / "c.safetensors")
    assert own.header == published.header
    assert own.model_id == published.model_id


def test_numbers_of_numpy_are_plain_values(tmp_path: Path):
    checkpoint = load(adafocus_file(tmp_path / "c", best_acc=np.float64(75.5)))
    assert checkpoint.header.training["published"]["best_acc"] == 75.5
