"""Checkpoint files: our own form there and back, files of single networks, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from operators.errors import CheckpointError
from operators.networks.backbones import build
from operators.networks.classify import GRUClassifier
from operators.weights.checkpoints import (
    Checkpoint,
    ClassifierSpec,
    Header,
    NetworkSpec,
    PolicySpec,
    Preprocessing,
    SkipSpec,
    load_backbone,
    save,
)
from pipeline.families.files import load_checkpoint_file as load
from tests.parity.files import keys
from tests.support.published_files import on_zero_memory

Weights = dict[str, torch.Tensor]


def small_checkpoint(**changes: Any) -> Checkpoint:
    torch.manual_seed(0)
    header = Header(
        family="adafocus",
        glance=NetworkSpec(name="small_glance", size_px=32),
        focus=NetworkSpec(name="small_focus", size_px=32),
        classifier=ClassifierSpec(kind="gru", num_classes=3, in_features=176, hidden=16),
        policy=PolicySpec(kind="grid", encoder="conv", map_channels=48, map_side=8, hidden=64, width=16),
        skip=SkipSpec(
            policy_hidden=64, classifier_hidden=16, price=0.02, price_tables={"glance": ((0.01, 0.5), (0.04, 0.25))}
        ),
        preprocessing=Preprocessing(resize_px=96, crop_px=96, square_pixels=True, glance_resize="antialias"),
        num_steps=8,
        class_names=("cat", "dög", "none of them"),
        thresholds={"confidence": [0.5, 0.6]},
        training={"seed": 3, "scores": {"top1": 0.99}},
    )
    sections = {
        "glancer": dict(build("small_glance").state_dict()),
        "focuser": dict(build("small_focus").state_dict()),
        "classifier": dict(GRUClassifier(in_features=176, hidden=16, num_classes=3).state_dict()),
        "policy": {"actor.0.weight": torch.randn(49, 64)},
        "skip": {"out.weight": torch.randn(1, 64)},
    }
    return Checkpoint(header=dataclasses.replace(header, **changes), sections=sections)


# Our own form


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path):
    before = small_checkpoint()
    save(tmp_path / "small.safetensors", before)
    after = load(tmp_path / "small.safetensors")
    assert after.header == before.header
    assert after.sections.keys() == before.sections.keys()
    for name, weights in before.sections.items():
        assert weights.keys() == after.sections[name].keys()
        assert all(torch.equal(tensor, after.sections[name][key]) for key, tensor in weights.items())


def test_a_loaded_checkpoint_computes_what_the_saved_one_did(tmp_path: Path):
    before = small_checkpoint()
    save(tmp_path / "c", before)
    after = load(tmp_path / "c")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for a, b in (
            (before.glance_network(), after.glance_network()),
            (before.focus_network(), after.focus_network()),
        ):
            assert torch.equal(a.eval()(x)[1], b.eval()(x)[1])
        features = torch.randn(2, 4, 176)
        assert torch.equal(before.classifier_module()(features)[0], after.classifier_module()(features)[0])


def test_the_model_id_is_of_the_weights_alone(tmp_path: Path):
    one, again, other = small_checkpoint(), small_checkpoint(class_names=None), small_checkpoint()
    assert one.model_id == again.model_id
    assert len(one.model_id) == 32
    other.sections["policy"]["actor.0.weight"][0, 0] += 1
    assert other.model_id != one.model_id
    save(tmp_path / "c", one)
    assert load(tmp_path / "c").model_id == one.model_id


def test_weights_under_another_name_are_another_model():
    one, other = small_checkpoint(), small_checkpoint()
    other.sections["skip"] = {"in.weight": other.sections["skip"]["out.weight"]}
    assert other.model_id != one.model_id


def test_saving_replaces_the_file_whole_and_leaves_nothing_beside_it(tmp_path: Path):
    target = tmp_path / "deep" / "c.safetensors"
    save(target, small_checkpoint())
    save(target, small_checkpoint(num_steps=4))
    assert load(target).header.num_steps == 4
    assert os.listdir(target.parent) == ["c.safetensors"]


def test_who_may_read_a_checkpoint_is_what_the_process_gives_all_its_files(tmp_path: Path):
    (tmp_path / "any").touch()
    save(tmp_path / "c.safetensors", small_checkpoint())
    assert (tmp_path / "c.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/c cannot be written"):
        save(tmp_path / "file" / "c", small_checkpoint())


def test_a_section_of_another_name_is_a_bug(tmp_path: Path):
    with pytest.raises(ValueError, match="'glance' is not one of"):
        save(tmp_path / "c", Checkpoint(header=small_checkpoint().header, sections={"glance": {}}))


def test_what_is_not_in_a_checkpoint_is_named_with_what_wanted_it():
    checkpoint = small_checkpoint()
    del checkpoint.sections["policy"]
    with pytest.raises(
        CheckpointError, match=r"no policy, which policy.kind=learned needs; it holds glancer, focuser, classifier"
    ):
        checkpoint.require("policy", "policy.kind=learned")


def test_weights_that_do_not_belong_to_the_header_are_named():
    checkpoint = small_checkpoint(focus=NetworkSpec(name="small_glance"))
    with pytest.raises(CheckpointError, match=r"small_glance hold features\.5"):
        checkpoint.focus_network()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=99), "format 99, but this version reads 1"),
        (lambda h: h.update(colour="red"), "header.colour of the checkpoint is nothing that this version knows"),
        (lambda h: h.update(family=7), "header.family of the checkpoint is 7"),
        (lambda h: h["glance"].update(size_px="big"), "header.glance.size_px of the checkpoint is 'big'"),
        (lambda h: h["classifier"].update(hidden=True), "header.classifier.hidden of the checkpoint is True"),
        (lambda h: h["classifier"].update(hidden="128"), "header.classifier.hidden of the checkpoint is '128'"),
        (lambda h: h["policy"].update(hiden=3), r"header.policy.hiden of .* knows; did you mean hidden\?"),
        (lambda h: h["preprocessing"].update(mean=[0.5]), "header.preprocessing.mean.1 of the checkpoint is missing"),
        (lambda h: h["policy"].pop("kind"), "header.policy.kind of the checkpoint is missing"),
        (lambda h: h.update(focus=3), "header.focus of the checkpoint is 3, not an object"),
    ],
)
def test_a_header_that_is_wrong_says_where(change, message):
    values = json.loads(small_checkpoint().header.to_json())
    change(values)
    with pytest.raises(CheckpointError, match=message):
        Header.from_json(json.dumps(values))


def test_a_file_whose_header_is_wrong_is_refused_by_its_path(tmp_path: Path):
    metadata = {"saccade": Header(family="gfnet", glance=None, focus=None, classifier=None).to_json()}
    metadata["saccade"] = metadata["saccade"].replace("num_steps", "num_stops")
    safetensors.torch.save_file({"a.b": torch.zeros(1)}, tmp_path / "c", metadata)
    with pytest.raises(CheckpointError, match=r"/c: header\.num_stops of the checkpoint .* did you mean num_steps\?"):
        load(tmp_path / "c")


def test_a_safetensors_file_without_a_header_is_refused(tmp_path: Path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "c")
    with pytest.raises(CheckpointError, match="no header of this project"):
        load(tmp_path / "c")


# Files of single networks


def test_image_classification_files_give_a_backbone_without_their_head(tmp_path: Path):
    resnet = build("resnet50").state_dict()
    torch.save(dict(resnet) | {"fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)}, tmp_path / "r")
    assert load_backbone(tmp_path / "r").keys() == resnet.keys()
    mobilenet = build("mobilenet_v2").state_dict()
    torch.save(dict(mobilenet) | {"classifier.1.weight": torch.zeros(10, 1280)}, tmp_path / "m")
    assert load_backbone(tmp_path / "m").keys() == mobilenet.keys()


# Refused


class Payload:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path):
    torch.save({"glancer": {}, "optimizer": Payload(tmp_path / "made")}, tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"c is refused: it holds more than weights .*mkdir"):
        load(tmp_path / "c")
    assert not (tmp_path / "made").exists()


def test_files_from_before_torch_had_archives_load(tmp_path: Path):
    glancer = on_zero_memory(keys("adafocus_actnet")["glancer"])
    torch.save({"glancer": glancer}, tmp_path / "c", _use_new_zipfile_serialization=False)
    load(tmp_path / "c").glance_network()


def truncated(path: Path) -> None:
    torch.save({"glancer": {"a": torch.zeros(5000)}}, path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "cannot be read: No such file"),
        (lambda p: p.mkdir(), "cannot be read: Is a directory"),
        (lambda p: p.touch(), "is no checkpoint: neither"),
        (lambda p: p.write_text("<html>404 not found</html>"), "is no checkpoint: neither"),
        (lambda p: p.write_bytes(b"\x10\0\0\0\0\0\0\0{"), "is damaged"),
        (truncated, "is damaged"),
        (lambda p: torch.save([1, 2], p), "holds list, not the sections"),
        (lambda p: torch.save({"weights": {}, "step": 1}, p), "its sections are weights, step"),
        (lambda p: torch.save({"state_dict": {"module.a": torch.zeros(1)}}, p), "is no TSM pre-training file"),
    ],
)
def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path: Path, make, message):
    make(tmp_path / "c")
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path / "c")
    assert "\n" not in str(caught.value)
