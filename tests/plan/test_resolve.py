"""What is decided when a run is resolved, and by what its labels are told apart from others."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from operators.errors import ConfigError
from operators.weights import checkpoints
from operators.weights.checkpoints import save
from pipeline.config import Config, parse
from pipeline.families.calibrated import skip_price
from pipeline.plan.resolve import goes_in_rounds, resolve
from pipeline.plan.run_plan import RunPlan
from tests.support.looking import make_config
from tests.support.small_checkpoints import BUDGET, GFNET, MACHINE, SHIPPED, SKIP, TSM, shipped, trained, with_header


def test_clips_go_in_rounds_where_what_they_see_decides():
    header = dataclasses.replace(trained().header, skip=SKIP)

    def rounds(header=header, **settings: object) -> bool:
        return goes_in_rounds(make_config(**settings), header)

    assert not rounds()
    assert not rounds(skip__kind="uniform")
    assert rounds(skip__kind="learned")
    assert not rounds(skip__kind="learned", skip__sees="glance")
    assert rounds(stop__kind="confidence", stop__thresholds=[0.9])
    assert rounds(trained(**GFNET).header, **GFNET)
    assert not rounds(trained(**TSM).header, **TSM)


def resolved(path: Path, **settings: object) -> RunPlan:
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return resolve(parse({"model.checkpoint": str(path), "compute.device": "cpu", **given}), MACHINE)


def test_what_nobody_gave_comes_from_the_checkpoint_and_what_was_given_stays(tmp_path: Path):
    save(tmp_path / "model", trained(view__square_pixels=False, sampling__pad="first"))
    config = resolved(tmp_path / "model", sampling__num_frames=9).config
    assert (config.view.crop_px, config.view.square_pixels, config.sampling.pad) == (64, False, "first")
    assert (config.glance.size_px, config.focus.patch_px, config.sampling.num_frames) == (32, 24, 9)
    assert config.model.glance_backbone == "small_glance"


def test_paths_hold_wherever_a_worker_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "model", trained())
    monkeypatch.chdir(tmp_path)
    plan = resolved(Path("model"))
    assert plan.config.model.checkpoint == str(tmp_path / "model")
    assert os.path.isabs(plan.worker_specs()[1].arguments["config"]["model"]["checkpoint"])
    assert plan.identity() == resolved(tmp_path / "model").identity()


def test_labels_are_told_apart_by_the_names_of_their_classes_and_not_by_where_the_names_lie(tmp_path: Path):
    save(tmp_path / "model", trained())
    names = [f"name {n}" for n in range(trained().header.num_classes)]
    for file, first in (("a.txt", "name 0"), ("b.txt", "name 0"), ("c.txt", "another")):
        (tmp_path / file).write_text("\n".join([first, *names[1:]]))

    def identity(file: str) -> dict:
        return resolved(tmp_path / "model", model__classes=str(tmp_path / file)).identity()

    assert identity("a.txt") == identity("b.txt")
    assert identity("a.txt")["config_id"] != identity("c.txt")["config_id"]


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("preprocessing", {"mean": (0.5, 0.5, 0.5)}),
        ("preprocessing", {"std": (0.5, 0.5, 0.5)}),
        ("preprocessing", {"glance_resize": "bicubic"}),
        ("preprocessing", {"interpolation": "bicubic"}),
        ("preprocessing", {"resize_px": 72}),
        ("preprocessing", {"square_pixels": False}),
        ("glance", {"num_segments": 2}),
        (None, {"pad": "first"}),
        (None, {"class_names": tuple(f"name {n}" for n in range(7))}),
    ],
    ids=str,
)
def test_labels_are_told_apart_by_whatever_of_the_checkpoint_changes_an_answer(
    tmp_path: Path, part: str | None, changed: dict
):
    one = trained()
    before = dataclasses.asdict(one.header)
    fields = changed if part is None else {part: dataclasses.replace(getattr(one.header, part), **changed)}
    other = with_header(one, **fields)
    assert dataclasses.asdict(other.header) != before
    for name, checkpoint in (("one", one), ("other", other)):
        save(tmp_path / name, checkpoint)
    first, second = resolved(tmp_path / "one").identity(), resolved(tmp_path / "other").identity()
    assert first["model_id"] == second["model_id"] and first["config_id"] != second["config_id"]
    # As the table's file holds it, it says what differs.
    assert json.loads(json.dumps(first))["config"] != json.loads(json.dumps(second))["config"]


def test_labels_are_not_told_apart_by_what_a_checkpoint_says_of_its_training(tmp_path: Path):
    one = trained()
    save(tmp_path / "one", one)
    save(tmp_path / "other", with_header(one, training={"seed": 5}, thresholds={"calibrations": []}))
    assert resolved(tmp_path / "one").identity() == resolved(tmp_path / "other").identity()


def test_labels_with_the_learned_skip_are_told_apart_by_what_it_sees(tmp_path: Path):
    saved = checkpoints.load(SHIPPED)
    header = saved.header
    assert header.skip is not None
    sees = "glance" if header.skip.sees == "classifier" else "classifier"
    save(tmp_path / "other", with_header(saved, skip=dataclasses.replace(header.skip, sees=sees)))
    ids = {resolved(path, skip__kind="learned").identity()["config_id"] for path in (SHIPPED, tmp_path / "other")}
    assert len(ids) == 2


def test_labels_are_told_apart_by_thresholds_wherever_they_come_from(tmp_path: Path):
    _, header = shipped()
    found = header.thresholds["calibrations"][0]
    raised = [{**point, "thresholds": [0.5 + x / 2 for x in point["thresholds"]]} for point in found["points"]]
    (tmp_path / "same.json").write_text(json.dumps(found))
    (tmp_path / "raised.json").write_text(json.dumps({**found, "points": raised}))

    def config_id(**settings: object) -> str:
        return resolved(SHIPPED, **BUDGET, **settings).identity()["config_id"]

    assert config_id() == config_id(stop__calibration=str(tmp_path / "same.json"))
    assert config_id() != config_id(stop__calibration=str(tmp_path / "raised.json"))


def test_labels_with_the_learned_skip_are_told_apart_by_its_price(tmp_path: Path):
    def identity(**settings: object) -> dict:
        return resolved(SHIPPED, skip__kind="learned", **settings).identity()

    own = shipped()[1].skip.price
    assert identity() == identity(skip__price=own)
    assert identity()["config_id"] != identity(skip__price=own * 2)["config_id"]


@pytest.mark.parametrize(("batch_size", "rows"), [(32, 30), (6, 6), (4, 6), (13, 12)])
def test_passes_of_the_motion_model_hold_whole_clips(tmp_path: Path, batch_size: int, rows: int):
    save(tmp_path / "model", trained(**TSM))
    plan = resolved(tmp_path / "model", focus__batch_size=batch_size)
    assert plan.rows_per_batch == rows
    focus = next(spec for spec in plan.worker_specs() if spec.factory.endswith("focus_worker"))
    assert focus.arguments["batch_size"] == rows


def test_class_names_must_be_as_many_as_classes(tmp_path: Path):
    save(tmp_path / "model", trained())
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(ConfigError, match="2 class names, but the checkpoint has 7 classes"):
        resolved(tmp_path / "model", model__classes=str(tmp_path / "names.txt"))


def test_random_weights_have_to_be_asked_for():
    config: Config = make_config(model__untrained=False)
    with pytest.raises(ConfigError, match="for the adafocus model: add --checkpoint FILE"):
        resolve(config, MACHINE)


@pytest.mark.parametrize("settings", [{}, {"skip.share": 0.25}, {"skip.price": 0.05}])
def test_the_learned_skip_has_the_same_price_in_the_workers_as_in_the_plan(settings: dict):
    given = {"model.checkpoint": str(SHIPPED), "compute.device": "cpu", "skip.kind": "learned", **settings}
    plan = resolve(parse(given), MACHINE)
    streams = next(spec for spec in plan.worker_specs() if spec.factory.endswith("stream_worker"))
    for crossed in (streams.arguments["config"], plan.live_arguments()["config"]):
        config = Config.model_validate(crossed)
        assert config.flat() | {"skip.sees": None} == plan.config.flat()
        if crossed is streams.arguments["config"]:
            assert skip_price(config, plan.header) == skip_price(plan.config, plan.header)
