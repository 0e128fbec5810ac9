"""`train`: the stages one after another, each from the checkpoint of the one before. Interrupted anywhere,
the same call goes on: finished stages are passed over, the one under way continues after its last epoch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from operators.errors import StageError
from operators.weights import checkpoints
from pipeline.config.training import TITLES, Stage, TrainSettings
from pipeline.scoring.plots import draw_training
from pipeline.training.course import Course, course_of
from pipeline.training.journal import Diverged, Journal, read_metrics
from pipeline.training.model import Parts, fill_parts, load_stage, new_parts, save_parts, with_device
from pipeline.training.scoring import policy_named
from pipeline.training.subsets import Subsets, Surroundings, TrainingData, open_subsets

_BEFORE: dict[Stage, Stage | None] = {
    "0a": None,
    "0b": "0a",
    "1": "0b",
    "2": "1",
    "3": "2",
    "skip": "3",
    "full": "0a",
}
"""Stage -> the one whose checkpoint it begins with."""

_SECTIONS: dict[Stage, str] = {
    "0a": "glance",
    "0b": "focus",
    "1": "warmup",
    "2": "policy",
    "3": "finetune",
    "skip": "skip",
    "full": "full",
}
"""Stage -> the group of settings that is its own."""


def checkpoint_path(out: Path, stage: str) -> Path:
    return out / f"stage_{stage}.safetensors"


def run(
    stages: Sequence[str], *, settings: TrainSettings, data: TrainingData, around: Surroundings
) -> dict[str, dict[str, Any]]:
    """Trains the stages, in their order, and gives each one's record (scores, seconds). The last one's
    checkpoint is also left as `checkpoint.safetensors`; `curves.png` shows all."""
    course = course_of(settings.family)
    wanted = course.ordered(stages)
    settings = with_device(settings)
    subsets = open_subsets(settings, data, around)
    records: dict[str, dict[str, Any]] = {}
    for stage in wanted:
        records[stage] = _finished(stage, course, settings, data.class_names, around, subsets)
    _draw(around.out)
    return records


def _finished(
    stage: Stage,
    course: Course[Any],
    settings: TrainSettings,
    class_names: Sequence[str],
    around: Surroundings,
    subsets: Subsets,
) -> dict[str, Any]:
    """The record of one stage, which is trained from its predecessor's checkpoint where it is not finished yet."""
    parts = new_parts(course.new_header(settings, class_names, stage), settings)
    model_before, stages_before = _begin(stage, course, parts, settings, around.out)
    identity = _identity(stage, settings, subsets.fingerprint, model_before)
    path = checkpoint_path(around.out, stage)
    if path.exists():
        record = checkpoints.load(path).header.training
        if record.get("identity") == identity:
            _publish(stage, course, identity, around.out)
            return record
    journal = Journal(
        folder=around.out / f"stage_{stage}",
        stage=stage,
        identity=identity,
        clock=around.clock,
        progress=around.progress,
    )
    if stage not in ("0a", "0b") and settings.is_glance_cached:
        _keep_glances(course, parts, settings, subsets)
    try:
        values = course.train_stage(stage, parts, settings, subsets, journal)
    except Diverged as exc:
        raise StageError(f"{exc}; {_way_back(exc.state, around.out, _BEFORE[stage])}") from exc
    record = _record(stage, settings, around, subsets) | {
        "identity": identity,
        "seconds": round(journal.seconds, 1),
        "scores": {k: round(v, 4) for k, v in values.items()} | _test_scores(stage, course, parts, settings, subsets),
    }
    # What earlier stages reached ships with the last one.
    record["stages"] = stages_before | {stage: {"identity": identity, "scores": record["scores"]}}
    save_parts(path, parts, sections=course.sections_after[stage], training=record)
    _publish(stage, course, identity, around.out)
    journal.finish()
    return record


def _begin(
    stage: Stage, course: Course[Any], parts: Parts, settings: TrainSettings, out: Path
) -> tuple[str, dict[str, Any]]:
    """Fills the networks with what the stage begins with; gives the id of the model before it, and the record of the
    stages that led there."""
    before = _BEFORE[stage]
    if stage in ("0a", "0b", *course.comparisons):
        # The networks that have not been trained yet; what an earlier stage did train is put over it.
        course.begin(parts, settings)
    if before is None:
        return "", {}
    found = load_stage(checkpoint_path(out, before), stage)
    fill_parts(parts, found, course.sections_after[before], f"stage {stage}")
    return found.model_id, found.header.training.get("stages", {})


def _record(stage: Stage, settings: TrainSettings, around: Surroundings, subsets: Subsets) -> dict[str, Any]:
    """What a stage's checkpoint says of its training, whatever comes of it."""
    return {
        "stage": stage,
        "preset": settings.preset,
        "settings": settings.model_dump(),
        "config": dict(around.config),
        "seed": settings.seed,
        "commit": around.commit,
        "data": subsets.fingerprint,
        "clips": {"train": len(subsets.train), "val": len(subsets.val), "unreadable": subsets.num_unreadable},
    }


def _publish(stage: Stage, course: Course[Any], identity: str, out: Path) -> None:
    """Leaves a finished stage's checkpoint as `checkpoint.safetensors` too, unless what is there was made from it.

    This is done for stages that are passed over as well: a kill may have come between the two files.
    """
    if stage in course.comparisons:
        return
    public = out / "checkpoint.safetensors"
    if public.exists():
        there = checkpoints.load(public).header.training.get("stages", {})
        if there.get(stage, {}).get("identity") == identity:
            return
    checkpoints.save(public, checkpoints.load(checkpoint_path(out, stage)))


def _way_back(state: Path, out: Path, before: str | None) -> str:
    """What to do about a stage that diverged. `state`: where its own state lies, if an epoch was good."""
    if state.exists():
        # Other settings do not go on from this state, but it may be looked at.
        last, first = str(state), f"delete {state.parent} and begin the stage anew"
    else:
        last = "that before training" if before is None else str(checkpoint_path(out, before))
        first = "begin the stage anew"
    return f"the last good state is {last}: {first} with a lower learning rate, or with train.amp=off"


def _identity(stage: Stage, settings: TrainSettings, fingerprint: str, model_before: str) -> str:
    """What a stage's result depends on, as a number. Settings of other stages are left out, so that changing a late
    stage does not begin the early ones anew."""
    others = set(_SECTIONS.values()) - {_SECTIONS[stage]}
    silent = others | {"preset", "max_cache_gb"}
    values = {k: v for k, v in settings.model_dump().items() if k not in silent}
    text = json.dumps([stage, values, fingerprint, model_before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _keep_glances(course: Course[Any], parts: Parts, settings: TrainSettings, subsets: Subsets) -> None:
    """Glances once at all subsets, for the stages in which the glance network rests."""
    if subsets.glances:
        return
    for name, clips in (("train", subsets.train), ("val", subsets.val), ("test", subsets.test)):
        if clips is not None:
            subsets.glances[name] = course.glances_of(parts, settings, clips)


def _test_scores(
    stage: Stage, course: Course[Any], parts: Parts, settings: TrainSettings, subsets: Subsets
) -> dict[str, float]:
    """The scores on the test subset, if there is one, with the places of every kind that the stage can choose."""
    if subsets.test is None or stage not in ("1", "2", "3", "full"):
        return {}
    kinds = ["center"] if stage == "full" else ["center", "random", "glance"]
    if stage in ("2", "3"):
        kinds.append("learned")
    if subsets.test.visible is not None and stage != "full":
        kinds.append("oracle")
    values: dict[str, float] = {}
    for kind in kinds:
        found = course.score(
            parts, settings, subsets.test, policy_named(kind, parts), subsets.glances.get("test")
        )
        values |= {k: round(v, 4) for k, v in found.values(f"test_{kind}_").items()}
    return values


def _draw(out: Path) -> None:
    rows = {stage: read_metrics(out / f"stage_{stage}" / "metrics.jsonl") for stage in _BEFORE}
    aside = out / ".curves.part.png"
    draw_training(aside, [(f"{stage}: {TITLES[stage]}", found) for stage, found in rows.items()])
    if aside.exists():
        os.replace(aside, out / "curves.png")
