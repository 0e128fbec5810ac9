"""AdaFocus's course: a policy that chooses a place in every frame, and a head that skips frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from operators.media.view import Viewer
from operators.networks.backbones import facts_of
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, PolicySpec, SkipSpec
from pipeline.config.training import FULL, STAGES, Stage, TrainSettings
from pipeline.training.clips import Clips
from pipeline.training.course import Course
from pipeline.training.frame_cache import Read
from pipeline.training.journal import Journal
from pipeline.training.model import Glances, Parts, begin_from_files, glance_at_all, preprocessing_of
from pipeline.training.read_clips import ClipReader
from pipeline.training.scoring import SubsetScore, score_places
from pipeline.training.stage_glance import load_head, train_alone
from pipeline.training.stage_patches import Where, train_on_patches
from pipeline.training.stage_policy import train_policy
from pipeline.training.stage_skip import price_tables, train_skip
from pipeline.training.subsets import Subsets
from policies.base import Policy

if TYPE_CHECKING:
    from operators.media.decode import ReadLimits


class FramesCourse(Course[TrainSettings]):
    family = "adafocus"
    stages = STAGES
    comparisons = (FULL,)
    sections_after: ClassVar[Mapping[Stage, tuple[str, ...]]] = {
        "0a": ("glancer",),
        "0b": ("glancer", "focuser"),
        "1": ("glancer", "focuser", "classifier"),
        "2": ("glancer", "focuser", "classifier", "policy"),
        "3": ("glancer", "focuser", "classifier", "policy"),
        "skip": ("glancer", "focuser", "classifier", "policy", "skip"),
        "full": ("glancer", "focuser", "classifier"),
    }

    def reader(self, settings: TrainSettings, limits: ReadLimits, candidates: int) -> Read:
        return ClipReader(
            num_steps=settings.num_steps,
            candidates=candidates,
            viewer=Viewer(**settings.cached_view),
            limits=limits,
        )

    def new_header(self, settings: TrainSettings, class_names: Sequence[str], stage: Stage) -> Header:
        sizes = settings.networks
        glance, focus = facts_of(sizes.glance), facts_of(sizes.focus)
        # The comparison's focus network sees views, not patches.
        focus_px = settings.preprocessing.crop_px if stage == FULL else sizes.patch_px
        return Header(
            family=self.family,
            glance=NetworkSpec(name=sizes.glance, size_px=sizes.glance_px),
            focus=NetworkSpec(name=sizes.focus, size_px=focus_px),
            classifier=ClassifierSpec(
                kind="gru",
                num_classes=settings.num_classes or len(class_names),
                in_features=glance.num_features + focus.num_features,
                hidden=sizes.classifier_hidden,
            ),
            policy=PolicySpec(
                kind="grid",
                encoder="conv",
                map_channels=glance.map_channels,
                map_side=glance.map_side(sizes.glance_px),
                hidden=sizes.policy_hidden,
                width=sizes.policy_width,
                num_actions=sizes.num_actions,
            ),
            skip=SkipSpec(
                policy_hidden=sizes.policy_hidden,
                classifier_hidden=sizes.classifier_hidden,
                hidden=sizes.skip_hidden,
                price=settings.skip.price,
            ),
            preprocessing=preprocessing_of(settings),
            num_steps=settings.num_steps,
            pad=settings.pad,
            class_names=tuple(class_names),
        )

    def begin(self, parts: Parts, settings: TrainSettings) -> None:
        begin_from_files(parts, settings)

    def train_stage(
        self, stage: Stage, parts: Parts, settings: TrainSettings, subsets: Subsets, journal: Journal
    ) -> dict[str, float]:
        train, val = subsets.train, subsets.val
        kept = {"train_glances": subsets.glances.get("train"), "val_glances": subsets.glances.get("val")}
        match stage:
            case "0a":
                return train_alone(parts, settings, train, val, journal, which="glancer")
            case "0b":
                return train_alone(parts, settings, train, val, journal, which="focuser")
            case "2":
                return train_policy(parts, settings, train, val, journal, **kept)
            case "skip":
                values = train_skip(parts, settings, train, val, journal, **kept)
                _measure_prices(parts, settings, subsets)
                return values
        head = None
        if stage == "1" and settings.warmup.salient_share > 0:
            head = load_head(journal.folder.parent / "stage_0a" / "head.pt")
        section, where = _ON_PATCHES[stage]
        supervised = getattr(settings, section)
        return train_on_patches(
            parts, settings, supervised, train, val, journal, where=where, glance_head=head, **kept
        )

    def glances_of(self, parts: Parts, settings: TrainSettings, clips: Clips) -> Glances:
        return glance_at_all(parts, clips, settings.preprocessing.crop_px)

    def score(
        self, parts: Parts, settings: TrainSettings, clips: Clips, policy: Policy, glances: Glances | None
    ) -> SubsetScore:
        return score_places(parts, settings, clips, policy, glances=glances)


_ON_PATCHES: dict[Stage, tuple[str, Where]] = {
    "1": ("warmup", "random"),
    "3": ("finetune", "learned"),
    "full": ("full", "whole"),
}
"""Stage -> its settings, and where its patches lie."""


def _measure_prices(parts: Parts, settings: TrainSettings, subsets: Subsets) -> None:
    """Puts into the header which share of the steps the skip head focuses on at each price."""
    tables = price_tables(parts, settings, subsets.val, subsets.glances.get("val"))
    assert parts.header.skip is not None
    measured = {sees: tuple((p, round(share, 4)) for p, share, _ in rows) for sees, rows in tables.items()}
    spec = dataclasses.replace(parts.header.skip, price_tables=measured)
    parts.header = dataclasses.replace(parts.header, skip=spec)


COURSE = FramesCourse()
