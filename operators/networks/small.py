"""Small networks of both kinds, for the demo, the tests and training on two cores.

At 32 px the glance costs 4 million MACs and the focus 21: a focus must cost several glances, or skipping would
save nothing in total.
"""

from __future__ import annotations

from torch import Tensor, nn

from operators.networks.network import Network, initialise, shift_for


class SmallNetwork(Network):
    """3x3 convolutions with batch norm and ReLU; map [N,C,h,w] of the last one, feature its mean [N,C]."""

    def __init__(self, *, layers: tuple[tuple[int, int], ...], num_segments: int = 0, num_classes: int = 0) -> None:
        """`layers`: channels and stride of each convolution."""
        channels_out = layers[-1][0]
        super().__init__(
            map_channels=channels_out,
            num_features=channels_out,
            num_segments=num_segments,
            num_classes=num_classes,
        )
        blocks = []
        in_channels = 3
        for channels, stride in layers:
            # Layers that keep the size stand where larger networks have their residual blocks: they shift.
            keeps_size = stride == 1 and in_channels == channels
            blocks.append(
                nn.Sequential(
                    shift_for(num_segments if keeps_size else 0),
                    nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                )
            )
            in_channels = channels
        self.features = nn.Sequential(*blocks)
        initialise(self)

    def feature_map(self, x: Tensor) -> Tensor:
        return self.features(x)


def small_glance(*, num_segments: int = 0, num_classes: int = 0) -> SmallNetwork:
    """Map [N,48,H/4,W/4]: at 32 px 8x8 cells, as fine as a grid of 7x7 places needs."""
    layers = ((8, 1), (24, 2), (24, 1), (48, 2), (48, 1))
    return SmallNetwork(layers=layers, num_segments=num_segments, num_classes=num_classes)


def small_focus(*, num_segments: int = 0, num_classes: int = 0) -> SmallNetwork:
    """Map [N,128,P/8,P/8]."""
    layers = ((24, 1), (48, 2), (48, 1), (96, 2), (96, 1), (128, 2), (128, 1))
    return SmallNetwork(layers=layers, num_segments=num_segments, num_classes=num_classes)
