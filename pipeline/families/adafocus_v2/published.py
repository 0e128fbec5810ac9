"""The files that AdaFocusV2's authors publish for ActivityNet, FCVID and Mini-Kinetics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from operators.errors import CheckpointError
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, PolicySpec, Preprocessing
from operators.weights.published import (
    Sections,
    Weights,
    nested_mobilenet_v2,
    published_facts,
    shape_of,
    under,
    weights_in,
    without_heads,
    without_prefix,
)

_MARK = "policy_stn.encoder.0.weight"
"""A weight that no other family's files have."""


def read(content: Mapping[str, Any], path: str) -> tuple[Header, Sections] | None:
    """The header and sections of an AdaFocusV2 file; None where the file is another's."""
    # Released files were saved from wrapped networks.
    weights = without_prefix(weights_in(content.get("state_dict")), "module.")
    if _MARK not in weights:
        return None
    name, glancer = _glancer(under(weights, "global_CNN."), path)
    sections: Sections = {
        "glancer": glancer,
        "focuser": without_heads(under(weights, "local_CNN.")),
        "policy": _policy_weights(under(weights, "policy_stn.")),
        "classifier": _classifier_weights(under(weights, "classifier.")),
    }
    policy = _policy_spec(sections["policy"])
    hidden, in_features = shape_of(sections["classifier"], "mlp.0.weight")
    num_steps = sum(re.fullmatch(r"heads\.\d+\.weight", key) is not None for key in sections["classifier"])
    header = Header(
        family="adafocus_v2",
        # Networks halve their input five times.
        glance=NetworkSpec(name=name, size_px=32 * policy.map_side),
        # The patch size changes no shape and stands nowhere in the file.
        focus=NetworkSpec(name="resnet50"),
        classifier=ClassifierSpec(
            kind="max",
            num_classes=shape_of(sections["classifier"], "heads.0.weight")[0],
            in_features=in_features,
            hidden=hidden,
        ),
        policy=policy,
        preprocessing=Preprocessing(glance_resize="bilinear"),
        num_steps=num_steps,
        training=published_facts(content),
    )
    return header, sections


def _glancer(weights: Weights, path: str) -> tuple[str, Weights]:
    """The backbone's name, and its weights without its ImageNet head, which nothing reads."""
    if "features.0.0.weight" in weights:
        return "mobilenet_v2", nested_mobilenet_v2(weights)
    if "conv1.weight" in weights:
        return "resnet50", without_heads(weights)
    raise CheckpointError(
        f"{path} is an AdaFocusV2 whose global_CNN is not known: it holds {', '.join(list(weights)[:3]) or 'nothing'}; "
        "known are MobileNetV2 and ResNet-50"
    )


def _policy_weights(weights: Weights) -> Weights:
    names = {"encoder": "state_encoder", "fc": "actor"}
    return {re.sub(r"^(encoder|fc)\.", lambda m: f"{names[m[1]]}.", key): value for key, value in weights.items()}


def _classifier_weights(weights: Weights) -> Weights:
    """The weights in our names; in the published ones each step's linear layer is counted after a dropout."""
    renamed = {key.replace("mlp.layers.", "mlp."): value for key, value in weights.items()}
    return {re.sub(r"^classifiers\.(\d+)\.1\.", r"heads.\1.", key): value for key, value in renamed.items()}


def _policy_spec(weights: Weights) -> PolicySpec:
    width, map_channels = shape_of(weights, "state_encoder.0.weight")[:2]
    hidden, cells = shape_of(weights, "state_encoder.4.weight")
    return PolicySpec(
        kind="continuous",
        encoder="tanh",
        map_channels=map_channels,
        map_side=math.isqrt(cells // width),
        hidden=hidden,
        width=width,
    )
