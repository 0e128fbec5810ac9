"""MobileNetV2, named as in torchvision's files, and MobileNetV3-Large, named as in timm's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from operators.networks.network import Network, initialise, shift_for


def divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that is not more than a tenth below `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """1x1 expansion (none for factor 1), depthwise 3x3, 1x1 projection; shifted where expanded and residual."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, factor: int, num_segments: int) -> None:
        super().__init__()
        self.is_residual = stride == 1 and in_channels == out_channels
        self.shift = shift_for(num_segments if self.is_residual and factor != 1 else 0)
        hidden = in_channels * factor
        layers: list[nn.Module] = [] if factor == 1 else [_conv_bn_relu6(in_channels, hidden, 1)]
        layers += [
            _conv_bn_relu6(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.shift(x))
        return y.add_(x) if self.is_residual else y


class MobileNetV2(Network):
    """Map [N,1280,H/32,W/32] after the last 1x1 convolution, feature [N,1280]."""

    # expansion factor, channels, blocks, stride of the first block
    STAGES = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip

    def __init__(self, *, num_segments: int = 0, num_classes: int = 0) -> None:
        super().__init__(map_channels=1280, num_features=1280, num_segments=num_segments, num_classes=num_classes)
        layers: list[nn.Module] = [_conv_bn_relu6(3, 32, 3, stride=2)]
        in_channels = 32
        for factor, channels, num_blocks, first_stride in self.STAGES:
            for block in range(num_blocks):
                stride = first_stride if block == 0 else 1
                layers.append(
                    InvertedResidual(in_channels, channels, stride=stride, factor=factor, num_segments=num_segments)
                )
                in_channels = channels
        layers.append(_conv_bn_relu6(in_channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        initialise(self)

    def feature_map(self, x: Tensor) -> Tensor:
        return self.features(x)


@dataclass(frozen=True, slots=True)
class _Stage:
    kernel: int
    stride: int
    channels: int
    factors: tuple[float, ...]
    """Expansion of each block."""
    squeeze: bool = False
    hard_swish: bool = True


# Channels are those of width 1.0.
_LARGE = (
    _Stage(3, 2, 24, (4, 3), hard_swish=False),
    _Stage(5, 2, 40, (3, 3, 3), squeeze=True, hard_swish=False),
    _Stage(3, 2, 80, (6, 2.5, 2.3, 2.3)),
    _Stage(3, 1, 112, (6, 6), squeeze=True),
    _Stage(5, 2, 160, (6, 6, 6), squeeze=True),
)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = divisible(channels * 0.25)
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.conv_expand(self.relu(self.conv_reduce(means))))


class _SeparableV3(nn.Module):
    """The first block: depthwise, then pointwise without activation."""

    def __init__(self, channels: int, *, num_segments: int) -> None:
        super().__init__()
        self.shift = shift_for(num_segments)
        self.conv_dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.conv_pw = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(self.act(self.bn1(self.conv_dw(self.shift(x)))))).add_(x)


class _InvertedV3(nn.Module):
    """Expansion, depthwise, squeeze-excite, projection."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stage: _Stage, factor: float, stride: int, num_segments: int
    ) -> None:
        super().__init__()
        self.is_residual = stride == 1 and in_channels == out_channels
        self.shift = shift_for(num_segments if self.is_residual else 0)
        hidden = divisible(in_channels * factor)
        self.conv_pw = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_dw = nn.Conv2d(hidden, hidden, stage.kernel, stride, stage.kernel // 2, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.act = nn.Hardswish(inplace=True) if stage.hard_swish else nn.ReLU(inplace=True)
        self.se = SqueezeExcite(hidden) if stage.squeeze else nn.Identity()
        self.conv_pwl = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv_pw(self.shift(x))))
        y = self.se(self.act(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return y.add_(x) if self.is_residual else y


class _ConvBnHardSwish(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act = nn.Hardswish(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv(x)))


class MobileNetV3Large(Network):
    """Map [N,960*width,H/32,W/32]; feature [N,1280], which a convolution makes from the pooled map."""

    def __init__(self, *, width: float = 1.0, num_segments: int = 0, num_classes: int = 0) -> None:
        map_channels = divisible(960 * width)
        super().__init__(
            map_channels=map_channels, num_features=1280, num_segments=num_segments, num_classes=num_classes
        )
        in_channels = divisible(16 * width)
        self.conv_stem = nn.Conv2d(3, in_channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act = nn.Hardswish(inplace=True)
        stages: list[nn.Module] = [nn.Sequential(_SeparableV3(in_channels, num_segments=num_segments))]
        for stage in _LARGE:
            channels = divisible(stage.channels * width)
            blocks = []
            for index, factor in enumerate(stage.factors):
                blocks.append(
                    _InvertedV3(
                        in_channels,
                        channels,
                        stage=stage,
                        factor=factor,
                        stride=stage.stride if index == 0 else 1,
                        num_segments=num_segments,
                    )
                )
                in_channels = channels
            stages.append(nn.Sequential(*blocks))
        stages.append(nn.Sequential(_ConvBnHardSwish(in_channels, map_channels)))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(map_channels, 1280, 1)
        initialise(self)

    def feature_map(self, x: Tensor) -> Tensor:
        return self.blocks(self.act(self.bn1(self.conv_stem(x))))

    def pool(self, feature_map: Tensor) -> Tensor:
        return self.act(self.conv_head(feature_map.mean((2, 3), keepdim=True))).flatten(1)
