"""The one border between uint8 arrays and normalised tensors on a device, and networks made ready for inference."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Per channel: (x / 255 - mean) / std."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


IMAGENET = Normalisation()


def to_tensor(
    pixels: np.ndarray,
    *,
    normalisation: Normalisation = IMAGENET,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Tensor:
    """uint8 [N,H,W,3] -> normalised [N,3,H,W] on the device. The pixels are copied once on this side of it.

    The array may be read-only, as those that come from another process are.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(f"pixels must be uint8 [N,H,W,3], not {pixels.dtype} {list(pixels.shape)}")
    device = torch.device(device)
    if device.type == "cpu":
        x = torch.from_numpy(pixels.astype(np.float32))
    else:
        # Pinned memory lets the copy run beside the device's work; a quarter of the bytes travel as uint8.
        pinned = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        pinned.numpy()[...] = pixels
        x = pinned.to(device, non_blocking=True).float()
    mean = torch.tensor(normalisation.mean, device=device).mul_(255.0)
    scale = torch.tensor(normalisation.std, device=device).mul_(255.0).reciprocal_()
    x = x.sub_(mean).mul_(scale).permute(0, 3, 1, 2).to(dtype)
    return x if channels_last else x.contiguous()


def to_array(x: Tensor) -> np.ndarray:
    """Any tensor -> float32 array, dense in the order of its dimensions."""
    return x.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()


def split_batch(
    num_rows: int, *, max_batch: int, shapes: tuple[int, ...] = (), multiple: int = 1
) -> list[tuple[int, int, int]]:
    """Cuts rows into passes: (start, stop, rows of the pass), of which those beyond stop - start are padding.

    Passes are as large as `max_batch` and `multiple` (a clip's rows stay together) allow. With `shapes`, every pass
    has one of these sizes, so that compiled kernels are made once for each.
    """
    sizes = sorted(size for size in shapes if size <= max_batch and size % multiple == 0)
    if shapes and not sizes:
        raise ValueError(f"no shape of {shapes} is at most {max_batch} and a multiple of {multiple}")
    largest = sizes[-1] if sizes else max(multiple, max_batch // multiple * multiple)
    passes = []
    for start in range(0, num_rows, largest):
        stop = min(start + largest, num_rows)
        rows = next((size for size in sizes if size >= stop - start), stop - start)
        passes.append((start, stop, rows))
    return passes


def fold_batchnorm(module: nn.Module) -> None:
    """Folds every batch norm that follows a convolution into it, in place; only for networks in eval mode.

    "Follows" means: is the next child of the same module. Backbones register their layers in that order.
    """
    children = list(module.named_children())
    for (_, conv), (name, norm) in itertools.pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            if norm.training or norm.running_mean is None or norm.running_var is None:
                raise ValueError("batch norm can be folded only in eval mode and with running statistics")
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            setattr(module, name, nn.Identity())
    for _, child in children:
        fold_batchnorm(child)


def ready(
    network: nn.Module,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> nn.Module:
    """Makes a network ready for inference, in place: eval, folded, on its device, without gradients."""
    network.eval()
    network.requires_grad_(False)
    with torch.no_grad():
        network.float()
        fold_batchnorm(network)
    network.to(device=device, dtype=dtype)
    if channels_last:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return network
