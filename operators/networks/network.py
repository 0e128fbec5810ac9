"""What every backbone has in common, and the temporal shift that any of them takes.

A backbone is fully convolutional, so any input size works, and gives two things: the map before pooling, which
policies read, and the pooled feature, which classifiers read.
"""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class TemporalShift(nn.Module):
    """Moves an eighth of the channels one step back in time and an eighth one step on; no parameters.

    Expects whole clips, each of `num_segments` consecutive rows. What enters from beyond a clip's ends is zero.
    """

    def __init__(self, *, num_segments: int, divisor: int = 8) -> None:
        super().__init__()
        self.num_segments = num_segments
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """[B*T,C,H,W] -> the same shape."""
        if x.shape[0] % self.num_segments:
            raise ValueError(f"{x.shape[0]} rows are no whole clips of {self.num_segments} segments")
        fold = x.shape[1] // self.divisor
        clips = x.unflatten(0, (-1, self.num_segments))
        shifted = torch.empty_like(x)
        out = shifted.unflatten(0, (-1, self.num_segments))
        out[:, :-1, :fold] = clips[:, 1:, :fold]
        out[:, -1, :fold] = 0
        out[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
        out[:, 0, fold : 2 * fold] = 0
        out[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
        return shifted

    def extra_repr(self) -> str:
        return f"num_segments={self.num_segments}, divisor={self.divisor}"


def shift_for(num_segments: int) -> nn.Module:
    """The module that blocks put before their first convolution: a shift, or nothing for single frames."""
    return TemporalShift(num_segments=num_segments) if num_segments else nn.Identity()


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and behind a side of `size` so that one in `stride` is left: TensorFlow's SAME, which puts the odd
    one behind."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution that pads its input as TensorFlow's SAME does: by its size, and not always equally."""

    pads: bool = True
    """False where the input comes with its border."""

    def padded(self, x: Tensor) -> Tensor:
        """[N,C,H,W] with the zeros around it that the convolution reads"""
        if not self.pads:
            return x
        above, below = same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
        return F.pad(x, (left, right, above, below))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.padded(input))


class Network(nn.Module):
    """A backbone with an optional linear head of its own: `head` is None or Linear(num_features, num_classes)."""

    def __init__(self, *, map_channels: int, num_features: int, num_segments: int = 0, num_classes: int = 0) -> None:
        super().__init__()
        self.map_channels = map_channels
        self.num_features = num_features
        self.num_segments = num_segments
        """Length of the clips that the temporal shift works on; 0 where frames are independent."""
        self.num_classes = num_classes
        self.head = nn.Linear(num_features, num_classes) if num_classes else None

    def feature_map(self, x: Tensor) -> Tensor:
        """[N,3,H,W] normalised -> [N,C,h,w]"""
        raise NotImplementedError

    def pool(self, feature_map: Tensor) -> Tensor:
        """[N,C,h,w] -> float32 [N,D]"""
        return feature_map.mean((2, 3), dtype=torch.float32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N,3,H,W] normalised -> feature map [N,C,h,w] and feature [N,D]"""
        feature_map = self.feature_map(x)
        return feature_map, self.pool(feature_map)


def initialise(network: nn.Module, *, by_inputs: bool = False) -> None:
    """He initialisation for training from nothing: batch norm as identity, convolutions by fan-out, or by fan-in for
    networks without residuals whose convolutions read more and more channels.

    A network on the meta device is about to be given weights; drawing none for it there would load torch's compiler.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            # A depthwise convolution's outputs each see one channel; counting all of them would silence it.
            num_channels = module.weight.shape[1] if by_inputs else module.weight.shape[0] // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / (num_channels * math.prod(module.kernel_size))))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def of_zeros(module: AnyModule) -> AnyModule:
    """The same module with weights of zeros on the CPU; none is copied. On the meta device nothing would have to be
    computed with it, but what torch loads for that takes longer than a pass.
    """
    # Entries of the memo are what deepcopy takes for a tensor.
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return copy.deepcopy(module, memo)
