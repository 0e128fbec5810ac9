"""Checkpoint files: our own form there and back, the published forms, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from operators.errors import CheckpointError
from operators.networks.backbones import build
from operators.networks.classify import AverageClassifier, CascadedClassifier, GRUClassifier
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
from pipeline.config import load as config_of
from pipeline.families.files import load_checkpoint_file as load
from pipeline.families.gfnet.family import GFNET
from tests.parity.files import gfnet_keys, keys

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


def on_zero_memory(shapes: dict[str, list[int]]) -> Weights:
    """Tensors of these shapes that together are a few bytes in a file: every value is one and the same zero."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def adafocus_file(path: Path, *, stage: int = 3, **changes: Any) -> Path:
    shapes = keys("adafocus_actnet")
    focuser = shapes["focuser"] if stage >= 2 else shapes["_focuser_when_saved_with_random_patch_true"]
    content: dict[str, Any] = {
        "epoch": 3,
        "model_state_dict": {},
        "glancer": on_zero_memory(shapes["glancer"]),
        "focuser": on_zero_memory(focuser),
        "fc": on_zero_memory(shapes["fc"]),
        "policy": on_zero_memory(shapes["policy"]) if stage >= 2 else None,
        "scaler": None,
        "acc": torch.tensor(70.0),
        "best_acc": torch.tensor([71.0]),
        "optimizer": None,
    }
    torch.save(content | changes, path)
    return path


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


# AdaFocus


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_adafocus_files_of_every_stage_load(tmp_path: Path, stage: int):
    checkpoint = load(adafocus_file(tmp_path / "c.pth.tar", stage=stage))
    header = checkpoint.header
    assert (header.family, header.num_classes, header.num_steps) == ("adafocus", 200, 16)
    assert header.glance == NetworkSpec(name="mobilenet_v2", size_px=224)
    # The file does not say how large its patches are.
    assert header.focus == NetworkSpec(name="resnet50", size_px=None)
    assert header.classifier == ClassifierSpec(kind="gru", num_classes=200, in_features=3328, hidden=1024)
    assert header.training["published"]["best_acc"] == [71.0]
    checkpoint.glance_network(), checkpoint.focus_network(), checkpoint.classifier_module()
    if stage < 2:
        assert header.policy is None
        with pytest.raises(CheckpointError, match=r"c.pth.tar has no policy, which policy.kind=learned needs"):
            checkpoint.require("policy", "policy.kind=learned")
    else:
        assert header.policy == PolicySpec(
            kind="grid", encoder="conv", map_channels=1280, map_side=7, hidden=1024, width=32, num_actions=49
        )


def test_unused_parts_of_an_adafocus_file_are_dropped(tmp_path: Path):
    sections = load(adafocus_file(tmp_path / "c")).sections
    assert not [k for k in sections["focuser"] if k.startswith(("policy", "fc"))]
    assert not [k for k in sections["glancer"] if k.startswith(("classifier", "head"))]


def test_another_grid_and_another_number_of_classes_are_read_from_the_shapes(tmp_path: Path):
    shapes = keys("adafocus_actnet")
    fc = shapes["fc"] | shapes["_fcvid_239_overrides"]["fc"]
    policy = shapes["policy"] | {"actor.0.weight": [25, 1024], "actor.0.bias": [25]}
    header = load(adafocus_file(tmp_path / "c", fc=on_zero_memory(fc), policy=on_zero_memory(policy))).header
    assert header.num_classes == 239
    assert header.policy is not None and header.policy.num_actions == 25


def test_actions_that_are_no_square_grid_are_refused(tmp_path: Path):
    policy = keys("adafocus_actnet")["policy"] | {"actor.0.weight": [50, 1024]}
    with pytest.raises(CheckpointError, match="50 actions is no square grid"):
        load(adafocus_file(tmp_path / "c", policy=on_zero_memory(policy)))


def test_a_policy_that_is_missing_is_taken_from_its_copy_in_the_focuser(tmp_path: Path):
    checkpoint = load(adafocus_file(tmp_path / "c", stage=3, policy=None))
    assert checkpoint.sections["policy"].keys() == keys("adafocus_actnet")["policy"].keys()


def test_sections_that_are_missing_are_taken_from_the_whole_models_weights(tmp_path: Path):
    shapes = keys("adafocus_actnet")
    whole: Weights = {}
    for prefix, name in (("glancer", "glancer"), ("focuser", "focuser"), ("classifier", "fc")):
        whole |= {f"{prefix}.{key}": tensor for key, tensor in on_zero_memory(shapes[name]).items()}
    torch.save({"epoch": 1, "model_state_dict": whole}, tmp_path / "c")
    checkpoint = load(tmp_path / "c")
    assert checkpoint.sections.keys() == {"glancer", "focuser", "classifier", "policy"}
    checkpoint.glance_network(), checkpoint.focus_network(), checkpoint.classifier_module()


def test_a_tensor_that_is_missing_is_named(tmp_path: Path):
    glancer = on_zero_memory(keys("adafocus_actnet")["glancer"])
    del glancer["net.features.18.0.weight"]
    checkpoint = load(adafocus_file(tmp_path / "c", glancer=glancer))
    with pytest.raises(CheckpointError, match=r"mobilenet_v2 lack features\.18\.0\.weight"):
        checkpoint.glance_network()


def test_the_linear_form_of_the_classifier_is_refused_by_name(tmp_path: Path):
    fc = {"fc.1.weight": torch.zeros(200, 3328)}
    with pytest.raises(CheckpointError, match=r"holds fc\.1\.weight, not a GRU"):
        load(adafocus_file(tmp_path / "c", fc=fc))


# AdaFocus-TSM


def test_adafocus_tsm_files_load_with_heads_and_shift(tmp_path: Path):
    shapes = keys("adafocus_sthsth")
    names = ("glancer", "focuser", "fc", "policy")
    torch.save({"epoch": 1, **{name: on_zero_memory(shapes[name]) for name in names}}, tmp_path / "c")
    checkpoint = load(tmp_path / "c")
    header = checkpoint.header
    assert (header.family, header.num_classes, header.num_steps, header.num_focus_steps, header.pad) == (
        "adafocus_tsm", 174, 8, 12, "first",
    )  # fmt: skip
    assert header.policy is not None
    assert (header.policy.kind, header.policy.encoder, header.policy.map_channels) == ("continuous", "clip", 10240)
    glance, focus = checkpoint.glance_network(), checkpoint.focus_network()
    assert glance.head is not None and glance.head.out_features == 174
    assert (glance.num_segments, focus.num_segments) == (8, 12)
    assert isinstance(checkpoint.classifier_module(), AverageClassifier)


def flat(key: str) -> str:
    return key.removeprefix("net.")


def test_tsm_pre_training_files_load_as_the_one_network_they_hold(tmp_path: Path):
    glancer = {flat(k): v for k, v in keys("adafocus_sthsth")["glancer"].items() if "classifier" not in k}
    content = on_zero_memory({f"module.base_model.{k}": v for k, v in glancer.items()})
    content |= on_zero_memory({"module.new_fc.weight": [174, 1280], "module.new_fc.bias": [174]})
    torch.save({"state_dict": content, "arch": "mobilenetv2"}, tmp_path / "mobilenet")
    checkpoint = load(tmp_path / "mobilenet")
    assert checkpoint.sections.keys() == {"glancer"}
    assert checkpoint.glance_network().num_classes == 174
    with pytest.raises(CheckpointError, match="no focuser, which a focus needs; it holds glancer"):
        checkpoint.focus_network()
    assert load_backbone(tmp_path / "mobilenet").keys() == build("mobilenet_v2").state_dict().keys()

    resnet = build("resnet50").state_dict()
    shifted = {
        f"module.base_model.{k.replace('.conv1.', '.conv1.net.') if 'layer' in k else k}": list(v.shape)
        for k, v in resnet.items()
    }
    content = on_zero_memory(shifted | {"module.new_fc.weight": [174, 2048], "module.new_fc.bias": [174]})
    torch.save({"state_dict": content}, tmp_path / "resnet")
    checkpoint = load(tmp_path / "resnet")
    assert checkpoint.focus_network().num_segments == 12
    assert isinstance(checkpoint.classifier_module(), AverageClassifier)
    assert load_backbone(tmp_path / "resnet").keys() == resnet.keys()


def test_image_classification_files_give_a_backbone_without_their_head(tmp_path: Path):
    resnet = build("resnet50").state_dict()
    torch.save(dict(resnet) | {"fc.weight": torch.zeros(10, 2048), "fc.bias": torch.zeros(10)}, tmp_path / "r")
    assert load_backbone(tmp_path / "r").keys() == resnet.keys()
    mobilenet = build("mobilenet_v2").state_dict()
    torch.save(dict(mobilenet) | {"classifier.1.weight": torch.zeros(10, 1280)}, tmp_path / "m")
    assert load_backbone(tmp_path / "m").keys() == mobilenet.keys()


# GFNet


def gfnet_file(path: Path, *, prefix: str = "module.", **changes: Any) -> Path:
    shapes = keys("gfnet_resnet50")
    content: dict[str, Any] = {}
    for name in ("model_prime_state_dict", "model_state_dict"):
        content[name] = on_zero_memory({prefix + key.removeprefix("module."): v for key, v in shapes[name].items()})
    content |= {name: on_zero_memory(shapes[name]) for name in ("fc", "policy")}
    torch.save(content | changes, path)
    return path


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_both_forms_of_gfnet_files_load(tmp_path: Path, prefix: str):
    checkpoint = load(gfnet_file(tmp_path / "c", prefix=prefix))
    header = checkpoint.header
    assert (header.family, header.num_classes, header.num_steps) == ("gfnet", 1000, 5)
    # 18432 inputs of the policy are 2048 channels of 3x3 cells: patches of 96.
    assert header.glance == header.focus == NetworkSpec(name="resnet50", size_px=96)
    assert header.policy is not None
    assert (header.policy.encoder, header.policy.map_side, header.policy.reads) == ("mlp", 3, "patch")
    assert header.preprocessing.glance_resize == "bicubic"
    checkpoint.glance_network(), checkpoint.focus_network()
    assert isinstance(checkpoint.classifier_module(), GRUClassifier)


def test_what_a_released_gfnet_file_says_of_itself_is_kept(tmp_path: Path):
    path = gfnet_file(tmp_path / "c", patch_size=96, flops=[1.0, 2.0, 3.0], dynamic_threshold=torch.ones(39, 3))
    header = load(path).header
    assert header.num_steps == 3
    assert header.training["published"]["flops"] == [1.0, 2.0, 3.0]
    assert len(header.training["published"]["dynamic_threshold"]) == 39
    assert Header.from_json(header.to_json()) == header


@pytest.mark.parametrize(("name", "channels"), [("mobilenetv3_large_100", 960), ("mobilenetv3_large_125", 1200)])
def test_gfnets_mobilenets_load_with_the_glances_head_as_first_step_of_the_cascade(tmp_path, name, channels):
    network = {k: list(v.shape) for k, v in build(name).state_dict().items()}
    network |= {"classifier.weight": [1000, 1280], "classifier.bias": [1000]}
    fc: dict[str, list[int]] = {}
    for k in range(2, 6):
        fc |= {f"fc_{k}.weight": [1000, k * 1280], f"fc_{k}.bias": [1000]}
    policy = {
        "state_encoder.0.weight": [32, channels, 1, 1],
        "state_encoder.3.weight": [256, 32 * 16],
        "gru.weight_hh_l0": [768, 256],
        "actor.0.weight": [2, 256],
    }
    glance = on_zero_memory(network)
    glance["classifier.bias"] = torch.ones(1000)
    content = {"model_prime_state_dict": glance, "model_state_dict": on_zero_memory(network)}
    torch.save(content | {"fc": on_zero_memory(fc), "policy": on_zero_memory(policy)}, tmp_path / "c")
    checkpoint = load(tmp_path / "c")
    assert checkpoint.header.glance == NetworkSpec(name=name, size_px=128)
    assert checkpoint.header.num_steps == 3
    classifier = checkpoint.classifier_module()
    assert isinstance(classifier, CascadedClassifier)
    with torch.no_grad():
        _, logits = classifier.step(classifier.initial_state(1), torch.randn(1, 1280))
    assert torch.equal(logits, torch.ones(1, 1000))
    checkpoint.glance_network(), checkpoint.focus_network()


GFNETS = {
    # backbone: looks, patch size, classifier, its features, policy's encoder, map channels and side, glance's classes
    "densenet121": (5, 96, "gru", 1024, "mlp", 1024, 3, 0),
    "densenet169": (5, 96, "gru", 1664, "mlp", 1664, 3, 0),
    "efficientnet_b2": (4, 128, "cascaded", 1408, "conv", 1408, 4, 0),
    "efficientnet_b3": (4, 144, "cascaded", 1536, "conv", 1536, 5, 0),
    "regnety_600m": (5, 96, "gru", 608, "conv", 608, 3, 1000),
    "regnety_800m": (5, 96, "gru", 768, "conv", 768, 3, 1000),
    "regnety_1600m": (5, 96, "gru", 888, "conv", 888, 3, 1000),
    "mobilenetv3_large_100": (3, 96, "cascaded", 1280, "conv", 960, 3, 0),
    "mobilenetv3_large_125": (3, 128, "cascaded", 1280, "conv", 1200, 4, 0),
}


@pytest.mark.parametrize("name", GFNETS)
def test_a_gfnet_of_every_published_backbone_loads_by_the_names_in_its_file(tmp_path: Path, name: str):
    shapes = gfnet_keys(name)
    # As the training script writes them: no prefix, no size, no backbone's name.
    network = on_zero_memory({key.removeprefix("module."): shape for key, shape in shapes["network"].items()})
    content = {"model_prime_state_dict": network, "model_state_dict": network}
    torch.save(content | {part: on_zero_memory(shapes[part]) for part in ("fc", "policy")}, tmp_path / "c")
    checkpoint = load(tmp_path / "c")
    header = checkpoint.header
    num_looks, patch_px, kind, num_features, encoder, channels, side, glance_classes = GFNETS[name]
    assert header.glance == NetworkSpec(name=name, size_px=patch_px, num_classes=glance_classes)
    assert header.focus == NetworkSpec(name=name, size_px=patch_px)
    assert header.num_steps == num_looks
    assert header.classifier is not None and header.policy is not None
    assert (header.classifier.kind, header.classifier.in_features) == (kind, num_features)
    assert (header.policy.encoder, header.policy.map_channels, header.policy.map_side) == (encoder, channels, side)
    checkpoint.glance_network(), checkpoint.focus_network(), checkpoint.classifier_module()
    # What settings without a checkpoint describe is of the same form.
    config = config_of(f"gfnet_imagenet_{name}", settings=[f"glance.size_px={patch_px}", f"focus.patch_px={patch_px}"])
    made = GFNET.untrained_header(config)
    assert (made.glance, made.focus, made.classifier, made.policy, made.preprocessing, made.num_steps) == (
        header.glance, header.focus, header.classifier, header.policy, header.preprocessing, header.num_steps
    )  # fmt: skip


def test_a_gfnet_of_images_of_300_px_is_preprocessed_as_published(tmp_path: Path):
    weights = on_zero_memory({"conv_head.weight": [1536, 384, 1, 1]})
    torch.save({"model_prime_state_dict": weights, "model_state_dict": weights, "patch_size": 128}, tmp_path / "c")
    header = load(tmp_path / "c").header
    assert (header.glance, header.num_steps) == (NetworkSpec(name="efficientnet_b3", size_px=128), 4)
    assert header.preprocessing == Preprocessing(
        resize_px=331, crop_px=300, interpolation="bicubic", glance_resize="bicubic"
    )


def test_a_gfnet_of_another_backbone_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "c"
    torch.save({"model_name": "densenet264", "model_prime_state_dict": {"features.conv0.weight": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match="backbone densenet264, which is not known; known are resnet50"):
        load(path)


def test_a_published_checkpoint_may_be_saved_in_our_own_form(tmp_path: Path):
    published = load(adafocus_file(tmp_path / "c.pth.tar"))
    save(tmp_path / "c.safetensors", published)
    own = load(tmp_path / "c.safetensors")
    assert own.header == published.header
    assert own.model_id == published.model_id


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


def test_numbers_of_numpy_are_plain_values(tmp_path: Path):
    checkpoint = load(adafocus_file(tmp_path / "c", best_acc=np.float64(75.5)))
    assert checkpoint.header.training["published"]["best_acc"] == 75.5


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
