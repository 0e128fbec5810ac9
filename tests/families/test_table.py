"""The tables of families and of policies: each name in them leads to something, and settings know no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from operators.errors import CheckpointError, ConfigError
from operators.weights.checkpoints import save
from pipeline.config import parse
from pipeline.config.training import PRESETS
from pipeline.config.training_motion import MOTION_PRESETS
from pipeline.config.training_presets import settings_of
from pipeline.families import NAMES, every_family, family_named
from pipeline.families.files import load_checkpoint_file
from pipeline.training.course import course_of
from policies.kinds import KINDS, fixed_policy
from tests.support.looking import make_checkpoint, make_config


def test_every_family_of_the_table_is_there_under_its_name():
    assert [family.name for family in every_family()] == list(NAMES)
    assert all(family_named(name) is family for name, family in zip(NAMES, every_family(), strict=True))


@pytest.mark.parametrize("preset", [*PRESETS, *MOTION_PRESETS])
def test_every_training_preset_is_trained_by_the_course_of_its_family(preset: str):
    settings = settings_of({"preset": preset})
    assert course_of(settings.family).family == settings.family
    assert family_named(settings.family).training is not None


@pytest.mark.parametrize(("setting", "table"), [("model.family", NAMES), ("policy.kind", KINDS)])
def test_settings_take_the_names_of_the_tables_and_no_others(setting: str, table):
    for name in table:
        assert parse({setting: name}).flat()[setting] == name
    with pytest.raises(ConfigError, match=setting):
        parse({setting: "vgg"})


def test_every_policy_that_is_not_learned_can_be_made_from_the_table():
    for name, kind in KINDS.items():
        if kind.is_learned:
            with pytest.raises(ValueError, match="is learned"):
                fixed_policy(name, patch_share=0.5)
        else:
            policy = fixed_policy(name, patch_share=0.5, num_actions=9)
            assert f"{type(policy).__module__}:{type(policy).__name__}" == kind.place


def test_a_checkpoint_of_a_family_that_is_not_in_the_table_is_refused_by_name(tmp_path: Path):
    checkpoint = make_checkpoint(make_config())
    header = dataclasses.replace(checkpoint.header, family="vgg")
    save(tmp_path / "c.safetensors", dataclasses.replace(checkpoint, header=header))
    with pytest.raises(CheckpointError, match="is of the family vgg, which is not known; known are adafocus"):
        load_checkpoint_file(tmp_path / "c.safetensors")
