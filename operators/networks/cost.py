"""The one place where costs are counted, by the published rule.

One MAC per multiply-accumulate of convolutions and matrix products (GRUs included), and one per channel of each
batch norm. Biases, activations, pooling, crops and resizing are free, decoding is not counted. Networks are counted
as they are published: with their batch norms, though inference folds them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from operators.networks.backbones import empty
from operators.networks.network import of_zeros
from operators.weights.header import Header

aten = torch.ops.aten


def _convolution(out: Tensor, weight: Tensor) -> int:
    return out.numel() * math.prod(weight.shape[1:])


class _MacCounter(TorchDispatchMode):
    """Sees every operation below the modules, so it counts whatever is computed, however it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Keeping torch's compiler away from this class would load it first.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if operation in (aten.convolution, aten._convolution):
            self.macs += _convolution(out, args[1])
        elif operation is aten.addmm:
            self.macs += args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
        elif operation is aten.mm:
            self.macs += args[0].shape[0] * args[0].shape[1] * args[1].shape[1]
        elif operation is aten.bmm:
            self.macs += args[0].numel() * args[1].shape[2]
        elif operation is aten.baddbmm:
            self.macs += args[1].numel() * args[2].shape[2]
        elif operation in (aten.native_batch_norm, aten._native_batch_norm_legit_no_training):
            self.macs += args[0].shape[1]
        return out


# In inference mode, and on tensors made in it, operations are not taken apart into those that the counter knows.
_apart = torch.inference_mode(False)


def count_macs(function: Callable[..., Any], *args: Any) -> int:
    """MACs of one call, which is made."""
    with torch.no_grad(), _MacCounter() as counter:
        function(*args)
    return counter.macs


@functools.cache
@_apart
def network_macs(name: str, size_px: int, *, num_classes: int = 0) -> int:
    """MACs of one frame or patch of `size_px` squared; its own head counts where the answer needs it."""
    network = empty(name, num_classes=num_classes).eval()

    def look(x: Tensor) -> None:
        _, feature = network(x)
        if network.head is not None:
            network.head(feature)

    return count_macs(look, torch.zeros(1, 3, size_px, size_px))


@_apart
def module_macs(module: nn.Module, *shapes: tuple[int, ...], method: str = "forward") -> int:
    """MACs of one call of a method over float inputs of these shapes; the module is neither run nor changed."""
    twin = of_zeros(module).eval()
    return count_macs(getattr(twin, method), *(torch.zeros(shape) for shape in shapes))


def step_macs(module: nn.Module) -> int:
    """MACs of one row through a module of linear layers and GRUs: each weight matrix is used once."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """What each part of the work on a clip costs, in MACs."""

    glance: int
    """One frame."""
    focus: int
    """One patch."""
    focus_full: int
    """One whole view through the focus network."""
    classify: tuple[int, ...]
    """Each classified step; steps beyond the last cost what the last does."""
    decide: int = 0
    """One call of the policy."""
    skip: int = 0
    """One decision whether to skip."""

    def gmacs(
        self,
        *,
        glanced: int,
        focused: int,
        classified: int,
        decided: int = 0,
        skips_decided: int = 0,
        focused_full: int = 0,
    ) -> float:
        """Billions of MACs of a clip. `focused_full`: whole views that went through the focus network."""
        macs = self.glance * glanced + self.focus * focused + self.focus_full * focused_full
        macs += self.decide * decided + self.skip * skips_decided
        macs += sum(self.classify[:classified])
        if self.classify:
            macs += self.classify[-1] * max(0, classified - len(self.classify))
        return macs / 1e9

    def gmacs_full(self, *, glanced: int, focused: int, classified: int) -> float:
        """What the clip would have cost with the whole view focused each time; no policy is needed for that."""
        return self.gmacs(glanced=glanced, focused=0, focused_full=focused, classified=classified)


def cost_model(header: Header, *, patch_px: int, decide: int = 0, skip: int = 0) -> CostModel:
    """What a checkpoint's networks cost with patches of `patch_px`.

    The policy's MACs are given: `module_macs(policy, (1, 1, C, h, w), method="logits")`, which leaves the critic out;
    the skip head's are `step_macs(head)`. Heads count where the answer is made of their logits.
    """
    if header.glance is None or header.glance.size_px is None or header.focus is None or header.classifier is None:
        raise ValueError("costs are those of a whole checkpoint: glance with its size, focus, classifier")
    spec = header.classifier
    glance_classes, focus_classes = header.glance.num_classes, 0
    match spec.kind:
        case "gru":
            step = 3 * spec.hidden * (spec.in_features + spec.hidden) + spec.hidden * spec.num_classes
            classify: tuple[int, ...] = (step,)
        case "cascaded":
            classify = tuple(k * spec.in_features * spec.num_classes for k in range(1, header.num_steps + 1))
        case "average":
            # Its linear layer is the focus network's head: it runs once per patch.
            classify, focus_classes = (), spec.num_classes
        case "max":
            # The published count has both networks' own heads in it, which are there for the training.
            classify = (spec.hidden * (spec.in_features + 1 + spec.num_classes),)
            glance_classes = focus_classes = spec.num_classes
    glance, focus = header.glance, header.focus
    return CostModel(
        glance=network_macs(glance.name, glance.size_px, num_classes=glance_classes),
        focus=network_macs(focus.name, patch_px, num_classes=focus_classes),
        focus_full=network_macs(focus.name, header.preprocessing.crop_px, num_classes=focus_classes),
        classify=classify,
        decide=decide,
        skip=skip,
    )
