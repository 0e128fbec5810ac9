"""What the supervised stages share: parameter groups, the cosine, half precision, a step that notices a
NaN."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from operators.networks.compiled import can_compile
from pipeline.config.training import Optimiser, Supervised, TrainSettings
from pipeline.training.journal import Diverged


def make_optimiser(spec: Optimiser, groups: Sequence[tuple[nn.Module, float]]) -> torch.optim.Optimizer:
    """One group per module with a rate above zero. The rate is kept in the group as `base_lr`.

    Every group names the parameters it trains and a rate of its own: a schedule that sets rates by position
    would silently miss groups.
    """
    parameters: list[dict[str, Any]] = [
        {"params": [p for p in module.parameters() if p.requires_grad], "lr": lr, "base_lr": lr}
        for module, lr in groups
        if lr > 0
    ]
    parameters = [group for group in parameters if group["params"]]
    if not parameters:
        raise ValueError("no parameter has a learning rate above zero")
    if spec.kind == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=spec.weight_decay)
    return torch.optim.SGD(parameters, momentum=spec.momentum, weight_decay=spec.weight_decay)


def num_epochs(stage: Supervised) -> int:
    """The published loop runs one epoch more, at rate zero: it moves the batch norms' statistics alone."""
    if stage.epochs == 0:
        return 0
    return stage.epochs + 1 if stage.optimiser.schedule == "epoch" else stage.epochs


def set_rate(optimiser: torch.optim.Optimizer, stage: Supervised, epoch: int, step: int, steps: int) -> float:
    """From each group's base rate down, as the schedule says; returns the factor."""
    done = epoch / stage.epochs
    if stage.optimiser.schedule == "step":
        done = (epoch * steps + step) / (stage.epochs * steps)
    if stage.optimiser.schedule == "drops":
        factor = 0.1 ** ((done >= 0.4) + (done >= 0.8))
    else:
        factor = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    return factor


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's for what consists of many small products: dividing each of them gains nothing, and where
    other work shares the cores, every product waits for the thread that has none. On 2 busy cores (load 11, AVX2) an
    update of the skip stage took 3.0 s with two threads and 0.11 s with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def half_precision(settings: TrainSettings) -> contextlib.AbstractContextManager[Any]:
    """Autocast where the published training has it: fp16 on a GPU, bf16 on a CPU that has kernels for it.

    Without them a product in bf16 took 66 times as long as one in fp32 (AVX2 only).
    """
    device = torch.device(settings.device)
    if settings.amp == "off" or (device.type == "cpu" and not can_compile(device, torch.bfloat16)):
        return contextlib.nullcontext()
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, dtype)


def make_scaler(settings: TrainSettings) -> torch.amp.GradScaler:
    """Scales losses only where fp16 is used; elsewhere it passes everything through."""
    on = settings.amp == "auto" and torch.device(settings.device).type == "cuda"
    return torch.amp.GradScaler(torch.device(settings.device).type, enabled=on)


def take_step(
    loss: Tensor,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    *,
    where: str,
    last_good: str,
) -> float:
    """Backward and one update; gives the loss. A loss or a gradient that is no number stops the stage before it does
    harm. `last_good`: the file of the stage's state, which need not be there yet."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise Diverged(f"the loss is {value} at {where}", Path(last_good))
    optimiser.zero_grad(set_to_none=True)
    if scaler is not None and scaler.is_enabled():
        # It leaves a step out by itself whose gradients are not finite: with fp16 that is usual.
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        return value
    loss.backward()
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if not math.isfinite(norm):
        raise Diverged(f"the gradient's norm is {norm} at {where}, where the loss is {value:.4g}", Path(last_good))
    optimiser.step()
    return value
