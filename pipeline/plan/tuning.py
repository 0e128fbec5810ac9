"""Precision, compilation and batch sizes of the networks, chosen by measurement and remembered.

What is measured is the networks' architecture on this machine, for a few seconds and once: the answer is kept in a
file of the user's cache folder, one per machine, networks, threads and version of torch. Labels hang on precision and
compilation, so both are part of a run's identity; batch sizes are not.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from operators.durable import write_durably
from operators.errors import ConfigError
from operators.networks.backbones import empty
from operators.networks.compiled import CudaGraphs, can_compile
from operators.networks.cost import network_macs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.networks.tensors import DTYPES, exact_fp32
from operators.records import PatchBatch
from operators.weights.header import Header

WORTH_ROUNDING = 1.15
"""How much faster half precision must be to be chosen: below, the exact one is the better bargain."""
WORTH_PLAIN = 0.95
"""What part of the compiled network's time the plain one must come down to, to be taken: a machine drifts by more than
both differ, and compiled costs nothing more."""
WORTH_CHANGING = 0.98
"""What part of the time per image another batch size must come down to, to be taken instead of the one preferred."""
_ENOUGH_S = 0.8
"""Of one way: what takes longer is not timed three times."""
LIMIT_S = {"cpu": 6.0, "cuda": 20.0}
"""After so long nothing further is tried. On a GPU every size is recorded and cuDNN tries its algorithms for it."""
CUT_SHORT = "cut short"
_FORMAT = 3
_SIZES = {"cpu": (4, 8, 16, 32, 64), "cuda": (16, 32, 64, 128, 256)}
# A GPU does about a hundred times as much: less of it than this would time the launches and not the work.
_PROBE_ROWS = {"cpu": (4, 8), "cuda": (64, 128)}
_PROBE_MACS = {"cpu": 12e9, "cuda": 1200e9}
_BATCH_MACS = {"cpu": 60e9, "cuda": 6000e9}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the networks do for one clip; how fast they do it depends on nothing else of a run."""

    glance: str
    """Name of the backbone."""
    glance_px: int
    glance_segments: int = 0
    glances: int = 16
    """Per clip, as `patches`."""
    focus: str
    patch_px: int
    focus_segments: int = 0
    patches: int = 16


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the networks are run."""

    precision: str
    compile: str
    """on or off"""
    glance_batch: int
    focus_batch: int
    how: str
    """measured, remembered, by rule, or cut short: what there was no time to measure went by rule"""
    seconds: dict[str, float]
    """CPU seconds per clip of each way that was measured, the chosen one among them; on a GPU its own seconds."""

    @property
    def is_compiled(self) -> bool:
        return self.compile == "on"

    def line(self) -> str:
        """What a run says of it before it begins."""
        name = f"{self.precision}{' compiled' if self.is_compiled else ''}"
        line = f"networks in {name}, {self.glance_batch} views and {self.focus_batch} patches at a time ({self.how}"
        if name in self.seconds:
            others = [f"{other} {s:.3g} s" for other, s in self.seconds.items() if other != name]
            line += f": {self.seconds[name]:.3g} s a clip" + (f"; {', '.join(others)}" if others else "")
        return line + ")"


def work_of(header: Header, *, glance_px: int, patch_px: int, glances: int, patches: int) -> Work:
    """The work of a checkpoint's networks on a clip. Every frame counts as focused, whatever is skipped later."""
    glance, focus = header.glance or header.focus, header.focus or header.glance
    assert glance is not None and focus is not None
    return Work(
        glance=glance.name,
        glance_px=glance_px,
        glance_segments=glance.num_segments,
        glances=glances,
        focus=focus.name,
        patch_px=patch_px,
        focus_segments=focus.num_segments,
        patches=patches,
    )


def cache_folder() -> Path:
    """Where what was measured is kept."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "saccade"


def choose(
    work: Work,
    *,
    device: str,
    threads: int,
    precision: str = "auto",
    compile: str = "auto",
    cache: Path | None = None,
    limit_s: float | None = None,
) -> Choice:
    """Decides what is `auto`, and the batch sizes: as remembered in `cache`, else by measuring.

    `limit_s`: after so long nothing further is tried; LIMIT_S if not said. What that cut short is measured once more
    by the next run, which takes up to four times as long and keeps what it has by then. A folder that cannot be
    written to costs a measurement per run.
    """
    limit_s = LIMIT_S[device] if limit_s is None else limit_s
    rule = by_rule(work, device=device, precision=precision, compile=compile)
    if device == "cuda" and not torch.cuda.is_available():
        return rule
    question = {
        "format": _FORMAT,
        "machine": machine_facts(device),
        "torch": torch.__version__,
        "threads": threads,
        "precision": precision,
        "compile": compile,
        "work": asdict(work),
    }
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:24]
    path = None if cache is None else cache / "tuning" / f"{key}.json"
    known = None if path is None else _recall(path)
    if known is not None and known.how != CUT_SHORT:
        return replace(known, how="remembered")
    if known is not None:
        limit_s *= 4
    choice = _measure(
        work, rule, device=device, threads=threads, precision=precision, compile=compile, limit_s=limit_s
    )
    if known is not None:
        choice = replace(choice, how="measured")
    if path is not None:
        _remember(path, question, choice)
    return choice


def by_rule(work: Work, *, device: str, precision: str = "auto", compile: str = "auto") -> Choice:
    """What is likely best, without measuring: half precision where the processor multiplies in it."""
    if precision == "auto":
        precision = "bf16" if device == "cuda" or has_fast_bf16() else "fp32"
    has_kernels = device == "cuda" or can_compile(device, DTYPES[precision])
    if compile == "on" and not has_kernels:
        raise ConfigError(f"compute.compile=on: there are no kernels for {precision} on {device}; set it to auto")
    if compile == "auto":
        compile = "on" if has_kernels else "off"
    # A pass over 224 px whose largest map takes over 32 MB gets fresh pages from the system each time: a fifth slower.
    glance, focus = (4 if precision == "fp32" else 8, 32) if device == "cpu" else (64, 256)
    return Choice(
        precision=precision,
        compile=compile,
        glance_batch=_whole_clips(glance, work.glance_segments),
        focus_batch=_whole_clips(focus, work.focus_segments),
        how="by rule",
        seconds={},
    )


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
    """What makes one machine as fast as another: its processor's name and abilities, and its GPU's."""
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
    """Whether the processor itself multiplies in bfloat16; without, it only saves memory."""
    flags = machine_facts()["flags"].split()
    return can_compile("cpu", torch.bfloat16) and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def _recall(path: Path) -> Choice | None:
    try:
        return Choice(**json.loads(path.read_text())["choice"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(path: Path, question: dict[str, Any], choice: Choice) -> None:
    text = json.dumps({"question": question, "choice": asdict(choice)}, indent=1)
    # The next run measures again where this one could not write.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text.encode())


def _whole_clips(rows: int, segments: int) -> int:
    """Rows of a pass: whole clips where a temporal shift works on them, at least one."""
    return max(segments, rows // segments * segments) if segments else rows


@contextlib.contextmanager
def held_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Bench:
    """Times both networks in any way of running them, per image."""

    def __init__(self, work: Work, device: str) -> None:
        exact_fp32(device)
        self._work = work
        self._device = device
        self._glance = empty(work.glance, num_segments=work.glance_segments)
        self._focus = empty(work.focus, num_segments=work.focus_segments)
        self._known: dict[tuple[str, str, str, int], float] = {}
        self.glance_macs = network_macs(work.glance, work.glance_px)
        self.focus_macs = network_macs(work.focus, work.patch_px)

    def wake(self) -> None:
        """Makes a GPU's context and loads its libraries, which takes seconds and is no part of any way."""
        if self._device == "cuda":
            for which, segments in (("glance", self._work.glance_segments), ("focus", self._work.focus_segments)):
                self._make(which, "fp32", "off", _whole_clips(1, segments))()
            torch.cuda.synchronize()

    def glance_s(self, precision: str, compile: str, rows: int) -> float:
        return self._time("glance", precision, compile, _whole_clips(rows, self._work.glance_segments))

    def focus_s(self, precision: str, compile: str, rows: int) -> float:
        return self._time("focus", precision, compile, _whole_clips(rows, self._work.focus_segments))

    def clip_s(self, precision: str, compile: str) -> float:
        """Seconds per clip at batches small enough for a first look."""
        glance_rows, focus_rows = _PROBE_ROWS[self._device]
        most_macs = _PROBE_MACS[self._device]
        glance = self.glance_s(precision, compile, _rows(glance_rows, self.glance_macs, most_macs))
        focus = self.focus_s(precision, compile, _rows(focus_rows, self.focus_macs, most_macs))
        return self._work.glances * glance + self._work.patches * focus

    def _time(self, which: str, precision: str, compile: str, rows: int) -> float:
        way = (which, precision, compile, rows)
        if way not in self._known:
            run = self._make(which, precision, compile, rows)
            for _ in range(CudaGraphs.RECORDED_AT if self._device == "cuda" else 1):
                run()
            seconds: list[float] = []
            while len(seconds) < 3 and sum(seconds) < _ENOUGH_S:
                seconds.append(self._seconds(run))
            # The least: whatever else the machine does can only add.
            self._known[way] = min(seconds) / rows
        return self._known[way]

    def _seconds(self, run: Callable[[], object]) -> float:
        # Seconds of the processor, not of the wall: others may be using the machine.
        clock = time.process_time if self._device == "cpu" else time.perf_counter
        begun_s = clock()
        run()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return clock() - begun_s

    def _make(self, which: str, precision: str, compile: str, rows: int) -> Callable[[], object]:
        side = self._work.glance_px if which == "glance" else self._work.patch_px
        pixels = np.random.default_rng(0).integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
        options: dict[str, Any] = {
            "device": self._device,
            "dtype": DTYPES[precision],
            "compiled": compile == "on",
            "max_batch": rows,
        }
        if which == "glance":
            glancer = Glancer(network=copy.deepcopy(self._glance), size_px=side, **options)
            return lambda: glancer(pixels)
        focuser = Focuser(network=copy.deepcopy(self._focus), **options)
        patches = PatchBatch(pixels=pixels)
        return lambda: focuser(patches)


def _rows(wanted: int, macs: int, most_macs: float) -> int:
    return max(1, min(wanted, int(most_macs // macs)))


def _measure(
    work: Work, rule: Choice, *, device: str, threads: int, precision: str, compile: str, limit_s: float
) -> Choice:
    ends_s, is_cut_short = 0.0, False

    def has_time() -> bool:
        """Asked only where something is left to try."""
        nonlocal is_cut_short
        is_late = time.monotonic() >= ends_s
        is_cut_short = is_cut_short or is_late
        return not is_late

    def best_compile(name: str) -> str:
        return ("on" if can_compile(device, DTYPES[name]) else "off") if compile == "auto" else compile

    with held_threads(threads):
        bench = _Bench(work, device)
        bench.wake()
        ends_s = time.monotonic() + limit_s
        seconds: dict[str, float] = {}
        ways: dict[str, tuple[str, str]] = {}

        def measure(precision: str, compile: str) -> float:
            name = f"{precision}{' compiled' if compile == 'on' else ''}"
            ways[name] = (precision, compile)
            seconds[name] = bench.clip_s(precision, compile)
            return seconds[name]

        chosen = (rule.precision, best_compile(rule.precision))
        if precision == "auto" and can_compile(device, torch.bfloat16):
            full = measure("fp32", best_compile("fp32"))
            half = measure("bf16", best_compile("bf16"))
            name = "bf16" if half * WORTH_ROUNDING <= full else "fp32"
            chosen = (name, best_compile(name))
        if compile == "auto" and chosen[1] == "on" and has_time():
            compiled = seconds.get(f"{chosen[0]} compiled") or measure(*chosen)
            if measure(chosen[0], "off") < WORTH_PLAIN * compiled:
                chosen = (chosen[0], "off")
        glance_batch, focus_batch = rule.glance_batch, rule.focus_batch
        if has_time():
            # Small ones: a larger pass of the same speed only takes more memory.
            sizes = _sizes(device, bench.glance_macs)
            found = best_size(sizes, lambda rows: bench.glance_s(*chosen, rows), has_time)
            glance_batch = found or rule.glance_batch
        if has_time():
            # Large ones: what several clips share in a pass they also share in calls and in being classified.
            sizes = _sizes(device, bench.focus_macs)[::-1]
            found = best_size(sizes, lambda rows: bench.focus_s(*chosen, rows), has_time)
            focus_batch = found or rule.focus_batch
    if device == "cuda":
        # Who measures is the driver, which lives as long as the run. What torch keeps of the GPU's memory would be
        # missing to the workers in their processes.
        torch.cuda.empty_cache()
    return Choice(
        precision=chosen[0],
        compile=chosen[1],
        glance_batch=_whole_clips(glance_batch, work.glance_segments),
        focus_batch=_whole_clips(focus_batch, work.focus_segments),
        how=CUT_SHORT if is_cut_short else "measured",
        seconds={name: round(s, 6) for name, s in seconds.items()},
    )


def _sizes(device: str, macs: int) -> tuple[int, ...]:
    """Of passes that are worth trying, for images that take so many MACs."""
    sizes = _SIZES[device]
    most = _rows(sizes[-1], macs, _BATCH_MACS[device])
    return tuple(size for size in sizes if size <= most) or sizes[:1]


def best_size(
    sizes: Sequence[int], time_per_row: Callable[[int], float], has_time: Callable[[], bool]
) -> int | None:
    """Of sizes in the order in which they are preferred the first that no later one betters by enough. They are tried
    until two in a row are no better; None where time was up before."""
    best, best_s, misses = sizes[0], time_per_row(sizes[0]), 0
    for size in sizes[1:]:
        if misses == 2:
            break
        if not has_time():
            return None
        per_row_s = time_per_row(size)
        if per_row_s < WORTH_CHANGING * best_s:
            best, best_s, misses = size, per_row_s, 0
        else:
            misses += 1
    return best
