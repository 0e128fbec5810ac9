"""Networks with seeded random weights, for trying a pipeline out and for tests of everything but accuracy."""

from __future__ import annotations

import dataclasses

import torch

from operators.errors import ConfigError
from operators.networks.backbones import build
from operators.networks.classify import build_classifier
from operators.networks.network import Network
from operators.weights.checkpoints import Checkpoint
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, PolicySpec, Preprocessing
from operators.weights.published import GFNET_FORMS, GFNetForm
from pipeline.config import Config
from policies.recurrent import RecurrentPolicy

SMALL = ("small_glance", "small_focus")


def untrained(config: Config) -> Checkpoint:
    """A whole checkpoint of the family and networks that the settings name. The same seed gives the same weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(config.compute.seed)
    try:
        return _checkpoint(config)
    finally:
        torch.random.set_rng_state(state)


def _checkpoint(config: Config) -> Checkpoint:
    model, sampling = config.model, config.sampling
    family, is_small, is_image = model.family, model.glance_backbone in SMALL, model.family == "gfnet"
    glance_segments = focus_segments = head_classes = 0
    if family == "adafocus_tsm":
        if sampling.num_focus_frames is None:
            raise ConfigError("an adafocus_tsm model needs sampling.num_focus_frames: the frames that it focuses on")
        glance_segments, focus_segments = sampling.num_frames, sampling.num_focus_frames
        head_classes = model.num_classes
    if family == "gfnet" and model.glance_backbone != model.focus_backbone:
        raise ConfigError(
            f"a gfnet model has the same backbone twice, but model.glance_backbone={model.glance_backbone} "
            f"and model.focus_backbone={model.focus_backbone}"
        )
    glance = build(model.glance_backbone, num_segments=glance_segments, num_classes=head_classes)
    focus = build(model.focus_backbone, num_segments=focus_segments)
    policy_spec = _policy(config, glance)
    classifier_spec = _classifier(config, glance, focus)
    num_steps = model.num_looks if family == "gfnet" else sampling.num_frames
    classifier = build_classifier(**dataclasses.asdict(classifier_spec), num_steps=num_steps)
    policy = RecurrentPolicy(**dataclasses.asdict(policy_spec))
    header = Header(
        family=family,
        glance=NetworkSpec(
            name=model.glance_backbone,
            size_px=config.glance.size_px,
            num_segments=glance_segments,
            num_classes=head_classes,
        ),
        focus=NetworkSpec(name=model.focus_backbone, size_px=config.focus.patch_px, num_segments=focus_segments),
        classifier=classifier_spec,
        policy=policy_spec,
        preprocessing=Preprocessing(
            resize_px=config.view.resize_px,
            crop_px=config.view.crop_px,
            interpolation=config.view.interpolation,
            square_pixels=config.view.square_pixels,
            glance_resize="antialias" if is_small else _published(config).glance_resize if is_image else "nearest",
        ),
        num_steps=num_steps,
        num_focus_steps=focus_segments or None,
        pad=sampling.pad,
    )
    modules = {"glancer": glance, "focuser": focus, "classifier": classifier, "policy": policy}
    sections = {name: module.state_dict() for name, module in modules.items()}
    return Checkpoint(header=header, sections=sections, path="untrained weights")


def _policy(config: Config, glance: Network) -> PolicySpec:
    """As published for each family; small where the networks are small."""
    is_small = config.model.glance_backbone in SMALL
    segments = max(1, glance.num_segments)
    with torch.no_grad():
        side = config.glance.size_px
        map_side = glance.eval().feature_map(torch.zeros(segments, 3, side, side)).shape[-1]
    hidden = 256 if is_small else 1024
    match config.model.family:
        case "adafocus":
            return PolicySpec(
                kind="grid",
                encoder="conv",
                map_channels=glance.map_channels,
                map_side=map_side,
                hidden=hidden,
                width=32,
                num_actions=config.model.num_actions,
            )
        case "adafocus_tsm":
            return PolicySpec(
                kind="continuous",
                encoder="clip",
                map_channels=segments * glance.map_channels,
                map_side=map_side,
                hidden=hidden,
                width=64,
            )
        case "gfnet":
            form = _published(config)
            return PolicySpec(
                kind="continuous",
                encoder=form.encoder,
                map_channels=glance.map_channels,
                map_side=map_side,
                hidden=form.hidden,
                width=form.width,
                std=0.1,
                reads="patch",
            )


def _classifier(config: Config, glance: Network, focus: Network) -> ClassifierSpec:
    model = config.model
    hidden = 128 if model.glance_backbone in SMALL else 1024
    match model.family:
        case "adafocus":
            in_features = glance.num_features + focus.num_features
            return ClassifierSpec(kind="gru", num_classes=model.num_classes, in_features=in_features, hidden=hidden)
        case "adafocus_tsm":
            return ClassifierSpec(kind="average", num_classes=model.num_classes, in_features=focus.num_features)
        case "gfnet":
            kind = "gru" if model.glance_backbone in SMALL else _published(config).classifier
            return ClassifierSpec(
                kind=kind,
                num_classes=model.num_classes,
                in_features=focus.num_features,
                hidden=0 if kind == "cascaded" else hidden,
            )


def _published(config: Config) -> GFNetForm:
    """How GFNet was published for this backbone; small networks have the light policy, others that of ResNet-50."""
    name = config.model.glance_backbone
    return GFNET_FORMS["mobilenetv3_large_100"] if name in SMALL else GFNET_FORMS.get(name, GFNET_FORMS["resnet50"])
