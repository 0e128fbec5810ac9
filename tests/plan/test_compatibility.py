"""What settings and checkpoint cannot have together, and what they say together."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from operators.errors import CheckpointError, ConfigError
from operators.weights import checkpoints
from operators.weights.checkpoints import Checkpoint, save
from operators.weights.header import Header, SkipSpec
from pipeline.config import CONFIGS, Config, parse
from pipeline.families import family_named
from pipeline.families.calibrated import calibrated_for, skip_price, steps_per_round, stop_rule
from pipeline.families.untrained import untrained
from pipeline.plan.compatibility import check
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import goes_in_rounds, resolve
from pipeline.plan.run_plan import RunPlan
from pipeline.scoring.calibrate import write_into
from policies.stopping import Confidence
from tests.support.looking import make_config

MACHINE = Machine(num_cores=2, memory_bytes=8 << 30)
SHIPPED = CONFIGS / "weights" / "small_synth.safetensors"
GFNET = {
    "model__family": "gfnet",
    "model__glance_backbone": "small_focus",
    "glance__size_px": 24,
    "sampling__num_frames": 1,
}
TSM = {"model__family": "adafocus_tsm", "sampling__num_frames": 4, "sampling__num_focus_frames": 6}
SKIP = SkipSpec(
    policy_hidden=256, classifier_hidden=128, price_tables={"glance": ((0.01, 0.8), (0.1, 0.2)), "classifier": ()}
)


def refused(checkpoint: Checkpoint | None = None, **settings: object) -> str:
    """What a run of these settings is refused with."""
    config = make_config(**settings)
    with pytest.raises((ConfigError, CheckpointError)) as error:
        check(config, checkpoint or untrained(config))
    text = str(error.value)
    assert "\n" not in text
    return text


def with_header(checkpoint: Checkpoint, **fields: object) -> Checkpoint:
    return Checkpoint(header=dataclasses.replace(checkpoint.header, **fields), sections=checkpoint.sections)


def trained(**settings: object) -> Checkpoint:
    return untrained(make_config(**settings))


@pytest.mark.parametrize("settings", [{}, GFNET, TSM])
def test_plain_settings_go_with_every_family(settings: dict):
    check(make_config(**settings), trained(**settings))


@pytest.mark.parametrize("extra", [{"skip__kind": "uniform"}, {"stop__kind": "confidence", "stop__thresholds": [0.5]}])
def test_tsm_neither_skips_nor_stops(extra: dict):
    assert "leave them at none" in refused(**TSM, **extra)


def test_gfnet_does_not_skip_and_checks_every_look():
    assert "skip.kind does not apply" in refused(**GFNET, skip__kind="random")
    text = refused(**GFNET, stop__kind="confidence", stop__thresholds=[0.5], stop__steps_per_round=2)
    assert "stop.steps_per_round" in text


def test_gfnet_looks_no_more_often_than_it_was_made_for():
    assert "made for 5 looks" in refused(trained(**GFNET), **GFNET, model__num_looks=6)


def test_each_family_has_its_own_sampling():
    assert "sampling.num_frames is 16, set it to 1" in refused(**{**GFNET, "sampling__num_frames": 16})
    assert "leave it out" in refused(sampling__num_focus_frames=12)
    text = refused(trained(**TSM), **{**TSM, "sampling__num_frames": 8})
    assert "glances at 4 frames and focuses on 6, but sampling.num_frames=8" in text
    with pytest.raises(ConfigError, match="num_focus_frames"):
        trained(model__family="adafocus_tsm")


def test_sizes_that_a_learned_policy_cannot_read_are_refused_and_fixed_ones_take_them():
    checkpoint = trained()
    assert "set glance.size_px=32" in refused(checkpoint, glance__size_px=48)
    check(make_config(glance__size_px=48, policy__kind="center"), checkpoint)
    assert "set focus.patch_px=24" in refused(trained(**GFNET), **{**GFNET, "focus__patch_px": 32})


def test_a_patch_larger_than_the_view_is_refused():
    with pytest.raises(ConfigError, match=r"focus.patch_px=80 is larger than view.crop_px=64"):
        make_config(focus__patch_px=80)


def test_a_preset_of_another_model_is_refused():
    assert "model.family is gfnet, but checkpoint holds adafocus" in refused(
        Checkpoint(header=trained().header, sections=trained().sections), **{**GFNET, "glance__size_px": 32}
    )
    assert "model.focus_backbone is resnet50" in refused(trained(), model__focus_backbone="resnet50")


def test_two_different_networks_are_no_gfnet():
    with pytest.raises(ConfigError, match="same backbone twice"):
        trained(**{**GFNET, "model__glance_backbone": "small_glance"})


@pytest.mark.parametrize(("section", "kind"), [("policy", "learned"), ("focuser", "center"), ("classifier", "center")])
def test_parts_that_are_missing_are_named(section: str, kind: str):
    whole = trained()
    sections = {name: weights for name, weights in whole.sections.items() if name != section}
    text = refused(Checkpoint(header=whole.header, sections=sections), policy__kind=kind)
    assert f"has no {section}" in text


def test_without_a_policy_the_fixed_ones_still_run():
    whole = trained()
    sections = {name: weights for name, weights in whole.sections.items() if name != "policy"}
    header = dataclasses.replace(whole.header, policy=None)
    check(make_config(policy__kind="center"), Checkpoint(header=header, sections=sections))


def test_learned_skips_need_a_learned_place_and_a_trained_head():
    assert "has no skip" in refused(skip__kind="learned")
    whole = trained()
    checkpoint = with_header(Checkpoint(header=whole.header, sections={**whole.sections, "skip": {}}), skip=SKIP)
    assert "needs policy.kind=learned" in refused(checkpoint, skip__kind="learned", policy__kind="center")


def test_the_oracle_needs_a_truth_that_is_there(tmp_path: Path):
    assert "needs policy.truth" in refused(policy__kind="oracle")
    missing = str(tmp_path / "truth.parquet")
    assert missing in refused(policy__kind="oracle", policy__truth=missing)


def test_thresholds_are_one_or_as_many_as_a_clip_has_steps():
    assert "needs stop.thresholds" in refused(stop__kind="confidence")
    assert "5 numbers and a clip has 6 steps" in refused(stop__kind="confidence", stop__thresholds=[0.5] * 5)
    config = make_config(stop__kind="confidence", stop__thresholds=[0.5] * 8, sampling__num_frames=8)
    # As many as are sampled, whatever the checkpoint was trained with.
    assert stop_rule(config, trained().header) == Confidence(thresholds=(0.5,) * 8)
    looks = make_config(**GFNET, stop__kind="confidence", stop__thresholds=[0.5], model__num_looks=3)
    assert stop_rule(looks, trained(**GFNET).header) == Confidence(thresholds=(0.5,) * 3)


def test_a_budget_is_met_by_the_calibration_in_the_checkpoint():
    points = [
        {"gmacs": 1.0, "score": 60.0, "thresholds": [0.1] * 6},
        {"gmacs": 2.0, "score": 70.0, "thresholds": [0.6] * 6},
        {"gmacs": 3.0, "score": 72.0, "thresholds": [0.9] * 6},
    ]
    header = dataclasses.replace(
        trained().header, thresholds={"calibrations": [{"measure": "logit", "points": points}]}
    )

    def rule(**settings: object):
        return stop_rule(make_config(stop__kind="budget", **settings), header)

    assert rule(stop__budget_gmacs=2.4) == Confidence(thresholds=(0.6,) * 6, measure="logit")
    with pytest.raises(ConfigError, match="calibrated from 1 to 3 GMACs"):
        rule(stop__budget_gmacs=0.5)
    with pytest.raises(ConfigError, match="calibrated for 6 steps, but a clip has 8"):
        rule(stop__budget_gmacs=2.5, sampling__num_frames=8)
    assert "run `calibrate`" in refused(stop__kind="budget", stop__budget_gmacs=2.0)


def test_the_price_of_a_skip_is_the_one_given_or_that_of_the_share_or_the_heads_own():
    header = dataclasses.replace(trained().header, skip=SKIP)

    def price(**settings: object) -> float:
        return skip_price(make_config(skip__kind="learned", **settings), header)

    assert price() == 0.01
    assert price(skip__price=0.05, skip__share=0.5) == 0.05
    # Half way between the shares of 0.01 and 0.1 is their geometric mean.
    assert price(skip__share=0.5, skip__sees="glance") == pytest.approx(0.1**1.5)
    with pytest.raises(ConfigError, match=r"none for skip.sees=classifier: set skip.price"):
        price(skip__share=0.5)


def shipped(**settings: object) -> tuple[Config, Header]:
    """The checkpoint that ships, under the settings of its preset."""
    header = checkpoints.load(SHIPPED).header
    given = {name.replace("__", "."): value for name, value in settings.items()}
    config = parse({"model.checkpoint": str(SHIPPED), **given})
    return config.filled_in(family_named(header.family).settings_of(header)), header


def test_a_share_of_frames_that_the_learned_skip_does_not_reach_is_refused_with_the_range():
    config, header = shipped(skip__kind="learned", skip__share=0.5)
    with pytest.raises(ConfigError, match=r"skip\.share=0\.5 .* from 0\.2105 to 0\.3035, or set skip\.sees=glance"):
        skip_price(config, header)
    # What the message names is taken.
    for share in (0.2105, 0.25, 0.3035):
        assert 0.001 <= skip_price(*shipped(skip__kind="learned", skip__share=share)) <= 0.12
    assert skip_price(*shipped(skip__kind="learned", skip__share=0.5, skip__sees="glance")) > 0.03


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


def test_the_shipped_calibration_of_the_learned_skip_was_made_at_the_price_that_its_checkpoint_has():
    config, header = shipped(skip__kind="learned")
    made = [found for found in header.thresholds["calibrations"] if found["for"]["skip.kind"] == "learned"]
    assert {found["for"]["skip.price"] for found in made} == {header.skip.price} == {skip_price(config, header)}
    assert [found["for"]["skip.sees"] for found in made] == ["classifier", "glance"]


BUDGET = {"stop__kind": "budget", "stop__budget_gmacs": 0.06}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stop__steps_per_round": 1},
        {"skip__share": 0.3},
        {"skip__kind": "learned"},
        {"skip__kind": "learned", "skip__sees": "classifier"},
        {"skip__kind": "learned", "skip__price": 0.01},
    ],
)
def test_a_setting_that_says_what_the_checkpoint_says_anyway_finds_its_calibration(settings: dict):
    rule = stop_rule(*shipped(**BUDGET, **settings))
    assert isinstance(rule, Confidence) and len(rule.thresholds) == 8


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({"stop__steps_per_round": 2}, "(stop.steps_per_round=1 there, 2 here)"),
        ({"skip__kind": "learned", "stop__steps_per_round": 2}, "(stop.steps_per_round=1 there, 2 here)"),
        ({"skip__kind": "uniform", "skip__share": 0.5}, "(skip.kind=none there, uniform here"),
        ({"skip__kind": "learned", "skip__price": 0.02}, "(skip.price=0.01 there, 0.02 here)"),
        ({"focus__patch_px": 40}, "(focus.patch_px=32 there, 40 here)"),
    ],
)
def test_a_budget_under_settings_that_were_not_calibrated_is_refused(settings: dict, differs: str):
    with pytest.raises(ConfigError, match=re.escape(differs)):
        stop_rule(*shipped(**BUDGET, **settings))


def test_the_steps_per_round_of_a_calibration_are_taken_where_none_are_given():
    config, header = shipped(**BUDGET)
    twos = [{**found, "steps_per_round": 2} for found in header.thresholds["calibrations"]]
    header = dataclasses.replace(header, thresholds={"calibrations": twos})
    assert steps_per_round(config, header) == 2
    assert stop_rule(config.replaced({"stop.steps_per_round": 2}), header) is not None
    with pytest.raises(ConfigError, match=r"stop\.steps_per_round=2 there, 1 here"):
        stop_rule(config.replaced({"stop.steps_per_round": 1}), header)


def test_a_checkpoint_holds_one_calibration_for_each_way_of_skipping(tmp_path: Path):
    config, header = shipped(skip__kind="learned", skip__sees="classifier")
    # Three ship: without skipping, and with the learned one, whatever it sees.
    none, learned, glance = header.thresholds["calibrations"]
    again = {"points": learned["points"][:3], "steps_per_round": 2, "for": calibrated_for(config, header)}
    write_into(SHIPPED, tmp_path / "again", again)
    assert checkpoints.load(tmp_path / "again").header.thresholds["calibrations"] == [none, glance, again]


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
