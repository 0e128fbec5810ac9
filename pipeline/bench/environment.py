"""What figures were measured on: the machine, its libraries, and the commit of the code."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline.plan.placement import this_machine
from pipeline.plan.processor import machine_facts

_ISA = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
"""Those of a processor's abilities that decide how fast it multiplies."""


def environment() -> dict[str, Any]:
    """The machine, its libraries and the commit that figures were measured with."""
    machine, facts = this_machine(), machine_facts()
    changed = _git("status", "--porcelain", "--untracked-files=no")
    found: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": facts["cpu"],
        "cpu_flags": [flag for flag in _ISA if flag in facts["flags"].split()],
        "cores": machine.num_cores,
        "memory_gb": round(machine.memory_bytes / 2**30, 1),
        **_gpu(),
        # Other people's work on the same cores; the figures are worth less the higher it is.
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "threads": {
            **{name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
            # What the libraries made of it in this process; workers are given theirs by the placement.
            "torch": torch.get_num_threads(),
        },
        "os": platform.platform(),
        "python": platform.python_version(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changed is None else bool(changed),
    }
    for package in ("torch", "ray", "numpy", "av", "opencv-python-headless", "torchcodec", "decord"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["ffmpeg"] = _ffmpeg()
    return found


def _gpu() -> dict[str, Any]:
    """The GPU with its driver and libraries; `gpu` is None where there is no GPU."""
    if not torch.cuda.is_available():
        return {"gpu": None}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "gpu_driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    text = path.read_text() if path.is_file() else ""
    found = re.search(r"Module\s+(?:for \S+\s+)?(\d[\d.]+)", text)
    return found[1] if found else None


def _ffmpeg() -> str | None:
    """The version of FFmpeg, or None where there is no PyAV: the networks are measured without it too."""
    try:
        from pipeline.bench.plain import ffmpeg_version
    except ImportError:
        return None
    return ffmpeg_version()


def _git(*arguments: str) -> str | None:
    """What git prints, or None where there is no repository or no git."""
    root = Path(__file__).resolve().parent.parent.parent
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
