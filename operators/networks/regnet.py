"""RegNetY at 600 MF, 800 MF and 1.6 GF; parameters named as in pycls' files, and so in GFNet's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from operators.networks.network import Network, initialise, shift_for

_STEM = 32


@dataclass(frozen=True, slots=True)
class _Form:
    depths: tuple[int, ...]
    """Blocks of each stage."""
    widths: tuple[int, ...]
    group_width: int
    """Channels of each group of the 3x3 convolutions."""


FORMS = {
    "regnety_600m": _Form((1, 3, 7, 4), (48, 112, 256, 608), 16),
    "regnety_800m": _Form((1, 3, 8, 2), (64, 128, 320, 768), 16),
    "regnety_1600m": _Form((2, 6, 17, 2), (48, 120, 336, 888), 24),
}


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.f_ex = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), nn.ReLU(inplace=True), nn.Conv2d(reduced, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.f_ex(x.mean((2, 3), keepdim=True))


class _Branch(nn.Module):
    """1x1, grouped 3x3, squeeze-excite, 1x1; all of one width."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, group_width: int) -> None:
        super().__init__()
        groups = channels // group_width
        self.a = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.a_bn = nn.BatchNorm2d(channels)
        self.a_relu = nn.ReLU(inplace=True)
        self.b = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.b_bn = nn.BatchNorm2d(channels)
        self.b_relu = nn.ReLU(inplace=True)
        # A quarter of what the block is given, not of its own width.
        self.se = SqueezeExcite(channels, round(in_channels / 4))
        self.c = nn.Conv2d(channels, channels, 1, bias=False)
        self.c_bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a_relu(self.a_bn(self.a(x)))
        x = self.b_relu(self.b_bn(self.b(x)))
        return self.c_bn(self.c(self.se(x)))


class Block(nn.Module):
    """A branch and a residual. The temporal shift works on the branch alone."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, group_width: int, num_segments: int) -> None:
        super().__init__()
        self.shift = shift_for(num_segments)
        self.proj: nn.Module | None = None
        self.bn: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.proj = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.bn = nn.BatchNorm2d(channels)
        self.f = _Branch(in_channels, channels, stride=stride, group_width=group_width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.f(self.shift(x))
        residual = x if self.proj is None or self.bn is None else self.bn(self.proj(x))
        return self.relu(y.add_(residual))


class _Stem(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, _STEM, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU(inplace=True)


class RegNetY(Network):
    """Map [N,C,H/32,W/32] after the last stage, feature [N,C]; C is 608, 768 or 888."""

    def __init__(self, *, name: str, num_segments: int = 0, num_classes: int = 0) -> None:
        form = FORMS[name]
        channels = form.widths[-1]
        super().__init__(
            map_channels=channels, num_features=channels, num_segments=num_segments, num_classes=num_classes
        )
        self.stem = _Stem()
        in_channels = _STEM
        stages = []
        for depth, width in zip(form.depths, form.widths, strict=True):
            stage = nn.Sequential()
            for number in range(1, depth + 1):
                block = Block(
                    in_channels,
                    width,
                    stride=2 if number == 1 else 1,
                    group_width=form.group_width,
                    num_segments=num_segments,
                )
                stage.add_module(f"b{number}", block)
                in_channels = width
            stages.append(stage)
        self.s1, self.s2, self.s3, self.s4 = stages
        initialise(self)

    def feature_map(self, x: Tensor) -> Tensor:
        return self.s4(self.s3(self.s2(self.s1(self.stem(x)))))
