"""The files that AdaFocus's authors publish for ActivityNet, FCVID and Mini-Kinetics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.errors import CheckpointError
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, PolicySpec, Preprocessing
from operators.weights.published import (
    Sections,
    gru_classifier,
    nested_mobilenet_v2,
    policy_spec,
    published_facts,
    under,
    weights_in,
    without_heads,
)


def read(content: Mapping[str, Any], path: str) -> tuple[Header, Sections] | None:
    """The header and sections of an AdaFocus file; None where the file is another's."""
    if not is_adafocus(content):
        return None
    sections = sections_of(content)
    return None if is_shifted(sections) else _read(sections, content, path)


def is_adafocus(content: Mapping[str, Any]) -> bool:
    """Whether a file has the sections that all forms of AdaFocus have."""
    return "model_prime_state_dict" not in content and ("glancer" in content or "model_state_dict" in content)


def is_shifted(sections: Sections) -> bool:
    """Whether the sections are those of AdaFocus-TSM."""
    return any(key.startswith("net.base_model.") for key in sections["focuser"])


def sections_of(content: Mapping[str, Any]) -> Sections:
    whole = weights_in(content.get("model_state_dict"))
    prefixes = {"glancer": "glancer.", "focuser": "focuser.", "fc": "classifier."}
    sections = {name: weights_in(content.get(name)) or under(whole, prefix) for name, prefix in prefixes.items()}
    policy = weights_in(content.get("policy"))
    for copy in ("policy.policy_old.", "policy.policy."):
        policy = policy or under(sections["focuser"], copy)
    return {**sections, "policy": policy}


def _read(raw: Sections, content: Mapping[str, Any], path: str) -> tuple[Header, Sections]:
    sections: Sections = {}
    if raw["glancer"]:
        sections["glancer"] = nested_mobilenet_v2(under(raw["glancer"], "net."))
    if raw["focuser"]:
        sections["focuser"] = without_heads(under(raw["focuser"], "net."))
    classifier: ClassifierSpec | None = None
    if raw["fc"]:
        if "gru.weight_hh_l0" not in raw["fc"]:
            raise CheckpointError(
                f"{path}: its classifier holds {', '.join(list(raw['fc'])[:3])}, not a GRU; only the GRU form is read"
            )
        sections["classifier"] = raw["fc"]
        classifier = gru_classifier(raw["fc"], path)
    policy: PolicySpec | None = None
    if raw["policy"]:
        sections["policy"] = raw["policy"]
        policy = policy_spec(raw["policy"], map_channels=1280, path=path)
    header = Header(
        family="adafocus",
        glance=NetworkSpec(name="mobilenet_v2", size_px=224) if raw["glancer"] else None,
        # The patch size changes no shape and stands nowhere in the file.
        focus=NetworkSpec(name="resnet50") if raw["focuser"] else None,
        classifier=classifier,
        policy=policy,
        preprocessing=Preprocessing(),
        training=published_facts(content),
    )
    return header, sections
