"""EfficientNet-B2 and B3, named as in timm's files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from operators.networks.mobilenet import divisible
from operators.networks.network import Network, initialise, shift_for


@dataclass(frozen=True, slots=True)
class Stage:
    """Channels and blocks are those of width and depth 1."""

    blocks: int
    kernel: int
    stride: int
    factor: int
    """Expansion of each block."""
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
SCALES = {"efficientnet_b2": (1.1, 1.2), "efficientnet_b3": (1.2, 1.4)}
"""Width and depth."""


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.act = nn.SiLU(inplace=True)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.conv_expand(self.act(self.conv_reduce(means))))


class _Separable(nn.Module):
    """A block of the first stage, which expands nothing: depthwise, squeeze-excite, pointwise without activation."""

    def __init__(self, in_channels: int, out_channels: int, *, stage: Stage, stride: int, num_segments: int) -> None:
        super().__init__()
        self.is_residual = stride == 1 and in_channels == out_channels
        self.shift = shift_for(num_segments if self.is_residual else 0)
        self.conv_dw = _depthwise(in_channels, stage.kernel, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act = nn.SiLU(inplace=True)
        self.se = SqueezeExcite(in_channels, in_channels // 4)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.act(self.bn1(self.conv_dw(self.shift(x)))))
        y = self.bn2(self.conv_pw(y))
        return y.add_(x) if self.is_residual else y


class _Inverted(nn.Module):
    """Expansion, depthwise, squeeze-excite, projection; shifted where residual."""

    def __init__(self, in_channels: int, out_channels: int, *, stage: Stage, stride: int, num_segments: int) -> None:
        super().__init__()
        hidden = in_channels * stage.factor
        self.is_residual = stride == 1 and in_channels == out_channels
        self.shift = shift_for(num_segments if self.is_residual else 0)
        self.conv_pw = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_dw = _depthwise(hidden, stage.kernel, stride)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.act = nn.SiLU(inplace=True)
        # A quarter of what the block is given, not of what it expands that to.
        self.se = SqueezeExcite(hidden, in_channels // 4)
        self.conv_pwl = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv_pw(self.shift(x))))
        y = self.se(self.act(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return y.add_(x) if self.is_residual else y


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)


class EfficientNet(Network):
    """Map [N,C,H/32,W/32] after the last 1x1 convolution, feature [N,C]; C is 1408 or 1536."""

    def __init__(self, *, name: str, num_segments: int = 0, num_classes: int = 0) -> None:
        width, depth = SCALES[name]
        last = divisible(1280 * width)
        super().__init__(map_channels=last, num_features=last, num_segments=num_segments, num_classes=num_classes)
        in_channels = divisible(32 * width)
        self.conv_stem = nn.Conv2d(3, in_channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act = nn.SiLU(inplace=True)
        stages = []
        for stage in STAGES:
            block_of = _Separable if stage.factor == 1 else _Inverted
            blocks = []
            for number in range(math.ceil(stage.blocks * depth)):
                channels, stride = divisible(stage.channels * width), stage.stride if number == 0 else 1
                blocks.append(block_of(in_channels, channels, stage=stage, stride=stride, num_segments=num_segments))
                in_channels = channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(in_channels, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        initialise(self)
        for module in self.modules():
            if isinstance(module, SqueezeExcite) and not self.conv_stem.weight.is_meta:
                # Gates of a half, in 23 blocks one behind the other, would leave nothing of an image.
                nn.init.constant_(module.conv_expand.bias, 3.0)  # type: ignore[arg-type]

    def feature_map(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        return self.act(self.bn2(self.conv_head(x)))
