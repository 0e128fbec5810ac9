"""Scores of clips, and the roll-outs that rewards and prices are taken from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from operators.networks.classify import join_features
from pipeline.training.clips import Clips
from pipeline.training.scoring import Looks, policy_named, score_of, score_places
from pipeline.training.stage_policy import _classify, _probability
from pipeline.training.stage_skip import roll_out
from tests.support.training_clips import CLASSES, make_data, make_settings, paint
from tests.support.training_parts import fresh_parts


def test_hits_count_shown_frames_only_and_ask_for_the_evidences_centre():
    parts = fresh_parts(make_settings(), CLASSES)  # patch 12 of 36: a third of the view's side
    box = np.zeros((1, 3, 1, 4))
    box[0, :, 0] = [(0.1, 0.1, 0.2, 0.2), (0.2, 0.1, 0.2, 0.2), (0.9, 0.9, 0.1, 0.1)]
    clips = Clips(
        pixels=np.zeros((1, 3, 1, 36, 36, 3), np.uint8),
        labels=((1,),),
        visible=np.array([[[True], [True], [False]]]),
        box_yxhw=box,
    )
    looks = Looks(
        torch.zeros(1, 3, 48),
        torch.zeros(1, 3, 128),
        None,
        np.zeros((1, 3, 2), np.int64),
        np.ones((1, 3), bool),
    )
    logits = torch.eye(4)[torch.tensor([[0, 1, 1]])]
    found = score_of(parts, clips, logits, looks)
    # Both centres, (.2,.2) and (.3,.2), lie in the patch [0,.33]; the second box reaches out of it.
    assert (found.hits, found.whole_hits) == (100.0, 50.0)
    assert found.per_step == (0.0, 100.0, 100.0)


def test_a_score_does_not_depend_on_how_clips_are_batched(tmp_path):
    data = make_data(tmp_path, train=20, val=4)
    parts, settings = fresh_parts(make_settings(), CLASSES), make_settings()
    stack = np.stack([paint(n).pixels for n in range(20)])[:, :, None]
    whole = Clips(pixels=stack, labels=tuple((n % 2,) for n in range(20)))
    assert data.class_names == CLASSES
    from pipeline.training.scoring import gather_looks

    one = gather_looks(parts, settings, whole, policy_named("random", parts), batch_size=20)
    few = gather_looks(parts, settings, whole, policy_named("random", parts), batch_size=3)
    assert one.places.tolist() == few.places.tolist()
    torch.testing.assert_close(one.focuses, few.focuses, atol=1e-4, rtol=1e-4)
    assert score_places(parts, settings, whole, policy_named("center", parts)).accuracy <= 100


def test_the_random_patch_is_judged_from_the_state_before_its_step():
    parts = fresh_parts(make_settings(), CLASSES)
    parts.freeze()
    inputs = torch.randn(2, 3, parts.classifier.in_features)
    logits, before = _classify(parts, inputs)
    state = parts.classifier.initial_state(2)
    for t in range(3):
        torch.testing.assert_close(before[:, t], state)
        state, expected = parts.classifier.step(state, inputs[:, t])
        torch.testing.assert_close(logits[:, t], expected)
    probability = _probability(torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]), torch.tensor([0]))
    assert probability[0].tolist() == pytest.approx([0.5, 0.8808], abs=1e-4)


def test_a_skipped_step_gives_the_classifier_zeros_in_place_of_a_patch():
    parts = fresh_parts(make_settings(), CLASSES)
    parts.freeze()
    looks = Looks(
        torch.randn(2, 3, 48), torch.randn(2, 3, 128), torch.randn(2, 3, 32), np.zeros((2, 3, 2)), np.ones((2, 3))
    )
    rows, price = torch.tensor([1, 0]), torch.full((2,), 0.01)
    with torch.no_grad():
        assert parts.skip is not None
        parts.skip.out.weight.zero_()
        parts.skip.out.bias.fill_(-1.0)
        gates, logits = roll_out(parts, looks, rows, price, torch.tensor([True, False]), is_sampled=False)
    assert gates.sum() == 0
    expected, _ = parts.classifier(join_features(looks.glances[rows], None, 128))
    torch.testing.assert_close(logits, expected)
