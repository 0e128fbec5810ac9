"""A training that was interrupted, or met numbers that are none, goes on from its last good state."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from operators.errors import CheckpointError, StageError
from operators.weights import checkpoints
from pipeline.config.training import (
    changed,
)
from pipeline.training.journal import Journal, read_metrics
from pipeline.training.optimise import take_step
from pipeline.training.sequence import checkpoint_path, run
from pipeline.training.subsets import TrainingData
from tests.support.training_clips import CLASSES, Killed, make_data, make_surroundings, short_settings, weights_of


def test_a_training_that_is_killed_in_every_stage_ends_with_the_same_weights(tmp_path):
    data = make_data(tmp_path, train=32, val=8)
    settings = short_settings()
    stages = ("0a", "0b", "1", "2", "3", "skip")
    run(stages, settings=settings, data=data, around=make_surroundings(tmp_path))
    straight = weights_of(tmp_path / "out" / "checkpoint.safetensors")

    killed_in = set()

    def kill_once_per_stage(progress) -> None:
        if progress.stage not in killed_in and progress.done < progress.total:
            killed_in.add(progress.stage)
            raise Killed

    around = make_surroundings(tmp_path, out=tmp_path / "again", progress=kill_once_per_stage)
    for _ in range(10):
        try:
            run(stages, settings=settings, data=data, around=around)
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


def test_a_state_of_other_settings_is_not_gone_on_from(tmp_path):
    data = make_data(tmp_path, train=16, val=4)

    def kill(progress) -> None:
        if progress.stage == "1":
            raise Killed

    with pytest.raises(Killed):
        run(("0a", "0b", "1"), settings=short_settings(), data=data, around=make_surroundings(tmp_path, progress=kill))
    other = changed(short_settings(), {"warmup.lr_focus": 1e-4})
    with pytest.raises(CheckpointError, match="other settings or data"):
        run(("1",), settings=other, data=data, around=make_surroundings(tmp_path))


def test_a_stage_without_its_predecessor_says_which_file_it_wants(tmp_path):
    data = make_data(tmp_path, train=16, val=4)
    with pytest.raises(CheckpointError, match=r"stage 2 begins with .*stage_1\.safetensors"):
        run(("2",), settings=short_settings(), data=data, around=make_surroundings(tmp_path))


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_state(tmp_path):
    data = make_data(tmp_path, train=32, val=4)
    run(("0a", "0b"), settings=short_settings(), data=data, around=make_surroundings(tmp_path))
    wild = changed(short_settings(), {"warmup.lr_classifier": 1e30, "warmup.lr_focus": 1e30})
    begun_with = r"stage 1, epoch 0, step \d; the last good state is .*stage_0b\.safetensors: begin the stage anew"
    with pytest.raises(StageError, match=begun_with):
        run(("1",), settings=wild, data=data, around=make_surroundings(tmp_path))
    assert not checkpoint_path(tmp_path / "out", "1").exists()

    def spoil(progress) -> None:
        if progress.stage == "1" and progress.done == 1:
            state = torch.load(tmp_path / "out" / "stage_1" / "state.pt")
            state["state"]["classifier"]["fc.bias"][:] = float("inf")
            torch.save(state, tmp_path / "out" / "stage_1" / "state.pt")
            raise Killed

    with pytest.raises(Killed):
        run(("1",), settings=short_settings(), data=data, around=make_surroundings(tmp_path, progress=spoil))
    with pytest.raises(StageError, match=r"stage 1, epoch 1, step 0; the last good state is .*state\.pt: delete"):
        run(("1",), settings=short_settings(), data=data, around=make_surroundings(tmp_path))


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
        run(stages, settings=short_settings(), data=data, around=make_surroundings(tmp_path))
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
        records = run(("0a",), settings=short_settings(), data=data, around=make_surroundings(tmp_path))
        return records["0a"]["identity"]

    first = identity(data)
    one_other = dataclasses.replace(data.train[0], truth=(CLASSES[1],))
    relabelled = dataclasses.replace(data, train=[one_other, *data.train[1:]])
    turned = dataclasses.replace(data, class_names=CLASSES[::-1])
    assert len({first, identity(relabelled), identity(turned)}) == 3
    assert identity(data) == first
    # Pixels know no labels: all of them share the cache, one folder per subset.
    assert len(list((tmp_path / "cache").iterdir())) == 2


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
