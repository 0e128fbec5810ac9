"""The training stages, on clips that are made in memory: a coloured square on a grey ground, with stripes on it.

The class is the colour, which is seen at glance resolution, and the direction of the stripes, which is not.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.errors import CheckpointError, ConfigError, StageError
from operators.networks.classify import join_features
from operators.records import Source
from operators.weights import checkpoints
from operators.weights.header import Preprocessing
from pipeline.config import load
from pipeline.training import optimise, stage_skip
from pipeline.training.clips import Augmentation, Clips, FrameTruth, batches, load_views, make_clips, seeded
from pipeline.training.frame_cache import ClipFrames, FrameCache
from pipeline.training.journal import Journal, read_metrics
from pipeline.training.model import glance_at_all, new_parts, with_device
from pipeline.training.optimise import half_precision, make_optimiser, num_epochs, set_rate, take_step
from pipeline.training.scoring import Looks, blank, policy_named, score, score_of
from pipeline.training.sequence import Setting, TrainingData, _identity, _open, checkpoint_path, run
from pipeline.training.settings import (
    Networks,
    Optimiser,
    PolicyStage,
    SkipStage,
    Supervised,
    TrainSettings,
    changed,
    train_activitynet,
    train_synth,
)
from pipeline.training.settings_motion import train_tsm_something
from pipeline.training.stage_policy import _classify, _probability
from pipeline.training.stage_skip import roll_out

torch.set_num_threads(1)

VIEW, PATCH, STEPS, SIDE = 36, 12, 4, 8
CLASSES = ("red across", "red down", "blue across", "blue down")
ADAMW = Optimiser(kind="adamw", weight_decay=0.01, schedule="step")


def paint(number: int) -> ClipFrames:
    """STEPS frames; the evidence lies at one place per clip and is shown in every frame but one."""
    rng = np.random.default_rng(number)
    frames = np.full((STEPS, VIEW, VIEW, 3), 128, np.float32) + rng.normal(0, 6, (STEPS, VIEW, VIEW, 3))
    top, left, phase = place_of(number)
    stripes = (((np.arange(SIDE) + phase) // 2) % 2) * 2 - 1
    pattern = np.repeat(stripes[:, None], SIDE, axis=1)
    if number % 2:
        pattern = pattern.T
    for t in range(STEPS):
        frames[t, top : top + SIDE, left : left + SIDE] = (200, 60, 60) if number % 4 < 2 else (60, 60, 200)
        if t != number // 4 % STEPS:
            frames[t, top : top + SIDE, left : left + SIDE] += 50 * pattern[:, :, None]
    return ClipFrames(
        pixels=np.clip(frames, 0, 255).astype(np.uint8),
        frame_index=np.arange(STEPS),
        num_frames=STEPS,
        view_yxhw=(0.0, 0.0, 1.0, 1.0),
    )


def place_of(number: int) -> tuple[int, int, int]:
    rng = np.random.default_rng([number, 1])
    return int(rng.integers(0, VIEW - SIDE + 1)), int(rng.integers(0, VIEW - SIDE + 1)), int(rng.integers(0, 4))


def read(source: Source) -> ClipFrames:
    return paint(int(source.video_id))


def make_data(folder: Path, train=240, val=60) -> TrainingData:
    def sources(numbers) -> list[Source]:
        return [
            Source(source_id=f"{n:032x}", uri=str(folder / f"{n}"), video_id=str(n), truth=(CLASSES[n % 4],))
            for n in numbers
        ]

    truth = {}
    for n in range(train + val):
        top, left, _ = place_of(n)
        visible = np.array([t != n // 4 % STEPS for t in range(STEPS)])
        box = np.array([[top / VIEW, left / VIEW, SIDE / VIEW, SIDE / VIEW]] * STEPS)
        truth[str(n)] = FrameTruth(visible=visible, box_yxhw=box)
    return TrainingData(
        train=sources(range(train)), val=sources(range(train, train + val)), class_names=CLASSES, truth=truth
    )


def make_settings(**changes) -> TrainSettings:
    settings = TrainSettings(
        preset="test",
        num_steps=STEPS,
        candidates=1,
        device="cpu",
        amp="off",
        is_flipped=False,
        is_cropped=False,
        is_glance_cached=True,
        networks=Networks(
            glance="small_glance",
            glance_px=12,
            focus="small_focus",
            patch_px=PATCH,
            classifier_hidden=16,
            policy_hidden=32,
            policy_width=8,
            num_actions=25,
            skip_hidden=8,
        ),
        preprocessing=Preprocessing(resize_px=VIEW, crop_px=VIEW, glance_resize="antialias"),
        glance=Supervised(epochs=3, batch_size=16, lr_glance=3e-3, optimiser=ADAMW),
        focus=Supervised(epochs=0),
        warmup=Supervised(
            epochs=6, batch_size=16, lr_focus=2e-3, lr_classifier=2e-3, patch_head_weight=1.0,
            salient_share=0.7, optimiser=ADAMW
        ),
        policy=PolicyStage(epochs=30, batch_size=40, lr=2e-3),
        finetune=Supervised(
            epochs=2, batch_size=16, lr_focus=5e-4, lr_classifier=1e-3, blank_share=0.4, dropout=0.2,
            optimiser=ADAMW,
        ),
        skip=SkipStage(updates=480, batch_size=40),
    )  # fmt: skip
    return changed(settings, changes)


def make_setting(folder: Path, **changes) -> Setting:
    ticks = itertools.count()
    values = dict(out=folder / "out", cache=folder / "cache", read=read, clock=lambda: float(next(ticks)))
    return Setting(**(values | changes))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    sections = checkpoints.load(path).sections
    return {f"{s}.{k}": v for s, weights in sections.items() for k, v in weights.items()}


# ---- the whole course ----


@pytest.mark.parametrize("has_kernels", [True, False])
def test_a_cpu_trains_in_half_precision_only_where_it_has_kernels_for_it(monkeypatch, has_kernels):
    monkeypatch.setattr(optimise, "can_compile", lambda device, dtype: has_kernels)
    with half_precision(changed(train_synth(), {"device": "cpu"})):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if has_kernels else torch.float32)


def test_the_loss_falls_the_policy_finds_the_evidence_and_skipping_spares_focuses(tmp_path):
    data = make_data(tmp_path)
    settings = make_settings(**{"validate_every": 100})
    data = dataclasses.replace(data, test=data.val)
    records = run(
        ("0a", "0b", "1", "2", "3", "skip"),
        settings=settings,
        data=data,
        setting=make_setting(tmp_path, commit="abc", config={"seed": 0}),
    )
    losses = [row["loss"] for row in read_metrics(tmp_path / "out" / "stage_1" / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    scores = records["3"]["scores"]
    # A patch of a third of the side at random holds the evidence's centre in about one frame of six.
    assert scores["test_random_hits"] < 25
    assert scores["test_learned_hits"] > 40
    assert scores["test_learned_accuracy"] > scores["test_random_accuracy"] + 5
    assert records["skip"]["scores"]["val_share_classifier"] < 95

    # What is left behind.
    final = checkpoints.load(tmp_path / "out" / "checkpoint.safetensors")
    assert final.header.class_names == CLASSES
    assert final.header.training["seed"] == 0
    assert final.header.training["commit"] == "abc"
    assert final.header.training["config"] == {"seed": 0}
    assert len(final.header.training["data"]) == 32
    assert final.header.skip is not None
    shares = [share for _, share in final.header.skip.price_tables["classifier"]]
    assert shares[0] > shares[-1]
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"

    # Called again, nothing is trained again.
    again = run(("0a", "0b", "1", "2", "3", "skip"), settings=settings, data=data, setting=make_setting(tmp_path))
    assert again["3"]["seconds"] == records["3"]["seconds"]


# ---- going on after a kill ----


class Killed(BaseException):
    pass


def short_settings() -> TrainSettings:
    return make_settings(
        **{
            "glance.epochs": 2,
            "warmup.epochs": 3,
            "warmup.dropout": 0.3,
            "policy.epochs": 3,
            "finetune.epochs": 2,
            "skip.updates": 12,
        }
    )


def test_a_training_that_is_killed_in_every_stage_ends_with_the_same_weights(tmp_path):
    data = make_data(tmp_path, train=32, val=8)
    settings = short_settings()
    stages = ("0a", "0b", "1", "2", "3", "skip")
    run(stages, settings=settings, data=data, setting=make_setting(tmp_path))
    straight = weights_of(tmp_path / "out" / "checkpoint.safetensors")

    killed_in = set()

    def kill_once_per_stage(progress) -> None:
        if progress.stage not in killed_in and progress.done < progress.total:
            killed_in.add(progress.stage)
            raise Killed

    setting = make_setting(tmp_path, out=tmp_path / "again", progress=kill_once_per_stage)
    for _ in range(10):
        try:
            run(stages, settings=settings, data=data, setting=setting)
            break
        except Killed:
            continue
    assert killed_in == {"0a", "1", "2", "3", "skip"}
    resumed = weights_of(tmp_path / "again" / "checkpoint.safetensors")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    # No epoch stands twice in the metrics.
    rows = read_metrics(tmp_path / "again" / "stage_1" / "metrics.jsonl")
    assert [row["done"] for row in rows] == [1, 2, 3]


def test_no_stage_asks_of_a_gru_what_cudnn_refuses(tmp_path, monkeypatch):
    forward = torch.nn.GRU.forward

    def as_cudnn(gru, x, hidden=None):
        out, last = forward(gru, x, hidden)
        assert gru.training or not out.requires_grad, "cudnn RNN backward can only be called in training mode"
        assert hidden is None or hidden.is_contiguous(), "rnn: hx is not contiguous"
        return out, last

    monkeypatch.setattr(torch.nn.GRU, "forward", as_cudnn)
    stages = ("0a", "0b", "1", "2", "3", "skip")
    data = make_data(tmp_path, train=32, val=8)
    records = run(stages, settings=short_settings(), data=data, setting=make_setting(tmp_path))
    assert records.keys() == set(stages)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_stages_run_on_a_gpu_in_half_precision(tmp_path):
    data = make_data(tmp_path, train=32, val=8)
    settings = changed(short_settings(), {"device": "auto", "amp": "auto"})
    data = dataclasses.replace(data, test=data.val)
    records = run(("0a", "0b", "1", "2", "3", "skip"), settings=settings, data=data, setting=make_setting(tmp_path))
    assert records["3"]["settings"]["device"] == "cuda"
    assert np.isfinite(records["3"]["scores"]["loss"])


def test_stages_can_be_trained_where_there_is_no_decoder():
    code = "import sys; sys.modules |= dict.fromkeys(('av', 'cv2', 'ray')); import pipeline.training.sequence"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_state_of_other_settings_is_not_gone_on_from(tmp_path):
    data = make_data(tmp_path, train=16, val=4)

    def kill(progress) -> None:
        if progress.stage == "1":
            raise Killed

    with pytest.raises(Killed):
        run(("0a", "0b", "1"), settings=short_settings(), data=data, setting=make_setting(tmp_path, progress=kill))
    other = changed(short_settings(), {"warmup.lr_focus": 1e-4})
    with pytest.raises(CheckpointError, match="other settings or data"):
        run(("1",), settings=other, data=data, setting=make_setting(tmp_path))


def test_a_stage_without_its_predecessor_says_which_file_it_wants(tmp_path):
    data = make_data(tmp_path, train=16, val=4)
    with pytest.raises(CheckpointError, match=r"stage 2 begins with .*stage_1\.safetensors"):
        run(("2",), settings=short_settings(), data=data, setting=make_setting(tmp_path))


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_state(tmp_path):
    data = make_data(tmp_path, train=32, val=4)
    run(("0a", "0b"), settings=short_settings(), data=data, setting=make_setting(tmp_path))
    wild = changed(short_settings(), {"warmup.lr_classifier": 1e30, "warmup.lr_focus": 1e30})
    begun_with = r"stage 1, epoch 0, step \d; the last good state is .*stage_0b\.safetensors: begin the stage anew"
    with pytest.raises(StageError, match=begun_with):
        run(("1",), settings=wild, data=data, setting=make_setting(tmp_path))
    assert not checkpoint_path(tmp_path / "out", "1").exists()

    def spoil(progress) -> None:
        if progress.stage == "1" and progress.done == 1:
            state = torch.load(tmp_path / "out" / "stage_1" / "state.pt")
            state["state"]["classifier"]["fc.bias"][:] = float("inf")
            torch.save(state, tmp_path / "out" / "stage_1" / "state.pt")
            raise Killed

    with pytest.raises(Killed):
        run(("1",), settings=short_settings(), data=data, setting=make_setting(tmp_path, progress=spoil))
    with pytest.raises(StageError, match=r"stage 1, epoch 1, step 0; the last good state is .*state\.pt: delete"):
        run(("1",), settings=short_settings(), data=data, setting=make_setting(tmp_path))


def test_a_gradient_that_is_no_number_stops_although_its_loss_is_one():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=0.1)
    loss = (0 * weight.sqrt()).sum()
    assert float(loss.detach()) == 0
    with pytest.raises(StageError, match=r"gradient's norm is nan at stage 1, epoch 4, step 9"):
        take_step(loss, optimiser, where="stage 1, epoch 4, step 9", last_good="state.pt")
    assert float(weight.detach()) == 0


def test_weights_that_are_no_numbers_are_not_kept_as_the_last_good_state(tmp_path):
    journal = Journal(folder=tmp_path, stage="1", identity="x", clock=lambda: 0.0)
    layer = torch.nn.BatchNorm1d(2)
    journal.save(done=1, layer=layer)
    good = journal.state_path.read_bytes()
    layer.running_mean[0] = float("nan")
    with pytest.raises(StageError, match=r"layer\.running_mean is not finite at the end of stage 1, epoch 1"):
        journal.save(done=2, layer=layer)
    assert journal.state_path.read_bytes() == good


def test_a_kill_between_a_stages_two_files_leaves_the_public_one_right_after_the_next_call(tmp_path):
    data = make_data(tmp_path, train=16, val=4)
    out, public = tmp_path / "out", tmp_path / "out" / "checkpoint.safetensors"

    def call(*stages: str) -> str:
        run(stages, settings=short_settings(), data=data, setting=make_setting(tmp_path))
        return checkpoints.load(public).header.training["stage"]

    assert call("0a", "0b", "1") == "1"
    public.unlink()
    assert call("0a", "0b", "1") == "1"
    public.write_bytes(checkpoint_path(out, "0b").read_bytes())
    assert call("1") == "1"
    # What was made from a stage is not put back to it.
    assert call("0a") == "1"


def test_other_labels_or_another_order_of_the_classes_are_other_data(tmp_path):
    data = make_data(tmp_path, train=16, val=4)

    def identity(data: TrainingData) -> str:
        records = run(("0a",), settings=short_settings(), data=data, setting=make_setting(tmp_path))
        return records["0a"]["identity"]

    first = identity(data)
    one_other = dataclasses.replace(data.train[0], truth=(CLASSES[1],))
    relabelled = dataclasses.replace(data, train=[one_other, *data.train[1:]])
    turned = dataclasses.replace(data, class_names=CLASSES[::-1])
    assert len({first, identity(relabelled), identity(turned)}) == 3
    assert identity(data) == first
    # Pixels know no labels: all of them share the cache, one folder per subset.
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_stage_says_what_the_stages_before_it_reached(tmp_path):
    data = make_data(tmp_path, train=16, val=4)
    data = dataclasses.replace(data, test=data.val)
    records = run(("0a", "0b", "1"), settings=short_settings(), data=data, setting=make_setting(tmp_path))
    stages = checkpoints.load(checkpoint_path(tmp_path / "out", "1")).header.training["stages"]
    assert list(stages) == ["0a", "0b", "1"]
    assert stages["0a"]["scores"]["val_accuracy"] == records["0a"]["scores"]["val_accuracy"]
    assert stages["1"]["scores"]["test_center_accuracy"] == records["1"]["scores"]["test_center_accuracy"]


# ---- what a stage touches ----


@pytest.mark.parametrize(("lr_focus", "moves"), [(0.0, False), (1e-3, True)])
def test_fine_tuning_moves_the_focus_network_only_where_it_is_told_to(tmp_path, lr_focus, moves):
    data = make_data(tmp_path, train=16, val=4)
    settings = changed(short_settings(), {"finetune.lr_focus": lr_focus, "policy.epochs": 1, "warmup.epochs": 1})
    run(("0a", "0b", "1", "2", "3"), settings=settings, data=data, setting=make_setting(tmp_path))
    before = weights_of(checkpoint_path(tmp_path / "out", "2"))
    after = weights_of(checkpoint_path(tmp_path / "out", "3"))
    changed_sections = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed_sections == ({"classifier", "focuser"} if moves else {"classifier"})


def test_every_group_that_is_named_gets_its_rate():
    parts = new_parts(make_settings(), CLASSES)
    stage = Supervised(epochs=10, optimiser=Optimiser())
    optimiser = make_optimiser(stage.optimiser, [(parts.focuser, 0.5), (parts.classifier, 0.1), (parts.glancer, 0)])
    named = sum(p.numel() for group in optimiser.param_groups for p in group["params"])
    assert named == sum(p.numel() for m in (parts.focuser, parts.classifier) for p in m.parameters())
    set_rate(optimiser, stage, 5, 0, 100)  # half way: cosine factor one half
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.25, 0.05])


def test_the_published_loop_has_one_epoch_more_and_ends_at_rate_zero():
    stage = Supervised(epochs=15, lr_glance=0.01, optimiser=Optimiser(schedule="epoch"))
    assert num_epochs(stage) == 16
    parts = new_parts(make_settings(), CLASSES)
    optimiser = make_optimiser(stage.optimiser, [(parts.classifier, 0.01)])
    set_rate(optimiser, stage, 15, 3, 7)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0)


def test_progress_counts_the_epochs_that_were_asked_for(tmp_path):
    seen = []
    settings = make_settings(**{"glance.epochs": 1, "glance.optimiser.schedule": "epoch"})
    setting = make_setting(tmp_path, progress=lambda progress: seen.append((progress.done, progress.total)))
    run(("0a",), settings=settings, data=make_data(tmp_path, train=16, val=4), setting=setting)
    # The published pass at rate zero comes after the one epoch, and is no second one of two.
    assert seen == [(1, 1), (1, 1)]
    assert len(read_metrics(tmp_path / "out" / "stage_0a" / "metrics.jsonl")) == 2


def test_the_small_products_of_the_skip_stage_are_not_divided_among_threads(tmp_path, monkeypatch):
    seen = []

    def watched(loss, *more, **where):
        seen.append(torch.get_num_threads())
        return take_step(loss, *more, **where)

    monkeypatch.setattr(stage_skip, "take_step", watched)
    torch.set_num_threads(2)
    try:
        stages = ("0a", "0b", "1", "2", "3", "skip")
        data = make_data(tmp_path, train=16, val=4)
        run(stages, settings=short_settings(), data=data, setting=make_setting(tmp_path))
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# ---- settings ----


def test_the_preset_for_activitynet_has_the_published_numbers():
    s = train_activitynet()
    assert (s.num_steps, s.networks.patch_px, s.networks.num_actions) == (16, 128, 49)
    assert (s.glance.epochs, s.glance.lr_glance, s.focus.epochs, s.focus.lr_focus) == (15, 0.01, 15, 0.01)
    assert (s.warmup.epochs, s.warmup.lr_focus, s.warmup.lr_classifier, s.warmup.dropout) == (50, 5e-4, 0.05, 0.8)
    assert (s.policy.epochs, s.policy.lr, s.policy.gamma, s.policy.clip, s.policy.entropy_weight) == (
        50, 3e-4, 0.7, 0.2, 0.01,
    )  # fmt: skip
    assert (s.finetune.epochs, s.finetune.lr_classifier, s.finetune.lr_focus) == (10, 0.005, 0)
    assert s.warmup.optimiser == Optimiser(kind="sgd", momentum=0.9, weight_decay=1e-4, schedule="epoch")
    assert s.warmup.batch_size == s.policy.batch_size == 64
    assert s.is_flipped


def test_settings_are_changed_by_dotted_names_and_wrong_ones_are_refused():
    s = changed(train_synth(), {"policy.lr": 1, "seed": 7, "networks.focus_weights": "x.pth"})
    assert (s.policy.lr, s.seed, s.networks.focus_weights) == (1.0, 7, "x.pth")
    with pytest.raises(ConfigError, match=r"train\.policy\.learning; did you mean"):
        changed(train_synth(), {"policy.learning": 1})
    with pytest.raises(ConfigError, match=r"train\.seed: Input should be a valid integer.*\(got 'seven'\)"):
        changed(train_synth(), {"seed": "seven"})
    # YAML has read `off` as false.
    assert changed(train_synth(), {"amp": False}).amp == "off"
    with pytest.raises(ConfigError, match=r"train\.policy\.reward: Input should be 'random', .*\(got 'rndom'\)"):
        changed(train_synth(), {"policy.reward": "rndom"})
    with pytest.raises(ConfigError, match=r"train\.warmup\.optimiser\.kind: .* 'sgd' or 'adamw' \(got 'adam'\)"):
        changed(train_synth(), {"warmup.optimiser.kind": "adam"})
    with pytest.raises(ConfigError, match=r"train\.policy is a group .*e\.g\. train\.policy\.epochs"):
        changed(train_synth(), {"policy": 3})
    with pytest.raises(ConfigError, match="one glance per frame"):
        changed(train_synth(), {"is_flipped": True})
    for name, value in (("warmup.dropout", 1.5), ("glance.epochs", -1), ("policy.lr", 0), ("networks.num_actions", 50)):
        with pytest.raises(ConfigError, match=rf"^train\.{name.split('.')[0]}.*{abs(value)}"):
            changed(train_synth(), {name: value})
    with pytest.raises(ConfigError, match=r"train\.preprocessing\.crop; did you mean train\.preprocessing\.crop_px"):
        changed(train_synth(), {"preprocessing.crop": 64})
    with pytest.raises(ConfigError, match="crop_px=100 is larger than resize_px=96"):
        changed(train_synth(), {"preprocessing.crop_px": 100})


def test_settings_of_training_are_refused_when_a_config_is_read_like_all_others():
    for setting, message in (
        ("train.sed=1", r"unknown setting train\.sed; did you mean train\.seed"),
        ("train.skip.price=0", r"train\.skip\.price: Input should be greater than 0 \(got 0\)"),
        ("train.num_focus_steps=12", r"unknown setting train\.num_focus_steps"),
        ("train.preset=synth", r"train\.preset=synth: give --config train_synth"),
    ):
        with pytest.raises(ConfigError, match=message):
            load("train_synth", settings=[setting])
    with pytest.raises(ConfigError, match=r"train\.preset=None"):
        load(settings=["train.seed=1"])
    config = load("train_synth_motion", settings=["train.num_focus_steps=6", "train.warmup={epochs: 3}"])
    assert (config.training().family, config.training().cached_steps) == ("adafocus_tsm", 14)
    assert (config.training().warmup.epochs, config.training().warmup.batch_size) == (3, 8)
    # What was given stays told apart from what a preset has.
    assert config.given() == {
        "train.preset": "train_synth_motion", "train.num_focus_steps": 6, "train.warmup": {"epochs": 3}
    }  # fmt: skip
    assert config.replaced({"output.topk": 2}).training() == config.training()


def test_reading_a_config_for_labels_brings_neither_training_nor_torch():
    code = "import sys; from pipeline.config import load; load('demo'); print([m for m in sys.modules if 'train' in m])"
    code += "; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stderr


@pytest.mark.parametrize(
    ("preset", "stage", "identity"),
    [(train_synth, "1", "ffe27d73a4a1d632"), (train_tsm_something, "3", "9c8819fc198e65d0")],
)
def test_a_training_of_an_earlier_version_is_gone_on_from(preset, stage, identity):
    settings = preset().model_copy(update={"device": "cpu"})
    assert _identity(stage, settings, "f", "m") == identity


@pytest.mark.parametrize(("has_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_where_torch_sees_one(monkeypatch, has_gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert with_device(train_synth()).device == device
    assert with_device(changed(train_activitynet(), {"device": "cpu"})).device == "cpu"
    if not has_gpu:
        with pytest.raises(ConfigError, match=r"train\.device=cuda: torch sees no GPU"):
            with_device(changed(train_synth(), {"device": "cuda"}))
    with pytest.raises(ConfigError, match=r"train\.device: gpu is not known"):
        with_device(changed(train_synth(), {"device": "gpu"}))


# ---- data ----


def make_clips_of(pixels: np.ndarray, labels=((0,),)) -> Clips:
    return Clips(pixels=pixels, labels=labels)


def test_the_flip_turns_whole_clips_left_to_right():
    pixels = np.zeros((1, 2, 1, 4, 4, 3), np.uint8)
    pixels[..., 0, :] = 9
    clips = make_clips_of(pixels)
    flips = Augmentation(crop_px=4, is_flipped=True)
    seen = set()
    for seed in range(20):
        views = load_views(
            clips, np.array([0]), np.zeros((1, 2), int), augmentation=flips, rng=np.random.default_rng(seed)
        )
        columns = {tuple(frame[0, :, 0].tolist()) for frame in views[0]}
        assert len(columns) == 1
        seen |= columns
    assert seen == {(9, 0, 0, 0), (0, 0, 0, 9)}


def test_training_crops_have_the_published_sizes_and_the_views_size():
    crops = Augmentation(crop_px=224, is_cropped=True)
    drawn = [crops.draw(256, np.random.default_rng(seed)) for seed in range(300)]
    # 256 times 1, .875, .75, .66; sides differ by one scale at most.
    assert {h for _, _, h, _, _ in drawn} == {256, 224, 192, 168}
    assert (256, 192) not in {(h, w) for _, _, h, w, _ in drawn}
    assert all(top + h <= 256 and left + w <= 256 for top, left, h, w, _ in drawn)
    assert crops.draw(256, None) == (16, 16, 224, 224, False)
    clips = make_clips_of(np.zeros((1, 1, 1, 64, 64, 3), np.uint8))
    views = load_views(
        clips,
        np.array([0]),
        np.zeros((1, 1), int),
        augmentation=Augmentation(crop_px=56, is_cropped=True),
        rng=np.random.default_rng(0),
    )
    assert views.shape == (1, 1, 56, 56, 3)


def test_truth_boxes_are_moved_into_the_view():
    # A frame twice as wide as high: the view is its middle half.
    source = Source(source_id="0" * 32, uri="/a", video_id="a", truth=("red down",))
    cache = FrameCache(
        pixels=np.zeros((1, 2, 1, 4, 4, 3), np.uint8),
        frame_index=np.array([[[0], [5]]], np.int32),
        num_frames=np.array([6], np.int32),
        view_yxhw=np.array([[0, 0.25, 1, 0.5]]),
        errors={},
        fingerprint="",
    )
    box = np.zeros((6, 4))
    box[5] = (0.2, 0.5, 0.1, 0.05)
    truth = {"a": FrameTruth(visible=np.array([False] * 5 + [True]), box_yxhw=box)}
    clips = make_clips(cache, [source], CLASSES, truth)
    assert clips.visible is not None and clips.box_yxhw is not None
    assert clips.visible[0, :, 0].tolist() == [False, True]
    assert clips.box_yxhw[0, 1, 0].tolist() == pytest.approx([0.2, 0.5, 0.1, 0.1])


def test_a_label_that_is_no_class_is_refused_by_name():
    source = Source(source_id="0" * 32, uri="/a", video_id="a", truth=("green",))
    cache = FrameCache(
        pixels=np.zeros((1, 1, 1, 4, 4, 3), np.uint8),
        frame_index=np.zeros((1, 1, 1), np.int32),
        num_frames=np.array([6], np.int32),
        view_yxhw=np.array([[0, 0, 1, 1]]),
        errors={},
        fingerprint="",
    )
    with pytest.raises(ConfigError, match="a is labelled 'green'"):
        make_clips(cache, [source], CLASSES)


def test_a_test_subset_without_labels_is_not_even_read(tmp_path):
    data = make_data(tmp_path, train=16, val=4)
    unlabelled = [dataclasses.replace(s, truth=None, video_id=f"hidden {s.video_id}") for s in data.val]
    seen = []

    def read_and_tell(source: Source) -> ClipFrames:
        seen.append(source.video_id)
        return read(source)

    setting = make_setting(tmp_path, read=read_and_tell)
    data = dataclasses.replace(data, test=[*unlabelled, *data.val[:2]])
    ready = _open(make_settings(), data, setting)
    assert ready.test is not None and len(ready.test) == 2
    assert not [name for name in seen if name.startswith("hidden")]
    assert _open(make_settings(), dataclasses.replace(data, test=unlabelled), setting).test is None


def test_trainings_that_view_frames_otherwise_share_no_cache(tmp_path):
    data, setting = make_data(tmp_path, train=16, val=4), make_setting(tmp_path)
    looks = [{}, {"preprocessing.square_pixels": True}, {"preprocessing.interpolation": "bicubic"}]
    assert len({_open(make_settings(**look), data, setting).fingerprint for look in looks}) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_labels_are_looked_at_before_hours_of_decoding(tmp_path):
    data = make_data(tmp_path, train=16, val=4)

    def fail(source: Source) -> ClipFrames:
        raise AssertionError("decoded")

    setting = make_setting(tmp_path, read=fail)
    nameless = [dataclasses.replace(s, truth=None) for s in data.val]
    with pytest.raises(ConfigError, match="none of 4 val videos has a label"):
        _open(make_settings(), dataclasses.replace(data, val=nameless), setting)
    with pytest.raises(ConfigError, match="is labelled 'blue down', which is not among the 3 class names"):
        _open(make_settings(), dataclasses.replace(data, class_names=CLASSES[:3]), setting)


def test_a_video_that_is_left_out_does_not_bring_the_others_into_memory():
    sources = [
        Source(source_id=f"{n:032x}", uri=f"/{n}", video_id=str(n), truth=(CLASSES[n],) if n != 2 else None)
        for n in range(4)
    ]
    pixels = np.arange(4, dtype=np.uint8)[:, None, None, None, None, None] * np.ones((1, 2, 1, 4, 4, 3), np.uint8)
    cache = FrameCache(
        pixels=pixels,
        frame_index=np.zeros((4, 2, 1), np.int32),
        num_frames=np.array([0, 9, 9, 9], np.int32),
        view_yxhw=np.tile([0.0, 0, 1, 1], (4, 1)),
        errors={0: "unreadable"},
        fingerprint="",
    )
    clips = make_clips(cache, sources, CLASSES)
    assert np.shares_memory(clips.pixels, pixels)
    assert clips.labels == ((1,), (3,)) and clips.names == ("1", "3")
    views = load_views(clips, np.array([1, 0]), np.zeros((2, 2), int), augmentation=Augmentation(crop_px=4), rng=None)
    assert views[:, 0, 0, 0, 0].tolist() == [3, 1]
    dark, bright = (Clips(pixels=pixels[[n]], labels=((0,),)) for n in (1, 3))
    parts = new_parts(make_settings(), CLASSES)
    seen = glance_at_all(parts, clips, 4).features
    alone = torch.cat([glance_at_all(parts, one, 4).features for one in (dark, bright)])
    torch.testing.assert_close(seen, alone)


def test_an_epoch_takes_every_clip_once_and_leaves_an_incomplete_batch_out():
    taken = np.concatenate(list(batches(10, 4, seeded(0, "1", 0))))
    assert len(taken) == 8 and len(set(taken.tolist())) == 8
    assert [rows.tolist() for rows in batches(5, 2, None, drop_last=False)] == [[0, 1], [2, 3], [4]]
    assert len(list(batches(3, 16, seeded(0, "1", 0)))) == 1
    assert [r.tolist() for r in batches(9, 3, seeded(0, "1", 1))] != [
        r.tolist() for r in batches(9, 3, seeded(0, "1", 0))
    ]


def test_blanking_zeroes_whole_features_in_its_share_of_the_clips():
    kept = blank(torch.ones(2000, 8, 3), 0.4, np.random.default_rng(0))
    assert set(kept.flatten().tolist()) == {0.0, 1.0}
    assert (kept.sum(dim=2) % 3 == 0).all()
    touched = (kept.sum(dim=(1, 2)) < 24).float().mean().item()
    # A rate drawn from [0,1] leaves all 8 steps alone in one clip of nine.
    assert touched == pytest.approx(0.4 * 8 / 9, abs=0.04)
    assert blank(torch.ones(4, 2, 1), 0.0, np.random.default_rng(0)).min() == 1


# ---- scores and roll-outs ----


def test_hits_count_shown_frames_only_and_ask_for_the_evidences_centre():
    parts = new_parts(make_settings(), CLASSES)  # patch 12 of 36: a third of the view's side
    box = np.zeros((1, 3, 1, 4))
    box[0, :, 0] = [(0.1, 0.1, 0.2, 0.2), (0.2, 0.1, 0.2, 0.2), (0.9, 0.9, 0.1, 0.1)]
    clips = Clips(
        pixels=np.zeros((1, 3, 1, 36, 36, 3), np.uint8),
        labels=((1,),),
        visible=np.array([[[True], [True], [False]]]),
        box_yxhw=box,
    )
    looks = Looks(
        torch.zeros(1, 3, 48),
        torch.zeros(1, 3, 128),
        None,
        np.zeros((1, 3, 2), np.int64),
        np.ones((1, 3), bool),
    )
    logits = torch.eye(4)[torch.tensor([[0, 1, 1]])]
    found = score_of(parts, clips, logits, looks)
    # Both centres, (.2,.2) and (.3,.2), lie in the patch [0,.33]; the second box reaches out of it.
    assert (found.hits, found.whole_hits) == (100.0, 50.0)
    assert found.per_step == (0.0, 100.0, 100.0)


def test_a_score_does_not_depend_on_how_clips_are_batched(tmp_path):
    data = make_data(tmp_path, train=20, val=4)
    parts, settings = new_parts(make_settings(), CLASSES), make_settings()
    stack = np.stack([paint(n).pixels for n in range(20)])[:, :, None]
    whole = Clips(pixels=stack, labels=tuple((n % 2,) for n in range(20)))
    assert data.class_names == CLASSES
    from pipeline.training.scoring import look

    one = look(parts, settings, whole, policy_named("random", parts), batch_size=20)
    few = look(parts, settings, whole, policy_named("random", parts), batch_size=3)
    assert one.places.tolist() == few.places.tolist()
    torch.testing.assert_close(one.focuses, few.focuses, atol=1e-4, rtol=1e-4)
    assert score(parts, settings, whole, policy_named("center", parts)).accuracy <= 100


def test_the_random_patch_is_judged_from_the_state_before_its_step():
    parts = new_parts(make_settings(), CLASSES)
    parts.freeze()
    inputs = torch.randn(2, 3, parts.classifier.in_features)
    logits, before = _classify(parts, inputs)
    state = parts.classifier.initial_state(2)
    for t in range(3):
        torch.testing.assert_close(before[:, t], state)
        state, expected = parts.classifier.step(state, inputs[:, t])
        torch.testing.assert_close(logits[:, t], expected)
    probability = _probability(torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]), torch.tensor([0]))
    assert probability[0].tolist() == pytest.approx([0.5, 0.8808], abs=1e-4)


def test_a_skipped_step_gives_the_classifier_zeros_in_place_of_a_patch():
    parts = new_parts(make_settings(), CLASSES)
    parts.freeze()
    looks = Looks(
        torch.randn(2, 3, 48), torch.randn(2, 3, 128), torch.randn(2, 3, 32), np.zeros((2, 3, 2)), np.ones((2, 3))
    )
    rows, price = torch.tensor([1, 0]), torch.full((2,), 0.01)
    with torch.no_grad():
        parts.skip.out.weight.zero_()
        parts.skip.out.bias.fill_(-1.0)
        gates, logits = roll_out(parts, looks, rows, price, torch.tensor([True, False]), is_sampled=False)
    assert gates.sum() == 0
    expected, _ = parts.classifier(join_features(looks.glances[rows], None, 128))
    torch.testing.assert_close(logits, expected)


def test_metrics_cut_short_by_a_kill_are_read_up_to_there(tmp_path):
    journal = Journal(folder=tmp_path, stage="1", identity="x", clock=lambda: 0.0)
    journal.log(done=1, total=2, loss=0.5, bad=float("nan"))
    with open(journal.metrics_path, "a") as file:
        file.write('{"stage": "1", "do')
    rows = read_metrics(journal.metrics_path)
    assert rows == [{"stage": "1", "done": 1, "total": 2, "seconds": 0.0, "loss": 0.5, "bad": None}]
    assert json.loads(journal.metrics_path.read_text().splitlines()[0])["loss"] == 0.5


def test_metrics_are_replaced_as_a_whole_when_a_stage_goes_on(tmp_path):
    journal = Journal(folder=tmp_path, stage="1", identity="x", clock=lambda: 0.0)
    layer = torch.nn.Linear(1, 1)
    journal.log(done=1, total=3, loss=0.5)
    journal.save(done=1, layer=layer)
    journal.log(done=2, total=3, loss=0.4)
    before = journal.metrics_path.read_text()
    with open(journal.metrics_path) as still_open:
        assert journal.resume(layer=layer) == 1
        # A kill in the middle would leave the old history, not an empty file.
        assert still_open.read() == before
    assert [row["done"] for row in read_metrics(journal.metrics_path)] == [1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("_tmp-")] == []
