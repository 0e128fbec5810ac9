"""The mathematics of PPO, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from policies.ppo import (
    categorical_entropy,
    categorical_log_prob,
    discounted_returns,
    gaussian_entropy,
    gaussian_log_prob,
    normalise,
    ppo_loss,
)


def loss_of(**changes):
    values = dict(
        log_prob=torch.zeros(1, 1),
        old_log_prob=torch.zeros(1, 1),
        value=torch.zeros(1, 1),
        entropy=torch.zeros(1, 1),
        returns=torch.zeros(1, 1),
    )
    return ppo_loss(**(values | changes))


def test_returns_look_ahead_with_a_discount():
    returns = discounted_returns(torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 1.0]]), gamma=0.5)
    assert returns.tolist() == [[3.0, 4.0, 4.0], [0.25, 0.5, 1.0]]


def test_normalising_uses_the_unbiased_spread():
    # 1, 2, 3: mean 2, unbiased variance (1+0+1)/2 = 1; the biased one would be 2/3.
    values = normalise(torch.tensor([[1.0, 2.0, 3.0]]))
    assert values[0].tolist() == pytest.approx([-1, 0, 1], abs=2e-5)


def test_equal_returns_normalise_to_zero_and_not_to_nan():
    assert normalise(torch.full((2, 2), 3.0)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_one_return_alone_cannot_be_normalised():
    with pytest.raises(ValueError, match="two"):
        normalise(torch.ones(1, 1))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.4),  # clipped at 1.2: no gain from going further
        (0.5, 2.0, -1.0),  # the worse of 0.5 and 0.8 counts
        (0.5, -2.0, 1.6),  # clipped at 0.8
        (1.5, -2.0, 3.0),
    ],
)
def test_the_surrogate_is_clipped_on_the_side_that_would_flatter(ratio, advantage, expected):
    loss = loss_of(log_prob=torch.tensor([[math.log(ratio)]]), returns=torch.tensor([[advantage]]))
    assert loss.policy.item() == pytest.approx(expected, abs=1e-6)


def test_value_and_entropy_enter_with_their_weights():
    loss = loss_of(
        value=torch.tensor([[1.0, 0.0]]),
        returns=torch.tensor([[3.0, 0.0]]),
        entropy=torch.tensor([[2.0, 4.0]]),
        log_prob=torch.zeros(1, 2),
        old_log_prob=torch.zeros(1, 2),
    )
    assert loss.value.item() == pytest.approx(2.0)
    assert loss.policy.item() == pytest.approx(-1.0)  # advantages 2 and 0
    assert loss.total.item() == pytest.approx(-1.0 + 0.5 * 2.0 - 0.01 * 3.0)


def test_the_policy_term_sends_no_gradient_into_the_value():
    value = torch.tensor([[1.0]], requires_grad=True)
    log_prob = torch.zeros(1, 1, requires_grad=True)
    loss_of(value=value, log_prob=log_prob, returns=torch.tensor([[3.0]])).total.backward()
    # Of 0.5 (value - return)^2 alone: value - return.
    assert value.grad is not None and log_prob.grad is not None
    assert value.grad.item() == pytest.approx(-2.0)
    assert log_prob.grad.item() == pytest.approx(-2.0)  # minus the advantage


def test_log_probability_and_entropy_of_a_grid():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log() + 7.0
    assert categorical_log_prob(logits, torch.tensor([1])).item() == pytest.approx(math.log(0.25), abs=1e-6)
    assert categorical_entropy(logits).item() == pytest.approx(1.5 * math.log(2), abs=1e-6)


def test_the_spread_of_the_gaussian_is_a_standard_deviation():
    mean, action = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.5]])
    # One standard deviation of 0.25 away in the row: exp(-1/2) of the peak (1 / (0.25 sqrt(2 pi)))^2.
    peak = 2 * math.log(1 / (0.25 * math.sqrt(2 * math.pi)))
    assert gaussian_log_prob(mean, action, std=0.25).item() == pytest.approx(peak - 0.5, abs=1e-6)


def test_the_formulas_agree_with_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, action = torch.rand(5, 2, generator=generator), torch.rand(5, 2, generator=generator)
    normal = torch.distributions.MultivariateNormal(mean, scale_tril=torch.eye(2) * 0.1)
    torch.testing.assert_close(gaussian_log_prob(mean, action, std=0.1), normal.log_prob(action))
    torch.testing.assert_close(gaussian_entropy(mean, std=0.1), normal.entropy())
    logits = torch.randn(5, 7, generator=generator)
    cells = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(categorical_entropy(logits), cells.entropy())
