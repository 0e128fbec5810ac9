"""The commands of a training as a user runs them, one after another: synth, train, calibrate, label."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import torch

from operators.errors import ConfigError
from operators.weights import checkpoints
from pipeline.config import load
from pipeline.training import command
from pipeline.training.journal import read_metrics
from tests.support.processes import Command, saccade, wait_for

SHORT = (
    "--set", "train.glance.epochs=1", "--set", "train.warmup.epochs=3", "--set", "train.policy.epochs=3",
    "--set", "train.finetune.epochs=1", "--set", "train.skip.updates=4", "--set", "train.num_steps=4",
    "--set", "train.candidates=1", "--set", "train.networks.policy_hidden=32", "--set", "train.amp=off",
    "--set", "train.networks.classifier_hidden=16", "--set", "run.threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archive")
    sizes = ("--videos", 32, "--shares", 12, 16, 4, "--size", 128, "--seconds", 1.5)
    code, _, err = saccade("synth", out, *sizes, "--workers", 1, "-q")
    assert code == 0, err
    return out


def train(archive: Path, out: Path, cache: Path, *more: object) -> Command:
    where = ("--videos", archive / "videos", "-o", out, "--cache", cache)
    return Command("train", archive / "annotations.json", *where, *SHORT, *more)


def weights(out: Path) -> dict[str, torch.Tensor]:
    sections = checkpoints.load(out / "checkpoint.safetensors").sections
    return {f"{section}.{key}": value for section, found in sections.items() for key, value in found.items()}


@pytest.fixture(scope="module")
def trained(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    code, _, err = train(archive, out, out / "cache", "--truth", archive / "truth.parquet").wait()
    assert code == 0, err
    return out


def test_an_archive_is_made_trained_on_calibrated_and_labelled_within_a_budget(
    archive: Path, trained: Path, tmp_path: Path
) -> None:
    header = checkpoints.load(trained / "checkpoint.safetensors").header
    assert list(header.training["stages"]) == ["0a", "0b", "1", "2", "3", "skip"]
    assert 0 <= header.training["stages"]["3"]["scores"]["test_learned_accuracy"] <= 100
    assert (trained / "curves.png").exists()

    data = (archive / "annotations.json", "--videos", archive / "videos", "--executor", "inline")
    calibrated = tmp_path / "calibrated.safetensors"
    with_weights = ("--checkpoint", trained / "checkpoint.safetensors", "--write", calibrated)
    code, out, err = saccade("calibrate", *data, "--subset", "val", "-o", tmp_path / "calibration", *with_weights)
    assert code == 0, err

    points = checkpoints.load(calibrated).header.thresholds["calibrations"][0]["points"]
    budget = sum(point["gmacs"] for point in points) / len(points)
    stop = ("--set", "stop.kind=budget", "--set", f"stop.budget_gmacs={budget}", "--json")
    code, out, err = saccade(
        "label", *data, "--subset", "test", "-o", tmp_path / "labels", "--checkpoint", calibrated, *stop
    )
    assert code == 0, err
    assert json.loads(out)["clips"] == 4
    rows = ds.dataset(str(tmp_path / "labels" / "labels"), format="parquet").to_table().to_pylist()
    names = (archive / "classes.txt").read_text().split()
    assert len(rows) == 4 and {row["label"] for row in rows} <= set(names)
    assert all(row["error_code"] is None and row["truth"] for row in rows)


def test_a_training_that_is_killed_ends_with_the_weights_of_an_undisturbed_one(
    archive: Path, trained: Path, tmp_path: Path
) -> None:
    metrics = tmp_path / "stage_1" / "metrics.jsonl"
    run = train(archive, tmp_path, trained / "cache")
    try:
        assert wait_for(lambda: bool(read_metrics(metrics)), 60)
    finally:
        run.process.kill()
    assert run.wait()[0] == -9
    assert len(read_metrics(metrics)) < 3, "it was to be killed within the stage"
    assert not (tmp_path / "stage_1.safetensors").exists()

    code, _, err = train(archive, tmp_path, trained / "cache").wait()
    assert code == 0, err
    assert [row["done"] for row in read_metrics(metrics)] == [1, 2, 3]
    straight, resumed = weights(trained), weights(tmp_path)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_the_published_form_of_annotations_trains_although_its_testing_subset_tells_nothing(
    archive: Path, trained: Path, tmp_path: Path
) -> None:
    published = json.loads((archive / "annotations.json").read_text())
    for facts in published["database"].values():
        facts["subset"] = {"train": "training", "val": "validation", "test": "testing"}[facts["subset"]]
        if facts["subset"] == "testing":
            facts["annotations"] = []
    # Nor are its files there.
    published["database"] = {
        f"away_{name}" if facts["subset"] == "testing" else name: facts for name, facts in published["database"].items()
    }
    (archive / "published.json").write_text(json.dumps(published))
    settings = [*SHORT[1::2], f"model.classes={archive / 'classes.txt'}"]
    records = command.train(
        load("train_synth", settings=settings),
        [str(archive / "published.json")],
        videos=archive / "videos",
        out=tmp_path,
        cache=trained / "cache",
        stages="0a",
    )
    assert records["0a"]["clips"] == {"train": 12, "val": 16, "unreadable": 0}


def annotated(archive: Path, name: str, change: Callable[[dict[str, Any]], None]) -> str:
    """The archive's annotations, changed."""
    tree = json.loads((archive / "annotations.json").read_text())
    change(tree["database"])
    (archive / name).write_text(json.dumps(tree))
    return str(archive / name)


def train_glance(archive: Path, listing: str, out: Path, said: list[str]) -> dict[str, Any]:
    settings = [*SHORT[1::2], f"model.classes={archive / 'classes.txt'}"]
    config = load("train_synth", settings=settings)
    where = {"videos": archive / "videos", "out": out, "cache": out / "cache"}
    return command.train(config, [listing], **where, stages="0a", say=said.append)["0a"]


def test_a_training_without_a_test_subset_says_so(archive: Path, tmp_path: Path) -> None:
    def without_test(videos: dict[str, Any]) -> None:
        for name in [name for name, facts in videos.items() if facts["subset"] == "test"]:
            del videos[name]

    said: list[str] = []
    train_glance(archive, annotated(archive, "untested.json", without_test), tmp_path, said)
    assert said == ["the annotations have no subset test or testing: stages are trained without test scores"]


def test_a_test_subset_that_cannot_be_read_is_not_passed_over(archive: Path, tmp_path: Path) -> None:
    def spoil(videos: dict[str, Any]) -> None:
        next(facts for facts in videos.values() if facts["subset"] == "test")["annotations"] = [{}]

    with pytest.raises(ConfigError, match="an annotation without a label"):
        train_glance(archive, annotated(archive, "spoilt.json", spoil), tmp_path, [])


def test_a_video_that_cannot_be_read_is_named_on_the_terminal_and_in_a_file(archive: Path, tmp_path: Path) -> None:
    (archive / "videos" / "broken.mp4").write_bytes(b"no video at all")

    def add(videos: dict[str, Any]) -> None:
        first = next(facts for facts in videos.values() if facts["subset"] == "train")
        videos["broken"] = dict(first)

    said: list[str] = []
    record = train_glance(archive, annotated(archive, "broken.json", add), tmp_path, said)
    assert record["clips"] == {"train": 12, "val": 16, "unreadable": 1}
    assert said[0].startswith("left out of the train videos: ") and "broken.mp4" in said[0]
    (row,) = map(json.loads, (tmp_path / "left_out.jsonl").read_text().splitlines())
    assert row["subset"] == "train" and row["video"].endswith("broken.mp4") and row["reason"]


def test_threads_of_the_run_count_for_readers_and_torch(archive: Path, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    train_glance(archive, str(archive / "annotations.json"), tmp_path, [])
    assert torch.get_num_threads() == 1


def test_another_family_than_the_preset_trains_is_refused(archive: Path, tmp_path: Path) -> None:
    config = load("train_synth", settings=["model.family=adafocus_tsm"])
    with pytest.raises(ConfigError, match="train_synth trains adafocus"):
        command.train(config, [str(archive / "annotations.json")], videos=archive / "videos", out=tmp_path)


def test_a_family_without_a_course_is_refused_by_its_name(archive: Path, tmp_path: Path) -> None:
    config = load("train_synth", settings=["model.family=gfnet"])
    with pytest.raises(ConfigError, match=r"gfnet cannot be trained here.*train adafocus or adafocus_tsm"):
        command.train(config, [str(archive / "annotations.json")], videos=archive / "videos", out=tmp_path)
