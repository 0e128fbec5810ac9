"""`train`: the stages one after another, each from the checkpoint of the one before. Interrupted anywhere,
the same call goes on: finished stages are passed over, the one under way continues after its last epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from operators.durable import replaced_durably
from operators.errors import ConfigError, StageError
from operators.records import Source
from operators.weights import checkpoints
from pipeline.config.training import FULL, STAGES, TITLES, Stage, TrainSettings
from pipeline.config.training_motion import STAGES_OF_MOTION, MotionSettings
from pipeline.scoring.plots import draw_training
from pipeline.training.clips import Clips, FrameTruth, label_numbers, make_clips
from pipeline.training.frame_cache import FrameCache, Read, ReadMany, open_cache
from pipeline.training.journal import Diverged, Journal, Progress, read_metrics
from pipeline.training.left_out import left_out, report_left_out
from pipeline.training.model import (
    Parts,
    begin_from_files,
    fill_parts,
    glance_at_all,
    load_stage,
    new_parts,
    save_parts,
    sections_after,
    with_device,
)
from pipeline.training.motion import glance_once, motion_score, new_motion_parts
from pipeline.training.read_motion import MotionReader
from pipeline.training.scoring import policy_named, score
from pipeline.training.stage_glance import load_head, train_alone
from pipeline.training.stage_motion import begin_motion, train_motion
from pipeline.training.stage_patches import Where, train_on_patches
from pipeline.training.stage_policy import train_policy
from pipeline.training.stage_skip import price_tables, train_skip

_BEFORE: dict[str, str | None] = {
    "0a": None,
    "0b": "0a",
    "1": "0b",
    "2": "1",
    "3": "2",
    "skip": "3",
    "full": "0a",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Labelled sources of each subset, and the truth per frame where one is known."""

    train: Sequence[Source]
    val: Sequence[Source]
    test: Sequence[Source] = ()
    class_names: Sequence[str]
    truth: Mapping[str, FrameTruth] | None = None
    """By video_id."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """Where and how a training runs: nothing in it changes the weights."""

    out: Path
    cache: Path
    """Folder of frame caches; several trainings may share it."""
    read: Read
    read_many: ReadMany | None = None
    clock: Callable[[], float]
    commit: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the command was told, for the header."""
    progress: Callable[[Progress], None] | None = None
    cache_progress: Callable[[str, int, int], None] | None = None
    say: Callable[[str], None] = lambda text: None
    """For what the user should know: videos that are left out."""


@dataclass(eq=False)
class _Data:
    train: Clips
    val: Clips
    test: Clips | None
    fingerprint: str
    """Of all that the weights depend on: the cached frames, their labels, the classes' names and order."""
    num_unreadable: int
    glances: dict[str, Any]
    """Subset -> what the resting glance network saw: Glances, or MotionGlances."""


def checkpoint_path(out: Path, stage: str) -> Path:
    return out / f"stage_{stage}.safetensors"


def run(
    stages: Sequence[Stage], *, settings: TrainSettings, data: TrainingData, setting: Setting
) -> dict[str, dict[str, Any]]:
    """Trains the stages, in their order, and gives each one's record (scores, seconds). The last one's
    checkpoint is also left as `checkpoint.safetensors`; `curves.png` shows all."""
    unknown = [s for s in stages if s not in _BEFORE]
    if unknown:
        raise ConfigError(f"there is no stage {unknown[0]!r}; there are {', '.join(_BEFORE)}")
    if isinstance(settings, MotionSettings):
        unknown = [s for s in stages if s not in STAGES_OF_MOTION]
        if unknown:
            raise ConfigError(
                f"AdaFocus-TSM has no stage {unknown[0]!r}: one place serves all frames, and none is skipped; "
                f"there are {', '.join(STAGES_OF_MOTION)}"
            )
    settings = with_device(settings)
    ready = _open(settings, data, setting)
    records: dict[str, dict[str, Any]] = {}
    for stage in [s for s in (*STAGES, FULL) if s in stages]:
        records[stage] = _stage(stage, settings, data, setting, ready)
    _draw(setting.out)
    return records


def _open(settings: TrainSettings, data: TrainingData, setting: Setting) -> _Data:
    def subset(name: str, sources: Sequence[Source], candidates: int) -> tuple[Clips, FrameCache]:
        report = setting.cache_progress
        read = setting.read
        if isinstance(read, MotionReader):
            # It chooses the candidates itself; without others it reads inference's frames and nothing else.
            read = dataclasses.replace(read, candidates=candidates)
        cache = open_cache(
            setting.cache,
            sources,
            read,
            num_steps=settings.cached_steps,
            candidates=candidates,
            size_px=settings.cached_view["crop_px"],
            pad=settings.pad,
            # AdaFocus-TSM's steps are two samples: how many belong to the first counts too.
            look=settings.cached_view | {"family": type(settings).__name__, "num_steps": settings.num_steps},
            max_bytes=int(settings.max_cache_gb * 1e9),
            read_many=setting.read_many,
            progress=None if report is None else lambda done, total: report(name, done, total),
            on_wait=setting.say,
        )
        return make_clips(cache, sources, data.class_names, data.truth), cache

    if not data.train or not data.val:
        raise ConfigError("training needs videos of both subsets, training and validation")
    # All labels before the first frame: decoding may take hours.
    labels = {name: label_numbers(getattr(data, name), data.class_names) for name in ("train", "val", "test")}
    for name in ("train", "val"):
        if not any(labels[name]):
            raise ConfigError(f"none of {len(labels[name])} {name} videos has a label: training needs annotations")
    train, train_cache = subset("train", data.train, settings.candidates)
    val, val_cache = subset("val", data.val, 1)
    # A published test subset may come without labels; there is nothing to score then.
    known = [source for source in data.test if source.truth]
    test, test_cache = subset("test", known, 1) if known else (None, None)
    rows = left_out("train", data.train, train_cache) + left_out("val", data.val, val_cache)
    if test_cache is not None:
        rows += left_out("test", known, test_cache)
    report_left_out(rows, setting.out, setting.cache, setting.say)
    facts = [train_cache.fingerprint, val_cache.fingerprint, list(data.class_names), labels["train"], labels["val"]]
    return _Data(
        train=train,
        val=val,
        test=test,
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32],
        num_unreadable=len(train_cache.errors) + len(val_cache.errors),
        glances={},
    )


def _stage(stage: Stage, settings: TrainSettings, data: TrainingData, setting: Setting, ready: _Data) -> dict[str, Any]:
    """One stage from its predecessor's checkpoint to its own. A stage that is finished gives its record
    again.
    """
    before = _BEFORE[stage]
    parts = _parts(stage, settings, data)
    model_before = ""
    stages_before: dict[str, Any] = {}
    if stage in ("0a", "0b", "full"):
        # The networks that have not been trained yet; what an earlier stage did train is put over it.
        _begin(parts, settings)
    if before is not None:
        found = load_stage(checkpoint_path(setting.out, before), stage)
        wanted = ("glancer",) if stage == "full" else sections_after(before, parts.header.family)
        fill_parts(parts, found, wanted, f"stage {stage}")
        model_before = found.model_id
        stages_before = found.header.training.get("stages", {})
    identity = _identity(stage, settings, ready.fingerprint, model_before)
    path = checkpoint_path(setting.out, stage)
    if path.exists():
        record = checkpoints.load(path).header.training
        if record.get("identity") == identity:
            _publish(stage, identity, setting.out)
            return record
    journal = Journal(
        folder=setting.out / f"stage_{stage}",
        stage=stage,
        identity=identity,
        clock=setting.clock,
        progress=setting.progress,
    )
    try:
        values = _train(stage, parts, settings, ready, journal)
    except Diverged as exc:
        raise StageError(f"{exc}; {_way_back(exc.state, setting.out, before)}") from exc
    record = {
        "stage": stage,
        "identity": identity,
        "preset": settings.preset,
        "settings": settings.model_dump(),
        "config": dict(setting.config),
        "seed": settings.seed,
        "commit": setting.commit,
        "data": ready.fingerprint,
        "clips": {"train": len(ready.train), "val": len(ready.val), "unreadable": ready.num_unreadable},
        "seconds": round(journal.seconds, 1),
        "scores": {k: round(v, 4) for k, v in values.items()},
    }
    record["scores"] |= _scores(stage, parts, settings, ready)
    # What earlier stages reached ships with the last one.
    record["stages"] = stages_before | {stage: {"identity": identity, "scores": record["scores"]}}
    save_parts(path, parts, stage=stage, training=record)
    _publish(stage, identity, setting.out)
    journal.finish()
    return record


def _publish(stage: Stage, identity: str, out: Path) -> None:
    """Leaves a finished stage's checkpoint as `checkpoint.safetensors` too, unless what is there was made from it.

    Asked of stages passed over as well: a kill may have come between the two files.
    """
    if stage == "full":
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


def _parts(stage: Stage, settings: TrainSettings, data: TrainingData) -> Parts:
    if isinstance(settings, MotionSettings):
        return new_motion_parts(settings, tuple(data.class_names))
    return new_parts(settings, data.class_names, whole_views=stage == "full")


def _begin(parts: Parts, settings: TrainSettings) -> None:
    if isinstance(settings, MotionSettings):
        begin_motion(parts, settings)
    else:
        begin_from_files(parts, settings)


def _identity(stage: str, settings: TrainSettings, fingerprint: str, model_before: str) -> str:
    """What a stage's result depends on. Settings of other stages are left out, so that changing a late stage
    does not begin the early ones anew."""
    own = {
        "0a": ("glance",),
        "0b": ("focus",),
        "1": ("warmup",),
        "2": ("policy",),
        "3": ("finetune",),
        "skip": ("skip",),
        "full": ("full",),
    }[stage]
    others = {"glance", "focus", "warmup", "policy", "finetune", "skip", "full"} - set(own)
    silent = others | {"preset", "max_cache_gb"}
    values = {k: v for k, v in settings.model_dump().items() if k not in silent}
    text = json.dumps([stage, values, fingerprint, model_before], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _train(stage: Stage, parts: Parts, settings: TrainSettings, ready: _Data, journal: Journal) -> dict[str, float]:
    if isinstance(settings, MotionSettings):
        if stage not in ("0a", "0b"):
            _glance_once(parts, settings, ready)
        return train_motion(
            stage,
            parts,
            settings,
            ready.train,
            ready.val,
            journal,
            train_glances=ready.glances.get("train"),
            val_glances=ready.glances.get("val"),
        )
    if stage in ("0a", "0b"):
        which = "glancer" if stage == "0a" else "focuser"
        return train_alone(parts, settings, ready.train, ready.val, journal, which=which)
    _glance_once(parts, settings, ready)
    train_glances, val_glances = ready.glances.get("train"), ready.glances.get("val")
    if stage in ("1", "3", "full"):
        head = None
        if stage == "1" and settings.warmup.salient_share > 0:
            head = load_head(journal.folder.parent / "stage_0a" / "head.pt")
        supervised, where = _ON_PATCHES[stage]
        return train_on_patches(
            parts,
            settings,
            getattr(settings, supervised),
            ready.train,
            ready.val,
            journal,
            where=where,
            glance_head=head,
            train_glances=train_glances,
            val_glances=val_glances,
        )
    kept = {"train_glances": train_glances, "val_glances": val_glances}
    if stage == "2":
        return train_policy(parts, settings, ready.train, ready.val, journal, **kept)
    values = train_skip(parts, settings, ready.train, ready.val, journal, **kept)
    tables = price_tables(parts, settings, ready.val, ready.glances.get("val"))
    assert parts.header.skip is not None
    spec = dataclasses.replace(
        parts.header.skip,
        price_tables={sees: tuple((p, round(share, 4)) for p, share, _ in rows) for sees, rows in tables.items()},
    )
    parts.header = dataclasses.replace(parts.header, skip=spec)
    return values


_ON_PATCHES: dict[str, tuple[str, Where]] = {
    "1": ("warmup", "random"),
    "3": ("finetune", "learned"),
    "full": ("full", "whole"),
}
"""Stage -> its settings, and where its patches lie."""


def _glance_once(parts: Parts, settings: TrainSettings, ready: _Data) -> None:
    """Glances of all subsets, kept for the stages in which the glance network rests."""
    if not settings.is_glance_cached or ready.glances:
        return
    crop_px = settings.preprocessing.crop_px
    for name, clips in (("train", ready.train), ("val", ready.val), ("test", ready.test)):
        if clips is not None and isinstance(settings, MotionSettings):
            ready.glances[name] = glance_once(parts, clips)
        elif clips is not None:
            ready.glances[name] = glance_at_all(parts, clips, crop_px)


def _scores(stage: Stage, parts: Parts, settings: TrainSettings, ready: _Data) -> dict[str, float]:
    """Of the test subset, if there is one, with the places of every kind that the stage can choose."""
    if ready.test is None or stage not in ("1", "2", "3", "full"):
        return {}
    kinds = ["center"] if stage == "full" else ["center", "random", "glance"]
    if stage in ("2", "3"):
        kinds.append("learned")
    if ready.test.visible is not None and stage != "full":
        kinds.append("oracle")
    values: dict[str, float] = {}
    kept = ready.glances.get("test")
    for kind in kinds:
        if isinstance(settings, MotionSettings):
            found = motion_score(parts, settings, ready.test, policy_named(kind, parts), glances=kept)
        else:
            found = score(parts, settings, ready.test, policy_named(kind, parts), glances=kept)
        values |= {k: round(v, 4) for k, v in found.values(f"test_{kind}_").items()}
    return values


def _draw(out: Path) -> None:
    rows = {stage: read_metrics(out / f"stage_{stage}" / "metrics.jsonl") for stage in _BEFORE}
    if any(rows.values()):
        with replaced_durably(out / "curves.png", suffix=".png") as aside:
            draw_training(aside, [(f"{stage}: {TITLES[stage]}", found) for stage, found in rows.items()])
