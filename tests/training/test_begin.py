"""Weights to begin from: whose they may be, and that a model looks at pixels as they want."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from operators.errors import CheckpointError, ConfigError
from operators.networks.backbones import build, normalisation_of
from operators.networks.tensors import IMAGENET
from operators.weights.header import Preprocessing
from pipeline.config.training import Networks, TrainSettings
from pipeline.training.model import begin_from_files
from tests.support.training_parts import fresh_parts

CLASSES = ("cat", "dog")


def settings_of(*, focus: str = "small_focus", mean: float | None = None, **weights: str) -> TrainSettings:
    networks = Networks(glance="efficientnet_lite0", glance_px=32, focus=focus, patch_px=32, **weights)
    form = Preprocessing() if mean is None else Preprocessing(mean=(mean,) * 3)
    return TrainSettings(preset="train_activitynet", device="cpu", networks=networks, preprocessing=form)


def test_a_model_that_begins_with_weights_of_efficientnet_lite_sees_pixels_as_they_want(tmp_path: Path):
    path = tmp_path / "lite0.pth"
    weights = build("efficientnet_lite0").state_dict()
    # Published files have underscores before their names.
    torch.save({f"_{key}".replace(".bn", "._bn"): value for key, value in weights.items()}, path)
    settings = settings_of(glance_weights=str(path))
    parts = fresh_parts(settings, CLASSES)
    begin_from_files(parts, settings)
    assert parts.normalisation == normalisation_of("efficientnet_lite0") != IMAGENET
    assert torch.equal(parts.glancer.state_dict()["conv_stem.weight"], weights["conv_stem.weight"])


def test_without_weights_and_where_the_settings_say_something_else_the_settings_hold():
    assert fresh_parts(settings_of(), CLASSES).normalisation == IMAGENET
    assert fresh_parts(settings_of(mean=0.5, glance_weights="x.pth"), CLASSES).normalisation.mean == (0.5, 0.5, 0.5)


def test_weights_that_want_different_pixels_are_not_one_model():
    settings = settings_of(focus="resnet50", glance_weights="x.pth", focus_weights="y.pth")
    with pytest.raises(ConfigError, match="weights of efficientnet_lite0 and resnet50 want different normalisations"):
        fresh_parts(settings, CLASSES)


def test_weights_of_another_backbone_are_refused(tmp_path: Path):
    torch.save(build("small_glance").state_dict(), tmp_path / "x.pth")
    settings = settings_of(glance_weights=str(tmp_path / "x.pth"))
    with pytest.raises(CheckpointError, match="holds the weights of small_glance, but the backbone is efficientnet_l"):
        begin_from_files(fresh_parts(settings, CLASSES), settings)
