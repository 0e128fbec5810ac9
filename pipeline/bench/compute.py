"""`bench compute`: how much of what the machine can multiply the networks make use of.

The limit is one product of square matrices in the same precision on the same threads, measured in turn with the
networks. What is timed of these is the whole operator, from pixels in an array to features in an array.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from operators.errors import ConfigError
from operators.networks.backbones import build
from operators.networks.compiled import CudaGraphs, can_compile
from operators.networks.cost import network_macs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.networks.network import Network
from operators.networks.tensors import DTYPES, Upload, ready
from operators.records import FrameBatch, PatchBatch, Source, SourceFacts, Window
from pipeline.bench.alone import label_pieces, workers_of
from pipeline.bench.figures import Figure, Report, environment, measured, ratio, short, take_turns
from pipeline.config import Config
from pipeline.plan.placement import place, this_machine
from pipeline.plan.resolve import Plan, network_work, resolve
from pipeline.plan.tuning import Choice, Work, by_rule, choose, held_threads
from pipeline.steering.scheduler import SOURCE

Say = Callable[[str], None]
PATCHES_PX = (96, 128, 160, 192)
NAMES = {"resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2"}
PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""On a GPU the smaller product is over before it is under way."""
FOCUS_GOAL, GLANCE_GOAL, OPERATOR_GOAL, PIPELINE_GOAL = 0.90, 0.60, 0.85, 0.85
"""The first two are of a CPU, the others of a GPU."""
PASSES = {"cpu": 1, "cuda": 8}
"""Of a bare network in one sample: on a GPU one is over too soon to be timed."""
SMALL_PX = 32


@dataclass(frozen=True, kw_only=True)
class Side:
    """Something that is timed, and the multiplications in it."""

    run: Callable[[], object]
    macs: float
    images: int = 1


class Lab:
    """Networks with fixed random weights, and operators of them in any precision and size."""

    def __init__(self, work: Work, *, device: str, threads: int, frames: int) -> None:
        """`frames`: that the glance looks at; whole clips where frames of a clip share what they see."""
        self.work = work
        self.device = device
        self.threads = threads
        self.frames = _whole(frames, work.glance_segments)
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
            **self._options(precision, compiled=compiled, batch=_whole(batch, segments)),
        )
        rows = _whole(max(self.frames, batch), segments)
        views = pixels(rows, px)
        return Side(run=lambda: glancer(views), macs=rows * network_macs(name, px), images=rows)

    def focus(self, precision: str, *, compiled: bool, batch: int, px: int | None = None, small: bool = False) -> Side:
        name, own_px, segments = ("small_focus", SMALL_PX, 0) if small else self._focus_form
        px, batch = px or own_px, _whole(batch, segments)
        network = self._network(name, segments)
        focuser = Focuser(network=network, **self._options(precision, compiled=compiled, batch=batch))
        rows = _whole(max(self.frames, batch), segments)
        patches = PatchBatch(pixels=pixels(rows, px))
        return Side(run=lambda: focuser(patches), macs=rows * network_macs(name, px), images=rows)

    def standalone(self, precision: str, *, batch: int, glance: bool = False) -> Side:
        """A network alone: folded, channels last, on a batch that is on the device already, several passes on end."""
        name, px, segments = self._glance_form if glance else self._focus_form
        batch, passes = _whole(batch, segments), PASSES[self.device]
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


def _whole(rows: int, segments: int) -> int:
    """At least so many rows, in whole clips of `segments`; 0 where every row is for itself."""
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


def bench_compute(
    *,
    say: Say,
    work: Work,
    full_px: int,
    config: Config | None = None,
    cache: Path | None = None,
    quick: bool = False,
    rounds: int = 9,
    minutes: float = 7.0,
    threads: int | None = None,
    device: str | None = None,
) -> Report:
    """`threads`: of the networks and of the product; as many as the pipeline gives its focus worker if not said.
    `full_px`: of the whole view, with which patches are compared. `config`: of the model whose stages are driven, with
    precision, compilation, device, threads and batch size where they are not to be chosen here. `cache`: folder of
    generated files."""
    asked = config or Config()
    device = device or asked.compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here: --device cpu")
    cores = asked.run.threads or this_machine().num_cores
    threads = threads or place(this_machine(), device=device, threads=asked.run.threads).focus_threads
    where = environment()
    if quick:
        rounds, minutes = 2, 0.5
    with held_threads(threads):
        choice = chosen(work, asked, device=device, threads=threads, quick=quick)
        say(choice.line())
        lab = Lab(work, device=device, threads=threads, frames=4 if quick else work.glances)
        figures = _shares(lab, choice, rounds, minutes * 60 * 0.35, say)
        if not quick:
            figures += _sizes(lab, choice, full_px, rounds, minutes * 60 * 0.2, say)
            figures += _batches(lab, choice, rounds, minutes * 60 * 0.1, say)
        figures += _small(lab, choice, rounds, minutes * 60 * 0.05, say)
        if device == "cuda":
            figures += _standalone(lab, choice, rounds, minutes * 60 * 0.1, say)
        if config is not None:
            figures += _pipeline_share(lab, choice, config, rounds, minutes * 60 * 0.1, say)
    if device == "cpu" and cores > threads and not quick:
        with held_threads(cores):
            whole = Lab(work, device=device, threads=cores, frames=work.glances)
            figures += _whole_machine(whole, choice, rounds, minutes * 60 * 0.1, say)
    notes = [choice.line()]
    try:
        from pipeline.bench.precision import bf16_figures
    except ImportError as exc:
        notes.append(f"labels in bf16 were not compared, which needs PyAV and OpenCV: {exc}")
    else:
        try:
            figures += bf16_figures(device=device, cache=cache, say=say, quick=quick)
        except Exception as exc:
            # What was measured before is worth keeping.
            notes.append(f"labels in bf16 were not compared: {type(exc).__name__}: {exc}")
    if device == "cpu" and threads == 1:
        notes.append("Seconds are the processor's: on one thread, others on the machine take nothing of them.")
    return Report(
        what="compute",
        headline=_headline(figures, work, choice, threads, device),
        figures=tuple(figures),
        environment=where,
        settings={
            "work": asdict(work), "full_px": full_px,
            "rounds": rounds, "minutes": minutes, "quick": quick, "threads": threads, "device": device,
            "precision": choice.precision, "compile": choice.compile,
            "glance_batch": choice.glance_batch, "focus_batch": choice.focus_batch,
        },
        notes=tuple(notes),
    )  # fmt: skip


def chosen(work: Work, asked: Config, *, device: str, threads: int, quick: bool) -> Choice:
    """How the networks are run: as asked for, and the rest by measuring."""
    how: dict[str, Any] = {"device": device, "precision": asked.compute.precision, "compile": asked.compute.compile}
    if quick:
        choice = replace(by_rule(work, **how), glance_batch=4, focus_batch=8)
    else:
        choice = choose(work, threads=threads, **how)
    return replace(choice, focus_batch=asked.focus.batch_size or choice.focus_batch)


def _headline(figures: Iterable[Figure], work: Work, choice: Choice, threads: int, device: str) -> str:
    by_name = {figure.name: figure for figure in figures}
    focus, glance = by_name["compute.focus_share_of_gemm"], by_name["compute.glance_share_of_gemm"]
    on = "a GPU" if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"
    line = (
        f"in {choice.precision} on {on} the focus network runs at {focus.value:.0%} and the glance network at "
        f"{glance.value:.0%} of the machine's matrix product, {short(by_name['compute.gemm'].value)} GMAC/s"
    )
    if "compute.full_vs_patches" in by_name:
        line += (
            f"; glances and {work.patch_px} px patches take 1/{short(by_name['compute.full_vs_patches'].value)} "
            "of focusing on full frames"
        )
    return line


def _turns(lab: Lab, sides: dict[str, Side], rounds: int, budget_s: float, say: Say) -> dict[str, list[float]]:
    """Warming up is part of the budget."""
    begun_s = time.monotonic()
    # On a GPU a shape is recorded when it comes for the third time, and recording gives back all memory that was kept
    # for what comes next, pinned memory too: all sides are recorded first, and then run once more.
    for _ in range(CudaGraphs.RECORDED_AT + 1 if lab.device == "cuda" else 1):
        for side in sides.values():
            side.run()
    timed = {name: lab.seconds(side) for name, side in sides.items()}
    left_s = budget_s - (time.monotonic() - begun_s)
    return take_turns(timed, rounds=rounds, budget_s=left_s, say=say)


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

    def about(network: str, precision: str) -> str:
        images = sides[f"{precision} {network} plain"].images
        if network == "focus":
            return f"{_focus_name(lab)} on {images} patches of {lab.work.patch_px} px"
        return f"{NAMES.get(lab.work.glance, lab.work.glance)} on {images} views of {lab.work.glance_px} px"

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
            told = f"{about(network, precision)}, {precision}, {best}"
            pair = (sides[key], sides[product], took[key], took[product])
            # A GPU's product is no yardstick for these: its goals are shares of the networks alone.
            is_goal = precision == choice.precision and lab.device == "cpu"
            figures.append(
                _share(f"compute.{network}_share_of_gemm{mark}", *pair, goal=goal if is_goal else None, about=told)
            )
            figures.append(_rate(f"compute.{network}_rate{mark}", sides[key], took[key], limit=gemm.value, about=told))
            if len(ways) == 2:
                plain = took[f"{precision} {network} plain"]
                compiled = took[f"{precision} {network} compiled"]
                told = f"{about(network, precision)}, {precision}: layer by layer over compiled"
                figures.append(ratio(f"compute.{network}_compiled_vs_plain{mark}", plain, compiled, about=told))
    if {"fp32", "bf16"} <= set(precisions):
        for network in ("focus", "glance"):
            full, half = (
                [s / sides[f"{precision} {network} {best}"].images for s in took[f"{precision} {network} {best}"]]
                for precision in ("fp32", "bf16")
            )
            told = f"{about(network, 'bf16')}: fp32 over bf16"
            figures.append(ratio(f"compute.{network}_bf16_vs_fp32", full, half, about=told))
    return figures


def _focus_name(lab: Lab) -> str:
    return NAMES.get(lab.work.focus, lab.work.focus)


def _sizes(lab: Lab, choice: Choice, full_px: int, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """From the smallest patch to the whole frame, and what a clip costs with and without patches."""
    how: dict[str, Any] = {"compiled": choice.is_compiled}
    work = lab.work
    patches_px = sorted({*(px for px in PATCHES_PX if px < full_px), work.patch_px})
    sizes_px = sorted({*patches_px, full_px})
    sides = {"product": lab.product(choice.precision)}
    sides["glance"] = lab.glance(choice.precision, batch=choice.glance_batch, **how)
    for px in sizes_px:
        sides[str(px)] = lab.focus(choice.precision, batch=choice.focus_batch, px=px, **how)
    took = _turns(lab, sides, rounds, budget_s, say)
    per_image = {name: [s / sides[name].images for s in samples] for name, samples in took.items()}
    figures = []
    for px in sizes_px:
        side = sides[str(px)]
        about = f"{_focus_name(lab)} at {px} px, {choice.precision}, {side.images} at a time"
        figures.append(
            measured(f"compute.focus_{px}_ms", [s * 1000 for s in per_image[str(px)]], unit="ms/patch", about=about)
        )
        pair = (side, sides["product"], took[str(px)], took["product"])
        figures.append(_share(f"compute.focus_{px}_share_of_gemm", *pair, about=about))
    full = [work.patches * f for f in per_image[str(full_px)]]
    for px in patches_px:
        clip = [
            work.glances * g + work.patches * f for g, f in zip(per_image["glance"], per_image[str(px)], strict=True)
        ]
        mark = "" if px == work.patch_px else f"_{px}"
        about = f"{work.patches} full frames in focus over {work.glances} glances and as many patches of {px} px"
        figures.append(ratio(f"compute.full_vs_patches{mark}", full, clip, about=about))
        if px == work.patch_px:
            figures.append(measured("compute.clip_s", clip, unit="s/clip", about=f"glances and patches of {px} px"))
            figures.append(measured("compute.full_clip_s", full, unit="s/clip", about=f"{work.patches} full frames"))
    return figures


def _batches(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    sizes: tuple[int, ...] = (1, 4, 8, 16, 32, 64) if lab.device == "cpu" else (1, 16, 64, 128, 256)
    # Where frames share what they see, a pass is of whole clips.
    unit = max(lab.work.glance_segments, lab.work.focus_segments)
    if unit:
        sizes = tuple(unit * clips for clips in (1, 2, 4, 8))
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
    ]


def _small(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """The networks that ship. They are too small for the product to be their limit; it shows by how much."""
    how: dict[str, Any] = {"compiled": choice.is_compiled, "batch": choice.focus_batch, "small": True}
    sides = {
        "product": lab.product(choice.precision),
        "glance": lab.glance(choice.precision, **how),
        "focus": lab.focus(choice.precision, **how),
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
    with fastest_convolutions():
        took = _turns(lab, sides, rounds, budget_s, say)
    per_image = {name: [s / sides[name].images for s in samples] for name, samples in took.items()}
    return [
        ratio(
            "compute.operator_share_of_standalone", per_image["standalone"], per_image["operator"],
            unit="of the rate", limit=1.0, goal=OPERATOR_GOAL,
            about=f"{_focus_name(lab)} on {batch} patches of {lab.work.patch_px} px",
        )
    ]  # fmt: skip


def _pipeline_share(lab: Lab, choice: Choice, config: Config, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """The stream and the focus worker, as a run makes them, against both networks alone: what is lost is what it takes
    to decide, to cut patches out and to classify. On a GPU "alone" means without the way there and back, too."""
    plan = _planned(config, choice, lab.device)
    # The model's own, which need not be what the other figures are of.
    work = network_work(plan.config, plan.header)
    bare = Lab(work, device=lab.device, threads=lab.threads, frames=work.glances)
    stages = _stages(plan, work, lab.threads)
    sides = {"stages": stages}
    if lab.device == "cuda":
        sides["glance"] = bare.standalone(choice.precision, batch=choice.glance_batch, glance=True)
        sides["focus"] = bare.standalone(choice.precision, batch=choice.focus_batch)
    else:
        sides["glance"] = bare.glance(choice.precision, compiled=choice.is_compiled, batch=choice.glance_batch)
        sides["focus"] = bare.focus(choice.precision, compiled=choice.is_compiled, batch=choice.focus_batch)
    with fastest_convolutions():
        took = _turns(lab, sides, rounds, budget_s, say)
    per_image = {name: [s / sides[name].images for s in samples] for name, samples in took.items()}
    alone = [
        work.glances * glance + work.patches * focus
        for glance, focus in zip(per_image["glance"], per_image["focus"], strict=True)
    ]
    about = (
        f"{stages.images} clips of {work.glances} glances and {work.patches} patches from frames to labels, in one "
        f"process; alone: {choice.glance_batch} views and {choice.focus_batch} patches at a time"
    )
    return [
        ratio(
            "compute.pipeline_share_of_standalone", alone, per_image["stages"],
            unit="of the rate", limit=1.0, goal=PIPELINE_GOAL if lab.device == "cuda" else None, about=about,
        )
    ]  # fmt: skip


def _planned(config: Config, choice: Choice, device: str) -> Plan:
    """A run that does what was chosen."""
    how: dict[str, Any] = {
        "compute.device": device,
        "compute.precision": choice.precision,
        "compute.compile": choice.compile,
        "focus.batch_size": choice.focus_batch,
    }
    if config.model.checkpoint is None:
        how["model.untrained"] = True
    return replace(resolve(config.replaced(how), this_machine()), tuned=choice)


def _stages(plan: Plan, work: Work, threads: int) -> Side:
    """Clips of noise from their frames to their labels; images are clips here."""
    workers = workers_of([spec for spec in plan.worker_specs() if spec.stage != SOURCE], num_threads=threads)
    # A run's batcher fills passes with patches of several calls; here a call brings enough of them.
    together = max(plan.placement.clips_per_call, -(-plan.rows_per_batch // work.patches))
    view_px = plan.config.view.crop_px
    pieces = [(noise(f"{n:032x}", work, view_px, seed=n), (f"{n:032x}",)) for n in range(2 * together)]
    sizes = {"clips_per_call": together, "rows_per_pass": plan.rows_per_batch}

    def ask(stage: str, method: str, *arguments: Any) -> Any:
        return getattr(workers[stage], method)(*arguments)

    def run() -> object:
        return list(label_pieces(ask, pieces, **sizes))

    return Side(run=run, macs=0.0, images=len(pieces))


def noise(clip: str, work: Work, px: int, *, seed: int) -> FrameBatch:
    """The frames of one clip, as a source worker would hand them over."""
    count = work.glances
    views = np.random.default_rng(seed).integers(0, 256, (count, px, px, 3), dtype=np.uint8)
    rows = np.arange(count)
    focus_rows = rows
    if work.focus_segments and work.patches != count:
        focus_rows = np.linspace(0, count - 1, work.patches).round().astype(np.int64)
    window = Window(clip_id=clip, start_s=0.0, end_s=1.0, glance_rows=rows, candidate_rows=focus_rows)
    return FrameBatch(
        source=Source(source_id=clip, uri=f"/noise/{clip}", video_id=clip),
        pixels=views,
        pts_s=np.linspace(0.0, 1.0, count, endpoint=False),
        frame_index=rows,
        view_yxhw=(0.0, 0.0, 1.0, 1.0),
        facts=SourceFacts(width=px, height=px, num_frames=count),
        windows=(window,),
    )


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
