"""`bench compute`: how much of what the machine can multiply the networks make use of.

The limit is one product of square matrices in the same precision on the same threads, measured in turn with the
networks. What is timed of these is the whole operator, from pixels in an array to features in an array.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from operators.backbones import build
from operators.compiled import can_compile
from operators.cost import network_macs
from operators.focus import Focuser
from operators.glance import Glancer
from operators.network import Network
from operators.records import PatchBatch
from operators.tensors import Upload, to_dtype
from pipeline.bench.figures import Figure, Report, environment, measured, ratio, short, take_turns
from pipeline.placement import place, this_machine
from pipeline.tuning import DTYPES, Choice, Work, by_rule, choose, held_threads

Say = Callable[[str], None]
NUM_FRAMES = 16
FULL_PX = 224
PATCHES_PX = (96, 128, 160, 192)
PATCH_PX = 128
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""On a GPU the smaller product is over before it is under way."""
FOCUS_GOAL, GLANCE_GOAL, OPERATOR_GOAL = 0.90, 0.60, 0.85
SMALL_PX = 32


@dataclass(frozen=True, kw_only=True)
class Side:
    """Something that is timed, and the multiplications in it."""

    run: Callable[[], object]
    macs: float
    images: int = 1


class Lab:
    """Networks with fixed random weights, and operators of them in any precision and size."""

    def __init__(self, *, device: str, threads: int, frames: int) -> None:
        self.device = device
        self.threads = threads
        self.frames = frames
        self._networks: dict[str, Network] = {}

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
        return Side(run=lambda: a @ b, macs=side**3)

    def glance(self, precision: str, *, compiled: bool, batch: int, name: str = "mobilenet_v2", px: int = 224) -> Side:
        glancer = Glancer(
            network=self._network(name), size_px=px, **self._options(precision, compiled=compiled, batch=batch)
        )
        views = pixels(self.frames, px)
        return Side(run=lambda: glancer(views), macs=self.frames * network_macs(name, px), images=self.frames)

    def focus(self, precision: str, *, compiled: bool, batch: int, name: str = "resnet50", px: int = PATCH_PX) -> Side:
        focuser = Focuser(network=self._network(name), **self._options(precision, compiled=compiled, batch=batch))
        rows = max(self.frames, batch)
        patches = PatchBatch(pixels=pixels(rows, px), clip_ids=("clip",) * rows, steps=np.arange(rows))
        return Side(run=lambda: focuser(patches), macs=rows * network_macs(name, px), images=rows)

    def standalone(self, precision: str, *, batch: int, name: str = "resnet50", px: int = PATCH_PX) -> Side:
        """The network alone, layer by layer on a batch that is on the device already."""
        network = to_dtype(self._network(name).to(self.device), DTYPES[precision])
        x = Upload(self.device)(pixels(batch, px)).to(DTYPES[precision])

        @torch.inference_mode()
        def run() -> object:
            return network(x)

        return Side(run=run, macs=batch * network_macs(name, px), images=batch)

    def _network(self, name: str) -> Network:
        if name not in self._networks:
            torch.manual_seed(0)
            self._networks[name] = build(name).eval().requires_grad_(False)
        return copy.deepcopy(self._networks[name])

    def _options(self, precision: str, *, compiled: bool, batch: int) -> dict[str, Any]:
        return {"device": self.device, "dtype": DTYPES[precision], "compiled": compiled, "max_batch": batch}


def pixels(rows: int, px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, px, px, 3), dtype=np.uint8)


def bench_compute(
    *,
    say: Say,
    quick: bool = False,
    rounds: int = 9,
    minutes: float = 7.0,
    threads: int | None = None,
    device: str | None = None,
) -> Report:
    """`threads`: of the networks and of the product; as many as the pipeline gives its focus worker if not said."""
    machine = this_machine()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = threads or place(machine, device=device).focus_threads
    where = environment()
    if quick:
        rounds, minutes = 2, 0.5
    work = Work(glance="mobilenet_v2", glance_px=FULL_PX, focus="resnet50", patch_px=PATCH_PX)
    with held_threads(threads):
        if quick:
            choice = replace(by_rule(work, device=device), glance_batch=4, focus_batch=8)
        else:
            choice = choose(work, device=device, threads=threads)
        say(choice.line())
        lab = Lab(device=device, threads=threads, frames=4 if quick else NUM_FRAMES)
        figures = _shares(lab, choice, rounds, minutes * 60 * 0.4, say)
        if not quick:
            figures += _sizes(lab, choice, rounds, minutes * 60 * 0.25, say)
            figures += _batches(lab, choice, rounds, minutes * 60 * 0.15, say)
        figures += _small(lab, choice, rounds, minutes * 60 * 0.05, say)
        if device == "cuda":
            figures += _standalone(lab, choice, rounds, minutes * 60 * 0.1, say)
    if device == "cpu" and machine.num_cores > threads and not quick:
        with held_threads(machine.num_cores):
            whole = Lab(device=device, threads=machine.num_cores, frames=NUM_FRAMES)
            figures += _whole_machine(whole, choice, rounds, minutes * 60 * 0.1, say)
    notes = [choice.line()]
    if device == "cpu" and threads == 1:
        notes.append("Seconds are the processor's: on one thread, others on the machine take nothing of them.")
    return Report(
        what="compute",
        headline=_headline(figures, choice, threads, device),
        figures=tuple(figures),
        environment=where,
        settings={
            "rounds": rounds, "minutes": minutes, "quick": quick, "threads": threads, "device": device,
            "precision": choice.precision, "compile": choice.compile,
            "glance_batch": choice.glance_batch, "focus_batch": choice.focus_batch,
        },
        notes=tuple(notes),
    )  # fmt: skip


def _headline(figures: Iterable[Figure], choice: Choice, threads: int, device: str) -> str:
    by_name = {figure.name: figure for figure in figures}
    focus, glance = by_name["compute.focus_share_of_gemm"], by_name["compute.glance_share_of_gemm"]
    on = "a GPU" if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"
    line = (
        f"in {choice.precision} on {on} the focus network runs at {focus.value:.0%} and the glance network at "
        f"{glance.value:.0%} of the machine's matrix product, {short(by_name['compute.gemm'].value)} GMAC/s"
    )
    if "compute.full_vs_patches" in by_name:
        line += (
            f"; glances and {PATCH_PX} px patches take 1/{short(by_name['compute.full_vs_patches'].value)} "
            "of focusing on full frames"
        )
    return line


def _turns(lab: Lab, sides: dict[str, Side], rounds: int, budget_s: float, say: Say) -> dict[str, list[float]]:
    for side in sides.values():
        side.run()
    timed = {name: lab.seconds(side) for name, side in sides.items()}
    return take_turns(timed, rounds=rounds, budget_s=budget_s, say=say)


def _share(
    name: str, side: Side, product: Side, took: Sequence[float], product_took: Sequence[float], **form: Any
) -> Figure:
    """The rate of a side over that of the product, round by round."""
    scale = side.macs / product.macs
    return ratio(name, [s * scale for s in product_took], took, unit="of the product", limit=1.0, **form)


def _rate(name: str, side: Side, took: Sequence[float], **form: Any) -> Figure:
    return measured(name, [side.macs / s / 1e9 for s in took], unit="GMAC/s", **form)


def _shares(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """Both networks in every precision that there is, compiled and layer by layer, against the product."""
    precisions = [choice.precision]
    others = [name for name in ("fp32", "bf16") if name != choice.precision]
    precisions += [name for name in others if can_compile(lab.device, DTYPES[name])]
    sides: dict[str, Side] = {}
    for precision in precisions:
        sides[f"{precision} product"] = lab.product(precision)
        # Maps of twice the bytes: half as many views keep them where they were fast.
        is_wider = precision == "fp32" and choice.precision != "fp32"
        glance_batch = max(1, choice.glance_batch // 2) if is_wider else choice.glance_batch
        for way in ("compiled", "plain"):
            if way == "compiled" and not can_compile(lab.device, DTYPES[precision]):
                continue
            options: dict[str, Any] = {"compiled": way == "compiled"}
            sides[f"{precision} glance {way}"] = lab.glance(precision, batch=glance_batch, **options)
            sides[f"{precision} focus {way}"] = lab.focus(precision, batch=choice.focus_batch, **options)
    took = _turns(lab, sides, rounds, budget_s, say)
    figures = []
    about = {
        "focus": f"ResNet-50 on {sides[f'{choice.precision} focus plain'].images} patches of {PATCH_PX} px",
        "glance": f"MobileNetV2 on {lab.frames} views of {FULL_PX} px",
    }
    side_px = PRODUCT_SIDE[lab.device]
    for precision in precisions:
        product, mark = f"{precision} product", "" if precision == choice.precision else f".{precision}"
        form = {"about": f"{side_px}^3 in {precision}, {lab.threads} thread(s)"}
        gemm = _rate(f"compute.gemm{mark}", sides[product], took[product], **form)
        figures.append(gemm)
        ways = [way for way in ("compiled", "plain") if f"{precision} focus {way}" in sides]
        best = "compiled" if choice.is_compiled and "compiled" in ways else "plain"
        for network, goal in (("focus", FOCUS_GOAL), ("glance", GLANCE_GOAL)):
            key = f"{precision} {network} {best}"
            told = f"{about[network]}, {precision}, {best}"
            pair = (sides[key], sides[product], took[key], took[product])
            is_goal = precision == choice.precision
            figures.append(
                _share(f"compute.{network}_share_of_gemm{mark}", *pair, goal=goal if is_goal else None, about=told)
            )
            figures.append(
                _rate(f"compute.{network}_rate{mark}", sides[key], took[key], limit=gemm.value, about=told)
            )
            if len(ways) == 2:
                plain = took[f"{precision} {network} plain"]
                compiled = took[f"{precision} {network} compiled"]
                told = f"{about[network]}, {precision}: layer by layer over compiled"
                figures.append(ratio(f"compute.{network}_compiled_vs_plain{mark}", plain, compiled, about=told))
    if {"fp32", "bf16"} <= set(precisions):
        for network in ("focus", "glance"):
            full, half = took[f"fp32 {network} {best}"], took[f"bf16 {network} {best}"]
            told = f"{about[network]}: fp32 over bf16"
            figures.append(ratio(f"compute.{network}_bf16_vs_fp32", full, half, about=told))
    return figures


def _sizes(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """From the smallest patch to the whole frame, and what a clip costs with and without patches."""
    how: dict[str, Any] = {"compiled": choice.is_compiled}
    sides = {"product": lab.product(choice.precision)}
    sides["glance"] = lab.glance(choice.precision, batch=choice.glance_batch, **how)
    for px in (*PATCHES_PX, FULL_PX):
        sides[str(px)] = lab.focus(choice.precision, batch=choice.focus_batch, px=px, **how)
    took = _turns(lab, sides, rounds, budget_s, say)
    per_image = {name: [s / sides[name].images for s in samples] for name, samples in took.items()}
    figures = []
    for px in (*PATCHES_PX, FULL_PX):
        side, about = sides[str(px)], f"ResNet-50 at {px} px, {choice.precision}, {sides[str(px)].images} at a time"
        figures.append(
            measured(f"compute.focus_{px}_ms", [s * 1000 for s in per_image[str(px)]], unit="ms/patch", about=about)
        )
        pair = (side, sides["product"], took[str(px)], took["product"])
        figures.append(_share(f"compute.focus_{px}_share_of_gemm", *pair, about=about))
    for px in PATCHES_PX:
        clip = [NUM_FRAMES * (g + f) for g, f in zip(per_image["glance"], per_image[str(px)], strict=True)]
        full = [NUM_FRAMES * f for f in per_image[str(FULL_PX)]]
        mark = "" if px == PATCH_PX else f"_{px}"
        about = f"{NUM_FRAMES} full frames in focus over as many glances and patches of {px} px"
        figures.append(ratio(f"compute.full_vs_patches{mark}", full, clip, about=about))
        if px == PATCH_PX:
            figures.append(measured("compute.clip_s", clip, unit="s/clip", about=f"glances and patches of {px} px"))
            figures.append(measured("compute.full_clip_s", full, unit="s/clip", about=f"{NUM_FRAMES} full frames"))
    return figures


def _batches(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    sizes = (1, 4, 8, 16, 32, 64) if lab.device == "cpu" else (1, 16, 64, 128, 256)
    how: dict[str, Any] = {"compiled": choice.is_compiled}
    sides: dict[str, Side] = {}
    for size in sizes:
        sides[f"glance_batch_{size}"] = lab.glance(choice.precision, batch=size, **how)
        sides[f"focus_batch_{size}"] = lab.focus(choice.precision, batch=size, **how)
    took = _turns(lab, sides, rounds, budget_s, say)
    return [
        measured(
            f"compute.{name}_ms",
            [s / sides[name].images * 1000 for s in took[name]],
            unit="ms/image",
            about=f"{choice.precision}, that many in a pass",
        )
        for name in sorted(sides, key=lambda name: (name.split("_")[0], int(name.split("_")[-1])))
        if name.startswith("focus") or int(name.split("_")[-1]) <= lab.frames
    ]


def _small(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """The networks that ship. They are too small for the product to be their limit; it shows by how much."""
    how: dict[str, Any] = {"compiled": choice.is_compiled, "batch": choice.focus_batch, "px": SMALL_PX}
    sides = {
        "product": lab.product(choice.precision),
        "glance": lab.glance(choice.precision, name="small_glance", **how),
        "focus": lab.focus(choice.precision, name="small_focus", **how),
    }
    took = _turns(lab, sides, rounds, budget_s, say)
    return [
        _share(
            f"compute.small_{name}_share_of_gemm",
            sides[name], sides["product"], took[name], took["product"],
            about=f"small_{name} on {sides[name].images} images of {SMALL_PX} px, {choice.precision}",
        )
        for name in ("focus", "glance")
    ]  # fmt: skip


def _standalone(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """The operator, copies to and from the device included, against the bare network on what is there already."""
    batch = choice.focus_batch
    sides = {
        "standalone": lab.standalone(choice.precision, batch=batch),
        "operator": lab.focus(choice.precision, compiled=choice.is_compiled, batch=batch),
    }
    took = _turns(lab, sides, rounds, budget_s, say)
    return [
        ratio(
            "compute.operator_share_of_standalone", took["standalone"], took["operator"],
            unit="of the rate", limit=1.0, goal=OPERATOR_GOAL, about=f"ResNet-50 on {batch} patches of {PATCH_PX} px",
        )
    ]  # fmt: skip


def _whole_machine(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """One process with all cores instead of one process per core: what threads that wait for each other cost."""
    how: dict[str, Any] = {"compiled": choice.is_compiled}
    sides = {
        "product": lab.product(choice.precision),
        "glance": lab.glance(choice.precision, batch=choice.glance_batch, **how),
        "focus": lab.focus(choice.precision, batch=choice.focus_batch, **how),
    }
    took = _turns(lab, sides, rounds, budget_s, say)
    about = f"{choice.precision}, {lab.threads} threads on wall time"
    return [
        _rate("compute.gemm.all_cores", sides["product"], took["product"], about=about),
        *(
            _share(
                f"compute.{name}_share_of_gemm.all_cores",
                sides[name], sides["product"], took[name], took["product"], about=about,
            )
            for name in ("focus", "glance")
        ),
    ]  # fmt: skip
