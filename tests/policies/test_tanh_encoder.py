"""The learned policy with the encoder `tanh`, which AdaFocusV2 has."""

from __future__ import annotations

import math

import pytest
import torch

from policies.base import act_all
from tests.policies.test_policies import make_maps, make_policy


def test_the_policy_without_a_critic_says_so_when_ppo_asks_for_it():
    policy = make_policy("continuous", "tanh")
    assert not [name for name in policy.state_dict() if "critic" in name]
    actions, _ = act_all(policy, make_maps(2, 3, 3, 2, 2), policy.initial_state(2))
    assert actions.value is None
    with pytest.raises(ValueError, match="encoder tanh has no critic"):
        policy.evaluate_choices(make_maps(2, 3, 3, 2, 2), actions.offsets)


def test_the_tanh_encoder_is_convolution_norm_tanh_linear_norm_tanh():
    policy, m = make_policy("continuous", "tanh"), make_maps(1, 3, 2, 2)
    w = {name: value.double() for name, value in policy.state_dict().items()}
    for name in ("state_encoder.1", "state_encoder.5"):
        policy.state_dict()[f"{name}.running_mean"].fill_(0.25)
        policy.state_dict()[f"{name}.running_var"].fill_(4.0)
    x = torch.einsum("oc,chw->ohw", w["state_encoder.0.weight"][:, :, 0, 0], m[0].double())
    x = torch.tanh((x - 0.25) / math.sqrt(4 + 1e-5)).flatten()
    x = w["state_encoder.4.weight"] @ x + w["state_encoder.4.bias"]
    x = torch.tanh((x - 0.25) / math.sqrt(4 + 1e-5))
    torch.testing.assert_close(policy.encode(m)[0].double(), x, atol=1e-6, rtol=0)
