"""Settings and checkpoints that cannot go together are refused, with the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from operators.errors import ConfigError
from operators.weights.checkpoints import Checkpoint
from pipeline.plan.compatibility import check
from tests.support.looking import make_config
from tests.support.small_checkpoints import GFNET, SKIP, TSM, refused, trained, with_header


@pytest.mark.parametrize("settings", [{}, GFNET, TSM])
def test_plain_settings_go_with_every_family(settings: dict):
    check(make_config(**settings), trained(**settings))


@pytest.mark.parametrize("extra", [{"skip__kind": "uniform"}, {"stop__kind": "confidence", "stop__thresholds": [0.5]}])
def test_tsm_neither_skips_nor_stops(extra: dict):
    assert "leave them at none" in refused(**TSM, **extra)


def test_gfnet_does_not_skip_and_checks_every_look():
    assert "skip.kind does not apply" in refused(**GFNET, skip__kind="random")
    text = refused(**GFNET, stop__kind="confidence", stop__thresholds=[0.5], stop__steps_per_round=2)
    assert "stop.steps_per_round" in text


def test_gfnet_looks_no_more_often_than_it_was_made_for():
    assert "made for 5 looks" in refused(trained(**GFNET), **GFNET, model__num_looks=6)


def test_each_family_has_its_own_sampling():
    assert "sampling.num_frames is 16, set it to 1" in refused(**{**GFNET, "sampling__num_frames": 16})
    assert "leave it out" in refused(sampling__num_focus_frames=12)
    text = refused(trained(**TSM), **{**TSM, "sampling__num_frames": 8})
    assert "glances at 4 frames and focuses on 6, but sampling.num_frames=8" in text
    with pytest.raises(ConfigError, match="num_focus_frames"):
        trained(model__family="adafocus_tsm")


def test_sizes_that_a_learned_policy_cannot_read_are_refused_and_fixed_ones_take_them():
    checkpoint = trained()
    assert "set glance.size_px=32" in refused(checkpoint, glance__size_px=48)
    check(make_config(glance__size_px=48, policy__kind="center"), checkpoint)
    assert "set focus.patch_px=24" in refused(trained(**GFNET), **{**GFNET, "focus__patch_px": 32})


def test_a_patch_larger_than_the_view_is_refused():
    with pytest.raises(ConfigError, match=r"focus.patch_px=80 is larger than view.crop_px=64"):
        make_config(focus__patch_px=80)


def test_a_preset_of_another_model_is_refused():
    assert "model.family is gfnet, but checkpoint holds adafocus" in refused(
        Checkpoint(header=trained().header, sections=trained().sections), **{**GFNET, "glance__size_px": 32}
    )
    assert "model.focus_backbone is resnet50" in refused(trained(), model__focus_backbone="resnet50")


def test_two_different_networks_are_no_gfnet():
    with pytest.raises(ConfigError, match="same backbone twice"):
        trained(**{**GFNET, "model__glance_backbone": "small_glance"})


@pytest.mark.parametrize(("section", "kind"), [("policy", "learned"), ("focuser", "center"), ("classifier", "center")])
def test_parts_that_are_missing_are_named(section: str, kind: str):
    whole = trained()
    sections = {name: weights for name, weights in whole.sections.items() if name != section}
    text = refused(Checkpoint(header=whole.header, sections=sections), policy__kind=kind)
    assert f"has no {section}" in text


def test_without_a_policy_the_fixed_ones_still_run():
    whole = trained()
    sections = {name: weights for name, weights in whole.sections.items() if name != "policy"}
    header = dataclasses.replace(whole.header, policy=None)
    check(make_config(policy__kind="center"), Checkpoint(header=header, sections=sections))


def test_learned_skips_need_a_learned_place_and_a_trained_head():
    assert "has no skip" in refused(skip__kind="learned")
    whole = trained()
    checkpoint = with_header(Checkpoint(header=whole.header, sections={**whole.sections, "skip": {}}), skip=SKIP)
    assert "needs policy.kind=learned" in refused(checkpoint, skip__kind="learned", policy__kind="center")


def test_the_oracle_needs_a_truth_that_is_there(tmp_path: Path):
    assert "needs policy.truth" in refused(policy__kind="oracle")
    missing = str(tmp_path / "truth.parquet")
    assert missing in refused(policy__kind="oracle", policy__truth=missing)
