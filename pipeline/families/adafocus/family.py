"""AdaFocus (2021): what its checkpoints say, what its settings may be, and how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.networks.backbones import facts_of
from operators.weights.header import ClassifierSpec, Header, PolicySpec
from operators.weights.published import Sections
from pipeline.config import Config
from pipeline.families.adafocus.gaze import FrameGaze
from pipeline.families.adafocus.published import read
from pipeline.families.clip import Gaze
from pipeline.families.family import Family, network_specs, untrained_preprocessing
from pipeline.families.parts import GazeParts
from pipeline.families.untrained import SMALL


class AdaFocus(Family):
    name = "adafocus"
    may_be_live = True
    training = "pipeline.training.course_frames:COURSE"

    def read_published(self, content: Mapping[str, Any], path: str) -> tuple[Header, Sections] | None:
        return read(content, path)

    def gaze(self, parts: GazeParts, config: Config, header: Header) -> Gaze:
        return FrameGaze(parts, focus_features=parts.classifier.in_features - parts.glancer.num_features)

    def untrained_header(self, config: Config) -> Header:
        model = config.model
        is_small = model.glance_backbone in SMALL
        glance, focus = facts_of(model.glance_backbone), facts_of(model.focus_backbone)
        return Header(
            family=self.name,
            **network_specs(config),
            classifier=ClassifierSpec(
                kind="gru",
                num_classes=model.num_classes,
                in_features=glance.num_features + focus.num_features,
                hidden=128 if is_small else 1024,
            ),
            policy=PolicySpec(
                kind="grid",
                encoder="conv",
                map_channels=glance.map_channels,
                map_side=glance.map_side(config.glance.size_px),
                hidden=256 if is_small else 1024,
                width=32,
                num_actions=model.num_actions,
            ),
            preprocessing=untrained_preprocessing(config, glance_resize="antialias" if is_small else "nearest"),
            num_steps=config.sampling.num_frames,
            pad=config.sampling.pad,
        )


ADAFOCUS = AdaFocus()
