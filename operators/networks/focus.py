"""The heavy network's look at patches of any number of clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from operators.networks.compiled import make_forward
from operators.networks.network import Network
from operators.networks.tensors import IMAGENET, Normalisation, Upload, split_batch, to_array
from operators.records import PatchBatch, PatchFeatures


class Focuser:
    """PatchBatch -> PatchFeatures. Takes the network over: it is folded in place and stays in eval mode.

    Row i in is row i out, whatever the batching; with a temporal shift the rows are whole clips in order.
    """

    def __init__(
        self,
        *,
        network: Network,
        normalisation: Normalisation = IMAGENET,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_batch: int = 64,
        shapes: tuple[int, ...] = (),
        feature_maps: bool = False,
        compiled: bool = False,
    ) -> None:
        """`shapes`: sizes to which a pass is padded; `feature_maps`: whether a policy reads what the patches show;
        `compiled`: as few kernels, where can_compile() says so."""
        self.device = torch.device(device)
        self.max_batch = max_batch
        self.shapes = shapes
        self.feature_maps = feature_maps
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
        self._upload = Upload(self.device)

    def passes(self, num_patches: int) -> list[tuple[int, int, int]]:
        """(start, stop, rows with padding) of each forward pass over so many patches."""
        return split_batch(
            num_patches,
            max_batch=self.max_batch,
            shapes=self.shapes,
            multiple=self.num_segments or 1,
            overlaps=self.device.type == "cuda",
        )

    @torch.inference_mode()
    def __call__(self, batch: PatchBatch) -> PatchFeatures:
        pixels = batch.pixels
        multiple = self.num_segments or 1
        if len(pixels) % multiple:
            raise ValueError(f"{len(pixels)} patches are no whole clips of {multiple}")
        if len(pixels) == 0:
            return PatchFeatures(feature=np.zeros((0, self.num_features), np.float32))
        features, maps = [], []
        for start, stop, rows in self.passes(len(pixels)):
            parts = self._upload.join([pixels[start:stop]], rows)
            if batch.shifts is not None:
                parts = _mixed(parts, batch.shifts[start:stop])
            feature_map, feature = self._forward(parts)
            features.append(feature[: stop - start])
            if self.feature_maps:
                maps.append(feature_map[: stop - start])
        return PatchFeatures(
            feature=to_array(torch.cat(features)), feature_map=to_array(torch.cat(maps)) if maps else None
        )


def _mixed(parts: Sequence[Tensor], shifts: np.ndarray) -> list[Tensor]:
    """One pass's patches, mixed of their pixels; rows of padding are not shifted."""
    given = torch.zeros((sum(map(len, parts)), 2))
    given[: len(shifts)] = torch.from_numpy(shifts)
    by_part = given.to(parts[0].device).split([len(part) for part in parts])
    return [between_pixels(part, own) for part, own in zip(parts, by_part, strict=True)]


def between_pixels(pixels: Tensor, shifts: Tensor) -> Tensor:
    """[N,3,P+1,P+1] of 0..255 and shifts [N,2] in [0,1] -> float32 [N,3,P,P], which begins so far after the first pixel
    (row, column) and is mixed bilinearly of the four pixels around each place.

    Nothing is rounded to grey levels: that would move AdaFocusV2's logits by up to 1.7 thousandths of their spread
    (patches of 128), where all other differences together make up 0.2.
    """
    row, column = shifts[:, :, None, None, None].unbind(1)
    pixels = pixels.float()
    pixels = torch.lerp(pixels[:, :, :-1], pixels[:, :, 1:], row)
    return torch.lerp(pixels[..., :-1], pixels[..., 1:], column)
