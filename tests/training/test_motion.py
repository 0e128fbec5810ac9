"""AdaFocus-TSM's stages as a whole: what they train, at which rates, and what they begin with."""

from __future__ import annotations

import pytest
import torch

from operators.errors import CheckpointError, ConfigError
from operators.networks.backbones import build
from operators.weights import checkpoints
from pipeline.config.training import changed
from pipeline.config.training_motion import train_synth_motion, train_tsm_something
from pipeline.training.course_motion import COURSE
from pipeline.training.journal import read_metrics
from pipeline.training.model import save_parts
from pipeline.training.optimise import make_optimiser, num_epochs, set_rate
from pipeline.training.sequence import checkpoint_path, run
from pipeline.training.stage_motion import begin_motion
from tests.support.training_motion_clips import (
    ALL,
    CLASSES,
    FOCUSED,
    GLANCED,
    PATCH,
    SHORT,
    Killed,
    make_data,
    make_settings,
    make_surroundings,
    weights_of,
)
from tests.support.training_parts import fresh_parts


def test_the_loss_falls_and_the_checkpoint_says_how_it_is_run(tmp_path):
    run(("0a", "0b", "1"), settings=make_settings(), data=make_data(tmp_path), around=make_surroundings(tmp_path))
    losses = [row["loss"] for row in read_metrics(tmp_path / "out" / "stage_1" / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    header = checkpoints.load(tmp_path / "out" / "checkpoint.safetensors").header
    assert (header.family, header.num_steps, header.num_focus_steps, header.pad) == (
        "adafocus_tsm", GLANCED, FOCUSED, "first",
    )  # fmt: skip
    assert header.class_names == CLASSES
    assert header.glance is not None and header.focus is not None
    assert (header.glance.num_segments, header.focus.num_segments, header.focus.size_px) == (GLANCED, FOCUSED, PATCH)


def test_the_control_sees_every_frame_by_itself(tmp_path):
    for is_shifted in (True, False):
        parts = fresh_parts(make_settings(is_shifted=is_shifted), CLASSES)
        parts.freeze()
        frames = torch.rand(FOCUSED, 3, PATCH, PATCH)
        with torch.no_grad():
            forward, backward = parts.focuser(frames)[1], parts.focuser(frames.flip(0))[1].flip(0)
        assert torch.allclose(forward, backward, atol=1e-6) is not is_shifted
    data, around = make_data(tmp_path), make_surroundings(tmp_path)
    run(("0a", "0b", "1"), settings=make_settings(is_shifted=False), data=data, around=around)
    header = checkpoints.load(tmp_path / "out" / "checkpoint.safetensors").header
    assert header.focus is not None and header.focus.num_segments == 0


def test_a_training_that_is_killed_in_every_stage_ends_with_the_same_weights(tmp_path):
    data, settings = make_data(tmp_path, train=16, val=4), make_settings(**SHORT, **{"glance.epochs": 2})
    run(ALL, settings=settings, data=data, around=make_surroundings(tmp_path))
    straight = weights_of(tmp_path / "out" / "checkpoint.safetensors")
    assert {name.split(".")[0] for name in straight} == {"glancer", "focuser", "classifier", "policy"}
    killed_in = set()

    def kill_once_per_stage(progress) -> None:
        if progress.stage not in killed_in and progress.done < progress.total:
            killed_in.add(progress.stage)
            raise Killed

    around = make_surroundings(tmp_path, out=tmp_path / "again", progress=kill_once_per_stage)
    for _ in range(6):
        try:
            run(ALL, settings=settings, data=data, around=around)
            break
        except Killed:
            continue
    assert killed_in == {"0a", "1", "2", "3"}
    resumed = weights_of(tmp_path / "again" / "checkpoint.safetensors")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)


def test_each_stage_moves_what_it_names_and_nothing_else(tmp_path):
    data, settings = make_data(tmp_path, train=16, val=4), make_settings(**SHORT)
    run(ALL, settings=settings, data=data, around=make_surroundings(tmp_path))
    weights = {s: weights_of(checkpoint_path(tmp_path / "out", s)) for s in ("0b", "1", "2", "3")}

    def moved(before: str, after: str) -> set[str]:
        both = weights[before].keys() & weights[after].keys()
        return {k.split(".")[0] for k in both if not torch.equal(weights[before][k], weights[after][k])}

    assert moved("0b", "1") == {"focuser", "classifier"}
    assert moved("1", "2") == set()
    assert moved("2", "3") == {"focuser", "classifier"}


def test_there_is_no_stage_for_skipping(tmp_path):
    with pytest.raises(ConfigError, match=r"adafocus_tsm has no stage 'skip'; there are 0a, 0b, 1, 2, 3, all"):
        run(("skip",), settings=make_settings(), data=make_data(tmp_path, 8, 4), around=make_surroundings(tmp_path))


def test_a_reward_against_the_place_before_is_refused():
    with pytest.raises(ConfigError, match="one place only"):
        make_settings(**{"policy.reward": "previous"})


def test_the_published_rates_reach_every_parameter_that_they_name():
    settings = train_tsm_something()
    s = settings
    assert (s.num_steps, s.num_focus_steps, s.networks.patch_px, s.is_flipped) == (8, 12, 144, False)
    assert (s.warmup.lr_focus, s.warmup.lr_classifier, s.warmup.dropout, s.warmup.batch_size) == (1e-5, 0.01, 0.5, 64)
    assert (s.finetune.lr_focus, s.finetune.lr_classifier, s.finetune.batch_size) == (0, 5e-4, 32)
    assert (s.policy.lr, s.policy.gamma, s.policy_std, s.policy.epochs) == (3e-4, 0.7, 0.25, 50)
    parts = fresh_parts(make_settings(), CLASSES)
    groups = [(parts.focuser, s.warmup.lr_focus), (parts.classifier, s.warmup.lr_classifier)]
    optimiser = make_optimiser(s.warmup.optimiser, groups)
    assert num_epochs(s.warmup) == 11
    set_rate(optimiser, s.warmup, 5, 0, 100)  # half way: cosine factor one half
    rate_of = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert {round(rate_of[id(p)], 9) for p in parts.focuser.parameters()} == {5e-6}
    assert {round(rate_of[id(p)], 9) for p in parts.classifier.parameters()} == {5e-3}


def test_tsm_pretraining_drops_its_rate_twice():
    stage = train_tsm_something().glance
    parts = fresh_parts(make_settings(), CLASSES)
    optimiser = make_optimiser(stage.optimiser, [(parts.glancer, stage.lr_glance)])
    assert num_epochs(stage) == 50
    rates = {}
    for epoch in (0, 19, 20, 39, 40, 49):
        set_rate(optimiser, stage, epoch, 0, 10)
        rates[epoch] = optimiser.param_groups[0]["lr"]
    assert rates == pytest.approx({0: 0.01, 19: 0.01, 20: 1e-3, 39: 1e-3, 40: 1e-4, 49: 1e-4})


def test_tsm_pretraining_files_begin_both_networks_with_their_linear_layers(tmp_path):
    torch.manual_seed(3)
    focus = build("resnet50", num_segments=12).state_dict()
    raw = {}
    for key, value in focus.items():
        is_shifted = key.startswith("layer") and ".conv1." in key
        raw["module.base_model." + (key.replace(".conv1.", ".conv1.net.") if is_shifted else key)] = value
    raw |= {"module.new_fc.weight": torch.full((2, 2048), 0.5), "module.new_fc.bias": torch.tensor([1.0, 2.0])}
    torch.save({"state_dict": raw}, tmp_path / "focus.pth.tar")
    settings = make_settings(
        **{"networks.focus": "resnet50", "networks.focus_weights": str(tmp_path / "focus.pth.tar")}
    )
    settings = changed(settings, {"num_focus_steps": 12})
    parts = fresh_parts(settings, CLASSES)
    begin_motion(parts, settings)
    now = parts.focuser.state_dict()
    assert all(torch.equal(now[key], value) for key, value in focus.items())
    assert parts.classifier.fc.bias.tolist() == [1.0, 2.0]


def test_weights_to_begin_from_reach_the_stages_after_the_first(tmp_path):
    before = fresh_parts(make_settings(seed=5), CLASSES)
    save_parts(tmp_path / "before", before, sections=COURSE.sections_after["1"], training={})
    settings = make_settings(**{"networks.focus_weights": str(tmp_path / "before"), "glance.epochs": 0})
    run(("0a", "0b"), settings=settings, data=make_data(tmp_path, 8, 4), around=make_surroundings(tmp_path))
    weights, wanted = weights_of(checkpoint_path(tmp_path / "out", "0b")), weights_of(tmp_path / "before")
    for section in ("focuser", "classifier"):
        names = [name for name in wanted if name.startswith(section)]
        assert names and all(torch.equal(weights[name], wanted[name]) for name in names)
    # The glance network was not named.
    assert not all(torch.equal(weights[name], wanted[name]) for name in wanted if name.startswith("glancer"))


def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"nothing of the kind")
    settings = make_settings(**{"networks.glance_weights": str(tmp_path / "x.pth")})
    with pytest.raises(CheckpointError, match=r"x\.pth is no checkpoint"):
        begin_motion(fresh_parts(settings, CLASSES), settings)


def test_weights_of_another_backbone_are_refused_by_name(tmp_path):
    torch.save(build("small_focus").state_dict(), tmp_path / "x.pth")
    settings = make_settings(**{"networks.glance_weights": str(tmp_path / "x.pth")})
    with pytest.raises(CheckpointError, match=r"x\.pth holds the weights of small_focus, but the backbone is small_gl"):
        begin_motion(fresh_parts(settings, CLASSES), settings)


def test_the_small_preset_is_whole():
    s = train_synth_motion()
    assert (s.cached_steps, s.pad, s.preprocessing.crop_px, s.networks.patch_px) == (20, "first", 96, 32)
