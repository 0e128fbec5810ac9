"""The things that published checkpoint files have in common: their key names, and what follows from their shapes.

Unused parts are dropped (heads that no answer needs, critics, second copies of the policy, optimisers); parts that are
missing stay missing until somebody asks for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from operators.errors import CheckpointError
from operators.weights.header import ClassifierSpec, PolicySpec
from operators.weights.image_classifiers import in_our_names

Weights = dict[str, Tensor]
Sections = dict[str, Weights]


def backbone_weights(content: Any, path: str) -> Weights:
    """Returns the weights in a file of a single network, for image classification or pre-training, without heads."""
    if isinstance(content, Mapping):
        inner = (content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping))
        content = next(inner, content)
    weights = without_prefix(weights_in(content), "module.")
    if any(key.startswith("base_model.") for key in weights):
        weights = without_prefix({k: v for k, v in weights.items() if k.startswith("base_model.")}, "base_model.")
    if not weights:
        raise CheckpointError(f"{path} holds no weights of a network")
    weights = in_our_names(weights)
    if any(key.startswith("features.") and ".conv." in key for key in weights):
        return nested_mobilenet_v2(weights)
    return without_heads({key.replace(".conv1.net.", ".conv1."): value for key, value in weights.items()})


# Names and shapes


def weights_in(value: Any) -> Weights:
    """Returns the tensors of a state dict; an empty dict for anything else."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): tensor for key, tensor in value.items() if isinstance(tensor, Tensor)}


def under(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    return {key.removeprefix(prefix): value for key, value in weights.items()}


def without_heads(weights: Mapping[str, Tensor]) -> Weights:
    return {key: value for key, value in weights.items() if not key.startswith(("fc.", "classifier."))}


def head_of(weights: Mapping[str, Tensor], name: str) -> Weights:
    return {f"head.{key}": value for key, value in under(weights, f"{name}.").items()}


def bears(weights: Mapping[str, Tensor], mark: tuple[str, tuple[int, ...]]) -> bool:
    key, shape = mark
    return key in weights and tuple(weights[key].shape) == shape


def shape_of(weights: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in weights:
        raise CheckpointError(f"checkpoint lacks {key}")
    return tuple(weights[key].shape)


# The place in a flat block of expansion, depthwise, projection -> the name in a block that nests them.
_FLAT_EXPANDED = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
_FLAT_FIRST = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_FLAT_KEY = re.compile(r"features\.(\d+)\.conv\.(\d)\.(?:net\.)?(\w+)$")


def nested_mobilenet_v2(weights: Mapping[str, Tensor]) -> Weights:
    """Returns MobileNetV2's weights without heads, under nested names, be they nested or flat, shifted or not."""
    weights = {key: value for key, value in weights.items() if key.startswith("features.")}
    if "features.1.conv.0.0.weight" in weights:
        return weights
    nested = {}
    for key, value in weights.items():
        match = _FLAT_KEY.match(key)
        if match:
            block, place, rest = match.groups()
            places = _FLAT_FIRST if block == "1" else _FLAT_EXPANDED
            key = f"features.{block}.conv.{places.get(place, place)}.{rest}"
        nested[key] = value
    return nested


def named_resnet(weights: Mapping[str, Tensor]) -> Weights:
    """Gives a ResNet that was saved as the plain list of its children its own names."""
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    named = {}
    for key, value in weights.items():
        child, _, rest = key.partition(".")
        named[f"{children.get(child, child)}.{rest}".replace(".conv1.net.", ".conv1.")] = value
    return named


def gru_classifier(weights: Mapping[str, Tensor], path: str) -> ClassifierSpec:
    _, hidden = shape_of(weights, "gru.weight_hh_l0")
    _, in_features = shape_of(weights, "gru.weight_ih_l0")
    num_classes, width = shape_of(weights, "fc.weight")
    if width != hidden:
        raise CheckpointError(f"{path}: fc.weight of the classifier takes {width} values, but its GRU gives {hidden}")
    return ClassifierSpec(kind="gru", num_classes=num_classes, in_features=in_features, hidden=hidden)


def policy_spec(
    weights: Mapping[str, Tensor], *, map_channels: int, path: str, reads: str = "glance", std: float = 0.25
) -> PolicySpec:
    first = shape_of(weights, "state_encoder.0.weight")
    hidden = shape_of(weights, "gru.weight_hh_l0")[1]
    num_outputs = shape_of(weights, "actor.0.weight")[0]
    is_continuous = num_outputs == 2
    if not is_continuous and math.isqrt(num_outputs) ** 2 != num_outputs:
        raise CheckpointError(f"{path}: a policy of {num_outputs} actions is no square grid")
    if len(first) == 4:
        encoder = "clip" if "state_encoder.1.running_mean" in weights else "conv"
        linear = shape_of(weights, "state_encoder.4.weight" if encoder == "clip" else "state_encoder.3.weight")
        map_channels, cells = first[1], linear[1] // first[0]
    else:
        encoder, cells = "mlp", first[1] // map_channels
    return PolicySpec(
        kind="continuous" if is_continuous else "grid",
        encoder=encoder,  # type: ignore[arg-type]
        map_channels=map_channels,
        map_side=math.isqrt(cells),
        hidden=hidden,
        width=first[0],
        num_actions=49 if is_continuous else num_outputs,
        std=std,
        reads=reads,  # type: ignore[arg-type]
    )


_FACTS = (
    "epoch",
    "acc",
    "best_acc",
    "model_name",
    "patch_size",
    "flops",
    "dynamic_threshold",
    "anytime_classification",
)


def published_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers that a published file has beside its weights, as plain values."""
    facts = {key: _plain(content[key]) for key in _FACTS if key in content}
    return {"published": {key: value for key, value in facts.items() if value is not None}}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else None
