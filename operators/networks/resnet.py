"""ResNet-50 with the stride on the 3x3 convolution; parameters named as in torchvision's files."""

from __future__ import annotations

from torch import Tensor, nn

from operators.networks.network import Network, initialise, shift_for

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual. The temporal shift works on the residual branch alone."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, num_segments: int) -> None:
        super().__init__()
        out_channels = channels * EXPANSION
        self.shift = shift_for(num_segments)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(self.shift(x))))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        residual = x if self.downsample is None else self.downsample(x)
        return self.relu(y.add_(residual))


class ResNet50(Network):
    """Map [N,2048,H/32,W/32] after layer4, feature [N,2048]."""

    def __init__(self, *, num_segments: int = 0, num_classes: int = 0) -> None:
        super().__init__(map_channels=2048, num_features=2048, num_segments=num_segments, num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = 64
        layers = []
        for index, num_blocks in enumerate((3, 4, 6, 3)):
            channels = 64 << index
            blocks = []
            for block in range(num_blocks):
                stride = 2 if block == 0 and index else 1
                blocks.append(Bottleneck(in_channels, channels, stride=stride, num_segments=num_segments))
                in_channels = channels * EXPANSION
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        initialise(self)

    def feature_map(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
