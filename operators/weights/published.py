"""The published checkpoint files: their key names, and what their shapes say of how to run them.

Unused parts are dropped (heads that no answer needs, critics, second copies of the policy, optimisers); parts that are
missing stay missing until somebody asks for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from operators.errors import CheckpointError
from operators.networks.backbones import BACKBONES
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, PolicySpec, Preprocessing

Weights = dict[str, Tensor]
Sections = dict[str, Weights]


def read(content: Any, path: str) -> tuple[Header, Sections]:
    """What `torch.load` gave -> header and sections in this project's names."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not the sections of a published checkpoint")
    if "model_prime_state_dict" in content:
        return _gfnet(content, path)
    if "state_dict" in content and "glancer" not in content:
        return _tsm_pretraining(_weights(content["state_dict"]), path)
    if "glancer" in content or "model_state_dict" in content:
        sections = _adafocus_sections(content)
        if any(key.startswith("net.base_model.") for key in sections["focuser"]):
            return _adafocus_tsm(sections, content)
        return _adafocus(sections, content, path)
    raise CheckpointError(
        f"{path} is no checkpoint of a known form: its sections are {', '.join(map(str, list(content)[:6])) or 'none'}"
    )


def backbone_weights(content: Any, path: str) -> Weights:
    """A single network's weights, as image classification files and pre-training files hold them, without heads."""
    weights = _weights(content.get("state_dict", content) if isinstance(content, Mapping) else content)
    weights = _without_prefix(weights, "module.")
    if any(key.startswith("base_model.") for key in weights):
        weights = _without_prefix({k: v for k, v in weights.items() if k.startswith("base_model.")}, "base_model.")
    if not weights:
        raise CheckpointError(f"{path} holds no weights of a network")
    if any(key.startswith("features.") for key in weights):
        return _mobilenet_v2(weights)
    return _without_heads({key.replace(".conv1.net.", ".conv1."): value for key, value in weights.items()})


# AdaFocus for ActivityNet, FCVID and Mini-Kinetics


def _adafocus_sections(content: Mapping[str, Any]) -> Sections:
    whole = _weights(content.get("model_state_dict"))
    prefixes = {"glancer": "glancer.", "focuser": "focuser.", "fc": "classifier."}
    sections = {name: _weights(content.get(name)) or _under(whole, prefix) for name, prefix in prefixes.items()}
    policy = _weights(content.get("policy"))
    for copy in ("policy.policy_old.", "policy.policy."):
        policy = policy or _under(sections["focuser"], copy)
    return {**sections, "policy": policy}


def _adafocus(raw: Sections, content: Mapping[str, Any], path: str) -> tuple[Header, Sections]:
    sections: Sections = {}
    if raw["glancer"]:
        sections["glancer"] = _mobilenet_v2(_under(raw["glancer"], "net."))
    if raw["focuser"]:
        sections["focuser"] = _without_heads(_under(raw["focuser"], "net."))
    classifier: ClassifierSpec | None = None
    if raw["fc"]:
        if "gru.weight_hh_l0" not in raw["fc"]:
            raise CheckpointError(
                f"{path}: its classifier holds {', '.join(list(raw['fc'])[:3])}, not a GRU; only the GRU form is read"
            )
        sections["classifier"] = raw["fc"]
        classifier = _gru_classifier(raw["fc"], path)
    policy: PolicySpec | None = None
    if raw["policy"]:
        sections["policy"] = raw["policy"]
        policy = _policy_spec(raw["policy"], map_channels=1280, path=path)
    header = Header(
        family="adafocus",
        glance=NetworkSpec(name="mobilenet_v2", size_px=224) if raw["glancer"] else None,
        # The patch size changes no shape and stands nowhere in the file.
        focus=NetworkSpec(name="resnet50") if raw["focuser"] else None,
        classifier=classifier,
        policy=policy,
        preprocessing=Preprocessing(),
        training=_facts(content),
    )
    return header, sections


# AdaFocus-TSM for Something-Something


def _adafocus_tsm(raw: Sections, content: Mapping[str, Any]) -> tuple[Header, Sections]:
    sections: Sections = {}
    num_classes = 0
    if raw["fc"]:
        num_classes = _shape(raw["fc"], "weight")[0]
        sections["classifier"] = {f"fc.{key}": value for key, value in raw["fc"].items()}
    if raw["glancer"]:
        glancer = _under(raw["glancer"], "net.")
        sections["glancer"] = _mobilenet_v2(glancer) | _head(glancer, "classifier")
    sections["focuser"] = _sequential_resnet(_under(raw["focuser"], "net.base_model."))
    policy: PolicySpec | None = None
    if raw["policy"]:
        sections["policy"] = raw["policy"]
        policy = _policy_spec(raw["policy"], map_channels=8 * 1280, path="checkpoint")
    header = Header(
        family="adafocus_tsm",
        glance=NetworkSpec(name="mobilenet_v2", size_px=224, num_segments=8, num_classes=num_classes)
        if raw["glancer"]
        else None,
        focus=NetworkSpec(name="resnet50", num_segments=12),
        classifier=ClassifierSpec(kind="average", num_classes=num_classes, in_features=2048) if num_classes else None,
        policy=policy,
        num_steps=8,
        num_focus_steps=12,
        pad="first",
        training=_facts(content),
    )
    return header, sections


def _tsm_pretraining(weights: Weights, path: str) -> tuple[Header, Sections]:
    """One TSM network, from which AdaFocus-TSM's training begins."""
    weights = _without_prefix(weights, "module.")
    base = _under(weights, "base_model.")
    head = _head(weights, "new_fc")
    num_classes = head["head.weight"].shape[0] if head else 0
    if any(key.startswith("features.") for key in base):
        spec = NetworkSpec(name="mobilenet_v2", size_px=224, num_segments=8, num_classes=num_classes)
        header = Header(family="adafocus_tsm", glance=spec, focus=None, classifier=None, num_steps=8, pad="first")
        return header, {"glancer": _mobilenet_v2(base) | head}
    if "conv1.weight" not in base:
        raise CheckpointError(f"{path} is no TSM pre-training file: it lacks module.base_model.conv1.weight")
    focuser = _without_heads({key.replace(".conv1.net.", ".conv1."): value for key, value in base.items()})
    sections = {"focuser": focuser}
    classifier = None
    if head:
        sections["classifier"] = {"fc.weight": head["head.weight"], "fc.bias": head["head.bias"]}
        classifier = ClassifierSpec(kind="average", num_classes=num_classes, in_features=2048)
    header = Header(
        family="adafocus_tsm",
        glance=None,
        focus=NetworkSpec(name="resnet50", num_segments=12),
        classifier=classifier,
        num_steps=8,
        num_focus_steps=12,
        pad="first",
    )
    return header, sections


# GFNet


@dataclass(frozen=True, kw_only=True, slots=True)
class GFNetForm:
    """How GFNet was published for one backbone."""

    mark: tuple[str, tuple[int, ...]]
    """A weight and its shape, by which a file of this backbone is known: files of training do not name it."""
    map_channels: int
    num_looks: int
    """The glance included; the length of a released file's own list of costs goes before it."""
    encoder: Literal["mlp", "conv"]
    """Of the policy."""
    hidden: int
    """State of the policy's GRU."""
    width: int
    """Of the policy's first layer."""
    classifier: Literal["gru", "cascaded"]
    """A cascade's first layer is the glance network's own head."""
    glance_resize: Literal["bilinear", "bicubic"]
    resize_px: int = 256
    crop_px: int = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


_RESNET = GFNetForm(
    mark=("layer1.0.conv3.weight", (256, 64, 1, 1)),
    map_channels=2048,
    num_looks=5,
    encoder="mlp",
    hidden=1024,
    width=2048,
    classifier="gru",
    glance_resize="bicubic",
)
_MOBILENET = GFNetForm(
    mark=("conv_head.weight", (1280, 960, 1, 1)),
    map_channels=960,
    num_looks=3,
    encoder="conv",
    hidden=256,
    width=32,
    classifier="cascaded",
    glance_resize="bicubic",
)
_DENSENET = replace(_RESNET, glance_resize="bilinear")
_EFFICIENTNET = replace(_MOBILENET, num_looks=4, interpolation="bicubic")
_NORM, _HEAD = "features.norm5.weight", "conv_head.weight"
GFNET_FORMS = {
    "resnet50": _RESNET,
    "densenet121": replace(_DENSENET, mark=(_NORM, (1024,)), map_channels=1024),
    "densenet169": replace(_DENSENET, mark=(_NORM, (1664,)), map_channels=1664),
    "densenet201": replace(_DENSENET, mark=(_NORM, (1920,)), map_channels=1920),
    "mobilenetv3_large_100": _MOBILENET,
    "mobilenetv3_large_125": replace(_MOBILENET, mark=(_HEAD, (1280, 1200, 1, 1)), map_channels=1200),
    "efficientnet_b2": replace(
        _EFFICIENTNET, mark=(_HEAD, (1408, 352, 1, 1)), map_channels=1408, resize_px=297, crop_px=260
    ),
    "efficientnet_b3": replace(
        _EFFICIENTNET, mark=(_HEAD, (1536, 384, 1, 1)), map_channels=1536, resize_px=331, crop_px=300
    ),
}
"""By backbone. One that BACKBONES lacks is read as soon as it is there. RegNet is left out: its first answer is that of
the glance network's own head although its classifier is a GRU, and no classifier here is of that form."""


def _gfnet(content: Mapping[str, Any], path: str) -> tuple[Header, Sections]:
    # Released files were saved from wrapped networks, those of the training script were not.
    glancer = _without_prefix(_weights(content["model_prime_state_dict"]), "module.")
    focuser = _without_prefix(_weights(content.get("model_state_dict")), "module.")
    classifier_weights, policy = _weights(content.get("fc")), _weights(content.get("policy"))
    known = {name: form for name, form in GFNET_FORMS.items() if name in BACKBONES}
    name = next((name for name, form in known.items() if _bears(glancer, form.mark)), None)
    if name is None:
        raise CheckpointError(
            f"{path} is a GFNet of backbone {content.get('model_name', '?')}, which is not known; "
            f"known are {', '.join(known)}"
        )
    form = known[name]
    flops = content.get("flops")
    num_steps = len(flops) if isinstance(flops, list | tuple | Tensor) else form.num_looks
    sections: Sections = {"glancer": _without_heads(glancer)}
    spec: ClassifierSpec | None = None
    if classifier_weights and form.classifier == "gru":
        sections["classifier"] = {re.sub(r"^rnn\.", "gru.", key): v for key, v in classifier_weights.items()}
        spec = _gru_classifier(sections["classifier"], path)
    elif classifier_weights:
        num_classes, in_features = _shape(glancer, "classifier.weight")
        sections["classifier"] = {"fc_1.weight": glancer["classifier.weight"], "fc_1.bias": glancer["classifier.bias"]}
        sections["classifier"] |= {k: value for k, value in classifier_weights.items() if int(k[3]) <= num_steps}
        spec = ClassifierSpec(kind="cascaded", num_classes=num_classes, in_features=in_features)
    if focuser:
        sections["focuser"] = _without_heads(focuser)
    policy_spec: PolicySpec | None = None
    patch_px = content.get("patch_size")
    if policy:
        sections["policy"] = policy
        policy_spec = _policy_spec(policy, map_channels=form.map_channels, path=path, reads="patch", std=0.1)
        # A network halves its input five times. Published sizes are multiples of 32, so the map tells the size.
        patch_px = patch_px or 32 * policy_spec.map_side
    size = int(patch_px) if patch_px else None
    header = Header(
        family="gfnet",
        glance=NetworkSpec(name=name, size_px=size),
        focus=NetworkSpec(name=name, size_px=size) if focuser else None,
        classifier=spec,
        policy=policy_spec,
        preprocessing=Preprocessing(
            resize_px=form.resize_px,
            crop_px=form.crop_px,
            interpolation=form.interpolation,
            glance_resize=form.glance_resize,
        ),
        num_steps=num_steps,
        training=_facts(content),
    )
    return header, sections


# Names and shapes


def _weights(value: Any) -> Weights:
    """The tensors of a state dict; nothing if it is none."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): tensor for key, tensor in value.items() if isinstance(tensor, Tensor)}


def _under(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def _without_prefix(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    return {key.removeprefix(prefix): value for key, value in weights.items()}


def _without_heads(weights: Mapping[str, Tensor]) -> Weights:
    return {key: value for key, value in weights.items() if not key.startswith(("fc.", "classifier."))}


def _head(weights: Mapping[str, Tensor], name: str) -> Weights:
    return {f"head.{key}": value for key, value in _under(weights, f"{name}.").items()}


def _bears(weights: Mapping[str, Tensor], mark: tuple[str, tuple[int, ...]]) -> bool:
    key, shape = mark
    return key in weights and tuple(weights[key].shape) == shape


def _shape(weights: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in weights:
        raise CheckpointError(f"checkpoint lacks {key}")
    return tuple(weights[key].shape)


# Place in a flat block of expansion, depthwise, projection -> name in one that nests them.
_FLAT_EXPANDED = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
_FLAT_FIRST = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_FLAT_KEY = re.compile(r"features\.(\d+)\.conv\.(\d)\.(?:net\.)?(\w+)$")


def _mobilenet_v2(weights: Mapping[str, Tensor]) -> Weights:
    """MobileNetV2's names nested, whether they were nested or flat, shifted or not; heads dropped."""
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


def _sequential_resnet(weights: Mapping[str, Tensor]) -> Weights:
    """A ResNet that was saved as the plain list of its children -> its own names."""
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    named = {}
    for key, value in weights.items():
        child, _, rest = key.partition(".")
        named[f"{children.get(child, child)}.{rest}".replace(".conv1.net.", ".conv1.")] = value
    return named


def _gru_classifier(weights: Mapping[str, Tensor], path: str) -> ClassifierSpec:
    _, hidden = _shape(weights, "gru.weight_hh_l0")
    _, in_features = _shape(weights, "gru.weight_ih_l0")
    num_classes, width = _shape(weights, "fc.weight")
    if width != hidden:
        raise CheckpointError(f"{path}: fc.weight of the classifier takes {width} values, but its GRU gives {hidden}")
    return ClassifierSpec(kind="gru", num_classes=num_classes, in_features=in_features, hidden=hidden)


def _policy_spec(
    weights: Mapping[str, Tensor], *, map_channels: int, path: str, reads: str = "glance", std: float = 0.25
) -> PolicySpec:
    first = _shape(weights, "state_encoder.0.weight")
    hidden = _shape(weights, "gru.weight_hh_l0")[1]
    num_outputs = _shape(weights, "actor.0.weight")[0]
    is_continuous = num_outputs == 2
    if not is_continuous and math.isqrt(num_outputs) ** 2 != num_outputs:
        raise CheckpointError(f"{path}: a policy of {num_outputs} actions is no square grid")
    if len(first) == 4:
        encoder = "clip" if "state_encoder.1.running_mean" in weights else "conv"
        linear = _shape(weights, "state_encoder.4.weight" if encoder == "clip" else "state_encoder.3.weight")
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


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that a file says of itself, as plain values."""
    facts = {key: _plain(content[key]) for key in _FACTS if key in content}
    return {"published": {key: value for key, value in facts.items() if value is not None}}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) else None
