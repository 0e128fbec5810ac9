"""Costs by the published rule, against published constants and arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from operators.networks.classify import CascadedClassifier, GRUClassifier
from operators.networks.cost import CostModel, cost_model, count_macs, module_macs, network_macs, step_macs
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, Preprocessing


@pytest.mark.parametrize(
    ("name", "size_px", "macs"),
    [
        ("mobilenet_v2", 224, 299_511_328),
        ("resnet50", 96, 750_725_056),
        ("resnet50", 128, 1_334_601_664),
        ("resnet50", 144, 1_757_583_296),
        ("resnet50", 160, 2_085_300_160),
        ("resnet50", 176, 2_606_110_656),
        ("resnet50", 192, 3_002_820_544),
        ("resnet50", 224, 4_087_162_816),
    ],
)
def test_networks_cost_the_published_constants(name, size_px, macs):
    assert network_macs(name, size_px) == macs


def test_a_head_adds_its_matrix():
    assert network_macs("mobilenet_v2", 224, num_classes=174) - network_macs("mobilenet_v2", 224) == 1280 * 174


def test_the_small_glance_costs_what_its_layers_add_up_to():
    # 9 * in * out * pixels of each 3x3 convolution at 32 px, and one per channel of its batch norm.
    layers = [(3, 8, 32), (8, 24, 16), (24, 24, 16), (24, 48, 8), (48, 48, 8)]
    assert network_macs("small_glance", 32) == sum(9 * i * o * s * s + o for i, o, s in layers)


def test_a_small_focus_costs_five_small_glances():
    assert network_macs("small_focus", 32) / network_macs("small_glance", 32) == pytest.approx(5.2, abs=0.05)


def test_the_published_classifier_costs_its_products_and_no_biases():
    classifier = GRUClassifier(in_features=3328, hidden=1024, num_classes=200)
    assert module_macs(classifier, (1, 1, 3328)) == 13_574_144
    assert step_macs(classifier) == 13_574_144


def test_counting_runs_on_real_tensors_and_changes_no_module():
    layer = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)).eval()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    # Output 3x3, 4 channels of one input channel each, and 4 channels of batch norm.
    assert count_macs(layer, torch.zeros(1, 2, 5, 5)) == 3 * 3 * 4 * 9 + 4
    assert module_macs(layer, (1, 2, 5, 5)) == 3 * 3 * 4 * 9 + 4
    assert all(torch.equal(value, before[key]) and not value.is_meta for key, value in layer.state_dict().items())


def test_matrix_products_of_any_kind_count():
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)
    assert count_macs(torch.bmm, a, b) == 2 * 3 * 4 * 5
    assert count_macs(torch.matmul, a[0], b[0]) == 3 * 4 * 5
    assert count_macs(nn.GRUCell(4, 6), torch.zeros(1, 4)) == 3 * 6 * (4 + 6)


def test_inference_mode_around_the_count_does_not_hide_the_work():
    with torch.inference_mode():
        assert module_macs(nn.Linear(3, 5), (1, 3)) == 15


def small_header(kind: str = "gru") -> Header:
    return Header(
        family="adafocus",
        glance=NetworkSpec(name="small_glance", size_px=32),
        focus=NetworkSpec(name="small_focus", size_px=32),
        classifier=ClassifierSpec(kind=kind, num_classes=10, in_features=176, hidden=64),  # type: ignore[arg-type]
        preprocessing=Preprocessing(resize_px=96, crop_px=96),
        num_steps=3,
    )


def test_a_clip_costs_its_parts():
    model = CostModel(glance=10, focus=100, focus_full=900, classify=(1, 2), decide=5, skip=3)
    cost = model.gmacs(glanced=4, focused=2, classified=3, decided=4, skips_decided=4)
    # 4 * 10 + 2 * 100 + (1 + 2 + 2) + 4 * 5 + 4 * 3
    assert cost == pytest.approx(277e-9)
    # 4 * 10 + 4 * 900 + (1 + 2 + 2 + 2)
    assert model.gmacs_full(glanced=4, focused=4, classified=4) == pytest.approx(3647e-9)


def test_a_running_maximum_costs_its_layers_and_a_head_for_each_network():
    # As published: with the heads that both networks have for their training.
    model = cost_model(small_header("max"), patch_px=32)
    assert model.glance == network_macs("small_glance", 32) + 48 * 10
    assert model.focus == network_macs("small_focus", 32) + 128 * 10
    # 64 channels of batch norm; no step costs more than another.
    assert model.classify == (176 * 64 + 64 + 64 * 10,)


def test_a_header_tells_what_its_parts_cost():
    model = cost_model(small_header(), patch_px=32, decide=7, skip=8)
    assert model.glance == network_macs("small_glance", 32)
    assert model.focus == network_macs("small_focus", 32)
    assert model.focus_full == network_macs("small_focus", 96)
    assert model.classify == (3 * 64 * (176 + 64) + 64 * 10,)
    assert (model.decide, model.skip) == (7, 8)


def test_a_cascades_steps_cost_more_and_more():
    model = cost_model(small_header("cascaded"), patch_px=32)
    cascade = CascadedClassifier(in_features=176, num_steps=3, num_classes=10)
    assert model.classify == (1760, 3520, 5280)
    assert step_macs(cascade) == sum(model.classify)


def test_costs_of_half_a_checkpoint_are_a_bug():
    half = Header(family="adafocus", glance=NetworkSpec(name="small_glance"), focus=None, classifier=None)
    with pytest.raises(ValueError, match="whole checkpoint"):
        cost_model(half, patch_px=32)
