"""A network as a graph of few kernels: oneDNN primitives on a CPU, a recorded CUDA graph on a GPU.

On a CPU every convolution becomes one primitive, with its bias, its activation and the residual that is added to it
inside, on weights that lie as oneDNN wants them; normalisation is part of the first. This is what inductor's frozen
graphs consist of for convolutional networks, and it is as fast; but it is made in the time of one forward pass,
without a C++ compiler and without files, so that a short run gains by it like a long one.
"""

from __future__ import annotations

import copy
import functools
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from operators.networks.network import Network, SameConv2d, TemporalShift, same_padding
from operators.networks.tensors import Normalisation, mean_and_scale, normalise, ready, to_dtype

_log = logging.getLogger(__name__)

Forward = Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]
"""Pixels [n,3,H,W] on the device, uint8 or float of 0..255, in one tensor or in several that are taken one behind the
other, -> feature map [N,C,h,w], feature float32 [N,D]."""

_ACTIVATIONS: dict[type, tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
    nn.Hardsigmoid: ("hardsigmoid", []),
    nn.SiLU: ("swish", []),
    nn.Sigmoid: ("sigmoid", []),
}


def can_compile(device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether there are kernels for this; where not, networks run layer by layer."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_available()
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if dtype == torch.bfloat16:
        return has_fused_kernels() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and has_fused_kernels()


@functools.cache
@torch.inference_mode()
def has_fused_kernels() -> bool:
    """Whether this torch has the oneDNN operations, in the form used here. They are not public: it may lose them."""
    conv = nn.Conv2d(8, 8, 1)
    x = torch.ones(1, 8, 2, 2).contiguous(memory_format=torch.channels_last)
    options: dict[str, Any] = {"dtype": torch.float32, "max_batch": 1, "activation": ("relu", [])}
    try:
        FusedConvolution(conv, **options)(x)
        for in_place in (False, True):
            FusedConvolution(conv, has_residual=True, in_place=in_place, **options)(x, x.clone())
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    # Whatever is raised where an operation is missing, or takes other arguments, means the same.
    except Exception as exc:
        _log.warning("networks run layer by layer: torch %s has other oneDNN operations: %s", torch.__version__, exc)
        return False
    return True


def make_forward(
    network: Network,
    *,
    normalisation: Normalisation,
    device: torch.device,
    dtype: torch.dtype,
    max_batch: int,
    compiled: bool,
) -> Forward:
    """The network made ready, layer by layer as it stands or with few kernels. Takes the network over.

    `max_batch`: the rows that a CPU's kernels are chosen for; any number can be given.
    """
    if compiled and can_compile(device, dtype):
        if device.type == "cuda":
            plain = _plain(ready(network, device=device, dtype=dtype), normalisation, dtype)
            return CudaGraphs(plain, picks_fastest=dtype != torch.float32)
        network = ready(network)
        try:
            # Its structure is taken apart, so it gets one of its own; the weights are the same.
            weights = {id(x): x for x in (*network.parameters(), *network.buffers())}
            twin = copy.deepcopy(network, cast(dict[int, Any], weights))
            return FusedNetwork(twin, normalisation=normalisation, dtype=dtype, max_batch=max_batch)
        # Tracing has no error of its own for a network that it cannot follow; any network runs layer by layer.
        except Exception as exc:
            _log.warning("%s runs layer by layer: it cannot be fused: %s", type(network).__name__, exc)
    return _plain(ready(network, device=device, dtype=dtype), normalisation, dtype)


def _plain(network: Network, normalisation: Normalisation, dtype: torch.dtype) -> Forward:
    def forward(pixels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        feature_map, feature = network(normalise(pixels, normalisation, dtype))
        return feature_map, feature.float()

    return forward


class FusedConvolution(nn.Module):
    """act(conv(x) + bias [+ residual]) in one primitive.

    Weights are laid out for the side of the images at the first call, and once more for every other side.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        *,
        dtype: torch.dtype,
        max_batch: int,
        activation: tuple[str, list[float]] | None = None,
        has_residual: bool = False,
        in_place: bool = False,
    ) -> None:
        """`in_place`: the sum may be written over the residual."""
        super().__init__()
        self._weight = conv.weight.detach().to(dtype)
        # A rounded bias would shift whole channels. Only the operation with a residual insists on one precision.
        bias_dtype = dtype if has_residual else torch.float32
        self._bias = None if conv.bias is None else conv.bias.detach().to(bias_dtype)
        assert not isinstance(conv.padding, str)
        self._padded = conv.padded if isinstance(conv, SameConv2d) else None
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._max_batch = max_batch
        self._activation = activation
        self._in_place = in_place
        self._packed: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self._padded is not None:
            x = self._padded(x)
        weight = self._packed.get(x.shape[1:])
        if weight is None:
            weight = self._packed[x.shape[1:]] = self._pack(x)
        ops = torch.ops.mkldnn
        if residual is None:
            name, numbers = self._activation or ("none", [])
            return ops._convolution_pointwise(x, weight, self._bias, *self._geometry, name, numbers, "")
        after, numbers = self._activation or (None, [])
        tail = (weight, self._bias, *self._geometry, "add", 1.0, after, numbers, "")
        if self._in_place:
            return ops._convolution_pointwise_.binary(residual, x, *tail)
        return ops._convolution_pointwise.binary(x, residual, *tail)

    def _pack(self, x: Tensor) -> Tensor:
        # Always for the same number of rows: the layout, and so the last bit, must not hang on the first call's.
        shape = [self._max_batch, *x.shape[1:]]
        return torch.ops.mkldnn._reorder_convolution_weight(self._weight, *self._geometry, shape)


class FusedNetwork:
    """A Forward of fused convolutions. Not to be shared by threads: it keeps the buffer that images are put into."""

    def __init__(self, network: Network, *, normalisation: Normalisation, dtype: torch.dtype, max_batch: int) -> None:
        self._dtype = dtype
        self._border, self._edges = fold_normalisation(network, normalisation, dtype)
        self._graph = fuse(network, dtype=dtype, max_batch=max_batch)
        self._buffers: dict[torch.Size, Tensor] = {}

    def __call__(self, pixels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        feature_map, feature = self._graph(self._bordered(pixels))
        return feature_map, feature.float()

    def _bordered(self, pixels: Sequence[Tensor]) -> Tensor:
        """The pixels in the middle of a buffer whose border looks like the mean, in the network's precision."""
        _, _, height, width = pixels[0].shape
        num_rows = sum(map(len, pixels))
        (above, below), (left, right) = self._edges(height), self._edges(width)
        buffer = self._buffers.get(pixels[0].shape[1:])
        if buffer is None or len(buffer) < num_rows:
            buffer = torch.empty((num_rows, above + height + below, left + width + right, 3), dtype=self._dtype)
            buffer[...] = self._border
            self._buffers[pixels[0].shape[1:]] = buffer
        start = 0
        for part in pixels:
            rows = buffer[start : start + len(part)]
            rows[:, above : above + height, left : left + width] = part.permute(0, 2, 3, 1)
            start += len(part)
        return buffer[:num_rows].permute(0, 3, 1, 2)


@torch.no_grad()
def fold_normalisation(
    network: Network, normalisation: Normalisation, dtype: torch.dtype
) -> tuple[Tensor, Callable[[int], tuple[int, int]]]:
    """Makes the first convolution take pixels of 0..255, in place; gives the border [3] that they need, and from the
    length of a side its width before and behind.

    0..255 are exact in bfloat16, so nothing is rounded before the weights. What zeros were around a normalised image
    is the mean around one that is not: the convolution pads no more, the caller puts a border there.
    """
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if conv.in_channels != 3 or conv.groups != 1 or conv.padding_mode != "zeros" or len(set(conv.padding)) != 1:
        raise ValueError(f"the first convolution does not take images with equal padding: {conv}")
    mean, scale = mean_and_scale(normalisation, conv.weight.device)
    # The mean is taken off through the weights as they will be used: then their rounding meets x - mean, not x.
    weight = (conv.weight * scale[:, None, None]).to(dtype).float()
    bias = -(weight.double() * mean.double()[:, None, None]).sum((1, 2, 3))
    if conv.bias is not None:
        bias += conv.bias
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias.float(), requires_grad=False)
    if isinstance(conv, SameConv2d):
        conv.pads = False
        edges = functools.partial(same_padding, kernel=conv.kernel_size[0], stride=conv.stride[0])
        return mean.to(dtype), edges
    border_px = int(conv.padding[0])
    conv.padding = (0, 0)
    return mean.to(dtype), lambda size: (border_px, border_px)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, TemporalShift | SameConv2d) or super().is_leaf_module(m, module_qualified_name)


def fuse(network: Network, *, dtype: torch.dtype, max_batch: int) -> fx.GraphModule:
    """The network's forward in `dtype` with every convolution fused with what follows it.

    What may follow: a sum with a tensor that is there already, then an activation. A sum is written over the other
    tensor where nothing reads that later; inputs are never written to.
    """
    graph = _Tracer().trace(network)
    module = fx.GraphModule(network, graph)
    layers = dict(module.named_modules())
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(layers[node.target], nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_module" or not isinstance(layers[node.target], nn.Conv2d):
            continue
        taken, residual = [node], cast(Any, None)
        user = _only_user(node)
        if user is not None and _is_sum(user):
            residual = user.args[1] if user.args[0] is node else user.args[0]
            taken.append(user)
            user = _only_user(user)
        activation = None
        if user is not None and user.op == "call_module" and type(layers.get(user.target)) in _ACTIVATIONS:
            activation = _ACTIVATIONS[type(layers[user.target])]
            taken.append(user)
        last = taken[-1]
        name = f"{str(node.target).replace('.', '_')}_fused"
        fused = FusedConvolution(
            layers[node.target],
            dtype=dtype,
            max_batch=max_batch,
            activation=activation,
            has_residual=residual is not None,
            in_place=residual is not None
            and residual.op != "placeholder"
            and all(order[reader] <= order[last] for reader in residual.users),
        )
        module.add_submodule(name, fused)
        with graph.inserting_after(last):
            new = graph.call_module(name, (node.args[0],) if residual is None else (node.args[0], residual))
        order[new] = order[last]
        last.replace_all_uses_with(new)
        for old in reversed(taken):
            graph.erase_node(old)
    graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
    # What is not fused, such as a squeeze's gate, works on tensors of this precision.
    return to_dtype(module, dtype).eval()


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_sum(node: fx.Node) -> bool:
    is_add = (node.op == "call_method" and node.target in ("add_", "add")) or (
        node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)
    )
    return is_add and len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args) and not node.kwargs


_Recording = tuple[torch.cuda.CUDAGraph, Tensor, tuple[Tensor, Tensor]]
"""The graph, where its pixels go, and where its answers are."""


class CudaGraphs:
    """A Forward recorded per shape and then replayed: one launch instead of one per kernel.

    A shape is recorded when it comes for the third time: what comes once or twice is not worth it, and those passes
    are the warm-up that a recording needs. Where it cannot be recorded, for want of memory say, that shape goes on
    kernel by kernel. What is returned is the caller's: the next call does not write over it.
    """

    RECORDED_AT = 3

    def __init__(self, forward: Forward, *, picks_fastest: bool) -> None:
        """`picks_fastest`: cuDNN measures its algorithms; the last bits then may differ from run to run."""
        self._forward = forward
        self._picks_fastest = picks_fastest
        self._uses: dict[tuple[Any, ...], int] = {}
        self._recorded: dict[tuple[Any, ...], _Recording | None] = {}
        self._pool: Any = None

    def __call__(self, pixels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        (x,) = pixels
        key = (x.shape, x.dtype)
        # The same for passes with and without a recording: cuDNN settles on its algorithms in the first ones.
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=self._picks_fastest, deterministic=not self._picks_fastest, allow_tf32=False
        ):
            self._uses[key] = self._uses.get(key, 0) + 1
            if self._uses[key] == self.RECORDED_AT:
                self._recorded[key] = self._try_to_record(x)
            recording = self._recorded.get(key)
            if recording is None:
                return self._forward([x])
            graph, given, (feature_map, feature) = recording
            given.copy_(x)
            graph.replay()
            return feature_map.clone(), feature.clone()

    def _try_to_record(self, x: Tensor) -> _Recording | None:
        try:
            return self._record(x)
        except RuntimeError as exc:
            _log.warning("passes of %d images run kernel by kernel, no graph of them was recorded: %s", len(x), exc)
            return None

    def _record(self, x: Tensor) -> _Recording:
        given = x.clone(memory_format=torch.preserve_format)
        current, stream = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._forward([given])
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                seen = self._forward([given])
        finally:
            # Where a recording cannot be ended, torch leaves the stream that it was made on the current one.
            torch.cuda.set_stream(current)
        self._pool = graph.pool()
        return graph, given, seen
