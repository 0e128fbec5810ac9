"""Checkpoints that know only the synthetic archive are told from all others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from operators.weights import checkpoints
from operators.weights.header import Header
from pipeline.plan.synthetic_weights import knows_only_synthetic
from pipeline.synthetic.archive import SynthSettings
from pipeline.synthetic.scene import class_names
from tests.support.small_checkpoints import SHIPPED


def header(names: tuple[str, ...] | None, preset: str) -> Header:
    return replace(checkpoints.load(SHIPPED).header, class_names=names, training={"preset": preset})


def test_the_weights_that_ship_know_only_the_synthetic_archive() -> None:
    assert knows_only_synthetic(checkpoints.load(SHIPPED).header)


@pytest.mark.parametrize(
    ("settings", "preset"),
    [
        (SynthSettings(), "train_synth"),
        (SynthSettings(classes=36), "train_synth"),
        (SynthSettings.motion(), "train_synth_motion"),
        (SynthSettings.motion(classes=8), "train_synth_motion"),
    ],
)
def test_whatever_is_trained_on_a_synthetic_archive_knows_only_that(settings: SynthSettings, preset: str) -> None:
    assert knows_only_synthetic(header(class_names(settings.look), preset))


@pytest.mark.parametrize(
    ("names", "preset"),
    [(("cat", "dog"), "train_synth"), (("left", "right"), "train_tsm_something"), (None, "train_synth"), (None, "")],
)
def test_others_know_the_world(names: tuple[str, ...] | None, preset: str) -> None:
    assert not knows_only_synthetic(header(names, preset))
