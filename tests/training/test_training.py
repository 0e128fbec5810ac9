"""The training stages as a whole, on clips that are made in memory, and what each of them touches."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from operators.weights import checkpoints
from pipeline.config.training import (
    Optimiser,
    Supervised,
    changed,
    train_synth,
)
from pipeline.training import optimise, stage_skip
from pipeline.training.journal import read_metrics
from pipeline.training.optimise import half_precision, make_optimiser, num_epochs, set_rate, take_step
from pipeline.training.sequence import checkpoint_path, run
from tests.support.training_clips import (
    CLASSES,
    make_data,
    make_settings,
    make_surroundings,
    short_settings,
    weights_of,
)
from tests.support.training_parts import fresh_parts


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
        around=make_surroundings(tmp_path, commit="abc", config={"seed": 0}),
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
    again = run(("0a", "0b", "1", "2", "3", "skip"), settings=settings, data=data, around=make_surroundings(tmp_path))
    assert again["3"]["seconds"] == records["3"]["seconds"]


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
    records = run(stages, settings=short_settings(), data=data, around=make_surroundings(tmp_path))
    assert records.keys() == set(stages)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_stages_run_on_a_gpu_in_half_precision(tmp_path):
    data = make_data(tmp_path, train=32, val=8)
    settings = changed(short_settings(), {"device": "auto", "amp": "auto"})
    data = dataclasses.replace(data, test=data.val)
    records = run(("0a", "0b", "1", "2", "3", "skip"), settings=settings, data=data, around=make_surroundings(tmp_path))
    assert records["3"]["settings"]["device"] == "cuda"
    assert np.isfinite(records["3"]["scores"]["loss"])


def test_stages_can_be_trained_where_there_is_no_decoder():
    code = "import sys; sys.modules |= dict.fromkeys(('av', 'cv2', 'ray')); import pipeline.training.sequence"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stage_says_what_the_stages_before_it_reached(tmp_path):
    data = make_data(tmp_path, train=16, val=4)
    data = dataclasses.replace(data, test=data.val)
    records = run(("0a", "0b", "1"), settings=short_settings(), data=data, around=make_surroundings(tmp_path))
    stages = checkpoints.load(checkpoint_path(tmp_path / "out", "1")).header.training["stages"]
    assert list(stages) == ["0a", "0b", "1"]
    assert stages["0a"]["scores"]["val_accuracy"] == records["0a"]["scores"]["val_accuracy"]
    assert stages["1"]["scores"]["test_center_accuracy"] == records["1"]["scores"]["test_center_accuracy"]


@pytest.mark.parametrize(("lr_focus", "moves"), [(0.0, False), (1e-3, True)])
def test_fine_tuning_moves_the_focus_network_only_where_it_is_told_to(tmp_path, lr_focus, moves):
    data = make_data(tmp_path, train=16, val=4)
    settings = changed(short_settings(), {"finetune.lr_focus": lr_focus, "policy.epochs": 1, "warmup.epochs": 1})
    run(("0a", "0b", "1", "2", "3"), settings=settings, data=data, around=make_surroundings(tmp_path))
    before = weights_of(checkpoint_path(tmp_path / "out", "2"))
    after = weights_of(checkpoint_path(tmp_path / "out", "3"))
    changed_sections = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed_sections == ({"classifier", "focuser"} if moves else {"classifier"})


def test_every_group_that_is_named_gets_its_rate():
    parts = fresh_parts(make_settings(), CLASSES)
    stage = Supervised(epochs=10, optimiser=Optimiser())
    optimiser = make_optimiser(stage.optimiser, [(parts.focuser, 0.5), (parts.classifier, 0.1), (parts.glancer, 0)])
    named = sum(p.numel() for group in optimiser.param_groups for p in group["params"])
    assert named == sum(p.numel() for m in (parts.focuser, parts.classifier) for p in m.parameters())
    set_rate(optimiser, stage, 5, 0, 100)  # half way: cosine factor one half
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.25, 0.05])


def test_the_published_loop_has_one_epoch_more_and_ends_at_rate_zero():
    stage = Supervised(epochs=15, lr_glance=0.01, optimiser=Optimiser(schedule="epoch"))
    assert num_epochs(stage) == 16
    parts = fresh_parts(make_settings(), CLASSES)
    optimiser = make_optimiser(stage.optimiser, [(parts.classifier, 0.01)])
    set_rate(optimiser, stage, 15, 3, 7)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0)


def test_progress_counts_the_epochs_that_were_asked_for(tmp_path):
    seen = []
    settings = make_settings(**{"glance.epochs": 1, "glance.optimiser.schedule": "epoch"})
    around = make_surroundings(tmp_path, progress=lambda progress: seen.append((progress.done, progress.total)))
    run(("0a",), settings=settings, data=make_data(tmp_path, train=16, val=4), around=around)
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
        run(stages, settings=short_settings(), data=data, around=make_surroundings(tmp_path))
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
