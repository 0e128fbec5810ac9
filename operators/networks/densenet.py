"""DenseNet-121, 169 and 201; parameters named as in torchvision's files."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from operators.networks.network import Network, initialise, shift_for

GROWTH = 32
"""Channels that each layer adds."""
BLOCKS = {"densenet121": (6, 12, 24, 16), "densenet169": (6, 12, 32, 32), "densenet201": (6, 12, 48, 32)}
"""Layers of each block."""


class DenseLayer(nn.Module):
    """Adds its own channels behind those that it reads. The temporal shift changes what it reads, not what it keeps."""

    def __init__(self, in_channels: int, *, num_segments: int) -> None:
        super().__init__()
        bottleneck = 4 * GROWTH
        self.shift = shift_for(num_segments)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, bottleneck, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu1(self.norm1(self.shift(x))))
        return torch.cat((x, self.conv2(self.relu2(self.norm2(y)))), 1)


class Transition(nn.Sequential):
    """Halves the channels and the sides between two blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2, stride=2)


class DenseNet(Network):
    """Map [N,C,H/32,W/32] after the last batch norm and its ReLU, feature [N,C]; C is 1024, 1664 or 1920."""

    def __init__(self, *, name: str, num_segments: int = 0, num_classes: int = 0) -> None:
        channels = 64
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        num_blocks = len(BLOCKS[name])
        for number, num_layers in enumerate(BLOCKS[name], start=1):
            block = nn.Sequential()
            for layer in range(1, num_layers + 1):
                block.add_module(f"denselayer{layer}", DenseLayer(channels, num_segments=num_segments))
                channels += GROWTH
            layers[f"denseblock{number}"] = block
            if number < num_blocks:
                layers[f"transition{number}"] = Transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        layers["relu5"] = nn.ReLU(inplace=True)
        super().__init__(
            map_channels=channels, num_features=channels, num_segments=num_segments, num_classes=num_classes
        )
        self.features = nn.Sequential(layers)
        initialise(self, by_inputs=True)

    def feature_map(self, x: Tensor) -> Tensor:
        return self.features(x)
