"""The one border between uint8 arrays and normalised tensors on a device, and networks made ready for inference."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions that settings name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Per channel: (x / 255 - mean) / std."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


IMAGENET = Normalisation()

Module = TypeVar("Module", bound=nn.Module)


class Upload:
    """uint8 [N,H,W,3] -> uint8 [N,3,H,W] on the device, lying as the pixels do; on a CPU the very same memory.

    The array may be read-only, as those that come from another process are; what is given back is not to be written
    to. To a GPU the copy runs beside the work that is queued there already.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def __call__(self, pixels: np.ndarray) -> Tensor:
        (x,) = self.join([pixels])
        return x

    def join(self, parts: Sequence[np.ndarray], num_rows: int = 0) -> list[Tensor]:
        """What makes one pass's rows, one part behind the other, with rows of zeros up to `num_rows`.

        On a CPU every part stays where it lies; on a GPU they become one tensor, put together in pinned memory.
        """
        for pixels in parts:
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
                raise ValueError(f"pixels must be uint8 [N,H,W,3], not {pixels.dtype} {list(pixels.shape)}")
        given = sum(map(len, parts))
        size = parts[0].shape[1:]
        if self._stream is None:
            padding = [np.zeros((num_rows - given, *size), np.uint8)] if given < num_rows else []
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
                return [
                    torch.from_numpy(np.ascontiguousarray(part)).to(self._device).permute(0, 3, 1, 2)
                    for part in [*parts, *padding]
                ]
        # Only from pinned memory does a copy run beside the device's work; bytes are a quarter of what floats are.
        pinned = torch.empty((max(given, num_rows), *size), dtype=torch.uint8, pin_memory=True)
        buffer, start = pinned.numpy(), 0
        for part in parts:
            buffer[start : start + len(part)] = part
            start += len(part)
        buffer[start:] = 0
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            x = pinned.to(self._device, non_blocking=True)
        current.wait_stream(self._stream)
        # The memory is the copying stream's, which must not use it again before the work has read it.
        x.record_stream(current)
        return [x.permute(0, 3, 1, 2)]


def rows_of(parts: Sequence[np.ndarray], start: int, stop: int) -> list[np.ndarray]:
    """Rows start..stop of arrays that are counted through, each where it lies."""
    rows, begin = [], 0
    for part in parts:
        end = begin + len(part)
        if max(start, begin) < min(stop, end):
            rows.append(part[max(start - begin, 0) : stop - begin])
        begin = end
    return rows


# Kept, because nothing may be copied to a GPU while a graph is recorded there; and for good, because the graph goes on
# reading them where they lay then.
@functools.cache
@torch.inference_mode(False)
def mean_and_scale(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """float32 [3] each, for pixels of 0..255: normalised is (x - mean) * scale."""
    mean = torch.tensor(normalisation.mean, device=device).mul_(255.0)
    return mean, torch.tensor(normalisation.std, device=device).mul_(255.0).reciprocal_()


def normalise(
    parts: Tensor | Sequence[Tensor], normalisation: Normalisation, dtype: torch.dtype = torch.float32
) -> Tensor:
    """[N,3,H,W] of 0..255 -> normalised, lying channels last; computed in float32, rounded once.

    Several such tensors become one, without being put together before.
    """
    parts = [parts] if isinstance(parts, Tensor) else parts
    _, channels, height, width = parts[0].shape
    mean, scale = (x.repeat(width) for x in mean_and_scale(normalisation, parts[0].device))
    num_rows = sum(map(len, parts))
    out = torch.empty((num_rows * height, width * channels), dtype=dtype, device=parts[0].device)
    start = 0
    for x in parts:
        # Whole rows of pixels at a time: three channels innermost would leave vector units idle.
        rows = x.permute(0, 2, 3, 1).reshape(len(x) * height, width * channels)
        place = out[start : start + len(rows)]
        if dtype == torch.float32:
            torch.sub(rows, mean, out=place).mul_(scale)
        else:
            place.copy_(torch.sub(rows, mean).mul_(scale))
        start += len(rows)
    return out.view(num_rows, height, width, channels).permute(0, 3, 1, 2)


def to_tensor(
    pixels: np.ndarray,
    *,
    normalisation: Normalisation = IMAGENET,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Tensor:
    """uint8 [N,H,W,3] -> normalised [N,3,H,W] on the device. The pixels are copied once on this side of it."""
    x = normalise(_upload(torch.device(device))(pixels), normalisation, dtype)
    return x if channels_last else x.contiguous()


@functools.cache
def _upload(device: torch.device) -> Upload:
    """One per device: each has a stream, and the memory that a stream has freed is used again by that stream alone."""
    return Upload(device)


def to_array(x: Tensor) -> np.ndarray:
    """Any tensor -> float32 array, dense in the order of its dimensions."""
    return x.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()


_WORTH_HALVING = 64
"""Rows whose pixels take a GPU's host long enough to put together that half of the work can hide it."""


def split_batch(
    num_rows: int, *, max_batch: int, shapes: tuple[int, ...] = (), multiple: int = 1, overlaps: bool = False
) -> list[tuple[int, int, int]]:
    """Cuts rows into passes: (start, stop, rows of the pass), of which those beyond stop - start are padding.

    Passes are as large as `max_batch` and `multiple` (a clip's rows stay together) allow. With `shapes`, every pass
    has one of these sizes, so that compiled kernels are made once for each. `overlaps`: many rows go in two passes at
    least, because one's pixels travel while the device works on the one before.
    """
    sizes = sorted(size for size in shapes if size <= max_batch and size % multiple == 0)
    if shapes and not sizes:
        raise ValueError(f"no shape of {shapes} is at most {max_batch} and a multiple of {multiple}")
    largest = sizes[-1] if sizes else max(multiple, max_batch // multiple * multiple)
    if overlaps and num_rows >= _WORTH_HALVING:
        half = -(-num_rows // (2 * multiple)) * multiple
        largest = min(largest, next((size for size in sizes if size >= half), half))
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


def to_dtype(module: Module, dtype: torch.dtype) -> Module:
    """The module in this precision, in place; its convolutions' weights lie channels last."""
    module.to(dtype=dtype)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
    return module


def ready(
    network: Module,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Module:
    """Makes a network ready for inference, in place: eval, folded, on its device, without gradients.

    Its own head stays in float32, as the features that it reads do.
    """
    network.eval()
    network.requires_grad_(False)
    with torch.no_grad():
        network.float()
        fold_batchnorm(network)
    to_dtype(network.to(device), dtype)
    head = getattr(network, "head", None)
    if isinstance(head, nn.Module):
        head.float()
    return network


def exact_fp32(device: str) -> None:
    """fp32 is fp32 in this process, on a GPU too, where cuDNN would round it to TF32's ten bits of fraction."""
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
