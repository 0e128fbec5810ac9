"""The figures of the networks alone: against the matrix product, by size, by batch, and against their bare form."""

from __future__ import annotations

from typing import Any

from operators.networks.compiled import can_compile
from operators.networks.tensors import DTYPES
from pipeline.bench.figures import Figure, measured, ratio
from pipeline.bench.lab import (
    PRODUCT_SIDE,
    SMALL_PX,
    Lab,
    Say,
    Side,
    fastest_convolutions,
    rate,
    share_of_product,
    turns,
)
from pipeline.plan.network_choice import Choice

PATCHES_PX = (96, 128, 160, 192)
NAMES = {"resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2"}
FOCUS_GOAL, GLANCE_GOAL, OPERATOR_GOAL = 0.90, 0.60, 0.85
"""Goals of a CPU, of a CPU, and of a GPU."""


def shares(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """Both networks in every precision that there is, compiled and layer by layer, against the product."""
    sides: dict[str, Side] = {}
    others = [name for name in ("fp32", "bf16") if name != choice.precision]
    precisions = [choice.precision, *(name for name in others if can_compile(lab.device, DTYPES[name]))]
    for precision in precisions:
        sides |= _sides_of(lab, choice, precision)
    took = turns(lab, sides, rounds, budget_s, say)
    figures = []
    for precision in precisions:
        figures += _shares_of(lab, choice, precision, sides, took)
    if {"fp32", "bf16"} <= set(precisions):
        for network in ("focus", "glance"):
            keys = [f"{precision} {network} {_best(choice, precision, sides)}" for precision in ("fp32", "bf16")]
            full, half = ([s / sides[key].images for s in took[key]] for key in keys)
            about = f"{_on_images(lab, network, sides[keys[1]])}: the seconds in fp32 over those in bf16"
            figures.append(ratio(f"compute.{network}_bf16_vs_fp32", full, half, about=about))
    return figures


def _sides_of(lab: Lab, choice: Choice, precision: str) -> dict[str, Side]:
    """The product and both networks in one precision, layer by layer and, where there are kernels for it, compiled."""
    sides = {f"{precision} product": lab.product(precision)}
    # Maps of twice the bytes: half as many views keep them where they were fast.
    is_wider = precision == "fp32" and choice.precision != "fp32"
    glance_batch = max(1, choice.glance_batch // 2) if is_wider else choice.glance_batch
    for way in ("compiled", "plain"):
        if way == "compiled" and not can_compile(lab.device, DTYPES[precision]):
            continue
        options: dict[str, Any] = {"compiled": way == "compiled"}
        sides[f"{precision} glance {way}"] = lab.glance(precision, batch=glance_batch, **options)
        sides[f"{precision} focus {way}"] = lab.focus(precision, batch=choice.focus_batch, **options)
    return sides


def _shares_of(
    lab: Lab, choice: Choice, precision: str, sides: dict[str, Side], took: dict[str, list[float]]
) -> list[Figure]:
    """The product's rate in one precision, and for each network its share of it, its rate, and what compiling gains."""
    product, mark = f"{precision} product", "" if precision == choice.precision else f".{precision}"
    about = f"{PRODUCT_SIDE[lab.device]}^3 in {precision} on {lab.threads} thread(s)"
    gemm = rate(f"compute.gemm{mark}", sides[product], took[product], about=about)
    figures, best = [gemm], _best(choice, precision, sides)
    for network, goal in (("focus", FOCUS_GOAL), ("glance", GLANCE_GOAL)):
        key, plain, compiled = (f"{precision} {network} {way}" for way in (best, "plain", "compiled"))
        images = f"{_on_images(lab, network, sides[plain])} in {precision}"
        about = f"{images}, {best}"
        pair = (sides[key], sides[product], took[key], took[product])
        # A GPU's product is no yardstick for these: its goals are shares of the networks alone.
        is_goal = precision == choice.precision and lab.device == "cpu"
        name = f"compute.{network}_share_of_gemm{mark}"
        figures.append(share_of_product(name, *pair, goal=goal if is_goal else None, about=about))
        figures.append(rate(f"compute.{network}_rate{mark}", sides[key], took[key], limit=gemm.value, about=about))
        if compiled in sides:
            about = f"{images}: the seconds layer by layer over those of the compiled network"
            name = f"compute.{network}_compiled_vs_plain{mark}"
            figures.append(ratio(name, took[plain], took[compiled], about=about))
    return figures


def _best(choice: Choice, precision: str, sides: dict[str, Side]) -> str:
    """How networks of this precision are run: compiled where that was chosen and can be."""
    return "compiled" if choice.is_compiled and f"{precision} focus compiled" in sides else "plain"


def _on_images(lab: Lab, network: str, side: Side) -> str:
    if network == "focus":
        return f"{_focus_name(lab)} runs on {side.images} patches of {lab.work.patch_px} px"
    name = NAMES.get(lab.work.glance, lab.work.glance)
    return f"{name} runs on {side.images} views of {lab.work.glance_px} px"


def _focus_name(lab: Lab) -> str:
    return NAMES.get(lab.work.focus, lab.work.focus)


def sizes(lab: Lab, choice: Choice, full_px: int, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """The focus network from the smallest patch to the whole frame, and what a clip costs with and without patches."""
    how: dict[str, Any] = {"compiled": choice.is_compiled}
    work = lab.work
    patches_px = sorted({*(px for px in PATCHES_PX if px < full_px), work.patch_px})
    sizes_px = sorted({*patches_px, full_px})
    sides = {"product": lab.product(choice.precision)}
    sides["glance"] = lab.glance(choice.precision, batch=choice.glance_batch, **how)
    for px in sizes_px:
        sides[str(px)] = lab.focus(choice.precision, batch=choice.focus_batch, px=px, **how)
    took = turns(lab, sides, rounds, budget_s, say)
    per_image = {name: [s / sides[name].images for s in samples] for name, samples in took.items()}
    figures = []
    for px in sizes_px:
        side = sides[str(px)]
        about = f"{_focus_name(lab)} runs at {px} px in {choice.precision}, {side.images} patches at a time"
        figures.append(
            measured(f"compute.focus_{px}_ms", [s * 1000 for s in per_image[str(px)]], unit="ms/patch", about=about)
        )
        pair = (side, sides["product"], took[str(px)], took["product"])
        figures.append(share_of_product(f"compute.focus_{px}_share_of_gemm", *pair, about=about))
    full = [work.patches * f for f in per_image[str(full_px)]]
    for px in patches_px:
        clip = [
            work.glances * g + work.patches * f for g, f in zip(per_image["glance"], per_image[str(px)], strict=True)
        ]
        mark = "" if px == work.patch_px else f"_{px}"
        about = (
            f"the seconds of {work.patches} full frames in focus over those of {work.glances} glances and "
            f"{work.patches} patches of {px} px"
        )
        figures.append(ratio(f"compute.full_vs_patches{mark}", full, clip, about=about))
        if px == work.patch_px:
            figures.append(
                measured(
                    "compute.clip_s",
                    clip,
                    unit="s/clip",
                    about=f"a clip of glances and patches of {px} px takes so long",
                )
            )
            figures.append(
                measured(
                    "compute.full_clip_s",
                    full,
                    unit="s/clip",
                    about=f"a clip of {work.patches} full frames takes so long",
                )
            )
    return figures


def batches(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """What an image costs both networks by the number of images in a pass."""
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
    took = turns(lab, sides, rounds, budget_s, say)
    return [
        measured(
            f"compute.{name}_ms",
            [s / sides[name].images * 1000 for s in took[name]],
            unit="ms/image",
            about=f"an image takes so long in {choice.precision} where so many are in a pass",
        )
        for name in sorted(sides, key=lambda name: (name.split("_")[0], int(name.split("_")[-1])))
    ]


def small(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """The networks that ship. They are too small for the product to be their limit; the figures show by how much."""
    how: dict[str, Any] = {"compiled": choice.is_compiled, "batch": choice.focus_batch, "small": True}
    sides = {
        "product": lab.product(choice.precision),
        "glance": lab.glance(choice.precision, **how),
        "focus": lab.focus(choice.precision, **how),
    }
    took = turns(lab, sides, rounds, budget_s, say)
    return [
        share_of_product(
            f"compute.small_{name}_share_of_gemm",
            sides[name], sides["product"], took[name], took["product"],
            about=f"small_{name} runs on {sides[name].images} images of {SMALL_PX} px in {choice.precision}",
        )
        for name in ("focus", "glance")
    ]  # fmt: skip


def standalone(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """The operator, copies to and from the device included, against the bare network on what is there already."""
    batch = choice.focus_batch
    sides = {
        "standalone": lab.standalone(choice.precision, batch=batch),
        "operator": lab.focus(choice.precision, compiled=choice.is_compiled, batch=batch),
    }
    with fastest_convolutions():
        took = turns(lab, sides, rounds, budget_s, say)
    per_image = {name: [s / sides[name].images for s in samples] for name, samples in took.items()}
    return [
        ratio(
            "compute.operator_share_of_standalone", per_image["standalone"], per_image["operator"],
            unit="of the rate", limit=1.0, goal=OPERATOR_GOAL,
            about=f"{_focus_name(lab)} runs on {batch} patches of {lab.work.patch_px} px",
        )
    ]  # fmt: skip


def whole_machine(lab: Lab, choice: Choice, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """One process with all cores instead of one process for each: what threads that wait for each other cost."""
    how: dict[str, Any] = {"compiled": choice.is_compiled}
    sides = {
        "product": lab.product(choice.precision),
        "glance": lab.glance(choice.precision, batch=choice.glance_batch, **how),
        "focus": lab.focus(choice.precision, batch=choice.focus_batch, **how),
    }
    took = turns(lab, sides, rounds, budget_s, say)
    about = f"in {choice.precision}, {lab.threads} threads run together; seconds are those of the clock"
    return [
        rate("compute.gemm.all_cores", sides["product"], took["product"], about=about),
        *(
            share_of_product(
                f"compute.{name}_share_of_gemm.all_cores",
                sides[name], sides["product"], took[name], took["product"], about=about,
            )
            for name in ("focus", "glance")
        ),
    ]  # fmt: skip
