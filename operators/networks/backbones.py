"""The one place where a backbone is made from its name, and where weights become a backbone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from operators.errors import CheckpointError
from operators.networks import densenet, efficientnet, efficientnet_lite, regnet
from operators.networks.mobilenet import MobileNetV2, MobileNetV3Large
from operators.networks.network import Network, of_zeros
from operators.networks.resnet import ResNet50
from operators.networks.small import small_focus, small_glance
from operators.networks.tensors import IMAGENET, Normalisation

BACKBONES: dict[str, Callable[..., Network]] = {
    "mobilenet_v2": MobileNetV2,
    "resnet50": ResNet50,
    "mobilenetv3_large_100": functools.partial(MobileNetV3Large, width=1.0),
    "mobilenetv3_large_125": functools.partial(MobileNetV3Large, width=1.25),
    **{name: functools.partial(densenet.DenseNet, name=name) for name in densenet.BLOCKS},
    **{name: functools.partial(efficientnet.EfficientNet, name=name) for name in efficientnet.SCALES},
    **{name: functools.partial(efficientnet_lite.EfficientNetLite, name=name) for name in efficientnet_lite.SCALES},
    **{name: functools.partial(regnet.RegNetY, name=name) for name in regnet.FORMS},
    "small_glance": small_glance,
    "small_focus": small_focus,
}


_WITHOUT_WEIGHTS = ("small_glance", "small_focus")
_LITE = Normalisation(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def normalisation_of(*names: str) -> Normalisation | None:
    """What the published weights of all these backbones want of pixels; None where one wants another than the rest.
    Those that are not published with weights take any."""
    wanted = {
        _LITE if name in efficientnet_lite.SCALES else IMAGENET for name in names if name not in _WITHOUT_WEIGHTS
    }
    return next(iter(wanted or {IMAGENET})) if len(wanted) < 2 else None


def build(name: str, *, num_segments: int = 0, num_classes: int = 0) -> Network:
    """A backbone with fresh weights. `num_segments`: temporal shift over clips of so many frames; 0 for none.

    `num_classes`: size of its own linear head; 0 for none.
    """
    if name not in BACKBONES:
        raise CheckpointError(f"backbone {name!r} is not known; there are {', '.join(BACKBONES)}")
    return BACKBONES[name](num_segments=num_segments, num_classes=num_classes)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a backbone gives, whatever its weights are."""

    name: str
    map_channels: int
    num_features: int

    def map_side(self, size_px: int) -> int:
        """Cells along each side of the map of an input of `size_px` squared."""
        return _map_side(self.name, size_px)


def facts_of(name: str) -> Facts:
    """What the backbone of this name gives; no weights are drawn for it."""
    with torch.device("meta"):
        network = build(name)
    return Facts(name, network.map_channels, network.num_features)


@functools.cache
def _map_side(name: str, size_px: int) -> int:
    with torch.no_grad():
        return int(empty(name).eval().feature_map(torch.zeros(1, 3, size_px, size_px)).shape[-1])


def empty(name: str, *, num_segments: int = 0, num_classes: int = 0) -> Network:
    """A backbone of zeros, which takes as long as any other and no time to make."""
    with torch.device("meta"):
        network = build(name, num_segments=num_segments, num_classes=num_classes)
    return of_zeros(network)


def restore(name: str, weights: Mapping[str, Tensor], *, num_segments: int = 0, num_classes: int = 0) -> Network:
    """A backbone with the given weights, which it shares until they are changed or moved."""
    with torch.device("meta"):
        network = build(name, num_segments=num_segments, num_classes=num_classes)
    fill(network, weights, name)
    return network


def fill(module: torch.nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Gives a module its weights, missing and misshapen ones named; counters of batch norm may be absent.

    A module on the meta device takes the tensors themselves, any other copies them.
    """
    wanted = module.state_dict()
    given = dict(weights)
    for key, tensor in wanted.items():
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, torch.zeros(tensor.shape, dtype=tensor.dtype))
    missing = [key for key in wanted if key not in given]
    if missing:
        raise CheckpointError(f"weights of {what} lack {_some(missing)}")
    unknown = [key for key in given if key not in wanted]
    if unknown:
        raise CheckpointError(f"weights of {what} hold {_some(unknown)}, for which it has no place")
    for key, tensor in wanted.items():
        if given[key].shape != tensor.shape:
            raise CheckpointError(
                f"{key} of {what} has shape {tuple(given[key].shape)}, but {tuple(tensor.shape)} is needed"
            )
    is_meta = any(tensor.is_meta for tensor in wanted.values())
    module.load_state_dict(given, assign=is_meta)


def _some(keys: list[str], limit: int = 4) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
