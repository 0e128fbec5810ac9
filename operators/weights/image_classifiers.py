"""The names that torchvision, timm and others give to the backbones' weights, and this project's for them.

The names in a file say which network it holds; a few networks of the same names are distinguished by a shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from operators.networks.backbones import BACKBONES, build

Weights = dict[str, Tensor]
Pairs = tuple[tuple[str, str], ...]
"""Beginnings of names and what they become, the first that fits."""

_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")
_TORCHVISION_BLOCK = re.compile(r"features\.(\d+)(?:\.(\d+))?\.block\.(.+)")
_TORCHVISION_REGNET = re.compile(r"trunk_output\.block(\d)\.block\d-(\d+)\.(.+)")
_REGNET_BLOCK = re.compile(r"s(\d)\.b(\d+)\.(.+)")

_INVERTED: Pairs = (
    ("0.0.", "conv_pw."), ("0.1.", "bn1."), ("1.0.", "conv_dw."), ("1.1.", "bn2."), ("2.fc1.", "se.conv_reduce."),
    ("2.fc2.", "se.conv_expand."), ("2.0.", "conv_pwl."), ("2.1.", "bn3."), ("3.0.", "conv_pwl."), ("3.1.", "bn3."),
)  # fmt: skip
_SEPARABLE: Pairs = (
    ("0.0.", "conv_dw."), ("0.1.", "bn1."), ("1.fc1.", "se.conv_reduce."), ("1.fc2.", "se.conv_expand."),
    ("1.0.", "conv_pw."), ("1.1.", "bn2."), ("2.0.", "conv_pw."), ("2.1.", "bn2."),
)  # fmt: skip
_TIMM_LITE: Pairs = (
    ("conv_pw.", "expand_conv."), ("bn1.", "bn0."), ("conv_dw.", "depthwise_conv."), ("bn2.", "bn1."),
    ("conv_pwl.", "project_conv."), ("bn3.", "bn2."),
)  # fmt: skip
_TIMM_LITE_FIRST: Pairs = (("conv_dw.", "depthwise_conv."), ("conv_pw.", "project_conv."))
_TIMM_V2: Pairs = (
    ("conv_pw.", "conv.0.0."), ("bn1.", "conv.0.1."), ("conv_dw.", "conv.1.0."), ("bn2.", "conv.1.1."),
    ("conv_pwl.", "conv.2."), ("bn3.", "conv.3."),
)  # fmt: skip
_TIMM_V2_FIRST: Pairs = (("conv_dw.", "conv.0.0."), ("bn1.", "conv.0.1."), ("conv_pw.", "conv.1."), ("bn2.", "conv.2."))
_TORCHVISION_BRANCH: Pairs = (
    ("proj.0.", "proj."), ("proj.1.", "bn."), ("f.a.0.", "f.a."), ("f.a.1.", "f.a_bn."), ("f.b.0.", "f.b."),
    ("f.b.1.", "f.b_bn."), ("f.c.0.", "f.c."), ("f.c.1.", "f.c_bn."), ("f.se.fc1.", "f.se.f_ex.0."),
    ("f.se.fc2.", "f.se.f_ex.2."),
)  # fmt: skip
_TIMM_BRANCH: Pairs = (
    ("downsample.conv.", "proj."), ("downsample.bn.", "bn."), ("conv1.conv.", "f.a."), ("conv1.bn.", "f.a_bn."),
    ("conv2.conv.", "f.b."), ("conv2.bn.", "f.b_bn."), ("conv3.conv.", "f.c."), ("conv3.bn.", "f.c_bn."),
    ("se.fc1.", "f.se.f_ex.0."), ("se.fc2.", "f.se.f_ex.2."),
)  # fmt: skip
_V3_STAGES = (2, 3, 4, 2, 3)
"""Blocks of MobileNetV3-Large's stages after the first."""
_EPS, _TORCHVISIONS_V3_EPS = 1e-5, 1e-3


def in_our_names(weights: Weights) -> Weights:
    """The weights of one network with this project's names; those of a network that is not known as they are."""
    for is_it, rename in _FORMS:
        if is_it(weights):
            weights = rename(weights)
    return {key: value for key, value in weights.items() if not key.startswith("head.fc.")}


def name_of(weights: Mapping[str, Tensor]) -> str | None:
    """The backbone that weights in this project's names are of; None where they are of none."""
    with torch.device("meta"):
        return next((name for name in BACKBONES if difference(build(name).state_dict(), weights) is None), None)


def difference(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """The first thing in which weights are not those of a network; None where they are. Heads do not count."""
    for key, tensor in wanted.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in given:
            return f"it lacks {key}"
        if given[key].shape != tensor.shape:
            return f"its {key} has shape {tuple(given[key].shape)}, not {tuple(tensor.shape)}"
    heads = ("fc.", "classifier.", "head.")
    more = (key for key in given if key not in wanted and not key.startswith(heads))
    return next((f"it has {key} besides" for key in more if not key.endswith("num_batches_tracked")), None)


def _swapped(name: str, pairs: Pairs) -> str:
    return next((new + name[len(old) :] for old, new in pairs if name.startswith(old)), name)


def _densenet(weights: Weights) -> Weights:
    """The oldest files number the layers behind a dot."""
    return {_DENSE_LAYER.sub(r"\1\2.", key): value for key, value in weights.items()}


def _without_underscores(weights: Weights) -> Weights:
    named = {re.sub(r"(^|\.)_", r"\1", key): value for key, value in weights.items()}
    return {key: value for key, value in named.items() if not key.startswith("fc.")}


def _blocks(weights: Weights, *, ends: Pairs, first: Pairs, others: Pairs, block: Callable[[int], str]) -> Weights:
    """timm's blocks, which are counted in stages, counted through; `ends`: the layers before and behind them."""
    places = sorted({(int(m[1]), int(m[2])) for m in map(_TIMM_BLOCK.match, weights) if m})
    named = {}
    for key, value in weights.items():
        match = _TIMM_BLOCK.match(key)
        if match is None:
            named[_swapped(key, ends)] = value
            continue
        stage, number, rest = int(match[1]), int(match[2]), match[3]
        named[block(places.index((stage, number))) + _swapped(rest, first if stage == 0 else others)] = value
    return named


def _timm_lite(weights: Weights) -> Weights:
    ends = (("bn1.", "bn0."), ("bn2.", "bn1."))
    return _blocks(weights, ends=ends, first=_TIMM_LITE_FIRST, others=_TIMM_LITE, block=lambda n: f"blocks.{n}.")


def _timm_mobilenet_v2(weights: Weights) -> Weights:
    ends = (
        ("conv_stem.", "features.0.0."), ("bn1.", "features.0.1."),
        ("conv_head.", "features.18.0."), ("bn2.", "features.18.1."),
    )  # fmt: skip
    return _blocks(
        weights, ends=ends, first=_TIMM_V2_FIRST, others=_TIMM_V2, block=lambda n: f"features.{n + 1}."
    )


def _torchvision_efficientnet(weights: Weights) -> Weights:
    ends = (
        ("features.0.0.", "conv_stem."), ("features.0.1.", "bn1."),
        ("features.8.0.", "conv_head."), ("features.8.1.", "bn2."),
    )  # fmt: skip
    named = {}
    for key, value in weights.items():
        match = _TORCHVISION_BLOCK.match(key)
        if match is None:
            named[_swapped(key, ends)] = value
            continue
        stage, number, rest = int(match[1]), match[2], match[3]
        named[f"blocks.{stage - 1}.{number}.{_swapped(rest, _SEPARABLE if stage == 1 else _INVERTED)}"] = value
    return named


def _torchvision_mobilenet_v3(weights: Weights) -> Weights:
    ends = (
        ("features.0.0.", "conv_stem."), ("features.0.1.", "bn1."), ("features.16.0.", "blocks.6.0.conv."),
        ("features.16.1.", "blocks.6.0.bn1."), ("classifier.0.", "conv_head."),
    )  # fmt: skip
    places = [(0, 0), *((s, i) for s, num_blocks in enumerate(_V3_STAGES, start=1) for i in range(num_blocks))]
    named = {}
    for key, value in weights.items():
        match = _TORCHVISION_BLOCK.match(key)
        if match is None:
            key = _swapped(key, ends)
        elif int(match[1]) <= len(places):
            stage, number = places[int(match[1]) - 1]
            key = f"blocks.{stage}.{number}.{_swapped(match[3], _SEPARABLE if stage == 0 else _INVERTED)}"
        if key == "conv_head.weight" and value.dim() == 2:
            value = value[:, :, None, None]
        if key.endswith("running_var"):
            # Its batch norms add 1e-3 to what is divided by, those here 1e-5.
            value = value + (_TORCHVISIONS_V3_EPS - _EPS)
        named[key] = value
    return named


def _torchvision_regnet(weights: Weights) -> Weights:
    named = {}
    for key, value in weights.items():
        match = _TORCHVISION_REGNET.match(key)
        if match is None:
            key = _swapped(key, (("stem.0.", "stem.conv."), ("stem.1.", "stem.bn.")))
        else:
            key = f"s{match[1]}.b{int(match[2]) + 1}.{_swapped(match[3], _TORCHVISION_BRANCH)}"
        named[key] = value
    return named


def _timm_regnet(weights: Weights) -> Weights:
    named = {}
    for key, value in weights.items():
        match = _REGNET_BLOCK.match(key)
        named[f"s{match[1]}.b{match[2]}.{_swapped(match[3], _TIMM_BRANCH)}" if match else key] = value
    return named


def _is_timm(weights: Weights, channels: tuple[int, ...]) -> bool:
    """timm's form of MobileNetV2 or of EfficientNet-Lite: their third stages have other channels."""
    third = weights.get("blocks.2.0.conv_pwl.weight")
    has_gates = any(".se." in key for key in weights)
    return third is not None and not has_gates and third.shape[0] in channels


_FORMS: tuple[tuple[Callable[[Weights], bool], Callable[[Weights], Weights]], ...] = (
    (lambda w: "features.denseblock1.denselayer1.norm.1.weight" in w, _densenet),
    (lambda w: "_conv_stem.weight" in w, _without_underscores),
    (lambda w: _is_timm(w, (40, 48)), _timm_lite),
    (lambda w: _is_timm(w, (32,)), _timm_mobilenet_v2),
    (lambda w: "features.1.0.block.0.0.weight" in w, _torchvision_efficientnet),
    (lambda w: "features.1.block.0.0.weight" in w, _torchvision_mobilenet_v3),
    (lambda w: "trunk_output.block1.block1-0.f.a.0.weight" in w, _torchvision_regnet),
    (lambda w: "s1.b1.conv1.conv.weight" in w, _timm_regnet),
)
"""By a name that only this form has."""
