"""Settings of training: presets, what may be set, and what is refused before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from operators.errors import ConfigError
from pipeline.config import load
from pipeline.config.training import (
    Optimiser,
    changed,
    train_activitynet,
    train_synth,
)
from pipeline.config.training_motion import train_tsm_something
from pipeline.training.model import with_device
from pipeline.training.sequence import _identity


def test_the_preset_for_activitynet_has_the_published_numbers():
    s = train_activitynet()
    assert (s.num_steps, s.networks.patch_px, s.networks.num_actions) == (16, 128, 49)
    assert (s.glance.epochs, s.glance.lr_glance, s.focus.epochs, s.focus.lr_focus) == (15, 0.01, 15, 0.01)
    assert (s.warmup.epochs, s.warmup.lr_focus, s.warmup.lr_classifier, s.warmup.dropout) == (50, 5e-4, 0.05, 0.8)
    assert (s.policy.epochs, s.policy.lr, s.policy.gamma, s.policy.clip, s.policy.entropy_weight) == (
        50, 3e-4, 0.7, 0.2, 0.01,
    )  # fmt: skip
    assert (s.finetune.epochs, s.finetune.lr_classifier, s.finetune.lr_focus) == (10, 0.005, 0)
    assert s.warmup.optimiser == Optimiser(kind="sgd", momentum=0.9, weight_decay=1e-4, schedule="epoch")
    assert s.warmup.batch_size == s.policy.batch_size == 64
    assert s.is_flipped


def test_settings_are_changed_by_dotted_names_and_wrong_ones_are_refused():
    s = changed(train_synth(), {"policy.lr": 1, "seed": 7, "networks.focus_weights": "x.pth"})
    assert (s.policy.lr, s.seed, s.networks.focus_weights) == (1.0, 7, "x.pth")
    with pytest.raises(ConfigError, match=r"train\.policy\.learning; did you mean"):
        changed(train_synth(), {"policy.learning": 1})
    with pytest.raises(ConfigError, match=r"train\.seed: Input should be a valid integer.*\(got 'seven'\)"):
        changed(train_synth(), {"seed": "seven"})
    # YAML has read `off` as false.
    assert changed(train_synth(), {"amp": False}).amp == "off"
    with pytest.raises(ConfigError, match=r"train\.policy\.reward: Input should be 'random', .*\(got 'rndom'\)"):
        changed(train_synth(), {"policy.reward": "rndom"})
    with pytest.raises(ConfigError, match=r"train\.warmup\.optimiser\.kind: .* 'sgd' or 'adamw' \(got 'adam'\)"):
        changed(train_synth(), {"warmup.optimiser.kind": "adam"})
    with pytest.raises(ConfigError, match=r"train\.policy is a group .*e\.g\. train\.policy\.epochs"):
        changed(train_synth(), {"policy": 3})
    with pytest.raises(ConfigError, match="one glance per frame"):
        changed(train_synth(), {"is_flipped": True})
    for name, value in (("warmup.dropout", 1.5), ("glance.epochs", -1), ("policy.lr", 0), ("networks.num_actions", 50)):
        with pytest.raises(ConfigError, match=rf"^train\.{name.split('.')[0]}.*{abs(value)}"):
            changed(train_synth(), {name: value})
    with pytest.raises(ConfigError, match=r"train\.preprocessing\.crop; did you mean train\.preprocessing\.crop_px"):
        changed(train_synth(), {"preprocessing.crop": 64})
    with pytest.raises(ConfigError, match="crop_px=100 is larger than resize_px=96"):
        changed(train_synth(), {"preprocessing.crop_px": 100})


def test_settings_of_training_are_refused_when_a_config_is_read_like_all_others():
    for setting, message in (
        ("train.sed=1", r"unknown setting train\.sed; did you mean train\.seed"),
        ("train.skip.price=0", r"train\.skip\.price: Input should be greater than 0 \(got 0\)"),
        ("train.num_focus_steps=12", r"unknown setting train\.num_focus_steps"),
        ("train.preset=synth", r"train\.preset=synth: give --config train_synth"),
    ):
        with pytest.raises(ConfigError, match=message):
            load("train_synth", settings=[setting])
    with pytest.raises(ConfigError, match=r"train\.preset=None"):
        load(settings=["train.seed=1"])
    config = load("train_synth_motion", settings=["train.num_focus_steps=6", "train.warmup={epochs: 3}"])
    assert (config.training().family, config.training().cached_steps) == ("adafocus_tsm", 14)
    assert (config.training().warmup.epochs, config.training().warmup.batch_size) == (3, 8)
    # What was given stays told apart from what a preset has.
    assert config.given() == {
        "train.preset": "train_synth_motion", "train.num_focus_steps": 6, "train.warmup": {"epochs": 3}
    }  # fmt: skip
    assert config.replaced({"output.topk": 2}).training() == config.training()


def test_reading_a_config_for_labels_brings_neither_training_nor_torch():
    code = "import sys; from pipeline.config import load; load('demo'); print([m for m in sys.modules if 'train' in m])"
    code += "; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stderr


@pytest.mark.parametrize(
    ("preset", "stage", "identity"),
    [(train_synth, "1", "ffe27d73a4a1d632"), (train_tsm_something, "3", "9c8819fc198e65d0")],
)
def test_a_training_of_an_earlier_version_is_gone_on_from(preset, stage, identity):
    settings = preset().model_copy(update={"device": "cpu"})
    assert _identity(stage, settings, "f", "m") == identity


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_where_torch_sees_one(monkeypatch, has_gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert with_device(train_synth()).device == device
    assert with_device(changed(train_activitynet(), {"device": "cpu"})).device == "cpu"
    if not has_gpu:
        with pytest.raises(ConfigError, match=r"train\.device=cuda: torch sees no GPU"):
            with_device(changed(train_synth(), {"device": "cuda"}))
    with pytest.raises(ConfigError, match=r"train\.device: gpu is not known"):
        with_device(changed(train_synth(), {"device": "gpu"}))
