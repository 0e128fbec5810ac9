"""The light network's look at whole views."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from operators.network import Network
from operators.records import Glance
from operators.tensors import IMAGENET, Normalisation, ready, split_batch, to_tensor

Resize = Literal["nearest", "antialias", "bilinear", "bicubic"]
"""How a view becomes the glance's input: AdaFocus takes `nearest`, GFNet `bilinear` or `bicubic` from corner to
corner without antialias, the small family `antialias` (bilinear)."""


def resize_views(views: Tensor, size_px: int, resize: Resize) -> Tensor:
    """[N,3,H,W] -> [N,3,size_px,size_px]; the size it has already is left as it is."""
    if views.shape[-2:] == (size_px, size_px):
        return views
    size = (size_px, size_px)
    match resize:
        case "nearest":
            return F.interpolate(views, size, mode="nearest")
        case "antialias":
            return F.interpolate(views, size, mode="bilinear", align_corners=False, antialias=True)
        case "bilinear" | "bicubic":
            return F.interpolate(views, size, mode=resize, align_corners=True)
    raise ValueError(f"resize {resize!r} is not known")


class Glancer:
    """Views -> Glance. Takes the network over: it is folded in place and stays in eval mode.

    Row i in is row i out, whatever `max_batch`; with a temporal shift the rows are whole clips in order.
    """

    def __init__(
        self,
        *,
        network: Network,
        size_px: int,
        resize: Resize = "nearest",
        normalisation: Normalisation = IMAGENET,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_batch: int = 64,
        channels_last: bool = True,
    ) -> None:
        self.size_px = size_px
        self.resize: Resize = resize
        self.normalisation = normalisation
        self.device = torch.device(device)
        self.dtype = dtype
        self.max_batch = max_batch
        self.channels_last = channels_last
        self.map_channels = network.map_channels
        self.num_features = network.num_features
        self.num_segments = network.num_segments
        self._network = network
        ready(network, device=self.device, dtype=dtype, channels_last=channels_last)

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Glance:
        """uint8 [N,H,W,3] -> float32 tensors on the device: map [N,C,h,w], feature [N,C], logits [N,K] or None"""
        multiple = self.num_segments or 1
        if len(pixels) == 0 or len(pixels) % multiple:
            raise ValueError(f"{len(pixels)} views, where a glance takes multiples of {multiple}, at least one")
        parts = []
        for start, stop, _ in split_batch(len(pixels), max_batch=self.max_batch, multiple=multiple):
            parts.append(self._look(pixels[start:stop]))
        maps, features, logits = zip(*parts, strict=True)
        has_logits = logits[0] is not None
        return Glance(feature_map=_cat(maps), feature=_cat(features), logits=_cat(logits) if has_logits else None)

    def _look(self, pixels: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
        views = to_tensor(
            pixels, normalisation=self.normalisation, device=self.device, channels_last=self.channels_last
        )
        views = resize_views(views, self.size_px, self.resize).to(self.dtype)
        feature_map, feature = self._network(views)
        head = self._network.head
        logits = None if head is None else head(feature).float()
        return feature_map.float(), feature.float(), logits


def _cat(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
