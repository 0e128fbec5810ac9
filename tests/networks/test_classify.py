"""Classifiers: steps equal the whole sequence, states split and join by clip."""

from __future__ import annotations

import pytest
import torch

from operators.networks.classify import (
    AverageClassifier,
    CascadedClassifier,
    GRUClassifier,
    MaxClassifier,
    build_classifier,
    join_features,
)


@pytest.fixture(autouse=True)
def fixed():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def gru() -> GRUClassifier:
    return GRUClassifier(in_features=6, hidden=8, num_classes=3).eval()


def cascaded() -> CascadedClassifier:
    return CascadedClassifier(in_features=6, num_steps=4, num_classes=3).eval()


@pytest.mark.parametrize("make", [gru, cascaded])
def test_a_whole_sequence_gives_what_its_steps_give(make):
    classifier, x = make(), torch.randn(5, 4, 6)
    state, steps = classifier.initial_state(5), []
    for t in range(4):
        state, logits = classifier.step(state, x[:, t])
        steps.append(logits)
    whole, last = classifier(x)
    torch.testing.assert_close(whole, torch.stack(steps, 1))
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("make", [gru, cascaded])
def test_a_sequence_may_go_on_from_a_state(make):
    classifier, x = make(), torch.randn(2, 4, 6)
    whole, _ = classifier(x)
    first, state = classifier(x[:, :1])
    rest, _ = classifier(x[:, 1:], state)
    torch.testing.assert_close(torch.cat((first, rest), 1), whole)


@pytest.mark.parametrize("make", [gru, cascaded])
def test_states_of_clips_can_be_taken_apart_and_put_together(make):
    classifier, x = make(), torch.randn(3, 2, 6)
    state, _ = classifier.step(classifier.initial_state(3), x[:, 0])
    _, together = classifier.step(state, x[:, 1])
    order = [2, 0, 1]
    parts = [classifier.step(state[[row]], x[[row], 1])[1] for row in order]
    torch.testing.assert_close(torch.cat(parts), together[order])


def test_the_gru_adds_to_its_state_as_its_equations_say():
    classifier = GRUClassifier(in_features=1, hidden=1, num_classes=1)
    for parameter in classifier.parameters():
        parameter.zero_()
    # Gates of zero weights are one half, the candidate is tanh(x): each step goes half way towards it.
    classifier.gru.weight_ih_l0[2] = 1.0
    classifier.fc.weight.fill_(1.0)
    logits, _ = classifier(torch.tensor([[[0.5], [0.5]]]))
    candidate = torch.tanh(torch.tensor(0.5))
    torch.testing.assert_close(logits[0, :, 0], torch.stack((candidate / 2, candidate * 3 / 4)))


def test_step_k_of_a_cascade_is_a_layer_over_all_features_so_far():
    classifier, x = cascaded(), torch.randn(1, 3, 6)
    logits, state = classifier(x)
    torch.testing.assert_close(logits[0, 2], classifier.fc_3(x.flatten()))
    assert state.shape == (1, 18)


def test_a_cascade_has_no_more_steps_than_layers():
    classifier = cascaded()
    with pytest.raises(ValueError, match="step 5 of a classifier that has 4"):
        classifier.step(torch.zeros(1, 24), torch.zeros(1, 6))


def test_averages_add_the_glances_mean_and_the_focused_frames_mean():
    classifier = AverageClassifier(in_features=2, num_classes=2)
    classifier.fc.weight.copy_(torch.eye(2))
    classifier.fc.bias.copy_(torch.tensor([0.0, 1.0]))
    glance = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    focus = torch.tensor([[[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]]])
    # Means: glance (2, 0), focus (2, 2) plus the bias (0, 1).
    assert classifier(glance, focus).tolist() == [[4.0, 3.0]]
    assert classifier(glance, None).tolist() == [[2.0, 0.0]]


def test_the_glances_feature_comes_first_and_no_focus_is_zeros():
    glance, focus = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    assert join_features(glance, focus, 1).tolist() == [[1, 2, 3]]
    assert join_features(glance, None, 2).tolist() == [[1, 2, 0, 0]]


def test_classifiers_are_made_by_kind():
    assert isinstance(build_classifier("gru", in_features=4, num_classes=2, hidden=3), GRUClassifier)
    assert isinstance(build_classifier("cascaded", in_features=4, num_classes=2, num_steps=3), CascadedClassifier)
    assert isinstance(build_classifier("average", in_features=4, num_classes=2), AverageClassifier)
    with pytest.raises(ValueError, match="'vote' is not known"):
        build_classifier("vote", in_features=4, num_classes=2)


def largest_so_far() -> MaxClassifier:
    classifier = MaxClassifier(in_features=2, hidden=2, num_steps=3, num_classes=1)
    classifier.mlp[0].weight.copy_(torch.eye(2))
    classifier.mlp[0].bias.zero_()
    classifier.mlp[1].eps = 0.0
    for step, head in enumerate(classifier.heads):
        head.weight.copy_(torch.tensor([[10.0 ** step, 0.5]]))
        head.bias.zero_()
    return classifier.eval()


def test_each_step_reads_the_largest_features_so_far_with_a_layer_of_its_own():
    x = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [2.0, 8.0]]])
    logits, state = largest_so_far()(x)
    # The largest so far are (1, 0), (3, 0) and (3, 8): what is negative counts as zero.
    assert logits[0, :, 0].tolist() == [1.0, 30.0, 304.0]
    assert state.tolist() == [[3.0, 8.0]]


def test_the_largest_so_far_may_go_on_from_a_state_and_its_step():
    classifier = build_classifier("max", in_features=6, hidden=8, num_steps=4, num_classes=3).eval()
    x = torch.randn(5, 4, 6)
    whole, last = classifier(x)
    first, state = classifier(x[:, :1])
    rest, end = classifier(x[:, 1:], state, first_step=1)
    torch.testing.assert_close(torch.cat((first, rest), 1), whole)
    torch.testing.assert_close(end, last)
    with pytest.raises(ValueError, match="step 5 of a classifier that has 4"):
        classifier(x, state, first_step=1)
