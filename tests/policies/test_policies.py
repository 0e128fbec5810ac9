"""Policies: places, skipping, state. Expected values are worked out by hand or by a plain loop."""

from __future__ import annotations

import math

import pytest
import torch

from operators.records import Observation
from policies.base import Skipping, act_all, corners, join, real_corners
from policies.fixed import Center, Full, GlanceOnly, Oracle, Random, SkipRandom, SkipUniform
from policies.recurrent import RecurrentPolicy, SkipHead, grid_offsets, price_for_share

torch.set_num_threads(1)


def make_policy(kind="grid", encoder="conv", seed=0, **changes) -> RecurrentPolicy:
    torch.manual_seed(seed)
    sizes = dict(map_channels=3, map_side=2, hidden=8, width=4, num_actions=9)
    return RecurrentPolicy(kind=kind, encoder=encoder, **(sizes | changes)).eval()


def make_maps(*shape: int, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def look(clips=2, **fields) -> Observation:
    return Observation(feature_map=make_maps(clips, 3, 2, 2), **fields)


# ---- places ----


@pytest.mark.parametrize(
    ("patch_px", "expected"),
    [
        (96, [0, 21, 42, 64, 85, 106, 128]),
        (128, [0, 16, 32, 48, 64, 80, 96]),
        (160, [0, 10, 21, 32, 42, 53, 64]),
        (192, [0, 5, 10, 16, 21, 26, 32]),
    ],
)
def test_the_grid_of_49_gives_the_published_pixels(patch_px, expected):
    places = corners(grid_offsets(49), view_px=224, patch_px=patch_px).view(7, 7, 2)
    assert places[:, 0, 0].tolist() == expected
    assert places[0, :, 1].tolist() == expected


def test_the_first_number_of_an_offset_is_the_row():
    assert grid_offsets(9)[5].tolist() == [0.5, 1.0]


def test_a_number_of_actions_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="48 actions"):
        grid_offsets(48)


def test_a_place_that_is_no_number_is_a_place_in_the_view_all_the_same():
    offsets = torch.tensor([[float("nan"), 0.5]])
    assert corners(offsets, view_px=224, patch_px=96).tolist() == [[0, 64]]


def test_a_patch_larger_than_the_view_is_refused():
    with pytest.raises(ValueError, match="100 px"):
        corners(torch.zeros(1, 2), view_px=96, patch_px=100)


# ---- fixed policies ----


def test_center_looks_at_the_middle_and_full_at_the_corner_of_the_whole():
    for policy, offset in ((Center(), 0.5), (Full(), 0.0)):
        actions, _ = policy.act(look(), policy.initial_state(2))
        assert actions.offsets.tolist() == [[offset, offset]] * 2
        assert actions.focus.tolist() == [True, True]


def test_glance_only_focuses_nothing():
    actions, _ = GlanceOnly().act(look(), GlanceOnly().initial_state(2))
    assert actions.focus.tolist() == [False, False]


def test_random_places_follow_from_each_clips_own_generator():
    policy = Random()
    both, _ = policy.act(look(2), policy.initial_state(2), generators=generators(7, 8))
    alone, _ = policy.act(look(1), policy.initial_state(1), generators=generators(8))
    assert both.offsets[1].tolist() == alone.offsets[0].tolist()
    assert both.offsets[0].tolist() != both.offsets[1].tolist()


def test_the_oracle_takes_the_cell_whose_patch_is_centred_nearest_to_the_truth():
    # Patch 1/3 of the view, 3x3 grid: patch centres at 1/6, 1/2, 5/6 along each axis.
    policy = Oracle(patch_share=1 / 3, num_actions=9)
    truth = torch.tensor([[0.30, 0.70], [0.0, 1.0], [float("nan")] * 2])
    actions, _ = policy.act(look(3, truth_yx=truth), policy.initial_state(3))
    assert actions.offsets.tolist() == [[0.0, 1.0], [0.0, 1.0], [0.5, 0.5]]


def test_the_oracle_without_a_grid_centres_the_patch_on_the_truth():
    policy = Oracle(patch_share=0.5, num_actions=None)
    actions, _ = policy.act(look(1, truth_yx=torch.tensor([[0.35, 0.9]])), policy.initial_state(1))
    # The patch centre of offset a lies at a * 0.5 + 0.25.
    assert actions.offsets[0].tolist() == pytest.approx([0.2, 1.0])


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.25, [0, 1, 0, 0, 0, 1, 0, 0]), (0.5, [1, 0, 1, 0, 1, 0, 1, 0]), (0.0, [0] * 8), (1.0, [1] * 8)],
)
def test_uniform_skipping_spaces_its_focuses_evenly(share, expected):
    policy = Skipping(place=Center(), skip=SkipUniform(share=share))
    actions, _ = act_all(policy, make_maps(1, 8, 3, 2, 2), policy.initial_state(1))
    assert actions.focus[0].int().tolist() == expected


def test_random_skipping_focuses_its_share():
    policy = Skipping(place=Center(), skip=SkipRandom(share=0.25))
    seeds = generators(*range(50))
    actions, _ = act_all(policy, make_maps(50, 40, 3, 2, 2), policy.initial_state(50), generators=seeds)
    # 2000 draws: three standard deviations are 0.03.
    assert actions.focus.float().mean().item() == pytest.approx(0.25, abs=0.03)


# ---- the learned policy ----


def by_hand(policy: RecurrentPolicy, maps: torch.Tensor) -> torch.Tensor:
    """Returns the actor's output for one clip [T,C,h,w], with the GRU written out: gates reset, update, new."""
    w = {k: v for k, v in policy.state_dict().items()}
    h = torch.zeros(8)
    out = []
    for m in maps:
        x = torch.relu(torch.einsum("oc,chw->ohw", w["state_encoder.0.weight"][:, :, 0, 0], m)).flatten()
        x = torch.relu(w["state_encoder.3.weight"] @ x + w["state_encoder.3.bias"])
        i = (w["gru.weight_ih_l0"] @ x + w["gru.bias_ih_l0"]).chunk(3)
        g = (w["gru.weight_hh_l0"] @ h + w["gru.bias_hh_l0"]).chunk(3)
        r, z = torch.sigmoid(i[0] + g[0]), torch.sigmoid(i[1] + g[1])
        h = (1 - z) * torch.tanh(i[2] + r * g[2]) + z * h
        out.append(w["actor.0.weight"] @ h + w["actor.0.bias"])
    return torch.stack(out)


def test_the_grid_policy_computes_the_published_network():
    policy = make_policy()
    maps = make_maps(5, 3, 2, 2)
    expected = by_hand(policy, maps)
    torch.testing.assert_close(policy.logits(maps[None])[0], expected, atol=1e-6, rtol=1e-5)
    actions, _ = act_all(policy, maps[None], policy.initial_state(1))
    assert actions.choice is not None
    assert actions.choice[0].tolist() == expected.argmax(dim=1).tolist()
    assert actions.offsets[0].tolist() == grid_offsets(9)[expected.argmax(dim=1)].tolist()


def test_a_continuous_policy_looks_at_the_sigmoid_of_its_actor():
    policy = make_policy("continuous", "mlp")
    maps = make_maps(2, 4, 3, 2, 2)
    actions, _ = act_all(policy, maps, policy.initial_state(2))
    torch.testing.assert_close(actions.offsets, torch.sigmoid(policy.logits(maps)))


def test_the_published_parameter_names_and_shapes_are_kept():
    grid = RecurrentPolicy(kind="grid", encoder="conv", map_channels=1280, map_side=7)
    assert {k: list(v.shape) for k, v in grid.state_dict().items()} == {
        "state_encoder.0.weight": [32, 1280, 1, 1],
        "state_encoder.3.weight": [1024, 1568],
        "state_encoder.3.bias": [1024],
        "gru.weight_ih_l0": [3072, 1024],
        "gru.weight_hh_l0": [3072, 1024],
        "gru.bias_ih_l0": [3072],
        "gru.bias_hh_l0": [3072],
        "actor.0.weight": [49, 1024],
        "actor.0.bias": [49],
        "critic.0.weight": [1, 1024],
        "critic.0.bias": [1],
    }
    with torch.device("meta"):
        motion = RecurrentPolicy(kind="continuous", encoder="clip", map_channels=10240, map_side=7)
        image = RecurrentPolicy(kind="continuous", encoder="mlp", map_channels=2048, map_side=3)
    names = {k: list(v.shape) for k, v in motion.state_dict().items()}
    assert names["state_encoder.4.weight"] == [1024, 3136]
    assert names["state_encoder.5.running_mean"] == [1024]
    assert len(names) == 21
    names = {k: list(v.shape) for k, v in image.state_dict().items()}
    assert names["state_encoder.0.weight"] == [2048, 18432]
    assert names["state_encoder.2.weight"] == [1024, 2048]
    assert len(names) == 12


def test_real_corners_are_the_offset_times_what_is_free():
    assert real_corners(torch.tensor([[0.0, 1.0], [0.26, 0.5], [math.nan, 0.5]]), view_px=12, patch_px=2).tolist() == [
        [0.0, 10.0], [pytest.approx(2.6), 5.0], [0.0, 5.0],
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "encoder"), [("grid", "conv"), ("continuous", "clip"), ("continuous", "tanh")])
@pytest.mark.parametrize("greedy", [True, False])
def test_a_batch_of_clips_decides_like_each_clip_alone(kind, encoder, greedy):
    policy = make_policy(kind, encoder)
    maps = make_maps(4, 5, 3, 2, 2)
    seeds = [3, 1, 4, 1]
    all_at_once, _ = act_all(policy, maps, policy.initial_state(4), greedy=greedy, generators=generators(*seeds))
    for i, seed in enumerate(seeds):
        alone, _ = act_all(policy, maps[i : i + 1], policy.initial_state(1), greedy=greedy, generators=generators(seed))
        torch.testing.assert_close(all_at_once.offsets[i], alone.offsets[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["grid", "continuous"])
def test_acting_for_all_steps_ahead_is_acting_one_by_one(kind):
    policy, maps = make_policy(kind), make_maps(3, 5, 3, 2, 2)
    one_by_one, end = act_all(policy, maps, policy.initial_state(3))
    assert one_by_one.log_prob is not None, "with gradients the steps take turns"
    with torch.inference_mode():
        ahead, ahead_end = act_all(policy, maps, policy.initial_state(3))
    assert ahead.log_prob is None
    torch.testing.assert_close(ahead.offsets, one_by_one.offsets, atol=1e-6, rtol=0)
    torch.testing.assert_close(ahead.context, one_by_one.context)
    torch.testing.assert_close(ahead_end.tensors, end.tensors)


def test_clips_can_be_regrouped_between_two_steps():
    policy = make_policy()
    maps = make_maps(3, 2, 3, 2, 2)
    together, _ = act_all(policy, maps, policy.initial_state(3))
    _, after_first = policy.act(Observation(feature_map=maps[:, 0]), policy.initial_state(3))
    regrouped = join([after_first.row(number) for number in (2, 0, 1)])
    order = [2, 0, 1]
    second, _ = policy.act(Observation(feature_map=maps[order, 1]), regrouped)
    assert regrouped.num_clips == 3
    assert second.choice is not None and together.choice is not None
    assert second.choice.tolist() == together.choice[order, 1].tolist()
    assert after_first.row(1).num_clips == 1


def test_encoding_up_front_changes_nothing():
    policy = make_policy()
    maps = make_maps(2, 3, 2, 2)
    direct, _ = policy.act(Observation(feature_map=maps), policy.initial_state(2))
    coded, _ = policy.act(Observation(feature_map=maps), policy.initial_state(2), code=policy.encode(maps))
    assert direct.value is not None and coded.value is not None
    torch.testing.assert_close(direct.value, coded.value)


def test_sampled_cells_follow_the_actors_distribution():
    policy = make_policy()
    with torch.no_grad():
        policy.actor[0].weight.zero_()
        policy.actor[0].bias.copy_(torch.tensor([0.5, 0.3, 0.2] + [1e-9] * 6).log())
    torch.manual_seed(5)
    actions, _ = policy.act(look(4000), policy.initial_state(4000), greedy=False)
    assert actions.choice is not None
    shares = actions.choice.bincount(minlength=9) / 4000
    assert shares[:3].tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert shares[3:].sum() == 0


def test_sampled_places_stay_inside_the_view():
    policy = make_policy("continuous", "mlp", std=2.0)
    actions, _ = policy.act(look(200), policy.initial_state(200), greedy=False)
    assert actions.offsets.min() == 0
    assert actions.offsets.max() == 1


@pytest.mark.parametrize("kind", ["grid", "continuous"])
def test_evaluating_a_roll_out_gives_the_log_probabilities_it_was_made_with(kind):
    policy = make_policy(kind)
    maps = make_maps(3, 4, 3, 2, 2)
    torch.manual_seed(2)
    actions, _ = act_all(policy, maps, policy.initial_state(3), greedy=False)
    assert actions.choice is not None
    log_prob, entropy, value = policy.evaluate_choices(maps, actions.choice)
    torch.testing.assert_close(log_prob, actions.log_prob)
    torch.testing.assert_close(entropy, actions.entropy)
    torch.testing.assert_close(value, actions.value)


# ---- learned skipping ----


def make_skipping(sees="glance", price=0.01, seed=3) -> Skipping:
    place = make_policy(seed=seed)
    head = SkipHead(policy_hidden=8, classifier_hidden=4, hidden=6, price=price, sees=sees).eval()
    return Skipping(place=place, skip=head)


def test_a_skip_head_that_sees_the_classifier_makes_the_whole_policy_go_step_by_step():
    assert make_skipping().reads == "glance"
    stepwise = make_skipping("classifier")
    assert stepwise.reads == "classifier"
    with pytest.raises(ValueError, match="classifier"):
        act_all(stepwise, make_maps(1, 2, 3, 2, 2), stepwise.initial_state(1))


def test_before_anything_is_classified_the_skip_head_sees_zeros():
    policy = make_skipping("classifier")
    unknown, _ = policy.act(look(2), policy.initial_state(2), greedy=False, generators=generators(1, 2))
    zeros, _ = policy.act(
        look(2, classifier_state=torch.zeros(2, 4)),
        policy.initial_state(2),
        greedy=False,
        generators=generators(1, 2),
    )
    torch.testing.assert_close(unknown.skip_log_prob, zeros.skip_log_prob)


def test_a_head_that_sees_glances_only_is_not_moved_by_the_classifier():
    policy = make_skipping("glance")
    without, _ = policy.act(look(2), policy.initial_state(2))
    beside, _ = policy.act(look(2, classifier_state=torch.ones(2, 4)), policy.initial_state(2))
    torch.testing.assert_close(without.skip_log_prob, beside.skip_log_prob)


def test_skipping_does_not_move_the_places():
    policy = make_skipping()
    maps = make_maps(2, 4, 3, 2, 2)
    plain, _ = act_all(policy.place, maps, policy.place.initial_state(2))
    skipping, _ = act_all(policy, maps, policy.initial_state(2))
    assert plain.offsets.tolist() == skipping.offsets.tolist()


def test_the_skip_decision_reads_its_previous_one():
    policy = make_skipping()
    state = policy.initial_state(1)
    other = type(state)(num_clips=1, tensors={**state.tensors, "skip.previous": torch.ones(1, 1)})
    first, after = policy.act(look(1), state)
    second, _ = policy.act(look(1), other)
    assert first.skip_log_prob is not None and second.skip_log_prob is not None
    assert first.skip_log_prob.item() != second.skip_log_prob.item()
    assert after.tensors["skip.previous"].item() == float(first.focus.item())


def test_sampled_skips_have_the_log_probability_of_what_was_drawn():
    head = SkipHead(policy_hidden=8, classifier_hidden=4, hidden=6)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.fill_(math.log(3))  # focus with probability 3/4
    torch.manual_seed(0)
    focus, log_prob, _ = head.decide(look(400), torch.zeros(400, 8), head.initial_state(400), greedy=False)
    assert focus.float().mean().item() == pytest.approx(0.75, abs=0.07)
    assert log_prob is not None
    expected = torch.where(focus, math.log(0.75), math.log(0.25))
    torch.testing.assert_close(log_prob, expected.float())


def test_the_price_of_a_focus_is_an_input_of_the_skip_head():
    policy = make_skipping(price=0.001)
    maps = make_maps(2, 4, 3, 2, 2)
    cheap, _ = act_all(policy, maps, policy.initial_state(2))
    assert isinstance(policy.skip, SkipHead)
    policy.skip.with_price(0.2)
    dear, _ = act_all(policy, maps, policy.initial_state(2))
    assert cheap.skip_log_prob is not None and dear.skip_log_prob is not None
    assert not torch.equal(cheap.skip_log_prob, dear.skip_log_prob)
    with pytest.raises(ValueError, match="price"):
        policy.skip.with_price(0)


def test_a_price_is_found_between_two_measured_ones():
    table = {0.001: 0.8, 0.1: 0.2}
    assert price_for_share(table, 0.5) == pytest.approx(0.01)  # halfway along the logarithm
    assert (price_for_share(table, 0.8), price_for_share(table, 0.2)) == pytest.approx((0.001, 0.1))
    assert price_for_share(table, 0.8005) == 0.001  # a share that was rounded when it was shown


def test_a_share_that_no_measured_price_gives_has_no_price():
    table = {0.001: 0.8, 0.1: 0.2}
    assert price_for_share(table, 0.9) is price_for_share(table, 0.1) is None


def test_a_policy_that_reads_patches_cannot_skip():
    with pytest.raises(ValueError, match="cannot skip"):
        Skipping(place=make_policy("continuous", reads="patch"), skip=SkipUniform(share=0.5))


def test_states_of_different_policies_cannot_be_joined():
    with pytest.raises(ValueError, match="cannot be joined"):
        join([make_policy().initial_state(1), Center().initial_state(1)])
