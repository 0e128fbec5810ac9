"""Networks timed in every way of running them, and the best way found within a limit of time."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from operators.networks.backbones import empty
from operators.networks.compiled import CudaGraphs, can_compile
from operators.networks.cost import network_macs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.networks.tensors import DTYPES, exact_fp32
from operators.records import PatchBatch
from pipeline.plan.network_choice import CUT_SHORT, Choice, NetworkWork, whole_clips

WORTH_ROUNDING = 1.15
"""How many times as fast half precision must be to be chosen: below that, exact numbers are the better bargain."""
WORTH_PLAIN = 0.95
"""The plain network is taken where it needs at most this share of the compiled one's time: a machine drifts by more
than the two differ, and compiling costs nothing more."""
WORTH_CHANGING = 0.98
"""Another batch size replaces the preferred one where it needs less than this share of its time per image."""
_ENOUGH_S = 0.8
"""Seconds of timing after which one way of running a network is not timed again; otherwise it is timed three times."""
_SIZES = {"cpu": (4, 8, 16, 32, 64), "cuda": (16, 32, 64, 128, 256)}
# A GPU does about a hundred times as much: less of it than this would time the launches and not the work.
_PROBE_ROWS = {"cpu": (4, 8), "cuda": (64, 128)}
_PROBE_MACS = {"cpu": 12e9, "cuda": 1200e9}
_BATCH_MACS = {"cpu": 60e9, "cuda": 6000e9}

Clock = Callable[[], float]


class Trial(Protocol):
    """Times the networks of some work; each time is in seconds per image or per clip."""

    glance_macs: int
    focus_macs: int

    def wake(self) -> None:
        """Prepares the device, which takes seconds and is no part of any way."""

    def glance_s(self, precision: str, compile: str, rows: int) -> float: ...

    def focus_s(self, precision: str, compile: str, rows: int) -> float: ...

    def clip_s(self, precision: str, compile: str) -> float: ...


class NetworkPasses:
    """Makes passes of both networks, with weights that mean nothing, over images that mean nothing."""

    def __init__(self, work: NetworkWork, device: str) -> None:
        exact_fp32(device)
        self._work = work
        self._device = device
        self._glance = empty(work.glance, num_segments=work.glance_segments)
        self._focus = empty(work.focus, num_segments=work.focus_segments)

    def __call__(self, which: str, precision: str, compile: str, rows: int) -> Callable[[], object]:
        """A function that runs one pass of `glance` or `focus` over so many images."""
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


class NetworkTrial:
    """Times both networks on a device and remembers what it has timed. `make_pass` is NetworkPasses' call."""

    def __init__(
        self, work: NetworkWork, device: str, make_pass: Callable[..., Callable[[], object]] | None = None
    ) -> None:
        self._work = work
        self._device = device
        self._make_pass = make_pass or NetworkPasses(work, device)
        self._known: dict[tuple[str, str, str, int], float] = {}
        self.glance_macs = network_macs(work.glance, work.glance_px)
        self.focus_macs = network_macs(work.focus, work.patch_px)

    def wake(self) -> None:
        """Makes a GPU's context and loads its libraries."""
        if self._device == "cuda":
            for which, segments in (("glance", self._work.glance_segments), ("focus", self._work.focus_segments)):
                self._make_pass(which, "fp32", "off", whole_clips(1, segments))()
            torch.cuda.synchronize()

    def glance_s(self, precision: str, compile: str, rows: int) -> float:
        return self._time("glance", precision, compile, whole_clips(rows, self._work.glance_segments))

    def focus_s(self, precision: str, compile: str, rows: int) -> float:
        return self._time("focus", precision, compile, whole_clips(rows, self._work.focus_segments))

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
            run = self._make_pass(which, precision, compile, rows)
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


@dataclass(slots=True)
class Countdown:
    """Counts down the time for trying further ways, and notes whether it ran out while something was left to try."""

    clock: Clock
    limit_s: float
    is_cut_short: bool = False
    ends_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.ends_s = self.clock() + self.limit_s

    def has_time(self) -> bool:
        """Whether there is time left; to be called only where something is left to try."""
        is_late = self.clock() >= self.ends_s
        self.is_cut_short = self.is_cut_short or is_late
        return not is_late


@dataclass(slots=True)
class _Search:
    """A search for the best way, and the seconds per clip of the ways that were measured."""

    trial: Trial
    device: str
    countdown: Countdown
    seconds: dict[str, float] = field(default_factory=dict)

    def way(self, rule: Choice, precision: str, compile: str) -> tuple[str, str]:
        """The precision and whether to compile, of what is `auto` by measuring."""
        chosen = rule.precision
        if precision == "auto" and can_compile(self.device, torch.bfloat16):
            full = self._clip_s("fp32", self._best_compile("fp32", compile))
            half = self._clip_s("bf16", self._best_compile("bf16", compile))
            chosen = "bf16" if half * WORTH_ROUNDING <= full else "fp32"
        compiled = self._best_compile(chosen, compile)
        if compile == "auto" and compiled == "on" and self.countdown.has_time():
            compiled_s = self.seconds.get(f"{chosen} compiled") or self._clip_s(chosen, "on")
            if self._clip_s(chosen, "off") < WORTH_PLAIN * compiled_s:
                compiled = "off"
        return chosen, compiled

    def glance_batch(self, way: tuple[str, str]) -> int | None:
        """The best size of a pass over views, small ones preferred: a larger one of the same speed takes more memory.

        None where there was no time to find it."""
        if not self.countdown.has_time():
            return None
        sizes = _sizes(self.device, self.trial.glance_macs)
        return best_size(sizes, lambda rows: self.trial.glance_s(*way, rows), self.countdown.has_time)

    def focus_batch(self, way: tuple[str, str]) -> int | None:
        """The best size of a pass over patches, large ones preferred: what several clips share in a pass they also
        share in calls and in being classified. None where there was no time to find it."""
        if not self.countdown.has_time():
            return None
        sizes = _sizes(self.device, self.trial.focus_macs)[::-1]
        return best_size(sizes, lambda rows: self.trial.focus_s(*way, rows), self.countdown.has_time)

    def _best_compile(self, precision: str, compile: str) -> str:
        return ("on" if can_compile(self.device, DTYPES[precision]) else "off") if compile == "auto" else compile

    def _clip_s(self, precision: str, compile: str) -> float:
        seconds = self.trial.clip_s(precision, compile)
        self.seconds[f"{precision}{' compiled' if compile == 'on' else ''}"] = seconds
        return seconds


def measure(
    work: NetworkWork,
    rule: Choice,
    *,
    device: str,
    threads: int,
    precision: str,
    compile: str,
    limit_s: float,
    make_trial: Callable[[NetworkWork, str], Trial] = NetworkTrial,
    clock: Clock = time.monotonic,
) -> Choice:
    """The best way that is found within the limit; what there is no time to measure goes by `rule`."""
    with held_threads(threads):
        trial = make_trial(work, device)
        trial.wake()
        search = _Search(trial, device, Countdown(clock, limit_s))
        way = search.way(rule, precision, compile)
        glance_batch = search.glance_batch(way) or rule.glance_batch
        focus_batch = search.focus_batch(way) or rule.focus_batch
    if device == "cuda":
        # Who measures is the driver, which lives as long as the run. What torch keeps of the GPU's memory would be
        # missing to the workers in their processes.
        torch.cuda.empty_cache()
    return Choice(
        precision=way[0],
        compile=way[1],
        glance_batch=whole_clips(glance_batch, work.glance_segments),
        focus_batch=whole_clips(focus_batch, work.focus_segments),
        how=CUT_SHORT if search.countdown.is_cut_short else "measured",
        seconds={name: round(s, 6) for name, s in search.seconds.items()},
    )


@contextlib.contextmanager
def held_threads(count: int) -> Iterator[None]:
    """Sets how many threads torch has, and puts the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows(wanted: int, macs: int, most_macs: float) -> int:
    return max(1, min(wanted, int(most_macs // macs)))


def _sizes(device: str, macs: int) -> tuple[int, ...]:
    """The sizes of passes that are worth trying, for images that take so many MACs."""
    sizes = _SIZES[device]
    most = _rows(sizes[-1], macs, _BATCH_MACS[device])
    return tuple(size for size in sizes if size <= most) or sizes[:1]


def best_size(
    sizes: Sequence[int], time_per_row: Callable[[int], float], has_time: Callable[[], bool]
) -> int | None:
    """The first size that no later one betters by enough; `sizes` are in the order in which they are preferred.

    They are tried until two in a row are no better; None where time was up before."""
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
