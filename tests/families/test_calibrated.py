"""What a checkpoint was calibrated for: stop rules, budgets, and the price of a skip."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from operators.errors import ConfigError
from operators.weights import checkpoints
from pipeline.families.calibrated import calibrated_for, skip_price, steps_per_round, stop_rule
from pipeline.scoring.calibrate import write_into
from policies.stopping import Confidence
from tests.support.looking import make_config
from tests.support.small_checkpoints import BUDGET, GFNET, SHIPPED, SKIP, refused, shipped, trained


def test_thresholds_are_one_or_as_many_as_a_clip_has_steps():
    assert "needs stop.thresholds" in refused(stop__kind="confidence")
    assert "5 numbers and a clip has 6 steps" in refused(stop__kind="confidence", stop__thresholds=[0.5] * 5)
    config = make_config(stop__kind="confidence", stop__thresholds=[0.5] * 8, sampling__num_frames=8)
    # As many as are sampled, whatever the checkpoint was trained with.
    assert stop_rule(config, trained().header) == Confidence(thresholds=(0.5,) * 8)
    looks = make_config(**GFNET, stop__kind="confidence", stop__thresholds=[0.5], model__num_looks=3)
    assert stop_rule(looks, trained(**GFNET).header) == Confidence(thresholds=(0.5,) * 3)


def test_a_budget_is_met_by_the_calibration_in_the_checkpoint():
    points = [
        {"gmacs": 1.0, "score": 60.0, "thresholds": [0.1] * 6},
        {"gmacs": 2.0, "score": 70.0, "thresholds": [0.6] * 6},
        {"gmacs": 3.0, "score": 72.0, "thresholds": [0.9] * 6},
    ]
    header = dataclasses.replace(
        trained().header, thresholds={"calibrations": [{"measure": "logit", "points": points}]}
    )

    def rule(**settings: object):
        return stop_rule(make_config(stop__kind="budget", **settings), header)

    assert rule(stop__budget_gmacs=2.4) == Confidence(thresholds=(0.6,) * 6, measure="logit")
    with pytest.raises(ConfigError, match="calibrated from 1 to 3 GMACs"):
        rule(stop__budget_gmacs=0.5)
    with pytest.raises(ConfigError, match="calibrated for 6 steps, but a clip has 8"):
        rule(stop__budget_gmacs=2.5, sampling__num_frames=8)
    assert "run `calibrate`" in refused(stop__kind="budget", stop__budget_gmacs=2.0)


def test_the_price_of_a_skip_is_the_one_given_or_that_of_the_share_or_the_heads_own():
    header = dataclasses.replace(trained().header, skip=SKIP)

    def price(**settings: object) -> float:
        return skip_price(make_config(skip__kind="learned", **settings), header)

    assert price() == 0.01
    assert price(skip__price=0.05, skip__share=0.5) == 0.05
    # Half way between the shares of 0.01 and 0.1 is their geometric mean.
    assert price(skip__share=0.5, skip__sees="glance") == pytest.approx(0.1**1.5)
    with pytest.raises(ConfigError, match=r"none for skip.sees=classifier: set skip.price"):
        price(skip__share=0.5)


def test_a_share_of_frames_that_the_learned_skip_does_not_reach_is_refused_with_the_range():
    config, header = shipped(skip__kind="learned", skip__share=0.5)
    with pytest.raises(ConfigError, match=r"skip\.share=0\.5 .* from 0\.2105 to 0\.3035, or set skip\.sees=glance"):
        skip_price(config, header)
    # What the message names is taken.
    for share in (0.2105, 0.25, 0.3035):
        assert 0.001 <= skip_price(*shipped(skip__kind="learned", skip__share=share)) <= 0.12
    assert skip_price(*shipped(skip__kind="learned", skip__share=0.5, skip__sees="glance")) > 0.03


def test_the_shipped_calibration_of_the_learned_skip_was_made_at_the_price_that_its_checkpoint_has():
    config, header = shipped(skip__kind="learned")
    made = [found for found in header.thresholds["calibrations"] if found["for"]["skip.kind"] == "learned"]
    assert {found["for"]["skip.price"] for found in made} == {header.skip.price} == {skip_price(config, header)}
    assert [found["for"]["skip.sees"] for found in made] == ["classifier", "glance"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stop__steps_per_round": 1},
        {"skip__share": 0.3},
        {"skip__kind": "learned"},
        {"skip__kind": "learned", "skip__sees": "classifier"},
        {"skip__kind": "learned", "skip__price": 0.01},
    ],
)
def test_a_setting_that_says_what_the_checkpoint_says_anyway_finds_its_calibration(settings: dict):
    rule = stop_rule(*shipped(**BUDGET, **settings))
    assert isinstance(rule, Confidence) and len(rule.thresholds) == 8


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({"stop__steps_per_round": 2}, "(stop.steps_per_round=1 there, 2 here)"),
        ({"skip__kind": "learned", "stop__steps_per_round": 2}, "(stop.steps_per_round=1 there, 2 here)"),
        ({"skip__kind": "uniform", "skip__share": 0.5}, "(skip.kind=none there, uniform here"),
        ({"skip__kind": "learned", "skip__price": 0.02}, "(skip.price=0.01 there, 0.02 here)"),
        ({"focus__patch_px": 40}, "(focus.patch_px=32 there, 40 here)"),
    ],
)
def test_a_budget_under_settings_that_were_not_calibrated_is_refused(settings: dict, differs: str):
    with pytest.raises(ConfigError, match=re.escape(differs)):
        stop_rule(*shipped(**BUDGET, **settings))


def test_the_steps_per_round_of_a_calibration_are_taken_where_none_are_given():
    config, header = shipped(**BUDGET)
    twos = [{**found, "steps_per_round": 2} for found in header.thresholds["calibrations"]]
    header = dataclasses.replace(header, thresholds={"calibrations": twos})
    assert steps_per_round(config, header) == 2
    assert stop_rule(config.replaced({"stop.steps_per_round": 2}), header) is not None
    with pytest.raises(ConfigError, match=r"stop\.steps_per_round=2 there, 1 here"):
        stop_rule(config.replaced({"stop.steps_per_round": 1}), header)


def test_a_checkpoint_holds_one_calibration_for_each_way_of_skipping(tmp_path: Path):
    config, header = shipped(skip__kind="learned", skip__sees="classifier")
    # Three ship: without skipping, and with the learned one, whatever it sees.
    none, learned, glance = header.thresholds["calibrations"]
    again = {"points": learned["points"][:3], "steps_per_round": 2, "for": calibrated_for(config, header)}
    write_into(SHIPPED, tmp_path / "again", again)
    assert checkpoints.load(tmp_path / "again").header.thresholds["calibrations"] == [none, glance, again]
