"""Networks as few kernels: the same answer as layer by layer, whatever the batch, the size and the precision."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from operators.networks import compiled
from operators.networks.backbones import build
from operators.networks.compiled import (
    CudaGraphs,
    FusedConvolution,
    can_compile,
    fold_normalisation,
    fuse,
    has_fused_kernels,
)
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.networks.network import Network
from operators.networks.tensors import IMAGENET, Normalisation, fold_batchnorm, normalise
from operators.records import PatchBatch
from pipeline.commands import doctor
from tests.networks.test_backbones import ONE_OF_EACH

needs_onednn = pytest.mark.skipif(not can_compile("cpu", torch.float32), reason="this torch has no oneDNN")
needs_bf16 = pytest.mark.skipif(not can_compile("cpu", torch.bfloat16), reason="oneDNN has no bfloat16 here")


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def used(name: str, **options: int) -> Network:
    """A network whose batch norms have seen data, so that its convolutions have biases that matter."""
    network = build(name, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def patches(n: int, side: int = 64, seed: int = 0) -> PatchBatch:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return PatchBatch(pixels=pixels)


def assert_alike(got: np.ndarray, expected: np.ndarray, share: float) -> None:
    assert np.abs(got - expected).max() <= share * np.abs(expected).max()


class Chain(Network):
    """A convolution, and whatever is done with its map."""

    def __init__(self, *, padding: int = 1, ending: nn.Module | None = None) -> None:
        super().__init__(map_channels=4, num_features=4)
        self.first = nn.Conv2d(3, 4, 3, padding=padding)
        self.ending = ending or nn.Identity()

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        return self.ending(self.first(x))


@needs_onednn
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_compiled_network_gives_what_it_gives_layer_by_layer(name):
    network = used(name)
    plain = Focuser(network=copy.deepcopy(network), feature_maps=True)(patches(2))
    compiled = Focuser(network=network, feature_maps=True, compiled=True)(patches(2))
    assert_alike(compiled.feature, plain.feature, 1e-4)
    assert_alike(compiled.feature_map, plain.feature_map, 1e-4)


@needs_bf16
@pytest.mark.parametrize("name", ["small_focus", "mobilenet_v2", "resnet50", "efficientnet_b2", "regnety_600m"])
def test_half_precision_is_no_further_from_full_precision_when_compiled(name):
    network = used(name)
    full = Focuser(network=copy.deepcopy(network))(patches(4)).feature
    plain = Focuser(network=copy.deepcopy(network), dtype=torch.bfloat16)(patches(4)).feature
    compiled = Focuser(network=network, dtype=torch.bfloat16, compiled=True)(patches(4)).feature
    assert compiled.dtype == np.float32
    far = np.linalg.norm(compiled - full), np.linalg.norm(plain - full)
    assert far[0] <= 1.1 * far[1]
    assert F.cosine_similarity(torch.from_numpy(full), torch.from_numpy(compiled)).min() > 0.999


@needs_onednn
def test_rows_do_not_depend_on_the_batch_and_repeat_bit_for_bit():
    focuser = Focuser(network=used("small_focus"), compiled=True, max_batch=8)
    together, again = focuser(patches(7)).feature, focuser(patches(7)).feature
    np.testing.assert_array_equal(together, again)
    first = PatchBatch(pixels=patches(7).pixels[:3])
    np.testing.assert_allclose(focuser(first).feature, together[:3], atol=1e-5, rtol=1e-5)


@needs_onednn
def test_which_call_came_first_changes_no_bit():
    network = used("small_focus")
    one = Focuser(network=copy.deepcopy(network), compiled=True, max_batch=8)
    other = Focuser(network=network, compiled=True, max_batch=8)
    one(patches(1, seed=1))
    np.testing.assert_array_equal(one(patches(5)).feature, other(patches(5)).feature)


@needs_onednn
def test_one_compiled_network_takes_images_of_several_sizes():
    network = used("small_focus")
    plain, compiled = Focuser(network=copy.deepcopy(network)), Focuser(network=network, compiled=True)
    for side in (32, 48, 32):
        assert_alike(compiled(patches(3, side)).feature, plain(patches(3, side)).feature, 1e-4)


@needs_onednn
def test_more_rows_after_fewer_have_a_border_too():
    network = used("small_focus")
    plain, compiled = Focuser(network=copy.deepcopy(network)), Focuser(network=network, compiled=True)
    compiled(patches(1))
    assert_alike(compiled(patches(6)).feature, plain(patches(6)).feature, 1e-4)


@needs_onednn
@pytest.mark.parametrize("name", ["small_focus", "mobilenet_v2", "resnet50"])
def test_the_temporal_shift_stays_where_it_was(name):
    network = used(name, num_segments=4)
    plain = Focuser(network=copy.deepcopy(network))(patches(8))
    compiled = Focuser(network=network, compiled=True)(patches(8))
    assert_alike(compiled.feature, plain.feature, 1e-4)


@needs_onednn
@pytest.mark.parametrize("resize", ["nearest", "antialias", "bilinear", "bicubic"])
def test_a_compiled_glance_sees_resized_views_alike(resize):
    network = used("small_glance", num_classes=5)
    plain = Glancer(network=copy.deepcopy(network), size_px=32, resize=resize)(patches(3, 80).pixels)
    compiled = Glancer(network=network, size_px=32, resize=resize, compiled=True)(patches(3, 80).pixels)
    assert_alike(compiled.feature_map.numpy(), plain.feature_map.numpy(), 1e-4)
    assert_alike(compiled.logits.numpy(), plain.logits.numpy(), 1e-4)


def test_pixels_take_the_place_of_normalised_images_up_to_the_edge():
    network = Chain(padding=1)
    x = torch.randint(0, 256, (1, 3, 5, 5)).float()
    norm = Normalisation(mean=(0.1, 0.5, 0.9), std=(0.3, 0.2, 0.1))
    expected = network.first(normalise(x, norm))
    border, edges = fold_normalisation(network, norm, torch.float32)
    assert edges(5) == (1, 1) and network.first.padding == (0, 0)
    # 0.1, 0.5 and 0.9 of 255: a border of these is a border of zeros once it is normalised.
    np.testing.assert_allclose(border, [25.5, 127.5, 229.5], rtol=1e-6)
    framed = border[None, :, None, None].expand(1, 3, 7, 7).clone()
    framed[:, :, 1:6, 1:6] = x
    torch.testing.assert_close(network.first(framed), expected, atol=1e-4, rtol=1e-4)


def test_a_grey_image_stays_what_it_was_although_half_precision_rounds_the_weights():
    network = Chain(padding=0)
    with torch.no_grad():
        network.first.bias.fill_(0.5)
    # An image that is the mean everywhere normalises to nothing but the bias, whatever the weights became.
    norm = Normalisation(mean=(0.2, 0.4, 0.6), std=(0.01, 0.01, 0.01))
    fold_normalisation(network, norm, torch.bfloat16)
    grey = torch.tensor([51.0, 102.0, 153.0])[None, :, None, None].expand(1, 3, 3, 3)
    torch.testing.assert_close(network.first(grey).flatten(), torch.full((4,), 0.5), atol=1e-3, rtol=0)


def test_a_network_that_does_not_begin_with_an_image_is_refused():
    network = Chain()
    network.first = nn.Conv2d(4, 4, 3)
    with pytest.raises(ValueError, match="does not take images"):
        fold_normalisation(network, IMAGENET, torch.float32)


def convolutions(module: nn.Module) -> list[FusedConvolution]:
    return [part for part in module.modules() if isinstance(part, FusedConvolution)]


@needs_onednn
@pytest.mark.parametrize(("name", "num_convolutions"), [("resnet50", 53), ("mobilenet_v2", 52), ("small_focus", 7)])
def test_nothing_is_left_beside_the_convolutions_but_pooling(name, num_convolutions):
    network = used(name)
    fold_batchnorm(network)
    fused = fuse(network, dtype=torch.float32, max_batch=4)
    assert len(convolutions(fused)) == num_convolutions
    left = [n for n in fused.graph.nodes if n.op in ("call_function", "call_method", "call_module")]
    names = [n.target for n in left if not (n.op == "call_module" and n.target.endswith("_fused"))]
    assert names == (["maxpool", "mean"] if name == "resnet50" else ["mean"])


class Twice(nn.Module):
    """A residual that is read again after the sum: it must not be written over."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 1)
        self.two = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        z = self.two(y) + y
        return z * y


class ToItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        return torch.relu(y) + y


@needs_onednn
@pytest.mark.parametrize("ending", [Twice(), ToItself()])
def test_a_tensor_that_is_read_again_is_not_written_over(ending):
    network = Chain(ending=ending).eval().requires_grad_(False)
    x = torch.randn(2, 3, 6, 6)
    expected = network(x)[0]
    got = fuse(copy.deepcopy(network), dtype=torch.float32, max_batch=2)(x)[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_the_input_is_not_written_over():
    network = used("small_glance")
    batch = patches(2, 32)
    before = batch.pixels.copy()
    batch.pixels.flags.writeable = False
    Glancer(network=network, size_px=32, compiled=True)(batch.pixels)
    np.testing.assert_array_equal(batch.pixels, before)


def test_what_has_no_kernels_runs_layer_by_layer():
    assert not can_compile("cpu", torch.float64)
    network = used("small_focus")
    plain = Focuser(network=copy.deepcopy(network), dtype=torch.float64)(patches(2)).feature
    asked = Focuser(network=network, dtype=torch.float64, compiled=True)(patches(2)).feature
    np.testing.assert_array_equal(asked, plain)


class Branches(Chain):
    """Asks what is in its map, which no graph can follow."""

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return torch.relu(y) if y.sum() > 0 else y


class Starts(Chain):
    """Begins with a convolution that cannot take pixels as they are; it is refused when half of the work is done."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=(1, 2))


@needs_onednn
@pytest.mark.parametrize("network", [Branches(), Starts()])
def test_a_network_that_cannot_be_fused_runs_layer_by_layer_and_says_so(network, caplog):
    plain = Focuser(network=copy.deepcopy(network))(patches(2)).feature
    asked = Focuser(network=network, compiled=True)(patches(2)).feature
    np.testing.assert_array_equal(asked, plain)
    assert f"{type(network).__name__} runs layer by layer: it cannot be fused" in caplog.text


@needs_onednn
def test_a_network_is_as_it_was_where_fusing_it_breaks_off(monkeypatch):
    network = used("small_focus")
    plain = Focuser(network=copy.deepcopy(network))(patches(2)).feature

    def broken(*args: object, **options: object) -> None:
        raise TypeError("fx has changed")

    # By then normalisation is folded already.
    monkeypatch.setattr(compiled, "fuse", broken)
    asked = Focuser(network=network, compiled=True)(patches(2)).feature
    np.testing.assert_array_equal(asked, plain)


class OtherOperations:
    """What a torch offers whose private operations have gone."""

    def __getattr__(self, name: str) -> None:
        raise AttributeError(f"'_OpNamespace' 'mkldnn' object has no attribute '{name}'")


@pytest.fixture
def other_torch(monkeypatch):
    has_fused_kernels.cache_clear()
    with monkeypatch.context() as changed:
        changed.setattr(torch.ops, "mkldnn", OtherOperations())
        yield
    has_fused_kernels.cache_clear()


def test_a_torch_with_other_operations_runs_layer_by_layer(other_torch):
    assert not can_compile("cpu", torch.float32) and not can_compile("cpu", torch.bfloat16)
    network = used("small_focus")
    plain = Focuser(network=copy.deepcopy(network))(patches(2)).feature
    np.testing.assert_array_equal(Focuser(network=network, compiled=True)(patches(2)).feature, plain)


@needs_onednn
def test_doctor_says_where_the_kernels_went(other_torch):
    finding = doctor._kernels()
    assert finding.state == "warn" and "other oneDNN operations than those used here" in finding.text


class Recorder(CudaGraphs):
    """CudaGraphs without a GPU: a recording is the number of rows it was made of."""

    def __init__(self, *, fails: bool = False) -> None:
        self.recorded: list[int] = []
        self.eager: list[int] = []
        self._fails = fails
        super().__init__(self._look, picks_fastest=False)

    def _look(self, pixels: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        self.eager.append(len(pixels[0]))
        return pixels[0].float(), pixels[0].float().mean((2, 3))

    def _record(self, x: torch.Tensor):
        self.recorded.append(len(x))
        if self._fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        given = x.clone()
        seen = self._look([given])
        self.eager.pop()
        return Replay(given, seen), given, seen


class Replay:
    def __init__(self, given: torch.Tensor, seen: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._given, self._seen = given, seen

    def replay(self) -> None:
        self._seen[0].copy_(self._given)
        self._seen[1].copy_(self._given.float().mean((2, 3)))


def images(n: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(patches(n, 8, seed=seed).pixels).permute(0, 3, 1, 2)


def test_a_shape_is_recorded_when_it_comes_for_the_third_time():
    graphs = Recorder()
    for seed, n in enumerate((4, 2, 4, 4, 4, 2)):
        x = images(n, seed)
        feature_map, feature = graphs([x])
        assert torch.equal(feature_map, x.float())
        torch.testing.assert_close(feature, x.float().mean((2, 3)))
    assert graphs.recorded == [4] and graphs.eager == [4, 2, 4, 2]


def test_a_shape_that_cannot_be_recorded_goes_on_kernel_by_kernel(caplog):
    graphs = Recorder(fails=True)
    for seed in range(5):
        x = images(3, seed)
        assert torch.equal(graphs([x])[0], x.float())
    assert graphs.recorded == [3] and graphs.eager == [3] * 5
    assert "passes of 3 images run kernel by kernel" in caplog.text and "out of memory" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["small_focus", "mobilenet_v2", "resnet50"])
def test_a_recorded_graph_gives_what_the_kernels_give(name):
    network = used(name)
    plain = Focuser(network=copy.deepcopy(network), device="cuda", shapes=(4, 8))
    graphs = Focuser(network=network, device="cuda", shapes=(4, 8), max_batch=8, compiled=True)
    # Two shapes, recorded when they come for the third time, and more patches than one pass takes. A recording is never
    # TF32; what is not recorded has that from the process it runs in.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for n in (3, 7, 3, 3, 3, 20, 7):
            assert_alike(graphs(patches(n, seed=n)).feature, plain(patches(n, seed=n)).feature, 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_recorded_graph_gave_is_not_written_over_by_the_next_call():
    glancer = Glancer(network=used("small_glance"), size_px=32, device="cuda", compiled=True)
    for _ in range(3):
        first = glancer(patches(4, 32, seed=1).pixels)
    kept = first.feature_map.clone()
    glancer(patches(4, 32, seed=2).pixels)
    torch.testing.assert_close(first.feature_map, kept, atol=0, rtol=0)
