"""Stop rules: when a clip is sure enough, and which rule spends a budget."""

from __future__ import annotations

import pytest
import torch

from operators.errors import ConfigError
from policies.stopping import Confidence, Never, OperatingPoint, checked_thresholds, confidence, for_budget


def test_confidence_is_the_leading_probability_or_the_leading_logit():
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert confidence(logits, "softmax").tolist() == pytest.approx([0.8808, 0.5], abs=1e-4)
    assert confidence(logits, "logit").tolist() == [2.0, 1.0]


def test_a_clip_stops_at_the_first_step_that_reaches_its_own_threshold():
    rule = Confidence(thresholds=(3.0, 2.0, 1.0), measure="logit")
    state = rule.initial_state(2)
    stop, state = rule.stop(torch.tensor([[2.5, 0.0], [3.0, 0.0]]), state)
    assert stop.tolist() == [False, True]
    stop, state = rule.stop(torch.tensor([[2.0, 0.0]]), state[~stop])
    assert stop.tolist() == [True]
    assert state.tolist() == [2]


def test_clips_at_different_steps_share_a_batch():
    rule = Confidence(thresholds=(3.0, 2.0, 1.0), measure="logit")
    stop, state = rule.stop(torch.full((3, 1), 2.0), torch.tensor([0, 1, 2]))
    assert stop.tolist() == [False, True, True]
    assert state.tolist() == [1, 2, 3]


def test_one_threshold_serves_every_step():
    rule = Confidence(thresholds=(0.75,))
    stop, _ = rule.stop(torch.tensor([[0.0, 2.0], [0.0, 1.0]]), torch.tensor([0, 12]))
    assert stop.tolist() == [True, False]  # 0.88 and 0.73


def test_never_means_never():
    stop, state = Never().stop(torch.full((2, 3), 1e6), Never().initial_state(2))
    assert stop.tolist() == [False, False]
    assert state.tolist() == [1, 1]


def test_a_wrong_number_of_thresholds_is_refused_with_both_numbers():
    assert checked_thresholds([0.5], num_steps=3) == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="has 2 numbers and a clip has 3 steps"):
        checked_thresholds([0.5, 0.6], num_steps=3)
    with pytest.raises(ConfigError, match="empty"):
        Confidence(thresholds=())


def test_a_budget_takes_the_point_that_costs_what_is_asked_for_or_comes_closest():
    points = [OperatingPoint(gmacs=g, score=0, thresholds=(g,)) for g in (3.0, 1.0, 2.0)]
    assert for_budget(points, 2.4).thresholds == (2.0,)
    assert for_budget(points, 2.6).thresholds == (3.0,)
    assert for_budget(points, 1.0).thresholds == (1.0,)
    assert for_budget(points, 99.0).thresholds == (3.0,)


def test_a_budget_below_the_cheapest_exit_is_refused_with_the_range():
    points = [OperatingPoint(gmacs=g, score=0, thresholds=(g,)) for g in (1.5, 26.52)]
    with pytest.raises(ConfigError, match=r"stop\.budget_gmacs=1\.2 .*from 1\.5 to 26\.52"):
        for_budget(points, 1.2)
    with pytest.raises(ConfigError, match="calibrate"):
        for_budget([], 5.0)
