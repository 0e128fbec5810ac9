"""Backbones: published names and shapes, the shift, and that a batch equals its parts."""

from __future__ import annotations

import pytest
import torch

from operators.errors import CheckpointError
from operators.networks.backbones import BACKBONES, build, fill, restore
from operators.networks.mobilenet import divisible
from operators.networks.network import TemporalShift
from tests.parity.files import keys

ONE_OF_EACH = sorted(
    {*BACKBONES}
    - {"densenet169", "densenet201", "efficientnet_b3", "regnety_800m", "regnety_1600m"}
    - {"efficientnet_lite1", "efficientnet_lite2"}
)
"""Without those that are the same networks larger."""


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in module.state_dict().items()}


def on_meta(name: str, **options: int) -> torch.nn.Module:
    with torch.device("meta"):
        return build(name, **options)


def test_mobilenet_v2_is_named_as_the_published_glancer():
    published = {k[4:]: v for k, v in keys("adafocus_actnet")["glancer"].items() if "classifier" not in k}
    assert shapes(on_meta("mobilenet_v2")) == published


def test_resnet50_is_named_as_the_published_focuser():
    published = keys("adafocus_actnet")["_focuser_when_saved_with_random_patch_true"]
    published = {k[4:]: v for k, v in published.items() if not k.startswith("net.fc.")}
    assert shapes(on_meta("resnet50")) == published


@pytest.mark.parametrize(
    ("name", "side", "map_shape", "num_features"),
    [
        ("mobilenet_v2", 224, (1280, 7, 7), 1280),
        ("mobilenet_v2", 200, (1280, 7, 7), 1280),
        ("resnet50", 96, (2048, 3, 3), 2048),
        ("resnet50", 144, (2048, 5, 5), 2048),
        ("mobilenetv3_large_100", 96, (960, 3, 3), 1280),
        ("mobilenetv3_large_125", 128, (1200, 4, 4), 1280),
        ("densenet121", 96, (1024, 3, 3), 1024),
        ("densenet169", 96, (1664, 3, 3), 1664),
        ("densenet201", 96, (1920, 3, 3), 1920),
        ("efficientnet_b2", 128, (1408, 4, 4), 1408),
        ("efficientnet_b3", 144, (1536, 5, 5), 1536),
        ("efficientnet_lite0", 75, (1280, 3, 3), 1280),
        ("efficientnet_lite1", 240, (1280, 8, 8), 1280),
        ("efficientnet_lite2", 260, (1280, 9, 9), 1280),
        ("regnety_600m", 96, (608, 3, 3), 608),
        ("regnety_800m", 96, (768, 3, 3), 768),
        ("regnety_1600m", 96, (888, 3, 3), 888),
        ("small_glance", 32, (48, 8, 8), 48),
        ("small_focus", 40, (128, 5, 5), 128),
    ],
)
def test_maps_and_features_have_the_sizes_that_policies_and_classifiers_expect(name, side, map_shape, num_features):
    network = on_meta(name)
    feature_map, feature = network(torch.empty(2, 3, side, side, device="meta"))
    assert feature_map.shape == (2, *map_shape)
    assert feature.shape == (2, num_features)
    assert (network.map_channels, network.num_features) == (map_shape[0], num_features)


@pytest.mark.parametrize(
    ("name", "num_classes", "num_parameters"),
    [
        ("mobilenet_v2", 0, 2_223_872),
        ("mobilenet_v2", 200, 2_480_072),
        ("mobilenet_v2", 174, 2_446_766),
        ("resnet50", 0, 23_508_032),
        ("resnet50", 1000, 25_557_032),
        ("mobilenetv3_large_100", 1000, 5_483_032),
        ("densenet121", 1000, 7_978_856),
        ("densenet169", 1000, 14_149_480),
        ("densenet201", 1000, 20_013_928),
        ("efficientnet_b2", 1000, 9_109_994),
        ("efficientnet_b3", 1000, 12_233_232),
        ("efficientnet_lite0", 1000, 4_652_008),
        ("regnety_600m", 1000, 6_055_160),
        ("regnety_800m", 1000, 6_263_168),
        ("regnety_1600m", 1000, 11_202_430),
    ],
)
def test_parameter_counts_are_the_published_ones(name, num_classes, num_parameters):
    network = on_meta(name, num_classes=num_classes)
    assert sum(p.numel() for p in network.parameters()) == num_parameters


def test_width_rounds_channels_to_eights_and_never_down_by_more_than_a_tenth():
    # 16, 24, 40, 80, 112, 160, 960 times 1.25 are 20, 30, 50, 100, 140, 200, 1200.
    assert [divisible(c * 1.25) for c in (16, 24, 40, 80, 112, 160, 960)] == [24, 32, 48, 104, 144, 200, 1200]
    # 10 would round down to 8, which is less than 9.
    assert divisible(10) == 16


@pytest.mark.parametrize(
    ("name", "num_shifts"),
    [("densenet121", 58), ("efficientnet_b2", 16), ("regnety_600m", 15)],
)
def test_every_layer_block_or_residual_block_of_the_other_families_is_shifted(name: str, num_shifts: int):
    # DenseNet: 6 + 12 + 24 + 16 layers; EfficientNet-B2: 23 blocks, less the first of each of 7 stages; RegNetY:
    # 1 + 3 + 7 + 4.
    assert sum(isinstance(module, TemporalShift) for module in on_meta(name, num_segments=8).modules()) == num_shifts


def test_the_temporal_shift_takes_the_first_eighth_from_the_next_frame_and_the_second_from_the_last():
    # One clip of 3 frames, 8 channels: frame t holds the value 10 * t + channel.
    x = torch.tensor([[10.0 * t + c for c in range(8)] for t in range(3)])[:, :, None, None]
    y = TemporalShift(num_segments=3)(x)[:, :, 0, 0]
    assert y[:, 0].tolist() == [10, 20, 0]
    assert y[:, 1].tolist() == [0, 1, 11]
    assert torch.equal(y[:, 2:], x[:, 2:, 0, 0])


def test_the_temporal_shift_keeps_clips_apart():
    x = torch.randn(6, 16, 2, 2)
    shift = TemporalShift(num_segments=3)
    assert torch.equal(shift(x), torch.cat((shift(x[:3]), shift(x[3:]))))


def test_rows_that_are_no_whole_clips_are_refused():
    with pytest.raises(ValueError, match="4 rows are no whole clips of 3"):
        TemporalShift(num_segments=3)(torch.zeros(4, 8, 1, 1))


def test_mobilenet_shifts_its_ten_expanded_residual_blocks_and_resnet_all_sixteen():
    mobilenet = on_meta("mobilenet_v2", num_segments=8)
    shifted = [i for i, block in enumerate(mobilenet.features) if isinstance(getattr(block, "shift", 0), TemporalShift)]
    assert shifted == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
    resnet = on_meta("resnet50", num_segments=12)
    assert sum(isinstance(module, TemporalShift) for module in resnet.modules()) == 16


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_shift_has_no_parameters_so_weights_fit_both_ways(name):
    assert shapes(on_meta(name, num_segments=4)) == shapes(on_meta(name))


@pytest.mark.parametrize("name", ["small_glance", "small_focus", "mobilenet_v2", "regnety_600m", "densenet121"])
def test_with_the_shift_frames_of_a_clip_see_their_neighbours_and_without_they_do_not(name):
    x = torch.randn(4, 3, 32, 32)
    other = x.clone()
    other[3] = torch.randn(3, 32, 32)
    with torch.no_grad():
        shifted, alone = build(name, num_segments=4).eval(), build(name).eval()
        assert not torch.allclose(shifted(x)[1][2], shifted(other)[1][2])
        torch.testing.assert_close(alone(x)[1][:3], alone(other)[1][:3])


@pytest.mark.parametrize(
    "name", ["small_glance", "small_focus", "mobilenet_v2", "mobilenetv3_large_100", "efficientnet_b2"]
)
def test_a_batch_equals_its_rows_one_by_one(name):
    network = build(name).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        whole = network(x)
        for part in range(2):
            rows = torch.cat([network(x[i : i + 1])[part] for i in range(3)])
            torch.testing.assert_close(whole[part], rows, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_fresh_weights_neither_silence_a_picture_nor_blow_it_up(name):
    with torch.no_grad():
        feature_map, _ = build(name).eval()(torch.randn(1, 3, 64, 64))
    assert 1e-3 < float(feature_map.std()) < 1e3


def test_gradients_reach_every_parameter():
    network = build("small_glance", num_classes=3)
    _, feature = network(torch.randn(2, 3, 32, 32))
    network.head(feature).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_restored_weights_give_the_same_features():
    network = build("small_focus", num_classes=5).eval()
    again = restore("small_focus", network.state_dict(), num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x)[1], again(x)[1])


def test_counters_of_batch_norm_may_be_missing_from_weights():
    weights = {k: v for k, v in build("small_glance").state_dict().items() if "num_batches" not in k}
    restore("small_glance", weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("features.0.1.weight"), "weights of small_glance lack features.0.1.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "hold extra, for which it has no place"),
        (
            lambda w: w.update({"features.0.1.weight": torch.zeros(8, 1, 3, 3)}),
            r"has shape \(8, 1, 3, 3\), but \(8, 3, 3, 3\) is needed",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    weights = dict(build("small_glance").state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        restore("small_glance", weights)


def test_an_unknown_backbone_is_named_with_those_there_are():
    with pytest.raises(CheckpointError, match="'vgg16' is not known; there are mobilenet_v2, resnet50"):
        build("vgg16")


def test_filling_a_real_module_copies_so_that_training_leaves_the_weights_alone():
    given = torch.nn.Linear(2, 2).state_dict()
    before = given["weight"].clone()
    module = torch.nn.Linear(2, 2)
    fill(module, given, "a layer")
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(given["weight"], before)
