"""Facts of this machine's processor and GPU, and the precisions they compute in."""

from __future__ import annotations

import contextlib
import functools
import platform
from pathlib import Path

import torch
from torch import nn

from operators.networks.compiled import can_compile
from operators.networks.tensors import DTYPES


@functools.cache
@torch.inference_mode()
def can_compute(precision: str) -> bool:
    """Whether torch has layers in this precision for this machine's CPU, however slow they are."""
    x = torch.ones(1, 8, 4, 4, dtype=DTYPES[precision])
    layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.Flatten(), nn.Linear(32, 2))
    try:
        layers.eval().to(x)(x)
    except RuntimeError:
        return False
    return True


def machine_facts(device: str = "cpu") -> dict[str, str]:
    """The facts that make one machine as fast as another: its processor's name and abilities, and its GPU's name."""
    facts = {"cpu": platform.processor() or platform.machine(), "flags": ""}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                facts["cpu"] = value.strip()
            elif name.strip() in ("flags", "Features"):
                facts["flags"] = " ".join(sorted(value.split()))
            elif not name.strip() and facts["flags"]:
                break
    if device == "cuda" and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def has_fast_bf16() -> bool:
    """Whether the processor itself multiplies in bfloat16; where it does not, bfloat16 only saves memory."""
    flags = machine_facts()["flags"].split()
    return can_compile("cpu", torch.bfloat16) and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
