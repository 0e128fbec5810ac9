"""AdaFocus-TSM, for Something-Something: what its checkpoints say, what its settings may be, and how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.errors import ConfigError
from operators.networks.backbones import facts_of
from operators.weights.checkpoints import Checkpoint
from operators.weights.header import ClassifierSpec, Header, PolicySpec
from operators.weights.published import Sections
from pipeline.config import Config
from pipeline.families.adafocus_tsm.gaze import MotionGaze
from pipeline.families.adafocus_tsm.published import read
from pipeline.families.clip import Gaze
from pipeline.families.family import Family, network_specs, untrained_preprocessing
from pipeline.families.parts import GazeParts
from pipeline.families.untrained import SMALL


class AdaFocusTSM(Family):
    name = "adafocus_tsm"
    training = "pipeline.training.course_motion:COURSE"

    def read_published(self, content: Mapping[str, Any], path: str) -> tuple[Header, Sections] | None:
        return read(content, path)

    def gaze(self, parts: GazeParts, config: Config, header: Header) -> Gaze:
        assert header.focus is not None
        return MotionGaze(parts, num_focused=header.focus.num_segments)

    def check(self, config: Config, checkpoint: Checkpoint) -> None:
        header, sampling = checkpoint.header, config.sampling
        assert header.glance is not None and header.focus is not None
        wanted = header.glance.num_segments, header.focus.num_segments
        given = sampling.num_frames, sampling.num_focus_frames
        if given != wanted:
            raise ConfigError(
                f"this AdaFocus-TSM glances at {wanted[0]} frames and focuses on {wanted[1]}, but "
                f"sampling.num_frames={given[0]} and sampling.num_focus_frames={given[1]}"
            )
        if config.skip.kind != "none" or config.stop.kind != "none":
            raise ConfigError(
                "AdaFocus-TSM looks at one place of the whole clip: skip.kind and stop.kind do not apply, "
                "leave them at none"
            )

    def untrained_header(self, config: Config) -> Header:
        model, sampling = config.model, config.sampling
        if sampling.num_focus_frames is None:
            raise ConfigError("an adafocus_tsm model needs sampling.num_focus_frames: the frames that it focuses on")
        is_small = model.glance_backbone in SMALL
        glance = facts_of(model.glance_backbone)
        return Header(
            family=self.name,
            **network_specs(
                config,
                glance_segments=sampling.num_frames,
                focus_segments=sampling.num_focus_frames,
                num_classes=model.num_classes,
            ),
            classifier=ClassifierSpec(
                kind="average",
                num_classes=model.num_classes,
                in_features=facts_of(model.focus_backbone).num_features,
            ),
            policy=PolicySpec(
                kind="continuous",
                encoder="clip",
                map_channels=sampling.num_frames * glance.map_channels,
                map_side=glance.map_side(config.glance.size_px),
                hidden=256 if is_small else 1024,
                width=64,
            ),
            preprocessing=untrained_preprocessing(config, glance_resize="antialias" if is_small else "nearest"),
            num_steps=sampling.num_frames,
            num_focus_steps=sampling.num_focus_frames,
            pad=sampling.pad,
        )


ADAFOCUS_TSM = AdaFocusTSM()
