"""The files that AdaFocus's authors publish for Something-Something, and those that their training begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.errors import CheckpointError
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, PolicySpec
from operators.weights.published import (
    Sections,
    Weights,
    head_of,
    named_resnet,
    nested_mobilenet_v2,
    policy_spec,
    published_facts,
    shape_of,
    under,
    weights_in,
    without_heads,
    without_prefix,
)
from pipeline.families.adafocus.published import is_adafocus, is_shifted, sections_of


def read(content: Mapping[str, Any], path: str) -> tuple[Header, Sections] | None:
    """The header and sections of an AdaFocus-TSM file; None where the file is another's."""
    if "model_prime_state_dict" in content:
        return None
    if "state_dict" in content and "glancer" not in content:
        return _pretraining(weights_in(content["state_dict"]), path)
    sections = sections_of(content) if is_adafocus(content) else None
    return _whole(sections, content) if sections is not None and is_shifted(sections) else None


def _whole(raw: Sections, content: Mapping[str, Any]) -> tuple[Header, Sections]:
    sections: Sections = {}
    num_classes = 0
    if raw["fc"]:
        num_classes = shape_of(raw["fc"], "weight")[0]
        sections["classifier"] = {f"fc.{key}": value for key, value in raw["fc"].items()}
    if raw["glancer"]:
        glancer = under(raw["glancer"], "net.")
        sections["glancer"] = nested_mobilenet_v2(glancer) | head_of(glancer, "classifier")
    sections["focuser"] = named_resnet(under(raw["focuser"], "net.base_model."))
    policy: PolicySpec | None = None
    if raw["policy"]:
        sections["policy"] = raw["policy"]
        policy = policy_spec(raw["policy"], map_channels=8 * 1280, path="checkpoint")
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
        training=published_facts(content),
    )
    return header, sections


def _pretraining(weights: Weights, path: str) -> tuple[Header, Sections]:
    """One TSM network, from which AdaFocus-TSM's training begins."""
    weights = without_prefix(weights, "module.")
    base = under(weights, "base_model.")
    head = head_of(weights, "new_fc")
    num_classes = head["head.weight"].shape[0] if head else 0
    if any(key.startswith("features.") for key in base):
        spec = NetworkSpec(name="mobilenet_v2", size_px=224, num_segments=8, num_classes=num_classes)
        header = Header(family="adafocus_tsm", glance=spec, focus=None, classifier=None, num_steps=8, pad="first")
        return header, {"glancer": nested_mobilenet_v2(base) | head}
    if "conv1.weight" not in base:
        raise CheckpointError(f"{path} is no TSM pre-training file: it lacks module.base_model.conv1.weight")
    focuser = without_heads({key.replace(".conv1.net.", ".conv1."): value for key, value in base.items()})
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
