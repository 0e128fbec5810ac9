"""AdaFocus-TSM's course: one place for all frames of a clip, and nothing is skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from operators.media.view import Viewer
from operators.networks.backbones import facts_of
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, PolicySpec
from pipeline.config.training import Stage
from pipeline.config.training_motion import STAGES_OF_MOTION, MotionSettings
from pipeline.training.clips import Clips
from pipeline.training.course import Course
from pipeline.training.frame_cache import Read
from pipeline.training.journal import Journal
from pipeline.training.model import Parts, preprocessing_of
from pipeline.training.motion import MotionGlances, glance_once, motion_score
from pipeline.training.read_motion import MotionReader
from pipeline.training.scoring import SubsetScore
from pipeline.training.stage_motion import begin_motion, train_motion
from pipeline.training.subsets import Subsets
from policies.base import Policy

if TYPE_CHECKING:
    from operators.media.decode import ReadLimits


class MotionCourse(Course[MotionSettings]):
    family = "adafocus_tsm"
    stages = STAGES_OF_MOTION
    sections_after: ClassVar[Mapping[Stage, tuple[str, ...]]] = {
        "0a": ("glancer",),
        # The linear layer over focused frames is the focus network's own, of stage 0b.
        "0b": ("glancer", "focuser", "classifier"),
        "1": ("glancer", "focuser", "classifier"),
        "2": ("glancer", "focuser", "classifier", "policy"),
        "3": ("glancer", "focuser", "classifier", "policy"),
    }

    def reader(self, settings: MotionSettings, limits: ReadLimits, candidates: int) -> Read:
        return MotionReader(
            num_glance=settings.num_steps,
            num_focus=settings.num_focus_steps,
            candidates=candidates,
            viewer=Viewer(**settings.cached_view),
            limits=limits,
        )

    def new_header(self, settings: MotionSettings, class_names: Sequence[str], stage: Stage) -> Header:
        sizes = settings.networks
        glance, focus = facts_of(sizes.glance), facts_of(sizes.focus)
        num_classes = settings.num_classes or len(class_names)
        segments = (settings.num_steps, settings.num_focus_steps) if settings.is_shifted else (0, 0)
        return Header(
            family=self.family,
            glance=NetworkSpec(
                name=sizes.glance, size_px=sizes.glance_px, num_segments=segments[0], num_classes=num_classes
            ),
            focus=NetworkSpec(name=sizes.focus, size_px=sizes.patch_px, num_segments=segments[1]),
            classifier=ClassifierSpec(kind="average", num_classes=num_classes, in_features=focus.num_features),
            policy=PolicySpec(
                kind="continuous",
                encoder="clip",
                map_channels=settings.num_steps * glance.map_channels,
                map_side=glance.map_side(sizes.glance_px),
                hidden=sizes.policy_hidden,
                width=sizes.policy_width,
                std=settings.policy_std,
            ),
            preprocessing=preprocessing_of(settings),
            num_steps=settings.num_steps,
            num_focus_steps=settings.num_focus_steps,
            pad=settings.pad,
            class_names=tuple(class_names),
        )

    def begin(self, parts: Parts, settings: MotionSettings) -> None:
        begin_motion(parts, settings)

    def train_stage(
        self, stage: Stage, parts: Parts, settings: MotionSettings, subsets: Subsets, journal: Journal
    ) -> dict[str, float]:
        return train_motion(
            stage,
            parts,
            settings,
            subsets.train,
            subsets.val,
            journal,
            train_glances=subsets.glances.get("train"),
            val_glances=subsets.glances.get("val"),
        )

    def glances_of(self, parts: Parts, settings: MotionSettings, clips: Clips) -> MotionGlances:
        return glance_once(parts, clips)

    def score(
        self, parts: Parts, settings: MotionSettings, clips: Clips, policy: Policy, glances: MotionGlances | None
    ) -> SubsetScore:
        return motion_score(parts, settings, clips, policy, glances=glances)


COURSE = MotionCourse()
