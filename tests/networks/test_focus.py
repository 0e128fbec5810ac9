"""Patches that lie between pixels: what the focus network sees of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from operators.media.view import crop_between_pixels
from operators.networks.focus import Focuser, between_pixels
from operators.networks.network import Network
from operators.networks.tensors import Normalisation
from operators.records import PatchBatch


class Seen(Network):
    """Its features are the pixels themselves."""

    def __init__(self) -> None:
        super().__init__(map_channels=3, num_features=3)
        self.layer = nn.Conv2d(3, 3, 1, bias=False)
        self.layer.weight.data.copy_(torch.eye(3)[:, :, None, None])

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def seen(batch: PatchBatch, **options: object) -> np.ndarray:
    """Grey levels [N,P,P,3] that the network is given."""
    plain = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    focuser = Focuser(network=Seen(), normalisation=plain, feature_maps=True, **options)
    feature_map = focuser(batch).feature_map
    assert feature_map is not None
    return feature_map.transpose(0, 2, 3, 1) * 255


def test_a_patch_between_pixels_is_mixed_of_the_four_around_each_place():
    corner = torch.tensor([[[[10.0, 20.0], [50.0, 100.0]]] * 3])
    # 10 * 3/8 + 20 * 1/8 + 50 * 3/8 + 100 * 1/8
    mixed = between_pixels(corner, torch.tensor([[0.5, 0.25]]))
    assert mixed.shape == (1, 3, 1, 1)
    assert mixed.flatten().tolist() == [37.5] * 3


def test_nothing_is_rounded_to_a_grey_level():
    steps = torch.tensor([[[[0, 1], [0, 1]]] * 3], dtype=torch.uint8)
    assert between_pixels(steps, torch.tensor([[0.0, 0.125]])).flatten().tolist() == [0.125] * 3


@pytest.mark.parametrize("options", [{}, {"max_batch": 2}, {"max_batch": 4, "shapes": (4,)}])
def test_at_whole_pixels_the_network_sees_what_a_slice_shows(options: dict):
    views, places = pixels(5, 20, 20, 3), [(0, 0), (3, 7), (12, 12), (12, 0), (5, 5)]
    cut, shifts = crop_between_pixels(views, np.arange(5), np.array(places, float), patch_px=8)
    wanted = np.stack([view[y : y + 8, x : x + 8] for view, (y, x) in zip(views, places, strict=True)])
    np.testing.assert_allclose(seen(PatchBatch(pixels=cut, shifts=shifts), **options), wanted, atol=1e-3)


def test_each_patch_is_shifted_by_its_own_numbers_whatever_it_is_batched_with():
    batch = PatchBatch(pixels=pixels(5, 9, 9, 3), shifts=np.random.default_rng(4).random((5, 2)).astype(np.float32))
    assert batch.shifts is not None
    together = seen(batch, max_batch=3)
    for i in range(5):
        alone = PatchBatch(pixels=batch.pixels[i : i + 1], shifts=batch.shifts[i : i + 1])
        np.testing.assert_allclose(seen(alone)[0], together[i], atol=1e-3)
