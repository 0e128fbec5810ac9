"""The light network's look at whole views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from operators.networks.compiled import make_forward
from operators.networks.network import Network
from operators.networks.tensors import IMAGENET, Normalisation, Upload, rows_of, split_batch
from operators.records import Glance

Resize = Literal["nearest", "antialias", "bilinear", "bicubic"]
"""How a view becomes the glance's input: AdaFocus takes `nearest`, GFNet `bilinear` or `bicubic` from corner to
corner without antialias, the small family `antialias` (bilinear)."""


def resize_views(views: Tensor, size_px: int, resize: Resize) -> Tensor:
    """[N,3,H,W] -> [N,3,size_px,size_px]; the size it has already is left as it is. Bytes stay bytes where pixels are
    taken as they are, and become float32 where they are mixed."""
    if views.shape[-2:] == (size_px, size_px):
        return views
    size = (size_px, size_px)
    if resize != "nearest" and not views.is_floating_point():
        views = views.float()
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
        shapes: tuple[int, ...] = (),
        compiled: bool = False,
    ) -> None:
        """`shapes`: sizes to which a pass is padded; `compiled`: as few kernels, where can_compile() says so."""
        self.size_px = size_px
        self.resize: Resize = resize
        self.device = torch.device(device)
        self.max_batch = max_batch
        self.shapes = shapes
        self.map_channels = network.map_channels
        self.num_features = network.num_features
        self.num_segments = network.num_segments
        self._forward = make_forward(
            network,
            normalisation=normalisation,
            device=self.device,
            dtype=dtype,
            max_batch=max_batch,
            compiled=compiled,
        )
        self._head = network.head
        self._upload = Upload(self.device)

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray | Sequence[np.ndarray]) -> Glance:
        """uint8 [N,H,W,3] -> float32 tensors on the device: map [N,C,h,w], feature [N,C], logits [N,K] or None

        Several arrays are taken one behind the other, each read where it lies.
        """
        parts = [pixels] if isinstance(pixels, np.ndarray) else pixels
        num_views, multiple = sum(map(len, parts)), self.num_segments or 1
        if num_views == 0 or num_views % multiple:
            raise ValueError(f"{num_views} views, where a glance takes multiples of {multiple}, at least one")
        maps, features = [], []
        passes = split_batch(
            num_views,
            max_batch=self.max_batch,
            shapes=self.shapes,
            multiple=multiple,
            overlaps=self.device.type == "cuda",
        )
        for start, stop, rows in passes:
            views = self._upload.join(rows_of(parts, start, stop), rows)
            feature_map, feature = self._forward([resize_views(x, self.size_px, self.resize) for x in views])
            maps.append(feature_map[: stop - start].float())
            features.append(feature[: stop - start])
        feature = _cat(features)
        logits = None if self._head is None else self._head(feature)
        return Glance(feature_map=_cat(maps), feature=feature, logits=logits)


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
