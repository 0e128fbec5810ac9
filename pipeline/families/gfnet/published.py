"""The files that GFNet's authors publish, and how GFNet was published for each backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from operators.errors import CheckpointError
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, PolicySpec, Preprocessing
from operators.weights.published import (
    Sections,
    bears,
    gru_classifier,
    head_of,
    policy_spec,
    published_facts,
    shape_of,
    weights_in,
    without_heads,
    without_prefix,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The form in which GFNet was published for one backbone."""

    mark: tuple[str, tuple[int, ...]]
    """A weight and its shape, by which a file of this backbone is known: files of training do not name it."""
    map_channels: int
    num_looks: int
    """The glance included; the length of a released file's own list of costs goes before it."""
    encoder: Literal["mlp", "conv"]
    """The first layers of the policy."""
    hidden: int
    """State of the policy's GRU."""
    width: int
    """Units of the policy's first layer."""
    classifier: Literal["gru", "cascaded"]
    """A cascade's first layer is the glance network's own head."""
    glance_answers: bool = False
    """Whether the first answer is that of the glance network's own head although the classifier is a GRU, which hears
    the glance all the same."""
    glance_resize: Literal["bilinear", "bicubic"]
    resize_px: int = 256
    crop_px: int = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


_RESNET = Form(
    mark=("layer1.0.conv3.weight", (256, 64, 1, 1)),
    map_channels=2048,
    num_looks=5,
    encoder="mlp",
    hidden=1024,
    width=2048,
    classifier="gru",
    glance_resize="bicubic",
)
_MOBILENET = Form(
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
_REGNET = replace(_RESNET, encoder="conv", hidden=256, width=32, glance_answers=True, glance_resize="bilinear")
_NORM, _HEAD, _LAST = "features.norm5.weight", "conv_head.weight", "s4.b1.f.c.weight"
FORMS = {
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
    "regnety_600m": replace(_REGNET, mark=(_LAST, (608, 608, 1, 1)), map_channels=608),
    "regnety_800m": replace(_REGNET, mark=(_LAST, (768, 768, 1, 1)), map_channels=768),
    "regnety_1600m": replace(_REGNET, mark=(_LAST, (888, 888, 1, 1)), map_channels=888),
}
_SIZES = {3: 96, 4: 128, 5: 144}
"""Cells along a side of the map -> the published size that has as many: a network halves its input five times."""


def read(content: Mapping[str, Any], path: str) -> tuple[Header, Sections] | None:
    """The header and sections of a GFNet file; None where the file is another's."""
    if "model_prime_state_dict" not in content:
        return None
    # Released files were saved from wrapped networks, those of the training script were not.
    glancer = without_prefix(weights_in(content["model_prime_state_dict"]), "module.")
    focuser = without_prefix(weights_in(content.get("model_state_dict")), "module.")
    classifier_weights, policy = weights_in(content.get("fc")), weights_in(content.get("policy"))
    name = next((name for name, form in FORMS.items() if bears(glancer, form.mark)), None)
    if name is None:
        raise CheckpointError(
            f"{path} is a GFNet of backbone {content.get('model_name', '?')}, which is not known; "
            f"known are {', '.join(FORMS)}"
        )
    form = FORMS[name]
    flops = content.get("flops")
    num_steps = len(flops) if isinstance(flops, list | tuple | Tensor) else form.num_looks
    sections: Sections = {"glancer": without_heads(glancer)}
    glance_classes = 0
    if form.glance_answers:
        sections["glancer"] |= head_of(glancer, "fc")
        glance_classes = shape_of(glancer, "fc.weight")[0]
    spec: ClassifierSpec | None = None
    if classifier_weights and form.classifier == "gru":
        sections["classifier"] = {re.sub(r"^rnn\.", "gru.", key): v for key, v in classifier_weights.items()}
        spec = gru_classifier(sections["classifier"], path)
    elif classifier_weights:
        num_classes, in_features = shape_of(glancer, "classifier.weight")
        sections["classifier"] = {"fc_1.weight": glancer["classifier.weight"], "fc_1.bias": glancer["classifier.bias"]}
        sections["classifier"] |= {k: value for k, value in classifier_weights.items() if int(k[3]) <= num_steps}
        spec = ClassifierSpec(kind="cascaded", num_classes=num_classes, in_features=in_features)
    if focuser:
        sections["focuser"] = without_heads(focuser)
    policy_form: PolicySpec | None = None
    patch_px = content.get("patch_size")
    if policy:
        sections["policy"] = policy
        policy_form = policy_spec(policy, map_channels=form.map_channels, path=path, reads="patch", std=0.1)
        patch_px = patch_px or _SIZES.get(policy_form.map_side, 32 * policy_form.map_side)
    size = int(patch_px) if patch_px else None
    header = Header(
        family="gfnet",
        glance=NetworkSpec(name=name, size_px=size, num_classes=glance_classes),
        focus=NetworkSpec(name=name, size_px=size) if focuser else None,
        classifier=spec,
        policy=policy_form,
        preprocessing=Preprocessing(
            resize_px=form.resize_px,
            crop_px=form.crop_px,
            interpolation=form.interpolation,
            glance_resize=form.glance_resize,
        ),
        num_steps=num_steps,
        training=published_facts(content),
    )
    return header, sections
