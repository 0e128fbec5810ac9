"""GFNet (2020): what its checkpoints say, what its settings may be, and how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.errors import ConfigError
from operators.networks.backbones import facts_of
from operators.weights.checkpoints import Checkpoint
from operators.weights.header import ClassifierSpec, Header, PolicySpec
from operators.weights.published import Sections
from pipeline.config import Config
from pipeline.families.clip import Gaze
from pipeline.families.family import Family, network_specs, untrained_preprocessing
from pipeline.families.gfnet.gaze import ImageGaze
from pipeline.families.gfnet.published import FORMS, Form, read
from pipeline.families.parts import GazeParts
from pipeline.families.untrained import SMALL


class GFNet(Family):
    name = "gfnet"

    def read_published(self, content: Mapping[str, Any], path: str) -> tuple[Header, Sections] | None:
        return read(content, path)

    def gaze(self, parts: GazeParts, config: Config, header: Header) -> Gaze:
        # Without patches the glance is all; the whole view through the focus network holds all there is to see.
        looks = {"none": 1, "whole": 2, "part": config.model.num_looks}[config.policy.traits.patch]
        return ImageGaze(parts, num_looks=looks)

    def settings_of(self, header: Header) -> dict[str, Any]:
        # An image has one frame; how often it is looked at is the model's own.
        own = {"sampling.num_frames": 1, "model.num_looks": header.num_steps}
        return super().settings_of(header) | own

    def untrained_settings(self, config: Config) -> dict[str, Any]:
        return {"glance.size_px": config.focus.patch_px, "sampling.num_frames": 1}

    def check(self, config: Config, checkpoint: Checkpoint) -> None:
        header, sampling, patch_px = checkpoint.header, config.sampling, config.focus.patch_px
        if sampling.num_frames != 1:
            raise ConfigError(f"GFNet labels single images: sampling.num_frames is {sampling.num_frames}, set it to 1")
        super().check(config, checkpoint)
        assert header.glance is not None
        if config.policy.traits.is_learned and config.glance.size_px != (header.glance.size_px or patch_px):
            wanted = header.glance.size_px or patch_px
            raise ConfigError(
                f"the policy was trained on glances of {wanted} px, but glance.size_px={config.glance.size_px}: "
                f"set glance.size_px={wanted} and focus.patch_px={wanted}"
            )
        if config.policy.traits.is_learned and patch_px != config.glance.size_px:
            raise ConfigError(
                f"this GFNet's glance and patches have one size, but glance.size_px={config.glance.size_px} and "
                f"focus.patch_px={patch_px}: set focus.patch_px={config.glance.size_px}"
            )
        if config.skip.kind != "none":
            raise ConfigError("GFNet looks at one image again and again: skip.kind does not apply, leave it at none")
        if config.stop.steps_per_round not in (None, 1):
            raise ConfigError("GFNet's looks depend on one another, so each is a round: leave stop.steps_per_round out")
        if config.model.num_looks > header.num_steps:
            raise ConfigError(
                f"model.num_looks={config.model.num_looks}, but {checkpoint.path} was made for {header.num_steps} looks"
            )

    def num_steps(self, config: Config) -> int:
        return config.model.num_looks

    def num_patches(self, config: Config, header: Header) -> int:
        return header.num_steps

    def always_in_rounds(self) -> bool:
        return True

    def untrained_header(self, config: Config) -> Header:
        model = config.model
        if model.glance_backbone != model.focus_backbone:
            raise ConfigError(
                f"a gfnet model has the same backbone twice, but model.glance_backbone={model.glance_backbone} "
                f"and model.focus_backbone={model.focus_backbone}"
            )
        is_small = model.glance_backbone in SMALL
        form, facts = _form(model.glance_backbone), facts_of(model.glance_backbone)
        kind = "gru" if is_small else form.classifier
        hidden = 0 if kind == "cascaded" else 128 if is_small else 1024
        return Header(
            family=self.name,
            **network_specs(config, num_classes=model.num_classes if form.glance_answers else 0),
            classifier=ClassifierSpec(
                kind=kind, num_classes=model.num_classes, in_features=facts.num_features, hidden=hidden
            ),
            policy=PolicySpec(
                kind="continuous",
                encoder=form.encoder,
                map_channels=facts.map_channels,
                map_side=facts.map_side(config.glance.size_px),
                hidden=form.hidden,
                width=form.width,
                std=0.1,
                reads="patch",
            ),
            preprocessing=untrained_preprocessing(
                config, glance_resize="antialias" if is_small else form.glance_resize
            ),
            num_steps=model.num_looks,
            pad=config.sampling.pad,
        )


def _form(backbone: str) -> Form:
    """The published form of GFNet for this backbone; small networks have the light policy, others ResNet-50's."""
    return FORMS["mobilenetv3_large_100"] if backbone in SMALL else FORMS.get(backbone, FORMS["resnet50"])


GFNET = GFNet()
