"""The networks of a preset and the matrix product, ready to be timed in any precision and size."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from operators.networks.backbones import build
from operators.networks.compiled import CudaGraphs
from operators.networks.cost import network_macs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.networks.network import Network
from operators.networks.tensors import DTYPES, Upload, ready
from operators.records import PatchBatch
from pipeline.bench.figures import Figure, measured, ratio
from pipeline.bench.turns import take_turns
from pipeline.plan.network_choice import NetworkWork

Say = Callable[[str], None]
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""The side of the matrices by device: on a GPU the smaller product is over before it is under way."""
PASSES = {"cpu": 1, "cuda": 8}
"""How often a bare network runs in one sample: on a GPU one pass is over too soon to be timed."""
SMALL_PX = 32


@dataclass(frozen=True, kw_only=True)
class Side:
    """Something that is timed, and the multiplications in it."""

    run: Callable[[], object]
    macs: float
    images: int = 1


class Lab:
    """Networks with fixed random weights, and operators of them in any precision and size."""

    def __init__(self, work: NetworkWork, *, device: str, threads: int, frames: int) -> None:
        """`frames`: how many frames the glance looks at; whole clips where frames of a clip share what they see."""
        self.work = work
        self.device = device
        self.threads = threads
        self.frames = whole_clips(frames, work.glance_segments)
        self._networks: dict[tuple[str, int], Network] = {}

    def seconds(self, side: Side) -> Callable[[], float]:
        # On one thread the processor's own seconds are the wall's, less what others on the machine take of them.
        clock = time.process_time if self.device == "cpu" and self.threads == 1 else time.perf_counter

        def run() -> float:
            begun_s = clock()
            side.run()
            if self.device == "cuda":
                torch.cuda.synchronize()
            return clock() - begun_s

        return run

    def product(self, precision: str) -> Side:
        side = PRODUCT_SIDE[self.device]
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(side, side, generator=generator).to(self.device, DTYPES[precision]) for _ in range(2))
        # Into memory that is there: 1 to 4 % faster than into new one. Operands fresh from a product before made no
        # difference (2 cores, AVX2, fp32, 12 to 26 pairs, 2026-11-21).
        out = torch.empty_like(a)
        return Side(run=lambda: torch.mm(a, b, out=out), macs=side**3)

    def glance(self, precision: str, *, compiled: bool, batch: int, small: bool = False) -> Side:
        name, px, segments = ("small_glance", SMALL_PX, 0) if small else self._glance_form
        glancer = Glancer(
            network=self._network(name, segments),
            size_px=px,
            **self._options(precision, compiled=compiled, batch=whole_clips(batch, segments)),
        )
        rows = whole_clips(max(self.frames, batch), segments)
        views = pixels(rows, px)
        return Side(run=lambda: glancer(views), macs=rows * network_macs(name, px), images=rows)

    def focus(self, precision: str, *, compiled: bool, batch: int, px: int | None = None, small: bool = False) -> Side:
        name, own_px, segments = ("small_focus", SMALL_PX, 0) if small else self._focus_form
        px, batch = px or own_px, whole_clips(batch, segments)
        network = self._network(name, segments)
        focuser = Focuser(network=network, **self._options(precision, compiled=compiled, batch=batch))
        rows = whole_clips(max(self.frames, batch), segments)
        patches = PatchBatch(pixels=pixels(rows, px))
        return Side(run=lambda: focuser(patches), macs=rows * network_macs(name, px), images=rows)

    def standalone(self, precision: str, *, batch: int, glance: bool = False) -> Side:
        """A network alone: folded, channels last, on a batch that is on the device already, several passes on end."""
        name, px, segments = self._glance_form if glance else self._focus_form
        batch, passes = whole_clips(batch, segments), PASSES[self.device]
        dtype = DTYPES[precision]
        network = ready(self._network(name, segments), device=self.device, dtype=dtype)
        x = Upload(self.device)(pixels(batch, px)).to(dtype)

        @torch.inference_mode()
        def run() -> None:
            for _ in range(passes):
                network(x)

        images = passes * batch
        return Side(run=run, macs=images * network_macs(name, px), images=images)

    @property
    def _glance_form(self) -> tuple[str, int, int]:
        return self.work.glance, self.work.glance_px, self.work.glance_segments

    @property
    def _focus_form(self) -> tuple[str, int, int]:
        return self.work.focus, self.work.patch_px, self.work.focus_segments

    def _network(self, name: str, segments: int) -> Network:
        if (name, segments) not in self._networks:
            torch.manual_seed(0)
            self._networks[name, segments] = build(name, num_segments=segments).eval().requires_grad_(False)
        return copy.deepcopy(self._networks[name, segments])

    def _options(self, precision: str, *, compiled: bool, batch: int) -> dict[str, Any]:
        return {"device": self.device, "dtype": DTYPES[precision], "compiled": compiled, "max_batch": batch}


def whole_clips(rows: int, segments: int) -> int:
    """At least `rows` rows in whole clips of `segments` rows; with 0 segments every row is for itself."""
    return -(-rows // segments) * segments if segments else rows


def pixels(rows: int, px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, px, px, 3), dtype=np.uint8)


@contextlib.contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Has cuDNN try its kernels and take the fastest, as one would for a batch of one shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def turns(lab: Lab, sides: dict[str, Side], rounds: int, budget_s: float, say: Say) -> dict[str, list[float]]:
    """Warms the sides up, which is part of the budget, and times them in turn."""
    begun_s = time.monotonic()
    # On a GPU a shape is recorded when it comes for the third time, and recording gives back all memory that was kept
    # for what comes next, pinned memory too: all sides are recorded first, and then run once more.
    for _ in range(CudaGraphs.RECORDED_AT + 1 if lab.device == "cuda" else 1):
        for side in sides.values():
            side.run()
    timed = {name: lab.seconds(side) for name, side in sides.items()}
    left_s = budget_s - (time.monotonic() - begun_s)
    return take_turns(timed, rounds=rounds, budget_s=left_s, say=say)


def share_of_product(
    name: str, side: Side, product: Side, took: Sequence[float], product_took: Sequence[float], **form: Any
) -> Figure:
    """The figure of a side's rate over that of the product, round by round."""
    scale = side.macs / product.macs
    return ratio(name, [s * scale for s in product_took], took, unit="of the product", limit=1.0, **form)


def rate(name: str, side: Side, took: Sequence[float], **form: Any) -> Figure:
    return measured(name, [side.macs / s / 1e9 for s in took], unit="GMAC/s", **form)
