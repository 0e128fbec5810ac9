"""The border between pixels and tensors, folding, batches; and the two operators that stand on it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from operators.networks.backbones import build
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer, resize_views
from operators.networks.tensors import (
    Normalisation,
    Upload,
    fold_batchnorm,
    mean_and_scale,
    ready,
    rows_of,
    split_batch,
    to_array,
    to_tensor,
)
from operators.records import PatchBatch


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def pixels(n: int, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def used(name: str, **options: int):
    """A network whose batch norms have seen data, so that folding them matters."""
    network = build(name, **options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def patch_batch(array: np.ndarray) -> PatchBatch:
    return PatchBatch(pixels=array)


def test_pixels_are_divided_by_255_and_normalised_per_channel():
    one = np.array([[[[255, 0, 51]]]], np.uint8)
    norm = Normalisation(mean=(0.5, 0.25, 0.2), std=(0.5, 0.5, 0.1))
    # (1 - .5) / .5, (0 - .25) / .5, (.2 - .2) / .1
    x = to_tensor(one, normalisation=norm)
    assert x.shape == (1, 3, 1, 1)
    np.testing.assert_allclose(x.flatten(), [1.0, -0.5, 0.0], atol=1e-6)


def test_what_pixels_are_normalised_with_stays_where_a_recorded_graph_reads_it():
    cpu = torch.device("cpu")
    mean, scale = mean_and_scale(Normalisation(), cpu)
    for number in range(50):
        mean_and_scale(Normalisation(mean=(0.1, 0.2, number / 100)), cpu)
    again = mean_and_scale(Normalisation(), cpu)
    assert again[0] is mean and again[1] is scale


def test_tensors_lie_channels_last_without_another_copy_unless_asked_otherwise():
    array = pixels(2, 8)
    x = to_tensor(array)
    assert x.is_contiguous(memory_format=torch.channels_last)
    y = to_tensor(array, channels_last=False)
    assert y.is_contiguous()
    assert torch.equal(x, y)


def test_read_only_pixels_are_taken_without_a_warning_and_left_alone(recwarn):
    array = pixels(1, 4)
    before = array.copy()
    array.flags.writeable = False
    to_tensor(array)
    assert len(recwarn) == 0
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("wrong", [np.zeros((1, 2, 2, 3), np.float32), np.zeros((2, 2, 3), np.uint8)])
def test_what_is_no_batch_of_pixels_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must be uint8 \[N,H,W,3\]"):
        to_tensor(wrong)


def test_arrays_come_back_as_float32_in_the_order_of_their_dimensions():
    array = to_array(to_tensor(pixels(1, 4), dtype=torch.bfloat16))
    assert array.dtype == np.float32 and array.flags.c_contiguous and array.shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    ("num_rows", "options", "passes"),
    [
        (0, {"max_batch": 4}, []),
        (7, {"max_batch": 4}, [(0, 4, 4), (4, 7, 3)]),
        (7, {"max_batch": 8, "shapes": (1, 4)}, [(0, 4, 4), (4, 7, 4)]),
        (5, {"max_batch": 8, "shapes": (4, 1)}, [(0, 4, 4), (4, 5, 1)]),
        (5, {"max_batch": 8, "shapes": (8,)}, [(0, 5, 8)]),
        # Clips of 3 rows stay together: 7 allows two of them, 2 not even one, which then goes alone.
        (9, {"max_batch": 7, "multiple": 3}, [(0, 6, 6), (6, 9, 3)]),
        (6, {"max_batch": 2, "multiple": 3}, [(0, 3, 3), (3, 6, 3)]),
        # Two passes where one would do, so that the second one's pixels travel meanwhile; few rows stay together.
        (256, {"max_batch": 256, "shapes": (64, 128, 256), "overlaps": True}, [(0, 128, 128), (128, 256, 128)]),
        (150, {"max_batch": 256, "shapes": (64, 96, 256), "overlaps": True}, [(0, 96, 96), (96, 150, 64)]),
        (72, {"max_batch": 96, "multiple": 12, "overlaps": True}, [(0, 36, 36), (36, 72, 36)]),
        (63, {"max_batch": 64, "overlaps": True}, [(0, 63, 63)]),
        (96, {"max_batch": 32, "overlaps": True}, [(0, 32, 32), (32, 64, 32), (64, 96, 32)]),
    ],
)
def test_rows_are_cut_into_passes(num_rows, options, passes):
    assert split_batch(num_rows, **options) == passes


def test_shapes_that_no_pass_can_have_are_a_bug():
    with pytest.raises(ValueError, match="no shape"):
        split_batch(3, max_batch=4, shapes=(8,))


@pytest.mark.parametrize("name", ["small_focus", "mobilenet_v2", "mobilenetv3_large_100", "resnet50"])
def test_folding_leaves_no_batch_norm_and_changes_nothing(name):
    network = used(name)
    folded = copy.deepcopy(network)
    fold_batchnorm(folded)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, got = network(x)[1], folded(x)[1]
    torch.testing.assert_close(got, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


def test_a_network_in_training_mode_is_not_folded():
    with pytest.raises(ValueError, match="eval mode"):
        fold_batchnorm(build("small_glance"))


def test_a_network_made_ready_has_no_gradients_and_the_precision_asked_for():
    network = ready(used("small_glance"), dtype=torch.bfloat16)
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in network.parameters())


def test_a_glance_is_the_networks_map_feature_and_logits():
    network = used("small_glance", num_classes=4)
    array = pixels(5)
    with torch.no_grad():
        feature_map, feature = network(to_tensor(array))
        logits = network.head(feature)
    glance = Glancer(network=copy.deepcopy(network), size_px=32, max_batch=2)(array)
    torch.testing.assert_close(glance.feature_map, feature_map, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(glance.feature, feature, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(glance.logits, logits, atol=1e-4, rtol=1e-4)
    assert Glancer(network=used("small_glance"), size_px=32)(array).logits is None


def test_views_are_resized_to_the_glances_size():
    glance = Glancer(network=used("small_glance"), size_px=32, resize="antialias")(pixels(2, 96))
    assert glance.feature_map.shape == (2, 48, 8, 8)


def test_nearest_takes_pixels_as_published_and_the_same_size_is_left_alone():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Half the size: pixel i is source pixel floor(2 i).
    assert resize_views(x, 2, "nearest").flatten().tolist() == [0, 2, 8, 10]
    assert resize_views(x, 4, "bicubic") is x


def test_bilinear_goes_from_corner_to_corner_and_antialias_averages():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resize_views(x, 2, "bilinear").flatten().tolist() == [0, 3, 12, 15]
    # A box of ones is kept by any average; a checkerboard becomes grey.
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    grey = resize_views(board[None, None].float(), 2, "antialias")
    np.testing.assert_allclose(grey, 0.5, atol=0.02)


def test_rows_of_several_arrays_are_read_where_they_lie():
    parts = [pixels(3, 4, seed=1), pixels(1, 4, seed=2), pixels(4, 4, seed=3)]
    rows = rows_of(parts, 2, 6)
    np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(parts)[2:6])
    assert [len(part) for part in rows] == [1, 1, 2]
    assert all(np.shares_memory(part, whole) for part, whole in zip(rows, parts, strict=True))
    joined = Upload().join(rows, 6)
    assert [len(x) for x in joined] == [1, 1, 2, 2] and not joined[-1].any()
    assert [x.data_ptr() for x in joined[:3]] == [part.ctypes.data for part in rows]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", [{}, {"resize": "antialias"}, {"max_batch": 2}, {"shapes": (4, 8)}])
def test_views_of_several_arrays_are_seen_as_those_of_one(options, compiled):
    network, array = used("small_glance"), pixels(7, 48)
    one = Glancer(network=copy.deepcopy(network), size_px=32, compiled=compiled, **options)(array)
    several = Glancer(network=network, size_px=32, compiled=compiled, **options)([array[:1], array[1:4], array[4:]])
    assert torch.equal(several.feature_map, one.feature_map) and torch.equal(several.feature, one.feature)


def test_a_glance_of_nothing_or_of_broken_clips_is_a_bug():
    with pytest.raises(ValueError, match="0 views"):
        Glancer(network=used("small_glance"), size_px=32)(pixels(0))
    with pytest.raises(ValueError, match="3 views, where a glance takes multiples of 2"):
        Glancer(network=used("small_glance", num_segments=2), size_px=32)(pixels(3))


@pytest.mark.parametrize("options", [{"max_batch": 1}, {"max_batch": 3}, {"max_batch": 64, "shapes": (4, 16)}])
def test_features_do_not_depend_on_how_patches_were_batched(options):
    network, array = used("small_focus"), pixels(7)
    expected = Focuser(network=copy.deepcopy(network))(patch_batch(array))
    got = Focuser(network=copy.deepcopy(network), **options)(patch_batch(array))
    np.testing.assert_allclose(got.feature, expected.feature, atol=1e-4, rtol=1e-4)
    assert got.feature_map is None and got.feature.shape == (7, 128) and got.feature.dtype == np.float32


def test_the_map_of_a_patch_comes_along_where_a_policy_reads_it():
    network = used("small_focus")
    seen = Focuser(network=network, feature_maps=True)(patch_batch(pixels(2)))
    assert seen.feature_map is not None and seen.feature_map.shape == (2, 128, 4, 4)
    np.testing.assert_allclose(seen.feature_map.mean((2, 3)), seen.feature, atol=1e-5)


def test_a_call_on_a_gpu_has_two_passes_at_least_and_one_on_a_cpu_one():
    focuser = Focuser(network=used("small_focus"), max_batch=256, shapes=(128, 256))
    assert len(focuser.passes(256)) == 1
    focuser.device = torch.device("cuda")
    assert focuser.passes(256) == [(0, 128, 128), (128, 256, 128)]


def test_no_patches_give_no_features():
    assert Focuser(network=used("small_focus"))(patch_batch(pixels(0))).feature.shape == (0, 128)


def test_with_the_shift_whole_clips_stay_together_whatever_the_batch_limit():
    network, array = used("small_focus", num_segments=4), pixels(12)
    expected = Focuser(network=copy.deepcopy(network), max_batch=12)(patch_batch(array))
    got = Focuser(network=copy.deepcopy(network), max_batch=5)(patch_batch(array))
    np.testing.assert_allclose(got.feature, expected.feature, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="no whole clips of 4"):
        Focuser(network=network)(patch_batch(array[:5]))


def test_half_precision_gives_float32_features_close_to_full_precision():
    network, array = used("small_focus"), pixels(4)
    full = Focuser(network=copy.deepcopy(network))(patch_batch(array)).feature
    half = Focuser(network=copy.deepcopy(network), dtype=torch.bfloat16)(patch_batch(array)).feature
    assert half.dtype == np.float32
    assert F.cosine_similarity(torch.from_numpy(full), torch.from_numpy(half)).min() > 0.999
