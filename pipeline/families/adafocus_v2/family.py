"""AdaFocusV2 (2021): what its checkpoints say, what its settings may be, and how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.errors import ConfigError
from operators.networks.backbones import facts_of
from operators.weights.checkpoints import Checkpoint
from operators.weights.header import ClassifierSpec, Header, PolicySpec
from operators.weights.published import Sections
from pipeline.config import Config
from pipeline.families.adafocus_v2.gaze import FED_ORDER, SpreadGaze
from pipeline.families.adafocus_v2.published import read
from pipeline.families.clip import Gaze
from pipeline.families.family import Family, network_specs, untrained_preprocessing
from pipeline.families.parts import GazeParts
from pipeline.families.untrained import SMALL

_STOPPING = {"stop.confidence": "logit"}
"""The published stop rule compares the largest raw logit with its thresholds."""


class AdaFocusV2(Family):
    name = "adafocus_v2"

    def read_published(self, content: Mapping[str, Any], path: str) -> tuple[Header, Sections] | None:
        return read(content, path)

    def gaze(self, parts: GazeParts, config: Config, header: Header) -> Gaze:
        return SpreadGaze(parts, focus_features=parts.classifier.in_features - parts.glancer.num_features)

    def settings_of(self, header: Header) -> dict[str, Any]:
        return super().settings_of(header) | _STOPPING

    def untrained_settings(self, config: Config) -> dict[str, Any]:
        return dict(_STOPPING)

    def check(self, config: Config, checkpoint: Checkpoint) -> None:
        super().check(config, checkpoint)
        num_frames, num_steps = config.sampling.num_frames, checkpoint.header.num_steps
        if num_frames != len(FED_ORDER):
            raise ConfigError(
                f"AdaFocusV2's order of frames is published for {len(FED_ORDER)} of them, but sampling.num_frames="
                f"{num_frames}: set sampling.num_frames={len(FED_ORDER)}"
            )
        if num_steps != num_frames:
            raise ConfigError(
                f"AdaFocusV2 classifies after each of {num_frames} frames, but the classifier of {checkpoint.path} has "
                f"{num_steps} steps: take a checkpoint with {num_frames}"
            )
        if config.skip.kind != "none":
            raise ConfigError(
                f"AdaFocusV2 was trained with a patch of every frame: skip.kind={config.skip.kind} does not apply, "
                "leave it at none"
            )

    def untrained_header(self, config: Config) -> Header:
        model = config.model
        is_small = model.glance_backbone in SMALL
        glance, focus = facts_of(model.glance_backbone), facts_of(model.focus_backbone)
        return Header(
            family=self.name,
            **network_specs(config),
            classifier=ClassifierSpec(
                kind="max",
                num_classes=model.num_classes,
                in_features=glance.num_features + focus.num_features,
                hidden=128 if is_small else 4096,
            ),
            policy=PolicySpec(
                kind="continuous",
                encoder="tanh",
                map_channels=glance.map_channels,
                map_side=glance.map_side(config.glance.size_px),
                hidden=256 if is_small else 2048,
                width=64,
            ),
            preprocessing=untrained_preprocessing(config, glance_resize="antialias" if is_small else "bilinear"),
            num_steps=config.sampling.num_frames,
            pad=config.sampling.pad,
        )


ADAFOCUS_V2 = AdaFocusV2()
